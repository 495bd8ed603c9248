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

use clap::builder::TypedValueParser;
use domus_startup::sandbox::{self, SandboxError};
use shared_abi::control::{Cache, ImageFormat, IoLimits};
use shared_abi::limits::MAX_QUEUES;
use shared_abi::nbd::{NbdServer, NbdUri};
use shared_abi::size;
use vu_server::server::{ConnectionError, MAX_LOGS};
use vu_server::standalone::{Common, Frontend, SocketError};

use crate::faults::Faults;
use crate::nbd::client::Remote;
use crate::nbd::fence;
use crate::null_disk::NullDisk;
use crate::open::OpenError;
use crate::rates::Rates;
use crate::spec::{DiskSpec, PrepareError, Source};
use crate::syscalls::calls;
use crate::threads::ThreadsError;
use crate::throttle::{self, Gate};

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
pub struct Standalone {
    /// What every backend is told.
    #[command(flatten)]
    pub common: Common,
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
    #[arg(long, value_name = "BYTES", value_parser = bytes, conflicts_with_all = ["blk_file", "nbd"])]
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

fn bytes(text: &str) -> Result<u64, &'static str> {
    size::amount(text).ok_or("give a number of bytes, such as 1073741824 or 1GiB")
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
    /// The disk cannot be prepared.
    #[error("cannot serve {what}")]
    Disk {
        /// The image or the export.
        what: String,
        /// Why.
        source: PrepareError,
    },
    /// The image or the export cannot be opened.
    #[error("cannot serve {what}")]
    Image {
        /// The image or the export.
        what: String,
        /// Why.
        source: OpenError,
    },
    /// The image cannot be looked at.
    #[error("cannot look at {what}")]
    Look {
        /// The image.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The server cannot be reached.
    #[error("cannot connect to {uri}")]
    Connect {
        /// Where it is.
        uri: NbdUri,
        /// What the system said.
        source: io::Error,
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
fn capabilities() -> String {
    serde_json::json!({ "type": "block", "features": ["read-only", "blk-file"] }).to_string()
}

/// Serves one disk: for ever on a path, until its frontend hangs up on a descriptor.
///
/// # Errors
/// [`StandaloneError`].
pub fn run(args: &Standalone) -> Result<(), StandaloneError> {
    if args.common.print_capabilities {
        println!("{}", capabilities());
        return Ok(());
    }
    // First, so that the number of an inherited descriptor is not taken by one of ours.
    let frontend = args.common.open()?;
    let (name, source) = match (&args.blk_file, &args.nbd, args.null) {
        (Some(path), ..) if args.format == Format::Qcow2 => ("disk", qcow2(args, path)?),
        (Some(path), ..) => ("disk", Source::Raw(open(args, path, !args.read_only)?)),
        (None, Some(uri), _) => ("disk", remote(args, uri)?),
        (None, None, Some(bytes)) => ("null", Source::Null(NullDisk::Zeros, bytes)),
        (None, None, None) => return Err(StandaloneError::NoImage),
    };
    let longest = source.longest(args.read_only, false);
    let longest = longest.map_err(|source| StandaloneError::Look { what: what(args), source })?;
    let spec = DiskSpec {
        name,
        queues: args.queues,
        cache: if matches!(source, Source::Null(..)) { Cache::Unsafe } else { args.cache.cache() },
        source,
        read_only: args.read_only,
        discard: args.discard == Switch::On,
        block_size: args.block_size,
        serial: args.serial.clone(),
        gate: Gate::new(args.limits.into(), throttle::shared(IoLimits::default())),
        faults: Faults::reported(),
    };
    let mut prepared = match spec.prepare(&[]) {
        Ok(made) => made.prepared,
        Err(PrepareError::Threads(error)) => return Err(error.into()),
        Err(source) => return Err(StandaloneError::Disk { what: what(args), source }),
    };
    let opening = prepared.opening();
    if let Some(longest) = longest {
        sandbox::limit_files(longest.max(MAX_LOGS))?;
    }
    args.common.enter_sandbox()?;
    let server = prepared.start()?.with_any_memory();
    sandbox::seal(&calls())?;
    if let Some(opening) = opening {
        opening.begin();
        opening.finish().map_err(|source| StandaloneError::Image { what: what(args), source })?;
    }
    match frontend {
        Frontend::Listener(listener) => server.serve_all(&listener).map_err(StandaloneError::Accept),
        Frontend::Connected(stream) => Ok(server.serve(stream)?),
    }
}

/// What is served, for messages.
fn what(args: &Standalone) -> String {
    match (&args.blk_file, &args.nbd) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(uri)) => uri.to_string(),
        (None, None) => "a disk that does nothing".into(),
    }
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

fn open(args: &Standalone, path: &Path, write: bool) -> Result<File, StandaloneError> {
    let flags = if args.cache.cache() == Cache::None { libc::O_DIRECT } else { 0 };
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags)
        .open(path)
        .map_err(|source| StandaloneError::Open { path: path.into(), source })
}

/// A qcow2 image, which is looked into after the seal.
fn qcow2(args: &Standalone, path: &Path) -> Result<Source, StandaloneError> {
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
    Ok(Source::Qcow2 { image, backing })
}

/// An export of a server, which is connected to now and talked to after the seal.
fn remote(args: &Standalone, uri: &NbdUri) -> Result<Source, StandaloneError> {
    let socket: io::Result<OwnedFd> = match &uri.server {
        NbdServer::Unix(path) => UnixStream::connect(path).map(Into::into),
        NbdServer::Tcp { host, port } => TcpStream::connect((host.as_str(), *port)).and_then(|stream| {
            // Requests are small and wait for nothing.
            stream.set_nodelay(true)?;
            Ok(stream.into())
        }),
    };
    let socket = socket.map_err(|source| StandaloneError::Connect { uri: uri.clone(), source })?;
    let remote = Remote {
        export: uri.export.clone(),
        writable: !args.read_only,
        error_after: None,
        fence: fence::PATIENCE,
    };
    let lost = |_| -> Box<dyn Fn(&str)> {
        Box::new(|why| {
            // In an empty root and without a network there is no other way to the server.
            domus_startup::say(format_args!("{why}"));
            std::process::exit(1);
        })
    };
    Ok(Source::Nbd { socket: Some(socket), remote, lost: Box::new(lost) })
}
