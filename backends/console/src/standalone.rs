//! A console for a frontend that Domus did not start, by vhost-user's backend program conventions.
//!
//! It serves one frontend and then ends: a daemon of the crate `vhost-user-backend` takes no second connection.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use domus_startup::sandbox::{self, COMMON};
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vu_server::standalone::{Common, Frontend};

use crate::console::Console;
use crate::relay::{self, Ended};
use crate::server::Server;
use crate::start;
use crate::syscalls::CALLS;
use crate::virtio::{INPUT_EVENT, VirtioConsole};

/// The command line of a stand-alone console.
#[derive(Debug, clap::Args)]
pub struct Standalone {
    #[command(flatten)]
    common: Common,
    /// Listen here for those who attach to the console.
    #[arg(long, value_name = "PATH")]
    console_socket: Option<PathBuf>,
    /// Bytes of output kept for those who attach late, 4096 to 16777216.
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 10)]
    history: u32,
}

impl Standalone {
    /// Serves one frontend.
    ///
    /// # Errors
    /// The sockets, the sandbox, or what the frontend did wrong; the text is for the operator.
    pub fn run(self) -> anyhow::Result<()> {
        if self.common.print_capabilities {
            println!("{{\"type\":\"console\",\"features\":[]}}");
            return Ok(());
        }
        let path = self.console_socket.context("nobody could attach: give --console-socket PATH")?;
        let frontend = self.common.open()?;
        let listener = start::listening(listen(&path)?.into())?;
        let (serial, socket) = UnixStream::pair().context("cannot make a socket pair")?;
        let server = Server::new(Console::new(start::size(self.history)?), serial.into(), listener, None);
        let (accepts, relayed) = private_connection()?;
        self.common.enter_sandbox()?;
        let mut daemon = start_device(socket.into(), accepts)?;
        let gate = start::spawn(server)?;
        sandbox::seal(&[COMMON, CALLS].concat())?;
        drop(gate);
        let stream = match frontend {
            Frontend::Connected(stream) => stream,
            Frontend::Listener(listener) => listener.accept().context("cannot accept a frontend")?.0,
        };
        match relay::run(&stream, &relayed).context("cannot wait for the frontend")? {
            // Dropping the daemon would wait for a worker that has no reason to end.
            Ended::Frontend => std::process::exit(0),
            Ended::Backend => match daemon.wait() {
                Ok(()) => std::process::exit(0),
                Err(error) => {
                    std::mem::forget(daemon);
                    bail!("the frontend was hung up on: {error}")
                }
            },
        }
    }
}

/// Binds the console socket for the user alone, replacing a socket that is there.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let bind = || {
        if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok::<_, std::io::Error>(listener)
    };
    bind().with_context(|| format!("cannot listen on {}", path.display()))
}

/// A listening socket and a connection that waits there. The daemon accepts from a socket with a path; this one is in a
/// directory that nobody else can enter, and gone before anybody could.
fn private_connection() -> anyhow::Result<(UnixListener, UnixStream)> {
    let template = std::env::temp_dir().join("domus-console.XXXXXX");
    let directory =
        nix::unistd::mkdtemp(&template).with_context(|| format!("cannot make {}", template.display()))?;
    let path = directory.join("vhost-user.sock");
    let connected =
        UnixListener::bind(&path).and_then(|listener| Ok((listener, UnixStream::connect(&path)?)));
    let removed = std::fs::remove_dir_all(&directory);
    let connected = connected.with_context(|| format!("cannot connect to {}", path.display()))?;
    removed.with_context(|| format!("cannot remove {}", directory.display()))?;
    Ok(connected)
}

/// Starts the device's daemon on the connection that waits at `accepts`. With it come its threads.
fn start_device(
    socket: OwnedFd,
    accepts: UnixListener,
) -> anyhow::Result<VhostUserDaemon<Arc<VirtioConsole>>> {
    let watched = socket.try_clone().context("cannot clone a socket")?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("vhost-user".into(), Arc::new(VirtioConsole::new(socket)), memory)
        .map_err(|error| anyhow::anyhow!("cannot start the device: {error}"))?;
    for worker in daemon.get_epoll_handlers() {
        // Only changes wake the worker: what was typed may have to wait in the socket for a buffer of the driver's.
        worker
            .register_listener(watched.as_raw_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED, INPUT_EVENT)
            .context("cannot watch the console")?;
    }
    daemon
        .start(&mut accepts.into())
        .map_err(|error| anyhow::anyhow!("cannot accept the device's own connection: {error}"))?;
    // Watched as long as the process lives.
    std::mem::forget(watched);
    Ok(daemon)
}
