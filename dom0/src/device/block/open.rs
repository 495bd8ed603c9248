//! A disk that `domus-block` serves: its image, what is behind that, or the connection to its server, opened and handed
//! out.
//!
//! dom0 keeps its own descriptor of every image: the next backend gets the same open file, whatever has become of the
//! path, and the image's lock is held from the domain's first moment to its last.

use std::fs::File;
use std::io;
use std::iter;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use domus_startup::fds::Outgoing;
use shared_abi::control::{
    BackingImage, BlockDisk, BlockSource, Cache, DeviceSpec, FdIndex, ImageFormat, IoLimits,
};
use shared_abi::nbd::NbdUri;

use crate::device::block::config::{Disk, DiskData, OnLoss, OwnDisk};
use crate::device::block::health::Health;
use crate::device::block::record::DiskRecord;
use crate::host::files::{self, Access, Direct, FileId, Mode};
use crate::host::locks::OpenMarker;
use crate::host::slow::{self, StorageFile};
use crate::host::{magic, nbd, sockets};
use crate::value::place::{ConfigError, Place};

/// A disk, and what is open of it.
#[derive(Debug)]
pub struct OpenDisk {
    /// Its place in the config's list.
    pub n: usize,
    /// What the guest sees.
    pub spec: DeviceSpec,
    /// What the machine was built with.
    pub disk: Disk,
    /// None for a remote disk.
    image: Option<StorageFile>,
    /// The image opened once more, for the next backend, and its marker.
    next: Option<(StorageFile, OpenMarker)>,
    /// A connection to a remote disk's server, for the next backend.
    pub connection: Option<OwnedFd>,
    backing: Vec<(String, StorageFile, ImageFormat)>,
    /// What image and backing files are, whatever their paths lead to later. Empty before they are opened for the first
    /// time.
    pub files: Vec<FileId>,
    /// It is open here, or nothing of it has to be.
    pub is_open: bool,
    /// A dom0 before this one had it open, and the backend of then may have it still.
    pub inherited: bool,
    /// How its image is open.
    pub cache: Cache,
    /// What it may do.
    pub limits: IoLimits,
    /// Its size as its backend has told it last.
    pub bytes: Option<u64>,
    /// It was not to be had for so long that its requests are to fail.
    pub lost: bool,
    /// How often its image was given to a backend.
    pub handouts: u32,
    /// How it does while it is served.
    pub health: Health,
}

/// What one disk's backend is given.
#[derive(Debug)]
pub struct Handout {
    /// What it is told.
    pub disk: BlockDisk,
    /// The descriptor that holds the image's lock.
    pub lock: Option<FdIndex>,
    /// Tells that the image is closed.
    pub marker: Option<OpenMarker>,
    /// The runner's end of its socket.
    pub socket: OwnedFd,
}

/// What was opened for a disk.
#[derive(Debug)]
pub struct Opened {
    image: Option<StorageFile>,
    connection: Option<OwnedFd>,
    backing: Vec<(String, StorageFile, ImageFormat)>,
    files: Vec<FileId>,
    cache: Cache,
}

impl Opened {
    /// Opens a disk at the JSON path `place`. For a check nothing is kept.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub async fn new(place: &Place<'_>, own: &OwnDisk, why: Mode) -> Result<Self, ConfigError> {
        let at = |key: &str| place.under(key);
        let direct = match own.cache {
            None => Direct::IfPossible,
            Some(Cache::None) => Direct::Must,
            Some(Cache::Writeback | Cache::Unsafe) => Direct::No,
        };
        let access = Access { read_only: own.read_only, direct, why };
        let image = async |path: &Path| files::image(&at("path"), path, access).await.map(Some);
        let (mut backing, mut behind_files, mut connection) = (Vec::new(), Vec::new(), None);
        let image = match &own.data {
            DiskData::Raw(path) => image(path).await?,
            DiskData::Qcow2(path, behind) => {
                for (k, (path, format)) in behind.iter().enumerate() {
                    let at = at(&format!("backing[{k}].path"));
                    // Through the page cache: what is behind many images is worth keeping there.
                    let access = Access { read_only: true, direct: Direct::No, why };
                    let (file, id) = files::image(&at, path, access).await?;
                    backing.push((text(&at, path)?, file, *format));
                    behind_files.push(id);
                }
                text(&at("path"), path)?;
                image(path).await?
            }
            // A server may serve one connection only, so none is made for a check.
            DiskData::Nbd(_) if why == Mode::Check => None,
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
            None if image.as_ref().is_some_and(|(image, _)| files::is_direct(image)) => Cache::None,
            None => Cache::Writeback,
        };
        let (image, first) = image.unzip();
        let files = first.into_iter().chain(behind_files).collect();
        Ok(Self { image, connection, backing, files, cache })
    }

    /// Refuses a raw disk that looks like an image of another format, where the config does not say `raw`. For a disk
    /// that no guest has had yet: what is on one later is the guest's matter. LUKS is, too: a guest that encrypts its
    /// disk leaves just that, and is to start again.
    ///
    /// # Errors
    /// [`ConfigError`] with the line that would do.
    pub async fn expect_raw(&self, place: &Place<'_>, own: &OwnDisk) -> Result<(), ConfigError> {
        let (DiskData::Raw(path), Some(image), false) = (&own.data, &self.image, own.format_given) else {
            return Ok(());
        };
        let image = image.try_clone().map(StorageFile::from);
        let head = slow::with(path, move |_| magic::head(&*image?));
        let head = head.await.map_err(|slow| place.under("path").refuse(slow))?;
        let path = path.display();
        match head {
            Ok(None | Some(magic::LUKS)) | Err(_) => Ok(()),
            Ok(Some(magic::QCOW2)) => Err(place.under("path").refuse(format_args!(
                "\"{path}\" is a qcow2 image: add \"format\": \"qcow2\" to the disk, or \"format\": \"raw\" if the \
                 guest is to see the file as it is"
            ))),
            Ok(Some(other)) => Err(place.under("path").refuse(format_args!(
                "\"{path}\" is a {other} image, which is not served: convert it with qemu-img convert -O qcow2, or add \
                 \"format\": \"raw\" to the disk if the guest is to see the file as it is"
            ))),
        }
    }
}

/// Refuses a file that is in one config twice, and is written to by one of its disks, whatever its paths: its lock
/// would be in the way of the second, and the holder no other process.
///
/// # Errors
/// [`ConfigError`] at the second, with the place of the first.
pub async fn expect_apart(file: &Path, disks: Vec<(usize, OwnDisk)>) -> Result<(), ConfigError> {
    let mut images: Vec<(FileId, bool, String)> = Vec::new();
    for (n, own) in &disks {
        let (path, behind) = match &own.data {
            DiskData::Raw(path) => (path, &[][..]),
            DiskData::Qcow2(path, behind) => (path, behind.as_slice()),
            DiskData::Nbd(_) => continue,
        };
        let behind = behind
            .iter()
            .enumerate()
            .map(|(k, (path, _))| (path, true, format!("disks[{n}].backing[{k}].path")));
        for (path, read_only, at) in
            iter::once((path, own.read_only, format!("disks[{n}].path"))).chain(behind)
        {
            // What is not there is refused when it is opened.
            let Ok(Ok(id)) = slow::with(path, files::id_of).await else { continue };
            if let Some((.., first)) =
                images.iter().find(|(known, readers, _)| *known == id && !(*readers && read_only))
            {
                let problem = format!(
                    "\"{}\" is the file of {first}, too: give each its own, or set read_only where nothing is written",
                    path.display()
                );
                return Err(ConfigError::new(file, at, problem));
            }
            images.push((id, read_only, at));
        }
    }
    Ok(())
}

impl OpenDisk {
    /// A disk that is not open, as it was written down.
    pub fn new(record: &DiskRecord) -> Self {
        Self {
            n: record.n,
            spec: record.spec.clone(),
            disk: record.disk.clone(),
            image: None,
            next: None,
            connection: None,
            backing: Vec::new(),
            files: record.files.clone(),
            is_open: record.disk.own().is_none(),
            inherited: false,
            cache: record.cache,
            limits: record.limits,
            bytes: record.bytes,
            lost: record.lost,
            handouts: 0,
            health: Health::default(),
        }
    }

    /// For a dom0 that comes later.
    pub fn record(&self) -> DiskRecord {
        DiskRecord {
            n: self.n,
            spec: self.spec.clone(),
            disk: self.disk.clone(),
            files: self.files.clone(),
            cache: self.cache,
            limits: self.limits,
            bytes: self.bytes,
            lost: self.lost,
        }
    }

    /// The server of a remote disk.
    pub fn server(&self) -> Option<&NbdUri> {
        match &self.disk.own()?.data {
            DiskData::Nbd(uri) => Some(uri),
            DiskData::Raw(_) | DiskData::Qcow2(..) => None,
        }
    }

    /// Takes what was opened for it.
    ///
    /// # Errors
    /// [`ConfigError`] at `place` if the path leads to another file than the one that the domain runs on.
    pub fn take(&mut self, opened: Opened, place: &Place<'_>) -> Result<(), ConfigError> {
        if !self.files.is_empty() && self.files != opened.files {
            let problem = "leads to another file than the one that the domain runs on: put that one back";
            return Err(place.under("path").refuse(problem));
        }
        let Opened { image, connection, backing, files, cache } = opened;
        (self.image, self.connection, self.backing) = (image, connection, backing);
        (self.files, self.cache, self.is_open) = (files, cache, true);
        Ok(())
    }

    /// Its raw image's path, and another descriptor of it.
    pub fn raw_image(&self) -> Option<(PathBuf, File)> {
        let DiskData::Raw(path) = &self.disk.own()?.data else { return None };
        Some((path.clone(), self.image.as_ref()?.try_clone().ok()?))
    }

    /// What is opened once more for each backend, with the number of its marker.
    pub fn reopening(&mut self) -> Option<(File, u32)> {
        let image = self.image.as_ref()?.try_clone().ok()?;
        self.handouts = self.handouts.wrapping_add(1);
        Some((image, self.handouts))
    }

    /// Keeps that for the next one. Without it the image is shared.
    pub fn keep_reopened(&mut self, again: Option<(File, OpenMarker)>) {
        self.next = again.map(|(file, marker)| (file.into(), marker));
    }

    /// Everything of storage that is open of it.
    pub fn release(&mut self) -> Vec<StorageFile> {
        let again = self.next.take().map(|(file, _)| file);
        let backing = self.backing.drain(..).map(|(_, file, _)| file);
        self.image.take().into_iter().chain(again).chain(backing).collect()
    }

    /// What its backend is told of it, its image's lock, and the runner's end of its socket. None for a disk that
    /// `domus-block` does not serve.
    ///
    /// # Errors
    /// No descriptors left; `NotConnected` for a remote disk that has no connection.
    pub fn hand_out(&mut self, fds: &mut Outgoing) -> io::Result<Option<Handout>> {
        let disk = self.disk.clone();
        let Some(own) = disk.own() else { return Ok(None) };
        let error_after = match disk.on_loss {
            OnLoss::ErrorAfter(seconds) => Some(seconds),
            OnLoss::Stall | OnLoss::Pause | OnLoss::PauseAfter(_) => None,
        };
        let (mut lock, mut marker, mut again) = (None, None, None);
        if let Some(image) = &self.image {
            lock = Some(fds.add(image.another()?));
            (again, marker) = self.next.take().unzip();
        }
        let source = self.source(own, again, error_after, fds)?;
        let (ours, theirs) = sockets::pair()?;
        let disk = BlockDisk {
            id: disk.id.clone(),
            serial: own.serial.clone(),
            source,
            read_only: own.read_only,
            queues: disk.queues,
            block_size: own.block_size,
            cache: self.cache,
            discard: own.discard,
            write_error: own.write_error,
            read_error: own.read_error,
            limits: self.limits,
            socket: fds.add(theirs),
        };
        Ok(Some(Handout { disk, lock, marker, socket: ours }))
    }

    fn source(
        &mut self,
        own: &OwnDisk,
        again: Option<StorageFile>,
        error_after: Option<u32>,
        fds: &mut Outgoing,
    ) -> io::Result<BlockSource> {
        let mut add = |file: &StorageFile| file.another().map(|file| fds.add(file));
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

/// A path that goes into a message.
fn text(place: &Place<'_>, path: &Path) -> Result<String, ConfigError> {
    let refuse = || place.refuse(format_args!("\"{}\" is no UTF-8: rename it", path.display()));
    path.to_str().map(str::to_owned).ok_or_else(refuse)
}
