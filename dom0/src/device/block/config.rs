//! Disks: what a config may say of one, and what that comes to.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shared_abi::DeviceId;
use shared_abi::control::{Cache, ImageFormat, IoLimits, OnError};
use shared_abi::limits::MAX_QUEUES;
use shared_abi::nbd::{NbdUri, is_nbd};

use crate::value::place::{ConfigError, Context};
use crate::value::rate::LimitsFile;

/// Most images behind one another.
const MAX_BACKING: usize = 16;

/// A disk: an image that Domus serves (`path`), or a vhost-user-blk backend's socket (`vhost_user_socket`).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskFile {
    /// Unique in the domain: 1 to 20 of a-z A-Z 0-9 _ -, the first a letter or digit.
    pub id: String,
    /// The image: a regular file, a block device, or an NBD export (`nbd://HOST[:PORT][/EXPORT]`,
    /// `nbd+unix:///[EXPORT]?socket=/PATH`). One domain at a time may write to it.
    #[serde(default)]
    pub path: Option<String>,
    /// The image's format: `raw` if this is left out, never guessed. A file that begins as another format's is taken
    /// for a raw disk only if `raw` is written here.
    #[serde(default)]
    pub format: Option<DiskFormat>,
    /// The images that a qcow2 image is allowed to refer to.
    #[serde(default)]
    pub backing: Vec<BackingFile>,
    /// Whether the guest cannot write to the disk: `false` if this is left out.
    #[serde(default)]
    pub read_only: Option<bool>,
    /// Serial number the guest reads: at most 20 printable ASCII characters; the disk's `id` if this is left out.
    #[serde(default)]
    pub serial: Option<String>,
    /// Number of virtqueues, 1 to 64.
    #[serde(default)]
    #[schemars(range(min = 1, max = 64))]
    pub queues: Option<u64>,
    /// Cache mode: whether a completed write survives a crash of the host before the guest flushes. `none` if the file
    /// system has O_DIRECT, else `writeback`.
    #[serde(default)]
    pub cache: Option<CacheFile>,
    /// Whether the guest may give space back to the host: `true` if this is left out.
    #[serde(default)]
    pub discard: Option<bool>,
    /// The logical block size that the guest sees, 512 or 4096 bytes: the image's own.
    #[serde(default)]
    pub block_size: Option<u64>,
    /// What becomes of a write that fails: `pause-if-full`.
    #[serde(default)]
    pub werror: Option<OnErrorFile>,
    /// What becomes of a read that fails: `report`.
    #[serde(default)]
    pub rerror: Option<OnErrorFile>,
    /// What it may do a second.
    #[serde(default)]
    pub limits: LimitsFile,
    /// What becomes of the domain if the disk's backend is lost.
    #[serde(default)]
    pub on_backend_loss: OnLoss,
    /// The listening socket of a vhost-user-blk backend that serves this disk.
    #[serde(default)]
    pub vhost_user_socket: Option<String>,
}

/// The format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// An image that another one refers to.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackingFile {
    /// The image.
    pub path: String,
    /// Its format: it is never guessed from the image, which a guest may have written.
    pub format: DiskFormat,
}

/// Of what worth an acknowledged write is before it is flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheFile {
    /// It is with the disk: the host's page cache is gone round (O_DIRECT).
    None,
    /// It is in the host's page cache.
    Writeback,
    /// It is in the host's page cache, and a flush does nothing: for data that may be lost with the host's power.
    Unsafe,
}

/// What becomes of a request that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnErrorFile {
    /// The guest is told.
    Report,
    /// The domain is paused; `domus why` says why, and `domus unpause` does the same request again.
    Pause,
    /// `pause` where the host's storage is full, `report` otherwise.
    PauseIfFull,
}

/// What becomes of a domain that loses the backend of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OnLoss {
    /// Its requests wait, however long it takes.
    #[default]
    Stall,
    /// The domain is paused at once, until it is unpaused.
    Pause,
    /// The domain is paused, until it is unpaused, if the backend is not back within so many seconds.
    PauseAfter(u32),
    /// The disk's requests fail if the backend is not back within so many seconds.
    ErrorAfter(u32),
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its id.
    pub id: DeviceId,
    /// Who serves it.
    pub source: DiskSource,
    /// Number of virtqueues.
    pub queues: u16,
    /// What becomes of the domain if nobody does.
    pub on_loss: OnLoss,
}

/// Who serves a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskSource {
    /// `domus-block`.
    Own(Box<OwnDisk>),
    /// A vhost-user-blk backend that listens on this socket.
    VhostUser(PathBuf),
}

/// A disk that `domus-block` serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnDisk {
    /// Where its data is.
    pub data: DiskData,
    /// Its format is written in the config, whatever the image looks like.
    #[serde(default)]
    pub format_given: bool,
    /// The guest cannot write.
    pub read_only: bool,
    /// What the guest reads as the serial number, at most 20 bytes.
    pub serial: String,
    /// None: [`Cache::None`] where the file system has it, else [`Cache::Writeback`].
    pub cache: Option<Cache>,
    /// The guest may give space back.
    pub discard: bool,
    /// 512 or 4096; none: the image's own.
    pub block_size: Option<u32>,
    /// A write that fails.
    pub write_error: OnError,
    /// A read that fails.
    pub read_error: OnError,
    /// What it may do.
    pub limits: IoLimits,
}

/// Where a disk's data is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskData {
    /// A raw image or a block device.
    Raw(PathBuf),
    /// A qcow2 image, and those it may refer to.
    Qcow2(PathBuf, Vec<(PathBuf, ImageFormat)>),
    /// An NBD server's export.
    Nbd(NbdUri),
}

impl Disk {
    /// What `domus-block` is to know of it, if it serves it.
    pub fn own(&self) -> Option<&OwnDisk> {
        match &self.source {
            DiskSource::Own(own) => Some(own),
            DiskSource::VhostUser(_) => None,
        }
    }
}

/// Checks disk `n`, which has this id.
pub fn check(
    context: &Context<'_>,
    n: usize,
    id: DeviceId,
    disk: DiskFile,
    vcpus: u8,
) -> Result<Disk, ConfigError> {
    let at = |key: &str| format!("disks[{n}].{key}");
    let queues = match disk.queues {
        Some(queues) => context.range(&at("queues"), queues, 1, MAX_QUEUES.into())?,
        None => u16::from(vcpus.min(4)),
    };
    let on_loss = disk.on_backend_loss;
    let source = match (&disk.path, &disk.vhost_user_socket) {
        (Some(path), None) => DiskSource::Own(Box::new(own(context, n, &id, path, &disk)?)),
        (None, Some(socket)) => {
            if let Some(key) = source_key(&disk) {
                let problem = "is the backend's to decide when vhost_user_socket is given: leave it out";
                return Err(context.refuse(at(key), problem));
            }
            if let OnLoss::ErrorAfter(_) = on_loss {
                let problem = "cannot be error_after for a backend that Domus does not start: stall or pause";
                return Err(context.refuse(at("on_backend_loss"), problem));
            }
            DiskSource::VhostUser(context.path(&at("vhost_user_socket"), socket)?)
        }
        (Some(_), Some(_)) => {
            let problem = "excludes path: give the image's path, or the socket of a backend that serves it";
            return Err(context.refuse(at("vhost_user_socket"), problem));
        }
        (None, None) => {
            let problem =
                "is missing: give the image's path, or vhost_user_socket of a backend that serves it";
            return Err(context.refuse(at("path"), problem));
        }
    };
    Ok(Disk { id, source, queues, on_loss })
}

/// The first key given that only `domus-block` can obey.
fn source_key(disk: &DiskFile) -> Option<&'static str> {
    let given = [
        ("format", disk.format.is_some()),
        ("backing", !disk.backing.is_empty()),
        ("read_only", disk.read_only.is_some()),
        ("serial", disk.serial.is_some()),
        ("cache", disk.cache.is_some()),
        ("discard", disk.discard.is_some()),
        ("block_size", disk.block_size.is_some()),
        ("werror", disk.werror.is_some()),
        ("rerror", disk.rerror.is_some()),
        ("limits", disk.limits != LimitsFile::default()),
    ];
    given.into_iter().find(|(_, given)| *given).map(|(key, _)| key)
}

fn own(
    context: &Context<'_>,
    n: usize,
    id: &DeviceId,
    path: &str,
    disk: &DiskFile,
) -> Result<OwnDisk, ConfigError> {
    let at = |key: &str| format!("disks[{n}].{key}");
    let serial = disk.serial.clone().unwrap_or_else(|| id.to_string());
    if serial.len() > 20 || !serial.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        let problem = format!("{serial:?} is no serial number: at most 20 printable ASCII characters");
        return Err(context.refuse(at("serial"), problem));
    }
    let block_size = match disk.block_size {
        None => None,
        Some(size @ (512 | 4096)) => Some(size as u32),
        Some(size) => {
            return Err(context.refuse(at("block_size"), format!("{size} is neither 512 nor 4096")));
        }
    };
    let cache = disk.cache.map(|cache| match cache {
        CacheFile::None => Cache::None,
        CacheFile::Writeback => Cache::Writeback,
        CacheFile::Unsafe => Cache::Unsafe,
    });
    Ok(OwnDisk {
        data: data(context, n, path, disk)?,
        format_given: disk.format.is_some(),
        read_only: disk.read_only.unwrap_or(false),
        serial,
        cache,
        discard: disk.discard.unwrap_or(true),
        block_size,
        write_error: on_error(disk.werror, OnError::PauseIfFull),
        read_error: on_error(disk.rerror, OnError::Report),
        limits: disk.limits.over(IoLimits::default()),
    })
}

fn on_error(given: Option<OnErrorFile>, default: OnError) -> OnError {
    match given {
        None => default,
        Some(OnErrorFile::Report) => OnError::Report,
        Some(OnErrorFile::Pause) => OnError::Pause,
        Some(OnErrorFile::PauseIfFull) => OnError::PauseIfFull,
    }
}

fn data(context: &Context<'_>, n: usize, path: &str, disk: &DiskFile) -> Result<DiskData, ConfigError> {
    let at = |key: &str| format!("disks[{n}].{key}");
    let format = disk.format.unwrap_or(DiskFormat::Raw);
    if !disk.backing.is_empty() && format != DiskFormat::Qcow2 {
        let problem = "is for format \"qcow2\": a raw image has nothing behind it";
        return Err(context.refuse(at("backing"), problem));
    }
    if is_nbd(path) {
        let uri = path.parse().map_err(|error| context.refuse(at("path"), error))?;
        if format != DiskFormat::Raw || disk.cache.is_some() {
            let key = if format == DiskFormat::Raw { "cache" } else { "format" };
            let problem = "is the NBD server's to decide: leave it out";
            return Err(context.refuse(at(key), problem));
        }
        return Ok(DiskData::Nbd(uri));
    }
    let path = context.path(&at("path"), path)?;
    if format == DiskFormat::Raw {
        return Ok(DiskData::Raw(path));
    }
    let count = disk.backing.len();
    if count > MAX_BACKING {
        let problem = format!("lists {count} images: at most {MAX_BACKING} can be behind one another");
        return Err(context.refuse(at("backing"), problem));
    }
    let backing = disk.backing.iter().enumerate().map(|(k, image)| {
        let path = context.path(&format!("disks[{n}].backing[{k}].path"), &image.path)?;
        Ok((path, image.format.into()))
    });
    Ok(DiskData::Qcow2(path, backing.collect::<Result<_, ConfigError>>()?))
}

impl From<DiskFormat> for ImageFormat {
    fn from(format: DiskFormat) -> Self {
        match format {
            DiskFormat::Raw => Self::Raw,
            DiskFormat::Qcow2 => Self::Qcow2,
        }
    }
}
