//! The command line of a backend that Domus did not start: vhost-user's "backend program conventions".

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use domus_startup::sandbox::{self, SandboxError};

/// The user `nobody` of every distribution.
const NOBODY: u32 = 65_534;

/// The arguments of every backend that is started by hand. `#[command(flatten)]` it into the program's own.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Listen on this path for frontends, one after the other.
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    pub socket_path: Option<PathBuf>,
    /// Serve the frontend at the other end of this connected socket, then exit.
    #[arg(long, value_name = "FDNUM", value_parser = clap::value_parser!(i32).range(3..))]
    pub fd: Option<RawFd>,
    /// Print what this program can do as JSON, and exit.
    #[arg(long)]
    pub print_capabilities: bool,
    /// The user to become when started as root.
    #[arg(long, value_name = "UID", default_value_t = NOBODY, value_parser = clap::value_parser!(u32).range(1..))]
    pub uid: u32,
}

/// The frontend that [`Common`] names.
#[derive(Debug)]
pub enum Frontend {
    /// Serve whoever connects ([`Server::serve_all`](crate::Server::serve_all)).
    Listener(UnixListener),
    /// Serve this one ([`Server::serve`](crate::Server::serve)).
    Connected(UnixStream),
}

/// Why there is no frontend to serve.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Neither a path nor a descriptor.
    #[error("no frontend to serve: give --socket-path PATH or --fd FDNUM")]
    Neither,
    /// The path cannot be bound.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not an open stream socket.
    #[error("--fd {fd} is no open stream socket")]
    NotASocket {
        /// The descriptor.
        fd: RawFd,
        /// What the system said.
        source: io::Error,
    },
}

impl Common {
    /// Enters the sandbox, as [`Self::uid`] if this process is root's and as its own user otherwise.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn enter_sandbox(&self) -> Result<(), SandboxError> {
        let own = nix::unistd::geteuid();
        sandbox::enter(if own.is_root() { self.uid } else { own.as_raw() })
    }

    /// Binds the path, replacing a socket that is there, or takes the descriptor. Call it once.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn open(&self) -> Result<Frontend, SocketError> {
        match (&self.socket_path, self.fd) {
            (Some(path), _) => {
                let listen = || {
                    use std::os::unix::fs::FileTypeExt;
                    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
                        std::fs::remove_file(path)?;
                    }
                    UnixListener::bind(path)
                };
                listen()
                    .map(Frontend::Listener)
                    .map_err(|source| SocketError::Listen { path: path.clone(), source })
            }
            (None, Some(fd)) => inherited(fd).map(Frontend::Connected),
            (None, None) => Err(SocketError::Neither),
        }
    }
}

#[expect(unsafe_code, reason = "takes ownership of a descriptor that was inherited by number")]
fn inherited(fd: RawFd) -> Result<UnixStream, SocketError> {
    let refused = |source| SocketError::NotASocket { fd, source };
    // SAFETY: fcntl reads its integer arguments and no memory.
    let open = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    nix::errno::Errno::result(open).map_err(|errno| refused(errno.into()))?;
    // SAFETY: the descriptor is open, was just checked, and whoever started us gave it to us by its number; this
    // program opens none before.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    socket.local_addr().map_err(refused)?;
    Ok(socket)
}
