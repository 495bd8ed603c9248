//! The disks of a domain: what dom0 keeps open of them, and what it tells their backend, as often as one is started.
//!
//! dom0 keeps its own descriptor of every image: the next backend gets the same open file, whatever has become of the
//! path, and the image's lock is held from the domain's first moment to its last.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use domus_startup::fds::Outgoing;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use shared_abi::DeviceId;
use shared_abi::control::{
    BackingImage, BlockDisk, BlockRequest, BlockSource, BlockStart, Cache, Identity, ImageFormat, IoLimits,
};
use shared_abi::nbd::NbdUri;

use crate::device::block::config::{Disk, DiskData, DiskSource, OnLoss, OwnDisk};
use crate::device::start::{Message, Start};
use crate::host::files::{self, Direct, FileId, For};
use crate::host::locks::Mark;
use crate::host::{nbd, sockets};
use crate::value::place::{ConfigError, Place};

/// A disk that `domus-block` serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Its id.
    pub id: DeviceId,
    /// Its image and what is behind it, as they were opened.
    pub files: Vec<FileId>,
    /// How its image is open.
    pub cache: Cache,
    /// What it may do.
    pub limits: IoLimits,
    /// Its size in bytes, where that must be known.
    pub bytes: Option<u64>,
    /// Its requests fail.
    pub lost: bool,
}

/// What is open of the disks that `domus-block` serves, and what has been changed since.
#[derive(Debug, Default)]
pub struct Disks {
    /// The config file, for messages.
    file: PathBuf,
    disks: Vec<OpenDisk>,
    /// What all of them together may do.
    limits: IoLimits,
}

/// One of them.
#[derive(Debug)]
struct OpenDisk {
    /// Its place in the config's list.
    n: usize,
    /// What the domain was started with.
    disk: Disk,
    /// None for a remote disk.
    image: Option<File>,
    /// A connection to a remote disk's server, for the next backend.
    connection: Option<OwnedFd>,
    backing: Vec<(String, File, ImageFormat)>,
    /// What the two are, whatever their paths lead to later.
    files: Vec<FileId>,
    /// A dom0 before this one had it open, and the backend of then may have it still.
    absent: bool,
    cache: Cache,
    limits: IoLimits,
    /// Its size as its backend has told it last.
    bytes: Option<u64>,
    /// It was not to be had for so long that its requests are to fail.
    lost: bool,
    /// How often its image was given to a backend.
    given: u32,
}

impl Disks {
    /// Opens all images of a config. For a check nothing is kept.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub async fn open(file: &Path, config: &[Disk], limits: IoLimits, why: For) -> Result<Self, ConfigError> {
        let mut disks = Vec::new();
        for (n, disk) in config.iter().enumerate() {
            let place = Place::new(file, format_args!("disks[{n}]"));
            match &disk.source {
                DiskSource::Own(own) => disks.push(OpenDisk::open(&place, n, disk, own, why).await?),
                DiskSource::VhostUser(path) if why == For::Check => {
                    sockets::foreign(&place.under("vhost_user_socket"), path, false)?;
                }
                DiskSource::VhostUser(_) => {}
            }
        }
        Ok(Self { file: file.into(), disks, limits })
    }

    /// Those of a domain that a dom0 before this one had. Nothing of them is open here: a backend that lives has their locks.
    pub fn taken_over(file: &Path, config: &[Disk], records: &[DiskRecord], limits: IoLimits) -> Self {
        let own = records.iter().filter_map(|record| {
            let found = config.iter().enumerate().find(|(_, disk)| disk.id == record.id);
            found.filter(|(_, disk)| disk.own().is_some()).map(|found| (found, record))
        });
        let disks = own.map(|((n, disk), record)| OpenDisk {
            n,
            disk: disk.clone(),
            image: None,
            connection: None,
            backing: Vec::new(),
            files: record.files.clone(),
            absent: true,
            cache: record.cache,
            limits: record.limits,
            bytes: record.bytes,
            lost: record.lost,
            // No other mark has this number but by a chance that does not matter: then the lifeline tells.
            given: std::process::id().wrapping_mul(65_537),
        });
        Self { file: file.into(), disks: disks.collect(), limits }
    }

    /// What a dom0 that comes later must know of them.
    pub fn records(&self) -> (Vec<DiskRecord>, IoLimits) {
        let record = |disk: &OpenDisk| DiskRecord {
            id: disk.disk.id.clone(),
            files: disk.files.clone(),
            cache: disk.cache,
            limits: disk.limits,
            bytes: disk.bytes,
            lost: disk.lost,
        };
        (self.disks.iter().map(record).collect(), self.limits)
    }

    /// True if two backends must not be at these disks at a time: one reads metadata that the other writes, or a server
    /// serves one client only.
    pub fn one_at_a_time(&self) -> bool {
        self.disks.iter().filter_map(|open| open.disk.own()).any(|own| !matches!(own.data, DiskData::Raw(_)))
    }

    /// The server of a disk, if it is remote.
    pub fn server(&self, disk: &DeviceId) -> Option<NbdUri> {
        self.disks.iter().find(|open| open.disk.id == *disk)?.server().cloned()
    }

    /// True if some of them are not open here.
    pub fn are_absent(&self) -> bool {
        self.disks.iter().any(|disk| disk.absent)
    }

    fn find(&mut self, id: &DeviceId) -> Option<&mut OpenDisk> {
        self.disks.iter_mut().find(|open| open.disk.id == *id)
    }

    /// Keeps a disk's new limits, or with none those of all together, for the backends to come.
    pub fn keep_limits(&mut self, disk: Option<&DeviceId>, limits: IoLimits) {
        match disk {
            None => self.limits = limits,
            Some(id) => {
                if let Some(disk) = self.find(id) {
                    disk.limits = limits;
                }
            }
        }
    }

    /// A disk's limits, or with none those of all together. None for a disk that is not here.
    pub fn limits(&self, disk: Option<&DeviceId>) -> Option<IoLimits> {
        match disk {
            None => Some(self.limits),
            Some(id) => self.disks.iter().find(|open| open.disk.id == *id).map(|disk| disk.limits),
        }
    }

    /// How a disk's image is open; none for a remote one.
    pub fn cache(&self, disk: &DeviceId) -> Option<Cache> {
        let disk = self.disks.iter().find(|open| open.disk.id == *disk)?;
        (!disk.files.is_empty()).then_some(disk.cache)
    }

    /// Keeps a disk's size as its backend tells it.
    pub fn keep_size(&mut self, disk: &DeviceId, bytes: u64) {
        if let Some(disk) = self.find(disk) {
            disk.bytes = Some(bytes);
        }
    }

    /// From now on the requests of a disk whose size is known fail, or it is tried to be served again.
    pub fn lose(&mut self, disk: &DeviceId, lost: bool) {
        if let Some(disk) = self.find(disk) {
            disk.lost = lost && disk.bytes.is_some();
        }
    }

    /// The disks whose requests fail.
    pub fn failing(&self) -> Vec<DeviceId> {
        self.disks.iter().filter(|disk| disk.lost).map(|open| open.disk.id.clone()).collect()
    }

    /// The remote disks that have no connection for the next backend.
    pub fn unconnected(&self) -> Vec<(DeviceId, NbdUri)> {
        let without = self.disks.iter().filter(|open| open.connection.is_none() && !open.lost);
        without.filter_map(|open| Some((open.disk.id.clone(), open.server()?.clone()))).collect()
    }

    /// Keeps a connection for the next backend.
    pub fn keep_connection(&mut self, disk: &DeviceId, connection: OwnedFd) {
        if let Some(disk) = self.find(disk) {
            disk.connection = Some(connection);
        }
    }

    /// The start message of their backend.
    ///
    /// # Errors
    /// No descriptors left; `NotConnected` for a remote disk that has no connection.
    pub fn start(&mut self, identity: &Identity) -> io::Result<Start> {
        let mut fds = Outgoing::default();
        let (mut disks, mut sockets) = (Vec::new(), Vec::new());
        let mut locks = Vec::new();
        let mut marks: Option<Vec<Mark>> = Some(Vec::new());
        for open in &mut self.disks {
            let disk = open.disk.clone();
            let Some(own) = disk.own() else { continue };
            let error_after = match disk.on_loss {
                OnLoss::ErrorAfter(seconds) => Some(seconds),
                OnLoss::Stall | OnLoss::Pause | OnLoss::PauseAfter(_) => None,
            };
            let mut again = None;
            if let Some(image) = &open.image {
                locks.push(fds.add(image.try_clone()?));
                open.given = open.given.wrapping_add(1);
                match Mark::reopen(image, open.given) {
                    Ok((file, mark)) => {
                        again = Some(file);
                        if let Some(marks) = &mut marks {
                            marks.push(mark);
                        }
                    }
                    Err(_) => marks = None,
                }
            }
            let source = open.source(own, again, error_after, &mut fds)?;
            let (ours, theirs) = sockets::pair()?;
            sockets.push((disk.id.clone(), ours));
            disks.push(BlockDisk {
                id: disk.id.clone(),
                serial: own.serial.clone(),
                source,
                read_only: own.read_only,
                queues: disk.queues,
                block_size: own.block_size,
                cache: open.cache,
                discard: own.discard,
                write_error: own.write_error,
                read_error: own.read_error,
                limits: open.limits,
                socket: fds.add(theirs),
            });
        }
        let (lifeline, end) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let start = BlockStart {
            identity: identity.clone(),
            disks,
            locks,
            limits: self.limits,
            lifeline: fds.add(end),
        };
        let message = Message::Block(BlockRequest::Start(Box::new(start)));
        Ok(Start { message, fds: fds.into_vec(), sockets, lifeline: Some(lifeline), marks })
    }
}

impl OpenDisk {
    fn server(&self) -> Option<&NbdUri> {
        match &self.disk.own()?.data {
            DiskData::Nbd(uri) => Some(uri),
            DiskData::Raw(_) | DiskData::Qcow2(..) => None,
        }
    }

    async fn open(
        place: &Place<'_>,
        n: usize,
        disk: &Disk,
        own: &OwnDisk,
        why: For,
    ) -> Result<Self, ConfigError> {
        let at = |key: &str| place.under(key);
        let direct = match own.cache {
            None => Direct::IfPossible,
            Some(Cache::None) => Direct::Must,
            Some(Cache::Writeback | Cache::Unsafe) => Direct::No,
        };
        let image =
            async |path: &Path| files::image(&at("path"), path, own.read_only, direct, why).await.map(Some);
        let (mut behind, mut connection) = (Vec::new(), None);
        let image = match &own.data {
            DiskData::Raw(path) => image(path).await?,
            DiskData::Qcow2(path, backing) => {
                for (k, (path, format)) in backing.iter().enumerate() {
                    let at = at(&format!("backing[{k}].path"));
                    // Through the page cache: what is behind many images is worth keeping there.
                    let file = files::image(&at, path, true, Direct::No, why).await?;
                    behind.push((text(&at, path)?, file, *format));
                }
                text(&at("path"), path)?;
                image(path).await?
            }
            // A server may serve one connection only, so none is made for a check.
            DiskData::Nbd(_) if why == For::Check => None,
            DiskData::Nbd(uri) => {
                let refuse = |error| {
                    let problem =
                        format!("\"{uri}\" cannot be reached ({error}): start the NBD server first");
                    at("path").refuse(problem)
                };
                connection = Some(nbd::dial(uri).await.map_err(refuse)?);
                None
            }
        };
        let cache = match own.cache {
            Some(cache) => cache,
            None if image.as_ref().is_some_and(files::is_direct) => Cache::None,
            None => Cache::Writeback,
        };
        let limits = own.limits;
        let files = image.iter().chain(behind.iter().map(|(_, file, _)| file)).map(files::id);
        let files = files
            .collect::<Result<_, _>>()
            .map_err(|error| at("path").refuse(format_args!("cannot be looked at: {error}")))?;
        Ok(Self {
            n,
            disk: disk.clone(),
            files,
            absent: false,
            image,
            connection,
            backing: behind,
            cache,
            limits,
            bytes: None,
            lost: false,
            given: 0,
        })
    }

    fn source(
        &mut self,
        own: &OwnDisk,
        again: Option<File>,
        error_after: Option<u32>,
        fds: &mut Outgoing,
    ) -> io::Result<BlockSource> {
        let mut add = |file: &File| file.try_clone().map(|file| fds.add(file));
        // An image that cannot be opened once more is shared.
        Ok(match (&own.data, again.as_ref().or(self.image.as_ref()), self.bytes) {
            (_, _, Some(bytes)) if self.lost => BlockSource::Lost { bytes },
            (DiskData::Raw(_), Some(image), _) => BlockSource::Raw(add(image)?),
            (DiskData::Qcow2(path, _), Some(image), _) => BlockSource::Qcow2 {
                image: add(image)?,
                path: path.to_string_lossy().into_owned(),
                backing: self
                    .backing
                    .iter()
                    .map(|(path, file, format)| {
                        Ok(BackingImage { path: path.clone(), image: add(file)?, format: *format })
                    })
                    .collect::<io::Result<_>>()?,
            },
            (DiskData::Nbd(uri), _, _) => {
                let socket = self.connection.take().ok_or(io::ErrorKind::NotConnected)?;
                BlockSource::Nbd { socket: Some(fds.add(socket)), export: uri.export.clone(), error_after }
            }
            // An image is opened for every other kind.
            _ => return Err(io::ErrorKind::NotFound.into()),
        })
    }
}

/// Opens what a dom0 before this one had open, now that its backend is gone. Waits for what the kernel still does for that.
///
/// # Errors
/// [`ConfigError`]; also if a path leads to another file than it did.
pub async fn open_absent(disks: &RefCell<Disks>) -> Result<(), ConfigError> {
    let absent = |open: &OpenDisk| open.absent.then(|| (open.n, open.disk.clone(), open.files.clone()));
    let missing: Vec<_> = disks.borrow().disks.iter().filter_map(absent).collect();
    let file = disks.borrow().file.clone();
    for (n, disk, known) in missing {
        let Some(own) = disk.own() else { continue };
        let place = Place::new(&file, format_args!("disks[{n}]"));
        let opened = OpenDisk::open(&place, n, &disk, own, For::Use).await?;
        if opened.files != known {
            let problem = "leads to another file than the one that the domain runs on: put that one back";
            return Err(place.under("path").refuse(problem));
        }
        if let Some(open) = disks.borrow_mut().find(&disk.id) {
            (open.image, open.backing, open.connection) = (opened.image, opened.backing, opened.connection);
            (open.cache, open.absent) = (opened.cache, false);
        }
    }
    Ok(())
}

/// A path that goes into a message.
fn text(place: &Place<'_>, path: &Path) -> Result<String, ConfigError> {
    let refuse = || place.refuse(format_args!("\"{}\" is no UTF-8: rename it", path.display()));
    path.to_str().map(str::to_owned).ok_or_else(refuse)
}
