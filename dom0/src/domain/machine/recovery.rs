//! What a machine does when something that serves it is gone or fails.
//!
//! | happens | the guest sees | then |
//! |---|---|---|
//! | a backend dies | its devices stand still | another one takes its place, see [`attempt`] |
//! | a backend of others' hangs up | the same | its socket is connected to again |
//! | a remote disk's server is gone | requests wait | it is connected to again |
//! | a switch dies | its NICs stand still | it is started again, and the NICs are plugged in again |
//! | passt of a NIC dies | frames are lost | another one takes its place |
//! | a tap is taken out of its bridge, or that is gone | frames are lost | it is put back, once there is a bridge |
//! | a tap is removed | frames are lost | it is made again, and its backend is started again with it |
//! | a request fails and is held | nothing | the domain is paused until it is unpaused, and the request done again |

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use domus_startup::control::chain;
use domus_startup::fds::Outgoing;
use futures_util::FutureExt;
use nix::errno::Errno;
use serde::Serialize;
use shared_abi::control::{
    Attachment, BackendEvent, BackendReply, BlockRequest, RunnerEvent, RunnerReply, RunnerRequest,
};
use shared_abi::{DeviceId, Role};
use tokio::time::Instant;

use crate::config::OnHang;
use crate::device::loss::{Loss, Mended};
use crate::device::start::Leftovers;
use crate::domain::error::StartError;
use crate::domain::events::Kind;
use crate::domain::machine::attempt::{self, Attempt, Launcher, PausedRequest, Repair, Repaired, Served};
use crate::domain::machine::backend::BackendProcess;
use crate::domain::machine::hang::BEAT;
use crate::domain::machine::{Machine, Notice};
use crate::process::link::{ANSWER, ChildError, unexpected};
use crate::value::text::one_line;
use crate::value::trouble::Trouble;

impl Machine {
    /// What a process in this role is started with. None if no device needs it.
    pub(super) fn launcher(&self, role: Role) -> Option<Launcher> {
        Some(Launcher {
            class: self.devices.in_role(role)?,
            role,
            owner: self.owner.clone(),
            uuid: self.uuid,
            memory: self.memory,
            vcpus: self.vcpus,
            control: self.control(role),
            program: self.programs.get(&role).cloned(),
            from: self.from.clone(),
            destroyed: self.destroyed.clone(),
        })
    }

    pub(super) fn backend(&mut self, role: Role) -> Option<&mut BackendProcess> {
        self.backends.iter_mut().find(|backend| backend.role == role)
    }

    /// A backend's process has ended.
    pub(super) fn backend_ended(&mut self, n: usize, how: &str) {
        let backend = self.backends.swap_remove(n);
        let (role, lived) = (backend.role, backend.since.elapsed());
        let hung = backend.hung.map(|seconds| format!("did not answer for {seconds} s, and was killed"));
        let how = hung.as_deref().unwrap_or(how);
        let (process, leftovers) = backend.into_parts();
        tokio::task::spawn_local(process.reap());
        self.losses.paused.clear();
        // The next one comes with helpers of its own.
        let class = self.devices.in_role(role);
        let serves = |nic: &DeviceId| class.as_ref().is_some_and(|class| class.serves(nic));
        self.losses.open.retain(|repair| !matches!(&repair.loss, Loss::Passt(nic) if serves(nic)));
        if self.runner.is_none() {
            return self.say(format!("{} {how}", role.program()));
        }
        let loss = Loss::Process(role);
        let attempts = self.losses.deaths(&loss).died(lived);
        self.lost(loss, how.into(), attempts, Rc::new(leftovers));
    }

    /// The runner has lost the connection to a device's backend.
    pub(super) fn device_lost(&mut self, device: &DeviceId) {
        let Some(class) = self.devices.of_device(device) else { return };
        match class.lost(device) {
            // A process that serves no more is none. Its end is seen by its pidfd, which may have been before this.
            Loss::Process(role) => {
                if let Some(backend) = self.backend(role) {
                    backend.process.kill();
                }
            }
            loss => self.lost(loss, "has hung up".into(), 0, Rc::default()),
        }
    }

    /// A helper of a device has ended. Its backend may see that later, or not at all while nobody drives the device.
    pub(super) async fn helper_ended(&mut self, loss: Loss) {
        let Some(class) = self.devices.concerned(&loss) else { return };
        let Some(how) = class.bury(&loss).await else { return };
        if self.runner.is_some() {
            self.helper_lost(loss, how);
        }
    }

    pub(super) fn helper_lost(&mut self, loss: Loss, how: String) {
        let role = self.devices.concerned(&loss).and_then(|class| class.role());
        // A wire is put right with or without somebody who uses it.
        if !matches!(loss, Loss::Wire(_)) && role.is_some_and(|role| self.is_open(&Loss::Process(role))) {
            return;
        }
        // The first one has lived for as long as its backend.
        let attempts = self.losses.deaths(&loss).died_at(Instant::now().into_std());
        self.lost(loss, how, attempts, Rc::default());
    }

    fn is_open(&self, loss: &Loss) -> bool {
        self.losses.open.iter().any(|repair| repair.loss == *loss)
    }

    /// Begins to have something again.
    pub(super) fn lost(&mut self, loss: Loss, how: String, attempts: u32, leftovers: Rc<Leftovers>) {
        if self.is_open(&loss) {
            return;
        }
        let Some(attempt) = self.attempt(&loss, attempts, &leftovers) else { return };
        self.event_of(&loss, Kind::BackendLost, format!("{loss} {how}"));
        let since = Instant::now();
        let repair = Repair { loss, how, since, attempts, problem: None, settled: false, leftovers, attempt };
        self.losses.open.push(repair);
        self.pause_for_the_lost();
    }

    fn attempt(&self, loss: &Loss, attempts: u32, leftovers: &Rc<Leftovers>) -> Option<Attempt> {
        if let Loss::Process(role) = loss {
            return Some(self.launcher(*role)?.attempt(attempts, leftovers.clone()));
        }
        let class = self.devices.concerned(loss)?;
        Some(attempt::mend(class, loss.clone(), attempts, self.owner.clone(), self.from.clone()))
    }

    fn patience(&self, loss: &Loss) -> Option<Duration> {
        self.devices.concerned(loss)?.patience(loss)
    }

    /// When the next loss has lasted as long as a device's policy allows.
    pub(super) fn next_policy(&self) -> Option<Instant> {
        let unsettled = self.losses.open.iter().filter(|repair| !repair.settled);
        unsettled.filter_map(|repair| Some(repair.since + self.patience(&repair.loss)?)).min()
    }

    /// Has the domain paused if something has been lost for as long as a policy allows.
    pub(super) fn pause_for_the_lost(&mut self) {
        let over: Vec<_> = self
            .losses
            .open
            .iter()
            .map(|repair| {
                let patience = self.patience(&repair.loss);
                !repair.settled && patience.is_some_and(|patience| repair.since.elapsed() >= patience)
            })
            .collect();
        for (repair, over) in self.losses.open.iter_mut().zip(&over) {
            repair.settled |= over;
        }
        if over.contains(&true) {
            self.say("paused: a disk's on_backend_loss says so".into());
            self.notices.push(Notice::Trouble);
        }
    }

    /// An attempt to have something again has ended.
    pub(super) async fn attempted(&mut self, n: usize, result: Result<Repaired, StartError>) {
        let Repair { loss, how, since, attempts, settled, leftovers, .. } = self.losses.open.swap_remove(n);
        let done = match result {
            Ok(Repaired::Device(Mended::Restart(device))) => {
                self.say_of(
                    &loss,
                    format!("{loss} {how}: it is made again, and its backend is started again"),
                );
                let role = self.devices.of_device(&device).and_then(|class| class.role());
                if let Some(backend) = role.and_then(|role| self.backend(role)) {
                    backend.process.kill();
                }
                return;
            }
            Ok(repaired) => self.put_in_place(since, repaired).await,
            Err(error) => Err(chain(&error)),
        };
        let problem = match done {
            Ok(stalled) => {
                let stalled = stalled.as_millis();
                self.losses.deaths(&loss).began(Instant::now().into_std());
                self.notices.push(Notice::Restarted);
                let back = format!("{loss}: devices stood still for {stalled} ms");
                self.event_of(&loss, Kind::BackendBack, back);
                let back = format!("{loss} {how} and is back: devices stood still for {stalled} ms");
                return self.say_of(&loss, back);
            }
            Err(problem) => problem,
        };
        self.remains_gone(&loss, &leftovers).await;
        if attempts == 0 {
            self.say_of(&loss, format!("{loss} {how} and cannot be had again yet: {problem}"));
        }
        if let Some(class) = self.devices.concerned(&loss) {
            class.give_up(&loss, since.elapsed());
        }
        let attempts = attempts.saturating_add(1);
        if self.runner.is_some()
            && let Some(attempt) = self.attempt(&loss, attempts, &leftovers)
        {
            let problem = Some(problem);
            let again = Repair { loss, how, since, attempts, problem, settled, leftovers, attempt };
            self.losses.open.push(again);
        }
    }

    /// Lets resets end that the guest has begun meanwhile, if nothing of a lost process is at work any more: it may be
    /// long until there is another one.
    async fn remains_gone(&mut self, loss: &Loss, leftovers: &Leftovers) {
        let Loss::Process(role) = loss else { return };
        let (Some(class), Some(runner)) = (self.devices.in_role(*role), &mut self.runner) else { return };
        if leftovers.gone().now_or_never().is_some_and(|gone| gone.is_ok()) {
            let own = class.specs().into_iter().map(|spec| spec.id).filter(|device| class.serves(device));
            runner.tell_gone(own.collect()).await;
        }
    }

    /// Returns how long the devices concerned have stood still.
    async fn put_in_place(&mut self, since: Instant, repaired: Repaired) -> Result<Duration, String> {
        match repaired {
            Repaired::Process(served) => self.join(*served).await,
            Repaired::Device(Mended::Attach(device, socket)) => {
                self.attach(vec![(device, socket)]).await.map_err(|error| chain(&error))
            }
            // The one that needs another process is dealt with where the attempt ends.
            Repaired::Device(Mended::Done | Mended::Restart(_)) => Ok(since.elapsed()),
            Repaired::Device(Mended::Tell(device, request, fds)) => {
                let role = self.devices.of_device(&device).and_then(|class| class.role());
                let backend = role.and_then(|role| self.backend(role));
                let backend = backend.ok_or("its backend is being started again")?;
                backend.ask(&request, fds).await.map_err(|error| chain(&error))?;
                // What it has said of the connection before is over.
                if let Some(link) = &mut backend.link {
                    link.forget(
                        |event| matches!(event, BackendEvent::ConnectionLost { device: of, .. } if *of == device),
                    );
                }
                Ok(since.elapsed())
            }
        }
    }

    /// A process serves: the runner attaches it, and it is one of the machine's. Returns how long its devices stood
    /// still.
    pub(super) async fn join(&mut self, served: Served) -> Result<Duration, String> {
        let Served { backend, sockets, serial } = served;
        let stalled = self.attach(sockets).await.map_err(|error| chain(&error))?;
        if let (Some(serial), Some(runner)) = (serial, &mut self.runner) {
            let mut fds = Outgoing::default();
            let request = RunnerRequest::Serial(fds.add(serial));
            let taken = runner.done_with(&request, fds.into_vec(), ANSWER, "taken another serial line");
            taken.await.map_err(|error| chain(&error))?;
        }
        self.losses.unmeasured = true;
        self.backends.push(backend);
        Ok(stalled)
    }

    /// Gives the runner new connections for its devices; returns how long these have stood still.
    async fn attach(&mut self, sockets: Vec<(DeviceId, OwnedFd)>) -> Result<Duration, ChildError> {
        let Some(runner) = self.runner.as_mut().filter(|_| !sockets.is_empty()) else {
            return Ok(Duration::ZERO);
        };
        let devices: Vec<_> = sockets.iter().map(|(device, _)| device.clone()).collect();
        let mut fds = Outgoing::default();
        let attachments =
            sockets.into_iter().map(|(device, socket)| Attachment { device, socket: fds.add(socket) });
        let request = RunnerRequest::Attach(attachments.collect());
        let reply = runner.ask(&request, fds.into_vec(), ANSWER, "taken another backend").await?;
        // What it has said of the connections before is over.
        if let Some(link) = &mut runner.link {
            link.forget(|event| matches!(event, RunnerEvent::DeviceLost(device) if devices.contains(device)));
        }
        match reply {
            RunnerReply::Attached { stalled_us } => Ok(Duration::from_micros(stalled_us)),
            other => Err(unexpected(Role::Runner, &other)),
        }
    }

    /// Asks the backend in a role something that nobody depends on. None if it does not answer, or not soon.
    pub(super) async fn question(&mut self, role: Role, request: &impl Serialize) -> Option<BackendReply> {
        self.backend(role)?.question(request).await.ok()
    }

    /// Asks the backend that such a request is for.
    ///
    /// # Errors
    /// One line; also if it is being started again.
    pub(super) async fn ask_backend(
        &mut self,
        role: Role,
        request: &impl Serialize,
    ) -> Result<BackendReply, String> {
        let served = self.devices.in_role(role).map_or("devices", |class| class.plural());
        let backend = self.backend(role).filter(|backend| backend.link.is_some());
        let backend =
            backend.ok_or_else(|| format!("its {served} are not served just now: see domus why"))?;
        backend.ask(request, Vec::new()).await.map_err(|error| chain(&error))
    }

    /// A backend reports something.
    pub(super) fn backend_event(&mut self, role: Role, event: BackendEvent) {
        match event {
            BackendEvent::DeviceFailed { device, why } => {
                self.say_of_child(format!("{role} device {device}: {}", one_line(&why)));
            }
            BackendEvent::IoError { device, operation, offset, errno } => {
                let operation = one_line(&operation);
                let cause = format!(
                    "a {operation} at byte {offset} failed: {} (errno {errno})",
                    Errno::from_raw(errno).desc()
                );
                self.event_of_child(Kind::RequestHeld, format!("disk {device}: {cause}"));
                self.say_of_child(format!("disk {device}: {cause}: the domain is paused"));
                self.losses.paused.retain(|paused| paused.device != device);
                self.losses.paused.push(PausedRequest { device, since: Instant::now(), cause });
                self.notices.push(Notice::Trouble);
            }
            BackendEvent::ConnectionLost { device, why } => {
                let Some(class) = self.devices.in_role(role) else { return };
                match class.disconnected(device) {
                    loss @ Loss::Passt(_) => {
                        self.helper_lost(loss, format!("has hung up ({})", one_line(&why)));
                    }
                    loss => self.lost(loss, format!("is gone ({})", one_line(&why)), 0, Rc::default()),
                }
            }
        }
    }

    /// A request of this disk waits for an operator.
    pub(super) fn is_paused(&self, disk: &DeviceId) -> bool {
        self.losses.paused.iter().any(|paused| paused.device == *disk)
    }

    /// This device has nobody to serve it just now.
    pub(super) fn is_waiting(&self, device: &DeviceId) -> bool {
        let serves = |role| self.devices.in_role(role).is_some_and(|class| class.serves(device));
        self.losses.open.iter().any(|repair| match &repair.loss {
            Loss::Process(role) => serves(*role),
            loss => loss.device() == Some(device),
        })
    }

    /// Has the requests done again that wait for an operator.
    pub(super) async fn retry(&mut self) {
        if std::mem::take(&mut self.losses.paused).is_empty() {
            return;
        }
        if let Err(error) = self.ask_backend(Role::Block, &BlockRequest::Retry).await {
            // A new backend does them without being asked.
            self.say(format!("held requests: {error}"));
        }
    }

    /// The troubles of the moment.
    pub fn troubles(&self) -> Vec<Trouble> {
        let name = &self.owner.name;
        let paused = self.losses.paused.iter().map(|paused| Trouble {
            layer: format!("disk {}", paused.device),
            since: Some(paused.since),
            cause: paused.cause.clone(),
            next: format!("mend it, then domus unpause {name}: the same request is done again"),
        });
        let lost = self.losses.open.iter().map(|repair| Trouble {
            layer: repair.loss.to_string(),
            since: Some(repair.since),
            cause: match &repair.problem {
                None => repair.how.clone(),
                Some(problem) => {
                    format!("{}; attempt {} failed: {problem}", repair.how, repair.attempts)
                }
            },
            next: match repair.loss {
                Loss::Wire(_) => "frames are lost until it is put back, as soon as that can be done".into(),
                _ => "its devices stand still, nothing is lost; it is tried again every few seconds".into(),
            },
        });
        let hung = self.silent().map(|(role, since)| Trouble {
            layer: role.program().into(),
            since: Some(since),
            cause: "does not answer".into(),
            next: match (role, self.on_hang) {
                (Role::Runner, _) => {
                    format!("the guest may stand still; domus destroy {name} ends it without its answer")
                }
                (_, OnHang::RestartAfter(limit)) => {
                    format!("another process takes its place when it has been silent for {limit} s")
                }
                (_, OnHang::Stall | OnHang::Pause) => {
                    "on_backend_hang keeps it; kill it and another one takes its place".into()
                }
            },
        });
        let failing = self.devices.disks.failing().into_iter().map(|disk| Trouble {
            layer: format!("disk {disk}"),
            since: None,
            cause: "it was not served for so long that its requests fail now (on_backend_loss)".into(),
            next: format!("domus backend upgrade {name} {disk}: it is served again"),
        });
        let switches = self.late_switches().map(|(switch, since)| Trouble {
            layer: format!("switch {switch}"),
            since: Some(since),
            cause: "does not answer".into(),
            next: "another process takes its place within seconds".into(),
        });
        let ill = self.devices.all().into_iter().flat_map(|class| class.troubles());
        let load = self.vcpu_load.troubles(name, BEAT);
        paused.chain(lost).chain(hung).chain(failing).chain(switches).chain(ill).chain(load).collect()
    }
}
