//! The disks of a domain: what dom0 keeps open of them, and what it tells their backend, as often as one is started.
//!
//! dom0 keeps its own descriptor of every image: the next backend gets the same open file, whatever has become of the
//! path, and the image's lock is held from the domain's first moment to its last.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use domus_startup::fds::Outgoing;
use nix::fcntl::OFlag;
use shared_abi::DeviceId;
use shared_abi::control::{
    BackingImage, BlockDisk, BlockRequest, BlockSource, BlockStart, Cache, Identity, ImageFormat, IoLimits,
};
use shared_abi::nbd::NbdUri;

use super::backend::{Message, Start};
use super::kept::Kept;
use super::record::{DiskRecord, FileId};
use crate::config::{ConfigError, Disk, DiskData, DiskSource, DomainConfig, OnLoss, OwnDisk};
use crate::resources::files::{self, Direct, For};
use crate::resources::locks::Mark;
use crate::resources::{nbd, sockets};

/// What is open of the disks that `domus-block` serves, and what has been changed since.
#[derive(Debug, Default)]
pub struct Disks {
    disks: Vec<OpenDisk>,
    /// What all of them together may do.
    limits: IoLimits,
}

/// One of them.
#[derive(Debug)]
struct OpenDisk {
    id: DeviceId,
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
    pub async fn open(config: &DomainConfig, why: For) -> Result<Self, ConfigError> {
        let mut disks = Vec::new();
        for (n, disk) in config.disks.iter().enumerate() {
            match &disk.source {
                DiskSource::Own(own) => disks.push(OpenDisk::open(config, n, &disk.id, own, why).await?),
                DiskSource::VhostUser(path) if why == For::Check => {
                    sockets::foreign(config, &format!("disks[{n}].vhost_user_socket"), path, false)?;
                }
                DiskSource::VhostUser(_) => {}
            }
        }
        Ok(Self { disks, limits: config.disk_limits })
    }

    /// Those of a domain that a dom0 before this one had. Nothing of them is open here: a backend that lives has their locks.
    pub fn taken_over(config: &DomainConfig, records: &[DiskRecord], limits: IoLimits) -> Self {
        let own = |record: &DiskRecord| {
            config.disks.iter().any(|disk| disk.id == record.id && disk.own().is_some())
        };
        let disks = records.iter().filter(|record| own(record)).map(|record| OpenDisk {
            id: record.id.clone(),
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
        Self { disks: disks.collect(), limits }
    }

    /// What a dom0 that comes later must know of them.
    pub fn records(&self) -> (Vec<DiskRecord>, IoLimits) {
        let record = |disk: &OpenDisk| DiskRecord {
            id: disk.id.clone(),
            files: disk.files.clone(),
            cache: disk.cache,
            limits: disk.limits,
            bytes: disk.bytes,
            lost: disk.lost,
        };
        (self.disks.iter().map(record).collect(), self.limits)
    }

    /// True if some of them are not open here.
    pub fn are_absent(&self) -> bool {
        self.disks.iter().any(|disk| disk.absent)
    }

    fn find(&mut self, id: &DeviceId) -> Option<&mut OpenDisk> {
        self.disks.iter_mut().find(|disk| disk.id == *id)
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
            Some(id) => self.disks.iter().find(|disk| disk.id == *id).map(|disk| disk.limits),
        }
    }

    /// How a disk's image is open; none for a remote one.
    pub fn cache(&self, disk: &DeviceId) -> Option<Cache> {
        let disk = self.disks.iter().find(|one| one.id == *disk)?;
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
        self.disks.iter().filter(|disk| disk.lost).map(|disk| disk.id.clone()).collect()
    }

    /// The remote disks that have no connection for the next backend.
    pub fn unconnected(&self, config: &DomainConfig) -> Vec<(DeviceId, NbdUri)> {
        let without = self.disks.iter().filter(|disk| disk.connection.is_none() && !disk.lost);
        without.filter_map(|disk| Some((disk.id.clone(), remote(config, &disk.id)?.clone()))).collect()
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
    pub fn start(&mut self, config: &DomainConfig, identity: &Identity) -> io::Result<Start> {
        let mut fds = Outgoing::default();
        let (mut disks, mut sockets) = (Vec::new(), Vec::new());
        let mut locks = Vec::new();
        let mut marks: Option<Vec<Mark>> = Some(Vec::new());
        for open in &mut self.disks {
            // Made from the same config.
            let Some(disk) = config.disks.iter().find(|disk| disk.id == open.id) else { continue };
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
            sockets.push((open.id.clone(), ours));
            disks.push(BlockDisk {
                id: open.id.clone(),
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
    async fn open(
        config: &DomainConfig,
        n: usize,
        id: &DeviceId,
        own: &OwnDisk,
        why: For,
    ) -> Result<Self, ConfigError> {
        let at = |key: &str| format!("disks[{n}].{key}");
        let direct = match own.cache {
            None => Direct::IfPossible,
            Some(Cache::None) => Direct::Must,
            Some(Cache::Writeback | Cache::Unsafe) => Direct::No,
        };
        let image = async |path: &Path| {
            files::image(config, &at("path"), path, own.read_only, direct, why).await.map(Some)
        };
        let (mut behind, mut connection) = (Vec::new(), None);
        let image = match &own.data {
            DiskData::Raw(path) => image(path).await?,
            DiskData::Qcow2(path, backing) => {
                for (k, (path, format)) in backing.iter().enumerate() {
                    let at = at(&format!("backing[{k}].path"));
                    // Through the page cache: what is behind many images is worth keeping there.
                    let file = files::image(config, &at, path, true, Direct::No, why).await?;
                    behind.push((text(config, &at, path)?, file, *format));
                }
                text(config, &at("path"), path)?;
                image(path).await?
            }
            // A server may serve one connection only, so none is made for a check.
            DiskData::Nbd(_) if why == For::Check => None,
            DiskData::Nbd(uri) => {
                let refuse = |error| {
                    let problem =
                        format!("\"{uri}\" cannot be reached ({error}): start the NBD server first");
                    ConfigError::new(&config.file, at("path"), problem)
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
        let files = files.collect::<Result<_, _>>().map_err(|error| {
            ConfigError::new(&config.file, at("path"), format!("cannot be looked at: {error}"))
        })?;
        Ok(Self {
            id: id.clone(),
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
pub async fn open_absent(config: &DomainConfig, kept: &Kept) -> Result<(), ConfigError> {
    for (n, disk) in config.disks.iter().enumerate() {
        let absent = |open: &&OpenDisk| open.id == disk.id && open.absent;
        let known = kept.disks.borrow().disks.iter().find(absent).map(|open| open.files.clone());
        let (Some(known), Some(own)) = (known, disk.own()) else { continue };
        let opened = OpenDisk::open(config, n, &disk.id, own, For::Use).await?;
        if opened.files != known {
            let problem = "leads to another file than the one that the domain runs on: put that one back";
            return Err(ConfigError::new(&config.file, format!("disks[{n}].path"), problem));
        }
        if let Some(open) = kept.disks.borrow_mut().find(&disk.id) {
            (open.image, open.backing, open.connection) = (opened.image, opened.backing, opened.connection);
            (open.cache, open.absent) = (opened.cache, false);
        }
    }
    Ok(())
}

/// True if two backends must not be at these disks at a time: one reads metadata that the other writes, or a server serves
/// one client only.
pub fn one_at_a_time(config: &DomainConfig) -> bool {
    config.disks.iter().filter_map(Disk::own).any(|own| !matches!(own.data, DiskData::Raw(_)))
}

/// The server of a disk, if it is remote.
pub fn remote<'a>(config: &'a DomainConfig, disk: &DeviceId) -> Option<&'a NbdUri> {
    match &config.disks.iter().find(|one| one.id == *disk)?.own()?.data {
        DiskData::Nbd(uri) => Some(uri),
        DiskData::Raw(_) | DiskData::Qcow2(..) => None,
    }
}

/// A path that goes into a message.
fn text(config: &DomainConfig, at: &str, path: &Path) -> Result<String, ConfigError> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        ConfigError::new(&config.file, at, format!("\"{}\" is no UTF-8: rename it", path.display()))
    })
}
