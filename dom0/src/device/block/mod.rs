//! Disks: those that `domus-block` serves, and vhost-user-blk backends of others'.
//!
//! | file | what |
//! |---|---|
//! | [`config`] | what a config may say of a disk |
//! | [`record`] | what is written down of a disk |
//! | [`open`] | images, and connections to NBD servers |
//! | [`report`] | what there is to say of a disk |
//! | [`health`] | what is amiss with a disk that is served |

pub mod config;
pub mod health;
pub mod open;
pub mod record;
pub mod report;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use domus_startup::fds::Outgoing;
use futures_util::future::FutureExt;
use nix::fcntl::OFlag;
use shared_abi::control::{BackendReply, BlockRequest, BlockStart, DeviceSpec, IoLimits};
use shared_abi::nbd::NbdUri;
use shared_abi::{DeviceId, Role};
use tokio::time::Instant;

use crate::device::block::config::{DiskData, DiskSource, OnLoss, OwnDisk};
use crate::device::block::open::{OpenDisk, Opened};
use crate::device::block::record::BlockRecord;
use crate::device::block::report::DiskReport;
use crate::device::error::DeviceError;
use crate::device::loss::{Loss, Mended};
use crate::device::plan::{Plan, PlannedDevice, PlannedFile, PlannedProcess};
use crate::device::start::{Message, Start};
use crate::device::{Backend, Handover, Owner, Providers, Step, reconnect};
use crate::host::files::Mode;
use crate::host::locks::OpenMarker;
use crate::host::slow::{self, StorageFile};
use crate::host::{nbd, rlimits, sockets};
use crate::network::managed::Networks;
use crate::value::place::{ConfigError, Place};
use crate::value::trouble::Trouble;

/// The disks of a machine.
#[derive(Debug)]
pub struct Disks {
    /// The config file, for messages.
    file: PathBuf,
    disks: RefCell<Vec<OpenDisk>>,
    /// What all of them together may do.
    limits: Cell<IoLimits>,
    /// A guest has had them: what is on them is its own matter.
    are_used: Cell<bool>,
    /// They are opened for their process to look into, as for a check.
    are_looked_into: Cell<bool>,
}

impl Disks {
    /// As they were written down; none is open.
    pub fn new(file: &Path, record: &BlockRecord) -> Self {
        let disks = record.disks.iter().map(OpenDisk::new).collect::<Vec<_>>();
        Self {
            file: file.into(),
            disks: disks.into(),
            limits: record.limits.into(),
            are_used: Cell::default(),
            are_looked_into: Cell::default(),
        }
    }

    /// No guest will have them: they are opened as for a check.
    pub fn set_looked_into(&self) {
        self.are_looked_into.set(true);
    }

    /// What they are opened for.
    fn mode(&self) -> Mode {
        if self.are_looked_into.get() { Mode::Check } else { Mode::Use }
    }

    /// A guest has had them.
    pub fn set_used(&self) {
        self.are_used.set(true);
    }

    /// A dom0 before this one had them open, and a backend that lives has their locks.
    pub fn are_inherited(&self) {
        for disk in self.disks.borrow_mut().iter_mut().filter(|open| open.disk.own().is_some()) {
            disk.inherited = true;
            // The number is unlikely to be used by another marker. If it is, the lifeline still shows when the old
            // process is gone.
            disk.handouts = std::process::id().wrapping_mul(65_537);
        }
    }

    /// For a dom0 that comes later.
    pub fn record(&self) -> BlockRecord {
        let disks = self.disks.borrow().iter().map(OpenDisk::record).collect();
        BlockRecord { limits: self.limits.get(), disks }
    }

    /// A report on each of them, as far as no process is asked.
    pub fn reports(&self) -> Vec<DiskReport> {
        self.disks.borrow().iter().map(DiskReport::of).collect()
    }

    fn place(&self, n: usize) -> Place<'_> {
        Place::new(&self.file, format_args!("disks[{n}]"))
    }

    /// Does something with a disk, if it is here.
    fn with<T>(&self, id: &DeviceId, act: impl FnOnce(&mut OpenDisk) -> T) -> Option<T> {
        self.disks.borrow_mut().iter_mut().find(|open| open.disk.id == *id).map(act)
    }

    /// Refuses a disk that `domus-block` does not serve.
    ///
    /// # Errors
    /// One line.
    pub fn expect_own(&self, disk: &DeviceId) -> Result<(), String> {
        match self.with(disk, |open| open.disk.own().is_some()) {
            Some(true) => Ok(()),
            Some(false) => {
                Err(format!("disk {disk} is served by a backend that Domus did not start: ask that one"))
            }
            None => {
                let disks = self.disks.borrow();
                let ids = disks.iter().map(|open| open.disk.id.as_str()).collect::<Vec<_>>();
                let ids = if ids.is_empty() { "none".into() } else { ids.join(", ") };
                Err(format!("there is no disk \"{disk}\": the domain has {ids}"))
            }
        }
    }

    /// Those that `domus-block` serves.
    fn own(&self) -> Vec<DeviceId> {
        let disks = self.disks.borrow();
        disks.iter().filter(|open| open.disk.own().is_some()).map(|open| open.disk.id.clone()).collect()
    }

    /// Keeps a disk's new limits, or with none those of all together, for the backends to come.
    pub fn keep_limits(&self, disk: Option<&DeviceId>, limits: IoLimits) {
        match disk {
            None => self.limits.set(limits),
            Some(id) => {
                self.with(id, |disk| disk.limits = limits);
            }
        }
    }

    /// A disk's limits, or with none those of all together. None for a disk that is not here.
    pub fn limits(&self, disk: Option<&DeviceId>) -> Option<IoLimits> {
        match disk {
            None => Some(self.limits.get()),
            Some(id) => self.with(id, |disk| disk.limits),
        }
    }

    /// The disks whose size must be known: what takes their place when their requests fail must be as large.
    pub fn to_be_measured(&self) -> Vec<DeviceId> {
        let disks = self.disks.borrow();
        let measured = disks.iter().filter(|open| matches!(open.disk.on_loss, OnLoss::ErrorAfter(_)));
        measured.map(|open| open.disk.id.clone()).collect()
    }

    /// Keeps a disk's size as its backend tells it.
    pub fn keep_size(&self, disk: &DeviceId, bytes: u64) {
        self.with(disk, |disk| disk.bytes = Some(bytes));
    }

    /// The length of a disk's raw image in bytes, as dom0 sees it. None if it has none, or its storage does not answer.
    pub async fn image_length(&self, disk: &DeviceId) -> Option<u64> {
        let (path, image) = self.with(disk, |open| open.raw_image())??;
        slow::with(&path, move |_| image.metadata().ok().map(|meta| meta.len())).await.ok()?
    }

    /// From now on a disk is tried to be served again.
    pub fn serve_again(&self, disk: &DeviceId) {
        self.with(disk, |disk| disk.lost = false);
    }

    /// The disks whose requests fail.
    pub fn failing(&self) -> Vec<DeviceId> {
        self.disks.borrow().iter().filter(|disk| disk.lost).map(|open| open.disk.id.clone()).collect()
    }

    /// The remote disks that have no connection for the next backend.
    fn unconnected(&self) -> Vec<(DeviceId, NbdUri)> {
        let disks = self.disks.borrow();
        let without = disks.iter().filter(|open| open.connection.is_none() && !open.lost);
        without.filter_map(|open| Some((open.disk.id.clone(), open.server()?.clone()))).collect()
    }

    /// Opens what is not open, and what others serve only to see that it is there. Without `keep` nothing stays open.
    ///
    /// # Errors
    /// [`ConfigError`]; also if a path leads to another file than it did.
    async fn open_missing(&self, why: Mode, keep: bool) -> Result<(), ConfigError> {
        let missing = |open: &OpenDisk| {
            let wanted = !keep || !open.is_open;
            wanted.then(|| (open.n, open.disk.clone(), open.files.is_empty()))
        };
        let missing: Vec<_> = self.disks.borrow().iter().filter_map(missing).collect();
        let images = missing.iter().filter_map(|(n, disk, _)| Some((*n, disk.own()?.clone()))).collect();
        open::expect_apart(&self.file, images).await?;
        for (n, disk, is_new) in missing {
            let place = self.place(n);
            match &disk.source {
                DiskSource::Own(own) => {
                    let opened = Opened::new(&place, own, why).await?;
                    if is_new && !self.are_used.get() {
                        opened.expect_raw(&place, own).await?;
                    }
                    if keep {
                        self.with(&disk.id, |open| open.take(opened, &place)).transpose()?;
                    }
                }
                DiskSource::VhostUser(path) => {
                    sockets::foreign(&place.under("vhost_user_socket"), path, false).await?;
                }
            }
        }
        Ok(())
    }

    /// Opens every image once more for the next backend. Where that cannot be, it shares the one that is open.
    async fn reopen(&self) -> Result<(), ConfigError> {
        let reopening = |open: &mut OpenDisk| {
            let (image, number) = open.reopening()?;
            let path = match &open.disk.own()?.data {
                DiskData::Raw(path) | DiskData::Qcow2(path, _) => path.clone(),
                DiskData::Nbd(_) => return None,
            };
            Some((open.n, open.disk.id.clone(), path, image, number))
        };
        let images: Vec<_> = self.disks.borrow_mut().iter_mut().filter_map(reopening).collect();
        for (n, disk, path, image, number) in images {
            let again = slow::with(&path, move |_| {
                let again = OpenMarker::reopen(&image, number).ok();
                drop(image);
                again
            });
            let again = again.await.map_err(|slow| self.place(n).under("path").refuse(slow))?;
            self.with(&disk, |open| open.keep_reopened(again));
        }
        Ok(())
    }

    fn on_loss(&self, loss: &Loss) -> Vec<(DeviceId, OnLoss)> {
        let disks = self.disks.borrow();
        let concerned = disks.iter().filter(|open| match loss.device() {
            Some(device) => open.disk.id == *device,
            None => open.disk.own().is_some(),
        });
        concerned.map(|open| (open.disk.id.clone(), open.disk.on_loss)).collect()
    }
}

impl Backend for Disks {
    fn specs(&self) -> Vec<DeviceSpec> {
        self.disks.borrow().iter().map(|open| open.spec.clone()).collect()
    }

    fn plural(&self) -> &'static str {
        "disks"
    }

    fn role(&self) -> Option<Role> {
        self.disks.borrow().iter().any(|open| open.disk.own().is_some()).then_some(Role::Block)
    }

    fn serves(&self, device: &DeviceId) -> bool {
        self.with(device, |open| open.disk.own().is_some()).unwrap_or(false)
    }

    /// Only a raw image may be open twice: of a qcow2 image one process reads metadata that the other writes, and an
    /// NBD server may serve one client only.
    fn handover(&self) -> Handover {
        let overlaps = |open: &OpenDisk| match open.disk.own() {
            Some(own) => matches!(own.data, DiskData::Raw(_)) && (open.is_open || !open.inherited),
            None => true,
        };
        if self.disks.borrow().iter().all(overlaps) { Handover::Overlap } else { Handover::Exclusive }
    }

    fn check<'a>(&'a self, _networks: &'a Networks) -> Step<'a, ()> {
        async { Ok(self.open_missing(Mode::Check, false).await?) }.boxed_local()
    }

    fn plan(&self, plan: &mut Plan) {
        let disks = self.disks.borrow();
        let own = disks.iter().filter(|open| open.disk.own().is_some());
        let served: Vec<_> = own.map(|open| open.disk.id.to_string()).collect();
        if !served.is_empty() {
            plan.processes.push(PlannedProcess::own(Role::Block.program(), served));
        }
        for open in disks.iter() {
            if let Some(own) = open.disk.own() {
                planned_files(&open.disk.id, own, &mut plan.files);
            }
            plan.devices.push(planned(open));
        }
    }

    fn prepare<'a>(&'a self, _networks: &'a Networks) -> Step<'a, ()> {
        async { Ok(self.open_missing(self.mode(), true).await?) }.boxed_local()
    }

    fn open<'a>(&'a self, _owner: &'a Owner, _from: &'a Providers) -> Step<'a, ()> {
        async {
            self.open_missing(self.mode(), true).await?;
            if !self.are_looked_into.get() {
                self.reopen().await?;
            }
            for (disk, uri) in self.unconnected() {
                let connection = dial(&uri).await?;
                self.with(&disk, |disk| disk.connection = Some(connection));
            }
            Ok(())
        }
        .boxed_local()
    }

    fn start(&self, owner: &Owner) -> io::Result<Start> {
        let mut fds = Outgoing::default();
        let (mut disks, mut sockets, mut locks) = (Vec::new(), Vec::new(), Vec::new());
        let mut marks: Option<Vec<OpenMarker>> = Some(Vec::new());
        for open in self.disks.borrow_mut().iter_mut() {
            let Some(given) = open.hand_out(&mut fds)? else { continue };
            // One image without a marker, and only the lifeline tells.
            match (given.lock, given.marker, &mut marks) {
                (Some(_), Some(marker), Some(marks)) => marks.push(marker),
                (Some(_), None, _) => marks = None,
                _ => {}
            }
            locks.extend(given.lock);
            sockets.push((given.disk.id.clone(), given.socket));
            disks.push(given.disk);
        }
        let (lifeline, end) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let start = BlockStart {
            identity: owner.identity(),
            disks,
            locks,
            limits: self.limits.get(),
            lifeline: fds.add(end),
            limited_files: rlimits::may_be_raised(),
        };
        let message = Message::new(&BlockRequest::Start(Box::new(start)))?;
        let start = Start::new(message, fds.into_vec(), sockets);
        Ok(Start { lifeline: Some(lifeline), marks, ..start })
    }

    fn beat(&self, _version: u32) -> Vec<Message> {
        let ask = |disk| Message::new(&BlockRequest::Statistics(disk)).ok();
        self.own().into_iter().filter_map(ask).collect()
    }

    fn beaten(&self, said: Vec<(usize, BackendReply)>) {
        let own = self.own();
        for (n, reply) in said {
            if let (Some(disk), BackendReply::Disk(statistics)) = (own.get(n), reply) {
                self.with(disk, |open| open.health.look(&statistics, Instant::now()));
            }
        }
    }

    fn troubles(&self) -> Vec<Trouble> {
        let (disks, now) = (self.disks.borrow(), Instant::now());
        disks.iter().flat_map(|open| open.health.troubles(&open.disk.id, now)).collect()
    }

    fn release(&self) -> Vec<StorageFile> {
        self.disks.borrow_mut().iter_mut().flat_map(OpenDisk::release).collect()
    }

    fn connect<'a>(
        &'a self,
        device: &'a DeviceId,
        _owner: &'a Owner,
        _from: &'a Providers,
    ) -> Step<'a, OwnedFd> {
        let socket = self.with(device, |open| match &open.disk.source {
            DiskSource::VhostUser(path) => Some((open.n, path.clone())),
            DiskSource::Own(_) => None,
        });
        async move {
            let nothing = || DeviceError::NotHere(device.clone());
            let (n, path) = socket.flatten().ok_or_else(nothing)?;
            let place = self.place(n).under("vhost_user_socket");
            sockets::foreign(&place, &path, true).await?.ok_or_else(nothing)
        }
        .boxed_local()
    }

    fn disconnected(&self, device: DeviceId) -> Loss {
        Loss::Server(device)
    }

    fn mend<'a>(
        &'a self,
        loss: &'a Loss,
        _attempts: u32,
        owner: &'a Owner,
        from: &'a Providers,
    ) -> Step<'a, Mended> {
        async move {
            if let Loss::Server(disk) = loss
                && let Some(Some(uri)) = self.with(disk, |open| open.server().cloned())
            {
                let mut fds = Outgoing::default();
                let socket = fds.add(dial(&uri).await?);
                let request = BlockRequest::Reconnect { disk: disk.clone(), socket };
                return Mended::tell(disk, &request, fds);
            }
            reconnect(self, loss, owner, from).await
        }
        .boxed_local()
    }

    fn patience(&self, loss: &Loss) -> Option<Duration> {
        let patience = self.on_loss(loss).into_iter().filter_map(|(_, on_loss)| match on_loss {
            OnLoss::Stall | OnLoss::ErrorAfter(_) => None,
            OnLoss::Pause => Some(Duration::ZERO),
            OnLoss::PauseAfter(seconds) => Some(Duration::from_secs(seconds.into())),
        });
        patience.min()
    }

    fn give_up(&self, loss: &Loss, after: Duration) {
        for (disk, on_loss) in self.on_loss(loss) {
            if let OnLoss::ErrorAfter(seconds) = on_loss
                && after >= Duration::from_secs(seconds.into())
            {
                // What takes its place must have its size.
                self.with(&disk, |disk| disk.lost = disk.bytes.is_some());
            }
        }
    }
}

async fn dial(uri: &NbdUri) -> Result<OwnedFd, DeviceError> {
    nbd::dial(uri).await.map_err(|source| DeviceError::Unreachable { server: uri.to_string(), source })
}

fn planned_files(disk: &DeviceId, own: &OwnDisk, files: &mut Vec<PlannedFile>) {
    let lock = if own.read_only { "shared" } else { "exclusive" };
    match &own.data {
        DiskData::Raw(path) => files.push(PlannedFile::at(path, disk.to_string(), lock)),
        DiskData::Qcow2(path, backing) => {
            files.push(PlannedFile::at(path, disk.to_string(), lock));
            let backing = backing.iter().map(|(path, _)| PlannedFile::at(path, disk.to_string(), "shared"));
            files.extend(backing);
        }
        DiskData::Nbd(uri) => {
            let (path, what) = (uri.to_string(), disk.to_string());
            files.push(PlannedFile { path, what, kind: "nbd", bytes: None, lock: "none" });
        }
    }
}

fn planned(OpenDisk { spec, disk, .. }: &OpenDisk) -> PlannedDevice {
    let (backend, is) = match &disk.source {
        DiskSource::VhostUser(socket) => (socket.display().to_string(), "a disk of others'".into()),
        DiskSource::Own(own) => {
            let access = if own.read_only { "read only" } else { "read and write" };
            let is = match &own.data {
                DiskData::Raw(path) => format!("raw {}", path.display()),
                DiskData::Qcow2(path, backing) => {
                    format!("qcow2 {} on {} image(s)", path.display(), backing.len())
                }
                DiskData::Nbd(uri) => uri.to_string(),
            };
            (Role::Block.program().into(), format!("{is}, {access}"))
        }
    };
    let on_backend_loss = match disk.on_loss {
        OnLoss::Stall => "stall".into(),
        OnLoss::Pause => "pause".into(),
        OnLoss::PauseAfter(seconds) => format!("pause after {seconds} s"),
        OnLoss::ErrorAfter(seconds) => format!("error after {seconds} s"),
    };
    PlannedDevice::new(spec, "block".into(), backend, is, on_backend_loss)
}
