//! What a domain does when something that serves it is gone, fails, or is to be exchanged.
//!
//! | happens | the guest sees | then |
//! |---|---|---|
//! | a backend dies | its devices stand still | another one takes its place, see [`attempt`] |
//! | a foreign backend hangs up | the same | its socket is connected to again |
//! | a remote disk's server is gone | requests wait | it is connected to again |
//! | a switch dies | its NICs stand still | it is started again, and the NICs are plugged in again |
//! | passt of a NIC dies | frames are lost | another one takes its place |
//! | a request fails and is held | nothing | the domain is paused until it is unpaused, and the request done again |

use std::rc::Rc;
use std::time::Duration;

use domus_startup::control::chain;
use domus_startup::fds::Outgoing;
use nix::errno::Errno;
use serde::Serialize;
use shared_abi::control::{
    Attachment, BackendEvent, BackendReply, BlockRequest, NetRequest, RunnerEvent, RunnerReply, RunnerRequest,
};
use shared_abi::{DeviceId, Role};
use tokio::time::Instant;

use crate::device::block::config::{DiskSource, OnLoss};
use crate::device::net::config::{Net, NetLink};
use crate::device::start::Leftovers;
use crate::domain::Domain;
use crate::domain::error::StartError;
use crate::domain::events::Kind;
use crate::domain::lifecycle::Event;
use crate::domain::machine::attempt::{self, Lost, Means, Revived, Reviving};
use crate::domain::machine::backend::Backend;
use crate::domain::machine::build::{identity, owner};
use crate::process::link::{ANSWER, ChildError};
use crate::value::backoff::GOOD_LIFE;
use crate::value::text::one_line;

/// A loss, or a fault, that an operator may want to know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What it is about: a disk, a backend.
    pub layer: String,
    /// What has happened.
    pub cause: String,
    /// What to do, or what is being done.
    pub next: String,
}

/// A request of a disk that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    device: DeviceId,
    cause: String,
}

impl Domain {
    /// Which backend of the domain's own serves this device.
    pub(in crate::domain) fn role_of(&self, device: &DeviceId) -> Option<Role> {
        let own = |disk: &crate::device::block::config::Disk| disk.id == *device && disk.own().is_some();
        if self.config.disks.iter().any(own) {
            Some(Role::Block)
        } else {
            self.config.nets.iter().any(|net| net.id == *device && net.is_own()).then_some(Role::Net)
        }
    }

    pub(in crate::domain) fn means(&self, role: Role) -> Option<Means> {
        Some(Means {
            owner: owner(&self.config, self.incarnation.domid?, &self.dir),
            config: self.config.clone(),
            identity: identity(&self.config, self.incarnation.domid?),
            control: self.dir.control(role),
            program: self.programs.get(&role).cloned(),
            commons: self.commons.clone(),
            kept: self.incarnation.kept.clone()?,
        })
    }

    /// A backend's process has ended.
    pub(in crate::domain) fn backend_ended(&mut self, n: usize, how: &str) {
        let backend = self.incarnation.backends.swap_remove(n);
        let (role, lived) = (backend.role, backend.since.elapsed());
        let (process, remains) = backend.into_parts();
        tokio::task::spawn_local(process.reap());
        self.held.clear();
        if role == Role::Net {
            // The next backend comes with passts of its own.
            self.incarnation.reviving.retain(|one| !matches!(one.lost, Lost::Passt(_)));
        }
        if !self.state.has_machine() {
            return self.say(&format!("{} {how}", role.program()));
        }
        let young = self.young.entry(role).or_default();
        *young = if lived < GOOD_LIFE { *young + 1 } else { 0 };
        let attempts = *young;
        self.lost(Lost::Own(role), how.into(), attempts, Rc::new(remains));
    }

    /// The runner has lost the connection to a device's backend.
    pub(in crate::domain) fn device_lost(&mut self, device: &DeviceId) {
        match self.role_of(device) {
            // A process that serves no more is none. Its end is seen by its pidfd, which may have been before this.
            Some(role) => {
                if let Some(backend) = self.incarnation.backends.iter().find(|one| one.role == role) {
                    backend.process.kill();
                }
            }
            None => {
                let at_switch = |net: &Net| net.id == *device && matches!(net.link, NetLink::Switch(_));
                let lost = match self.config.nets.iter().any(at_switch) {
                    true => Lost::Switch(device.clone()),
                    false => Lost::Foreign(device.clone()),
                };
                self.lost(lost, "has hung up".into(), 0, Rc::default());
            }
        }
    }

    pub(in crate::domain) fn lost(&mut self, lost: Lost, how: String, attempts: u32, remains: Rc<Leftovers>) {
        if self.incarnation.reviving.iter().any(|one| one.lost == lost) {
            return;
        }
        let Some(attempt) = self.attempt(&lost, attempts, &remains) else { return };
        self.happened_of_child(Kind::BackendLost, &format!("{lost} {how}"));
        let since = Instant::now();
        let reviving =
            Reviving { lost, how, since, attempts, problem: None, settled: false, remains, attempt };
        self.incarnation.reviving.push(reviving);
        self.pause_for_the_lost();
        self.tell();
    }

    fn attempt(&self, lost: &Lost, attempts: u32, remains: &Rc<Leftovers>) -> Option<attempt::Attempt> {
        match lost {
            Lost::Own(role) => Some(attempt::own(self.means(*role)?, *role, attempts, remains.clone())),
            Lost::Server(device) => {
                let uri = self.incarnation.kept.as_ref()?.disks.borrow().server(device)?;
                Some(attempt::server(device.clone(), uri, attempts))
            }
            Lost::Switch(nic) => Some(attempt::switch(self.means(Role::Net)?, nic.clone(), attempts)),
            Lost::Passt(nic) => Some(attempt::passt(self.means(Role::Net)?, nic.clone(), attempts)),
            Lost::Foreign(device) => {
                let disks = self.config.disks.iter().enumerate().filter_map(|(n, disk)| match &disk.source {
                    DiskSource::VhostUser(path) => Some((&disk.id, format!("disks[{n}]"), path)),
                    DiskSource::Own(_) => None,
                });
                let devices = self.config.devices.iter().enumerate();
                let devices =
                    devices.map(|(n, device)| (&device.id, format!("devices[{n}]"), &device.socket));
                let nets = self.config.nets.iter().enumerate().filter_map(|(n, net)| match &net.link {
                    NetLink::VhostUser(path) => Some((&net.id, format!("nets[{n}]"), path)),
                    _ => None,
                });
                let (_, at, path) = disks.chain(devices).chain(nets).find(|(id, ..)| *id == device)?;
                let at = format!("{at}.vhost_user_socket");
                Some(attempt::foreign(
                    self.config.file.clone(),
                    device.clone(),
                    at,
                    path.as_path().into(),
                    attempts,
                ))
            }
        }
    }

    /// When the next loss has lasted as long as a disk's policy allows.
    pub(in crate::domain) fn next_policy(&self) -> Option<Instant> {
        let open = self.incarnation.reviving.iter().filter(|one| !one.settled);
        open.filter_map(|one| Some(one.since + self.patience(&one.lost)?)).min()
    }

    /// How long the disks concerned let the domain run without them.
    fn patience(&self, lost: &Lost) -> Option<Duration> {
        let concerned = self.config.disks.iter().filter(|disk| match lost {
            Lost::Own(Role::Block) => disk.own().is_some(),
            Lost::Own(_) | Lost::Passt(_) | Lost::Switch(_) => false,
            Lost::Foreign(device) | Lost::Server(device) => disk.id == *device,
        });
        let patience = concerned.filter_map(|disk| match disk.on_loss {
            OnLoss::Stall | OnLoss::ErrorAfter(_) => None,
            OnLoss::Pause => Some(Duration::ZERO),
            OnLoss::PauseAfter(seconds) => Some(Duration::from_secs(seconds.into())),
        });
        patience.min()
    }

    /// Pauses the domain if something has been lost for as long as a policy allows.
    pub(in crate::domain) fn pause_for_the_lost(&mut self) {
        let mut over = false;
        for n in 0..self.incarnation.reviving.len() {
            let one = &self.incarnation.reviving[n];
            let patience = self.patience(&one.lost);
            if !one.settled && patience.is_some_and(|patience| one.since.elapsed() >= patience) {
                self.incarnation.reviving[n].settled = true;
                over = true;
            }
        }
        if over {
            self.say("paused: a disk's on_backend_loss says so");
            self.feed(&Event::Trouble);
        }
    }

    /// From now on the requests of disks fail that have been lost for longer than their policy waits.
    fn give_up_the_lost(&self, since: Instant) {
        let Some(kept) = &self.incarnation.kept else { return };
        for disk in &self.config.disks {
            if let OnLoss::ErrorAfter(seconds) = disk.on_loss
                && since.elapsed() >= Duration::from_secs(seconds.into())
            {
                kept.disks.borrow_mut().lose(&disk.id, true);
            }
        }
    }

    /// An attempt to have something again has ended.
    pub(in crate::domain) async fn revived(&mut self, n: usize, result: Result<Revived, StartError>) {
        let Reviving { lost, how, since, attempts, settled, remains, .. } =
            self.incarnation.reviving.swap_remove(n);
        let done = match result {
            Ok(revived) => self.put_in_place(&lost, since, revived).await,
            Err(error) => Err(chain(&error)),
        };
        let problem = match done {
            Ok(stalled) => {
                self.view.send_modify(|view| view.restarts += 1);
                self.keep();
                let stalled = stalled.as_millis();
                let back = format!("{lost}: devices stood still for {stalled} ms");
                self.happened_of_child(Kind::BackendBack, &back);
                self.say_of_child(&format!("{lost} {how} and is back: devices stood still for {stalled} ms"));
                return self.tell();
            }
            Err(problem) => problem,
        };
        if attempts == 0 {
            self.say_of_child(&format!("{lost} {how} and cannot be had again yet: {problem}"));
        }
        self.give_up_the_lost(since);
        let attempts = attempts.saturating_add(1);
        if let (true, Some(attempt)) = (self.state.has_machine(), self.attempt(&lost, attempts, &remains)) {
            let problem = Some(problem);
            let again = Reviving { lost, how, since, attempts, problem, settled, remains, attempt };
            self.incarnation.reviving.push(again);
        }
        self.tell();
    }

    /// Returns how long the devices concerned have stood still.
    pub(in crate::domain) async fn put_in_place(
        &mut self,
        lost: &Lost,
        since: Instant,
        revived: Revived,
    ) -> Result<Duration, String> {
        let Revived { backend, sockets, serial } = revived;
        let mut fds = Outgoing::default();
        match lost {
            Lost::Server(disk) => {
                for (_, socket) in sockets {
                    let request = BlockRequest::Reconnect { disk: disk.clone(), socket: fds.add(socket) };
                    self.ask_block(&request, std::mem::take(&mut fds)).await?;
                }
                return Ok(since.elapsed());
            }
            Lost::Passt(nic) => {
                for (_, socket) in sockets {
                    let request = NetRequest::Reconnect { nic: nic.clone(), socket: fds.add(socket) };
                    self.ask_net(&request, std::mem::take(&mut fds)).await?;
                }
                // What its backend has said of the connection before is over.
                let net = self.incarnation.backends.iter_mut().find(|backend| backend.role == Role::Net);
                if let Some(link) = net.and_then(|backend| backend.link.as_mut()) {
                    link.forget(
                        |event| matches!(event, BackendEvent::ConnectionLost { device, .. } if device == nic),
                    );
                }
                return Ok(since.elapsed());
            }
            Lost::Own(_) | Lost::Foreign(_) | Lost::Switch(_) => {}
        }
        let stalled = self.attach(sockets).await.map_err(|error| chain(&error))?;
        if let Some(serial) = serial {
            let request = RunnerRequest::Serial(fds.add(serial));
            let taken = self.talk_with(&request, fds.into_vec(), ANSWER, "taken another serial line");
            taken.await.map_err(|error| chain(&error))?;
        }
        if let Some(backend) = backend {
            self.join(backend).await;
        }
        Ok(stalled)
    }

    /// A backend serves: it is one of the domain's.
    async fn join(&mut self, backend: Backend) {
        let role = backend.role;
        self.incarnation.backends.push(backend);
        self.keep();
        if role == Role::Block {
            self.learn_sizes().await;
        }
    }

    /// Asks for the size of each disk whose requests are to fail after a time: what takes its place must be as large.
    pub(in crate::domain) async fn learn_sizes(&mut self) {
        let config = self.config.clone();
        for disk in config.disks.iter().filter(|disk| matches!(disk.on_loss, OnLoss::ErrorAfter(_))) {
            let request = BlockRequest::Statistics(disk.id.clone());
            if let Ok(BackendReply::Disk(disk_is)) = self.ask_block(&request, Outgoing::default()).await
                && let Some(kept) = &self.incarnation.kept
            {
                kept.disks.borrow_mut().keep_size(&disk.id, disk_is.bytes);
                self.keep();
            }
        }
    }

    /// Gives the runner new connections for its devices; returns how long these have stood still.
    async fn attach(
        &mut self,
        sockets: Vec<(DeviceId, std::os::fd::OwnedFd)>,
    ) -> Result<Duration, ChildError> {
        if sockets.is_empty() {
            return Ok(Duration::ZERO);
        }
        let devices: Vec<_> = sockets.iter().map(|(device, _)| device.clone()).collect();
        let mut fds = Outgoing::default();
        let attachments =
            sockets.into_iter().map(|(device, socket)| Attachment { device, socket: fds.add(socket) });
        let request = RunnerRequest::Attach(attachments.collect());
        let reply = self.talk_with(&request, fds.into_vec(), ANSWER, "taken another backend").await?;
        // What it has said of the connections before is over.
        if let Some(link) = self.incarnation.runner.as_mut().and_then(|runner| runner.link.as_mut()) {
            link.forget(|event| matches!(event, RunnerEvent::DeviceLost(device) if devices.contains(device)));
        }
        match reply {
            None => Ok(Duration::ZERO),
            Some(RunnerReply::Attached { stalled_us }) => Ok(Duration::from_micros(stalled_us)),
            Some(other) => {
                Err(ChildError::Failed { role: Role::Runner, why: format!("answered with {other:?}") })
            }
        }
    }

    /// Asks the block backend.
    ///
    /// # Errors
    /// One line; also if it is being started again.
    pub(in crate::domain) async fn ask_block(
        &mut self,
        request: &BlockRequest,
        fds: Outgoing,
    ) -> Result<BackendReply, String> {
        self.ask_backend(Role::Block, request, fds).await
    }

    /// Asks the network backend.
    ///
    /// # Errors
    /// One line; also if it is being started again.
    pub(in crate::domain) async fn ask_net(
        &mut self,
        request: &NetRequest,
        fds: Outgoing,
    ) -> Result<BackendReply, String> {
        self.ask_backend(Role::Net, request, fds).await
    }

    async fn ask_backend<R: Serialize>(
        &mut self,
        role: Role,
        request: &R,
        fds: Outgoing,
    ) -> Result<BackendReply, String> {
        let backend = self.incarnation.backends.iter_mut().find(|backend| backend.role == role);
        let Some(Backend { process, link: Some(link), .. }) = backend else {
            let what = if role == Role::Block { "disks" } else { "NICs" };
            return Err(format!("its {what} are not served just now: see domus why"));
        };
        let exchange = async {
            link.send(request, &fds.into_vec()).await?;
            link.answer(process, ANSWER, "answered").await
        };
        exchange.await.map_err(|error| chain(&error))
    }

    /// A backend reports something.
    pub(in crate::domain) fn backend_event(&mut self, role: Role, event: BackendEvent) {
        match event {
            BackendEvent::DeviceFailed { device, why } => {
                self.say_of_child(&format!("{role} device {device}: {}", one_line(&why)));
            }
            BackendEvent::IoError { device, operation, offset, errno } => {
                let operation = one_line(&operation);
                let cause = format!(
                    "a {operation} at byte {offset} failed: {} (errno {errno})",
                    Errno::from_raw(errno).desc()
                );
                self.happened_of_child(Kind::RequestHeld, &format!("disk {device}: {cause}"));
                self.say_of_child(&format!("disk {device}: {cause}: the domain is paused"));
                self.held.retain(|held| held.device != device);
                self.held.push(Held { device, cause });
                self.feed(&Event::Trouble);
                self.tell();
            }
            BackendEvent::ConnectionLost { device, why } if role == Role::Net => {
                self.passt_lost(device, format!("has hung up ({})", one_line(&why)));
            }
            BackendEvent::ConnectionLost { device, why } => {
                self.lost(Lost::Server(device), format!("is gone ({})", one_line(&why)), 0, Rc::default());
            }
        }
    }

    /// The passt of a NIC has ended. Its backend may see that later, or not at all while nobody drives the NIC.
    pub(in crate::domain) async fn passt_ended(&mut self, nic: DeviceId) {
        let Some(kept) = self.incarnation.kept.clone() else { return };
        let Some(passt) = kept.nets.borrow_mut().take_passt(&nic) else { return };
        let how = passt.ended().await;
        tokio::task::spawn_local(passt.reap());
        if self.state.has_machine() {
            self.passt_lost(nic, how);
        }
    }

    pub(in crate::domain) fn passt_lost(&mut self, nic: DeviceId, how: String) {
        if self.incarnation.reviving.iter().any(|one| one.lost == Lost::Own(Role::Net)) {
            return;
        }
        let young = match self.young_passts.get(&nic) {
            Some((young, last)) if last.elapsed() < GOOD_LIFE => young.saturating_add(1),
            _ => 0,
        };
        self.young_passts.insert(nic.clone(), (young, Instant::now()));
        self.lost(Lost::Passt(nic), how, young, Rc::default());
    }

    /// A request of this disk waits for an operator.
    pub(in crate::domain) fn is_held(&self, disk: &DeviceId) -> bool {
        self.held.iter().any(|held| held.device == *disk)
    }

    /// This disk has nobody to serve it just now.
    pub(in crate::domain) fn is_waiting(&self, disk: &DeviceId) -> bool {
        self.incarnation.reviving.iter().any(|one| match &one.lost {
            Lost::Own(role) => self.role_of(disk) == Some(*role),
            Lost::Foreign(device) | Lost::Server(device) | Lost::Passt(device) | Lost::Switch(device) => {
                device == disk
            }
        })
    }

    /// Has the held requests done again.
    pub(in crate::domain) async fn retry(&mut self) {
        if self.held.is_empty() {
            return;
        }
        self.held.clear();
        if let Err(error) = self.ask_block(&BlockRequest::Retry, Outgoing::default()).await {
            // A new backend does them without being asked.
            self.say(&format!("held requests: {error}"));
        }
        self.tell();
    }

    /// Shows the troubles of the moment.
    pub(in crate::domain) fn tell(&self) {
        let name = &self.config.name;
        let held = self.held.iter().map(|held| Trouble {
            layer: format!("disk {}", held.device),
            cause: held.cause.clone(),
            next: format!("mend it, then domus unpause {name}: the same request is done again"),
        });
        let lost = self.incarnation.reviving.iter().map(|one| Trouble {
            layer: one.lost.to_string(),
            cause: match &one.problem {
                None => one.how.clone(),
                Some(problem) => format!("{}; attempt {} failed: {problem}", one.how, one.attempts),
            },
            next: "its devices stand still, nothing is lost; it is tried again every few seconds".into(),
        });
        let kept = self.incarnation.kept.as_ref();
        let failing = kept.map(|kept| kept.disks.borrow().failing()).unwrap_or_default();
        let failing = failing.into_iter().map(|disk| Trouble {
            layer: format!("disk {disk}"),
            cause: "it was not served for so long that its requests fail now (on_backend_loss)".into(),
            next: format!("domus backend upgrade {name} {disk}: it is served again"),
        });
        let troubles = held.chain(lost).chain(failing).collect();
        self.view.send_modify(|view| view.troubles = troubles);
    }
}
