//! `domus-block` by itself, for QEMU and others: vhost-user's "backend program conventions" for a block device.
//!
//! It opens what the command line names, then closes the same sandbox around itself as under dom0.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::TypedValueParser;
use domus_startup::sandbox::{self, SandboxError};
use nix::unistd::geteuid;
use shared_abi::control::{Cache, IoLimits};
use shared_abi::limits::MAX_QUEUES;
use vu_server::server::ConnectionError;
use vu_server::standalone::{Frontend, Socket, SocketError};

use crate::disk::{Disk, DiskError, Service, Shape};
use crate::faults::Faults;
use crate::fixed::Fixed;
use crate::rates::Rates;
use crate::raw::{Raw, RawEngine, RawError};
use crate::threads::{Prepared, ThreadsError, calls};
use crate::throttle::{self, Gate};

/// Whom a process becomes that root started by hand: `nobody` of every distribution.
const NOBODY: u32 = 65534;

/// What an acknowledged write is worth before it is flushed.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum CacheMode {
    /// It is with the disk: the host's page cache is not used
    None,
    /// It is in the host's page cache
    Writeback,
    /// It is in the host's page cache, and flushing does nothing
    Unsafe,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// The command line of a disk served alone.
#[derive(Debug, Clone, clap::Args)]
pub struct Alone {
    /// Where the frontend is.
    #[command(flatten)]
    pub socket: Socket,
    /// The image: a raw file or a block device.
    #[arg(long, value_name = "PATH")]
    pub blk_file: Option<PathBuf>,
    /// Instead of an image: a disk of so many bytes that does nothing, to measure what is left.
    #[arg(long, value_name = "BYTES", conflicts_with = "blk_file")]
    pub null: Option<u64>,
    /// Open the image for reading only, and tell the guest so.
    #[arg(long)]
    pub read_only: bool,
    /// How the host's page cache is used.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = CacheMode::Writeback)]
    pub cache: CacheMode,
    /// Let the guest give space back.
    #[arg(long, value_name = "SWITCH", value_enum, default_value_t = Switch::On)]
    pub discard: Switch,
    /// The logical block size the guest sees; the image's own unless given.
    #[arg(long, value_name = "BYTES", value_parser = clap::builder::PossibleValuesParser::new(["512", "4096"]).map(|size| size.parse::<u32>().unwrap_or(512)))]
    pub block_size: Option<u32>,
    /// Number of queues offered.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUES)))]
    pub queues: u16,
    /// What the guest reads as the disk's serial, at most 20 bytes.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub serial: String,
    /// What the disk may do.
    #[command(flatten)]
    pub limits: Rates,
}

/// Why a disk cannot be served alone.
#[derive(Debug, thiserror::Error)]
pub enum StandaloneError {
    /// No image is named.
    #[error("no image to serve: give --blk-file PATH, or --null BYTES")]
    NoImage,
    /// The image does not open.
    #[error("cannot open {}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The image cannot be used.
    #[error("cannot serve {}", path.display())]
    Raw {
        /// The image.
        path: PathBuf,
        /// Why.
        source: RawError,
    },
    /// There cannot be such a disk.
    #[error("cannot serve {}", path.display())]
    Disk {
        /// The image.
        path: PathBuf,
        /// Why.
        source: DiskError,
    },
    /// There cannot be such a disk without data.
    #[error("cannot serve a disk that does nothing")]
    Null(#[source] DiskError),
    /// No frontend.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Its rings or threads cannot be made.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// The sandbox did not close.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The listening socket failed.
    #[error("cannot accept a frontend")]
    Accept(#[source] io::Error),
    /// The only frontend was hung up on.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

/// What `--print-capabilities` prints.
pub fn capabilities() -> String {
    serde_json::json!({ "type": "block", "features": ["read-only", "blk-file"] }).to_string()
}

/// Serves one disk: for ever on a path, until its frontend hangs up on a descriptor.
///
/// # Errors
/// [`StandaloneError`].
pub fn run(args: &Alone) -> Result<(), StandaloneError> {
    // First, so that the number of an inherited descriptor is not taken by one of ours.
    let frontend = args.socket.open()?;
    let prepared = match (&args.blk_file, args.null) {
        (Some(path), _) => image(args, path)?,
        (None, Some(bytes)) => null(args, bytes)?,
        (None, None) => return Err(StandaloneError::NoImage),
    };
    let own = geteuid();
    sandbox::enter(if own.is_root() { NOBODY } else { own.as_raw() })?;
    let server = prepared.start()?;
    sandbox::seal(&calls())?;
    match frontend {
        Frontend::Listener(listener) => server.serve_all(&listener).map_err(StandaloneError::Accept),
        Frontend::Connected(stream) => Ok(server.serve(stream)?),
    }
}

fn service(args: &Alone, cache: Cache) -> Service {
    let gate = Gate::new(args.limits.into(), throttle::shared(IoLimits::default()));
    Service { serial: args.serial.clone(), cache, gate, faults: Faults::reported() }
}

fn image(args: &Alone, path: &Path) -> Result<Prepared, StandaloneError> {
    let (cache, flags) = match args.cache {
        CacheMode::None => (Cache::None, libc::O_DIRECT),
        CacheMode::Writeback => (Cache::Writeback, 0),
        CacheMode::Unsafe => (Cache::Unsafe, 0),
    };
    let file = OpenOptions::new()
        .read(true)
        .write(!args.read_only)
        .custom_flags(flags)
        .open(path)
        .map_err(|source| StandaloneError::Open { path: path.into(), source })?;
    let opened = Raw::open(file, args.read_only, args.discard == Switch::On, cache, args.block_size)
        .map_err(|source| StandaloneError::Raw { path: path.into(), source })?;
    let disk = Disk::new(opened.bytes, opened.shape, service(args, cache))
        .map_err(|source| StandaloneError::Disk { path: path.into(), source })?;
    let raw = Arc::new(opened.raw);
    Ok(Prepared::new("disk", disk, args.queues, &[raw.as_fd()], || RawEngine::new(raw.clone()))?)
}

fn null(args: &Alone, bytes: u64) -> Result<Prepared, StandaloneError> {
    let block_size = args.block_size.unwrap_or(512);
    let shape = Shape {
        block_size,
        physical_block: block_size,
        optimal_io: 0,
        read_only: args.read_only,
        discard: args.discard == Switch::On,
    };
    let disk = Disk::new(bytes, shape, service(args, Cache::Unsafe)).map_err(StandaloneError::Null)?;
    Ok(Prepared::new("null", disk, args.queues, &[], || Fixed::Nothing)?)
}
