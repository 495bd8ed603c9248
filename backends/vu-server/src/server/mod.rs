//! The connection to a frontend: one thread that turns its messages into commands for the workers.
//!
//! ```text
//!   serve(stream): request ▶ request ▶ … ▶ hang-up or a request refused ▶ stop all rings ▶ forget everything
//! ```
//!
//! A request that is refused ends the connection: without `REPLY_ACK` the frontend has no other way to know.

mod enable_workaround;
mod inflight;
mod requests;
mod vring;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use domus_startup::{lock, memfd};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError, VhostUserBackendReqHandlerMut};

use domus_startup::control::chain;
use domus_startup::sandbox::{Allow, SHARED_MEMORY};

use crate::device::Device;
use crate::eventfd::LOOK;
use crate::say;
use crate::worker::Port;
use enable_workaround::Enable;
pub use inflight::MAX_LOGS;
use requests::State;
pub use vring::VringError;

/// The system calls of a control thread and of its queues beyond `sandbox::COMMON`.
pub const CALLS: &[Allow] = &[
    // A memory region is mapped, and a log: is its file long enough?
    SHARED_MEMORY,
    Allow::Call(libc::SYS_lseek),
    // Could the file become shorter, or its pages be missing?
    Allow::Argument(libc::SYS_fcntl, 1, libc::F_GET_SEALS as u32),
    Allow::Call(libc::SYS_fstatfs),
    // The connection is cloned, and a ring's eventfds are.
    Allow::Argument(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC as u32),
    // A ring's eventfd: is it one? It takes paths, too, but with an empty root there is no other file to look at.
    Allow::Argument(libc::SYS_statx, 2, LOOK as u32),
    // It is not to block.
    Allow::Argument(libc::SYS_fcntl, 1, libc::F_GETFL as u32),
    Allow::Argument(libc::SYS_fcntl, 1, libc::F_SETFL as u32),
];

/// And those of a device that offers an inflight log: to make its memory file.
pub const LOG_CALLS: &[Allow] = &[
    Allow::Argument(libc::SYS_fcntl, 1, libc::F_ADD_SEALS as u32),
    Allow::Argument(libc::SYS_memfd_create, 1, memfd::FLAGS[0]),
    Allow::Argument(libc::SYS_memfd_create, 1, memfd::FLAGS[1]),
    Allow::Call(libc::SYS_ftruncate),
];

/// Why a connection ended, other than by the frontend closing it.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// A message was malformed, out of place, or the socket failed.
    #[error("vhost-user connection ended: {0}")]
    Protocol(String),
    /// A request could not be granted.
    #[error("vhost-user request refused")]
    Refused(#[source] io::Error),
}

/// One device, served to one frontend after the other.
#[derive(Debug)]
pub struct Server<D: Device> {
    state: Arc<Mutex<State<D>>>,
    workers: Vec<Port<D::Command>>,
}

impl<D: Device> Server<D> {
    /// A device named `name` in messages, of which queue *i* is served by the worker behind `queues[i]`. One
    /// worker may serve several queues.
    ///
    /// # Panics
    /// Without queues, or with more than 256: vhost-user numbers them in a byte.
    pub fn new(name: &str, device: D, queues: Vec<Port<D::Command>>) -> Self {
        assert!((1..=256).contains(&queues.len()), "a device has 1 to 256 queues");
        let workers = queues.clone();
        Self { state: Arc::new(Mutex::new(State::new(name.into(), device, queues))), workers }
    }

    /// Takes memory in whatever files a frontend has, as other VMMs share theirs. A frontend can end the process by
    /// `SIGBUS` then. Without this, memory is refused that could go away: whose file could become shorter
    /// (`F_SEAL_SHRINK`), or that is not in tmpfs, as huge pages are missing when their pool is empty.
    #[must_use]
    pub fn with_any_memory(self) -> Self {
        lock(&self.state).take_any_memory();
        self
    }

    /// Serves one frontend until it hangs up. Afterwards no ring runs, no memory is mapped, and the device
    /// knows that it is abandoned ([`Device::abandoned`]).
    ///
    /// # Errors
    /// [`ConnectionError`]: the frontend was hung up on.
    pub fn serve(&self, stream: UnixStream) -> Result<(), ConnectionError> {
        let end = self.answer(stream);
        lock(&self.state).forget_frontend();
        end
    }

    fn answer(&self, stream: UnixStream) -> Result<(), ConnectionError> {
        let mut early = stream.try_clone().map_err(ConnectionError::Refused)?;
        let mut requests = BackendReqHandler::from_stream(stream, self.state.clone());
        loop {
            match self
                .enable_early(&mut early)
                .and_then(|taken| if taken { Ok(()) } else { requests.handle_request() })
            {
                Ok(()) => {}
                Err(VhostError::Disconnected) => break Ok(()),
                Err(VhostError::SocketRetry(_)) => {}
                Err(VhostError::ReqHandlerError(error)) => break Err(ConnectionError::Refused(error)),
                Err(VhostError::SocketBroken(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                    break Ok(());
                }
                Err(error) => break Err(ConnectionError::Protocol(error.to_string())),
            }
        }
    }

    /// Whether the next message was a [`Enable`] that came early, and has been obeyed.
    fn enable_early(&self, stream: &mut UnixStream) -> Result<bool, VhostError> {
        if lock(&self.state).has_protocol_features() {
            return Ok(false);
        }
        let Some(enable) = Enable::take(stream).map_err(VhostError::SocketError)? else { return Ok(false) };
        lock(&self.state).set_vring_enable(enable.index, enable.on)?;
        enable.acknowledge(stream).map_err(VhostError::SocketError)?;
        Ok(true)
    }

    /// Serves frontends for ever, one at a time; what ends a connection is said.
    ///
    /// # Errors
    /// The listening socket has failed.
    pub fn serve_all(&self, listener: &UnixListener) -> io::Result<()> {
        loop {
            let (stream, _) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if let Err(error) = self.serve(stream) {
                say::limited(format_args!("{}", chain(&error)));
            }
        }
    }
}

impl<D: Device> Drop for Server<D> {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.quit();
        }
    }
}
