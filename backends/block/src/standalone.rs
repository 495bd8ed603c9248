//! `domus-block` by itself, for QEMU and others: vhost-user's "backend program conventions" for a block device.
//!
//! It opens what the command line names, then closes the same sandbox around itself as under dom0.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::builder::TypedValueParser;
use domus_startup::sandbox::{self, SandboxError};
use nix::unistd::geteuid;
use shared_abi::control::{Cache, ImageFormat, IoLimits};
use shared_abi::limits::MAX_QUEUES;
use shared_abi::nbd::{NbdServer, NbdUri};
use vu_server::server::ConnectionError;
use vu_server::standalone::{Frontend, Socket, SocketError};

use crate::disk::{Disk, DiskError, Service, Shape};
use crate::faults::Faults;
use crate::fixed::Fixed;
use crate::nbd::client::Remote;
use crate::open::{Chain, OpenError, connect};
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
    /// The image's format.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Raw)]
    pub format: Format,
    /// An image that a qcow2 image may refer to; once for each.
    #[arg(long, value_name = "PATH[:FORMAT]", requires = "blk_file")]
    pub backing: Vec<Backing>,
    /// Instead of an image: the export of an NBD server. When the server goes away, so does this program.
    #[arg(long, value_name = "URI", conflicts_with = "blk_file")]
    pub nbd: Option<NbdUri>,
    /// Instead of an image: a disk of so many bytes that does nothing, to measure what is left.
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["blk_file", "nbd"])]
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

/// How an image is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The disk's bytes as they are
    Raw,
    /// QEMU's copy-on-write format
    Qcow2,
}

/// An image behind another one: `PATH[:FORMAT]`, raw unless it says something else.
#[derive(Debug, Clone)]
pub struct Backing(PathBuf, ImageFormat);

impl FromStr for Backing {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.rsplit_once(':') {
            Some((path, "qcow2")) => Self(path.into(), ImageFormat::Qcow2),
            Some((path, "raw")) => Self(path.into(), ImageFormat::Raw),
            _ => Self(text.into(), ImageFormat::Raw),
        })
    }
}

/// Why a disk cannot be served alone.
#[derive(Debug, thiserror::Error)]
pub enum StandaloneError {
    /// No image is named.
    #[error("no image to serve: give --blk-file PATH, --nbd URI, or --null BYTES")]
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
    /// The image or the export cannot be opened.
    #[error("cannot serve {what}")]
    Image {
        /// The image or the export.
        what: String,
        /// Why.
        source: OpenError,
    },
    /// The server cannot be reached.
    #[error("cannot connect to {uri}")]
    Connect {
        /// Where it is.
        uri: NbdUri,
        /// What the system said.
        source: io::Error,
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
    let mut prepared = match (&args.blk_file, &args.nbd, args.null) {
        (Some(path), ..) if args.format == Format::Qcow2 => qcow2(args, path)?,
        (Some(path), ..) => image(args, path)?,
        (None, Some(uri), _) => remote(args, uri)?,
        (None, None, Some(bytes)) => null(args, bytes)?,
        (None, None, None) => return Err(StandaloneError::NoImage),
    };
    let opening = prepared.opening();
    let own = geteuid();
    sandbox::enter(if own.is_root() { NOBODY } else { own.as_raw() })?;
    let server = prepared.start()?;
    sandbox::seal(&calls())?;
    if let Some(opening) = opening {
        opening.begin();
        let what = || match (&args.blk_file, &args.nbd) {
            (Some(path), _) => path.display().to_string(),
            (None, uri) => uri.as_ref().map(NbdUri::to_string).unwrap_or_default(),
        };
        opening.finish().map_err(|source| StandaloneError::Image { what: what(), source })?;
    }
    match frontend {
        Frontend::Listener(listener) => server.serve_all(&listener).map_err(StandaloneError::Accept),
        Frontend::Connected(stream) => Ok(server.serve(stream)?),
    }
}

fn service(args: &Alone, cache: Cache) -> Service {
    let gate = Gate::new(args.limits.into(), throttle::shared(IoLimits::default()));
    Service { serial: args.serial.clone(), cache, gate, faults: Faults::reported() }
}

impl CacheMode {
    fn cache(self) -> Cache {
        match self {
            Self::None => Cache::None,
            Self::Writeback => Cache::Writeback,
            Self::Unsafe => Cache::Unsafe,
        }
    }
}

fn open(args: &Alone, path: &Path, write: bool) -> Result<File, StandaloneError> {
    let flags = if args.cache.cache() == Cache::None { libc::O_DIRECT } else { 0 };
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags)
        .open(path)
        .map_err(|source| StandaloneError::Open { path: path.into(), source })
}

/// A qcow2 image, which is looked into after the seal.
fn qcow2(args: &Alone, path: &Path) -> Result<Prepared, StandaloneError> {
    let cache = args.cache.cache();
    let absolute = |path: &Path| {
        let absolute = std::path::absolute(path);
        absolute.map_err(|source| StandaloneError::Open { path: path.into(), source })
    };
    let image = (absolute(path)?, open(args, path, !args.read_only)?);
    let backing = args
        .backing
        .iter()
        .map(|Backing(path, format)| Ok((absolute(path)?, open(args, path, false)?, *format)))
        .collect::<Result<_, StandaloneError>>()?;
    let chain = Chain::new(image, backing, !args.read_only, cache)
        .map_err(|source| StandaloneError::Image { what: path.display().to_string(), source })?;
    let shape = Chain::shape(args.block_size, args.read_only, args.discard == Switch::On);
    let disk = Disk::new(shape.block_size.into(), shape, service(args, cache))
        .map_err(|source| StandaloneError::Disk { path: path.into(), source })?;
    let open = move |reactor: &_, _: &_, _: &_| chain.open(reactor);
    Ok(Prepared::opened_later("disk", disk, args.queues, &[], open)?)
}

/// An export of a server, which is connected to now and talked to after the seal.
fn remote(args: &Alone, uri: &NbdUri) -> Result<Prepared, StandaloneError> {
    let socket: io::Result<OwnedFd> = match &uri.server {
        NbdServer::Unix(path) => UnixStream::connect(path).map(Into::into),
        NbdServer::Tcp { host, port } => TcpStream::connect((host.as_str(), *port)).and_then(|stream| {
            // Requests are small and wait for nothing.
            stream.set_nodelay(true)?;
            Ok(stream.into())
        }),
    };
    let socket = socket.map_err(|source| StandaloneError::Connect { uri: uri.clone(), source })?;
    let block_size = args.block_size.unwrap_or(512);
    let (read_only, discard) = (args.read_only, args.discard == Switch::On);
    let shape = Shape { block_size, physical_block: block_size, optimal_io: 0, read_only, discard };
    let disk = Disk::new(block_size.into(), shape, service(args, args.cache.cache()))
        .map_err(|source| StandaloneError::Disk { path: uri.to_string().into(), source })?;
    let remote = Remote { export: uri.export.clone(), writable: !read_only, error_after: None };
    let open = move |reactor: &_, orders: &_, _: &_| {
        let lost = Box::new(|why: &str| {
            // In an empty root and without a network there is no other way to the server.
            domus_startup::say(format_args!("{why}"));
            std::process::exit(1);
        });
        connect(reactor, orders, remote, Some(socket), block_size, lost)
    };
    Ok(Prepared::opened_later("disk", disk, args.queues, &[], open)?)
}

fn image(args: &Alone, path: &Path) -> Result<Prepared, StandaloneError> {
    let cache = args.cache.cache();
    let file = open(args, path, !args.read_only)?;
    let opened = Raw::open(file, args.read_only, args.discard == Switch::On, cache, args.block_size)
        .map_err(|source| StandaloneError::Raw { path: path.into(), source })?;
    let disk = Disk::new(opened.bytes, opened.shape, service(args, cache))
        .map_err(|source| StandaloneError::Disk { path: path.into(), source })?;
    let raw = Arc::new(opened.raw);
    Ok(Prepared::new("disk", disk, args.queues, &[], || RawEngine::new(raw.clone()))?)
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
