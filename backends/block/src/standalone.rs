//! `domus-block` by itself, for QEMU and others: vhost-user's "backend program conventions" for a block device.
//!
//! It opens what the command line names, then closes the same sandbox around itself as under dom0.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use domus_startup::sandbox::{self, SandboxError};
use nix::unistd::geteuid;
use shared_abi::control::{Cache, IoLimits};
use shared_abi::limits::MAX_QUEUES;
use vu_server::server::ConnectionError;
use vu_server::standalone::{Frontend, Socket, SocketError};

use crate::disk::{Disk, DiskError, Service};
use crate::faults::Faults;
use crate::raw::{Raw, RawEngine, RawError};
use crate::threads::{Prepared, ThreadsError, calls};
use crate::throttle::{self, Gate};

/// Whom a process becomes that root started by hand: `nobody` of every distribution.
const NOBODY: u32 = 65534;

/// The command line of a disk served alone.
#[derive(Debug, Clone, clap::Args)]
pub struct Alone {
    /// Where the frontend is.
    #[command(flatten)]
    pub socket: Socket,
    /// The image: a raw file or a block device.
    #[arg(long, value_name = "PATH")]
    pub blk_file: Option<PathBuf>,
    /// Open the image for reading only, and tell the guest so.
    #[arg(long)]
    pub read_only: bool,
    /// Number of queues offered.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUES)))]
    pub queues: u16,
    /// What the guest reads as the disk's serial, at most 20 bytes.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub serial: String,
}

/// Why a disk cannot be served alone.
#[derive(Debug, thiserror::Error)]
pub enum StandaloneError {
    /// No image is named.
    #[error("no image to serve: give --blk-file PATH")]
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
    let path = args.blk_file.clone().ok_or(StandaloneError::NoImage)?;
    let image = OpenOptions::new()
        .read(true)
        .write(!args.read_only)
        .open(&path)
        .map_err(|source| StandaloneError::Open { path: path.clone(), source })?;
    let opened = Raw::open(image, args.read_only, true, Cache::Writeback, None)
        .map_err(|source| StandaloneError::Raw { path: path.clone(), source })?;
    let service = Service {
        serial: args.serial.clone(),
        cache: Cache::Writeback,
        gate: Gate::new(IoLimits::default(), throttle::shared(IoLimits::default())),
        faults: Faults::reported(),
    };
    let disk = Disk::new(opened.bytes, opened.shape, service)
        .map_err(|source| StandaloneError::Disk { path, source })?;
    let raw = Arc::new(opened.raw);
    let prepared = Prepared::new("disk", disk, args.queues, &[raw.as_fd()], || RawEngine::new(raw.clone()))?;
    let own = geteuid();
    sandbox::enter(if own.is_root() { NOBODY } else { own.as_raw() })?;
    let server = prepared.start()?;
    sandbox::seal(&calls())?;
    match frontend {
        Frontend::Listener(listener) => server.serve_all(&listener).map_err(StandaloneError::Accept),
        Frontend::Connected(stream) => Ok(server.serve(stream)?),
    }
}
