//! One console for dom0: the start message, the sandbox, the loop.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};

use domus_startup::control::ControlError;
use domus_startup::fds::FdError;
use domus_startup::sandbox::{self, COMMON, SandboxError};
use domus_startup::{Control, Fds, threads};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use shared_abi::control::{BackendReply, ConsoleRequest};

use crate::console::Console;
use crate::log::{Log, Logger, MAX_FILE};
use crate::server::Server;

/// Least and most bytes of history.
pub const HISTORY: std::ops::RangeInclusive<u32> = 4 << 10..=16 << 20;

/// Why a console could not be served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The first request was another one.
    #[error("the first request must be `start`")]
    NotStarted,
    /// The descriptors of the start message.
    #[error("console start message")]
    Fds(#[from] FdError),
    /// The history's size.
    #[error("console history of {0} bytes: 4096 (4 KiB) to 16777216 (16 MiB) are possible")]
    History(u32),
    /// A descriptor is not what it should be.
    #[error("cannot use the {what} given")]
    Prepare {
        /// Which.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A thread.
    #[error("cannot start a thread of the console")]
    Thread(#[source] io::Error),
}

/// Serves one console for the controller of the socket at `control`. Returns only with an error.
///
/// # Errors
/// [`StartError`]; before the console was ready, the controller has been told.
pub fn run(control: &Path) -> Result<(), StartError> {
    domus_startup::serve(control, bring_up, handle)
}

fn handle(logger: &mut Logger, request: ConsoleRequest, mut fds: Fds) -> Result<BackendReply, String> {
    match request {
        ConsoleRequest::Start(_) => return Err("the console is started already".into()),
        ConsoleRequest::Ping => {
            fds.finish().map_err(|error| error.to_string())?;
            return Ok(BackendReply::Console { trouble: logger.trouble(), unwritten: logger.unwritten() });
        }
        ConsoleRequest::Log { file, length } => {
            let file = fds.take(file).map_err(|error| error.to_string())?;
            logger.hand(Log::with_length(file.into(), length));
        }
    }
    fds.finish().map_err(|error| error.to_string())?;
    Ok(BackendReply::Done)
}

fn bring_up(_: &Control, request: ConsoleRequest, mut fds: Fds) -> Result<Logger, StartError> {
    let ConsoleRequest::Start(start) = request else { return Err(StartError::NotStarted) };
    let history = size(start.history)?;
    let serial = fds.take(start.serial)?;
    let listener = listening(fds.take(start.listener)?)?;
    let log = start.log.map(|index| fds.take(index)).transpose()?.map(File::from);
    fds.finish()?;
    let log =
        log.map(Log::new).transpose().map_err(|source| StartError::Prepare { what: "log file", source })?;
    // The only file that it is given is the log: a process that is its guest's cannot fill a disk.
    sandbox::limit_files(MAX_FILE)?;
    sandbox::enter(start.identity.uid)?;
    let logger = Logger::start().map_err(StartError::Thread)?;
    if let Some(log) = log {
        logger.hand(log);
    }
    let gate = spawn(Server::new(Console::new(history), serial, listener, Some(logger.clone())))?;
    // poll, accept4, recvfrom, sendmsg and write are all in COMMON: a console needs nothing of its own.
    sandbox::seal(COMMON)?;
    drop(gate);
    Ok(logger)
}

/// The history's size, checked.
pub(crate) fn size(history: u32) -> Result<usize, StartError> {
    if HISTORY.contains(&history) { Ok(history as usize) } else { Err(StartError::History(history)) }
}

/// Makes a listening socket non-blocking: a client that goes between `poll` and `accept` must stop nobody.
pub(crate) fn listening(listener: OwnedFd) -> Result<OwnedFd, StartError> {
    let prepare =
        |errno: nix::errno::Errno| StartError::Prepare { what: "listening socket", source: errno.into() };
    let flags = fcntl(&listener, FcntlArg::F_GETFL).map_err(prepare)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(&listener, FcntlArg::F_SETFL(flags)).map_err(prepare)?;
    Ok(listener)
}

/// Holds the console's thread back until the process is sealed: drop it then.
pub(crate) struct Gate {
    _held: SyncSender<()>,
}

/// Starts the console's thread, which looks at no client before [`Gate`] is gone. If its loop fails, the process ends:
/// dom0 then knows.
pub(crate) fn spawn(server: Server) -> Result<Gate, StartError> {
    let (gate, gone) = sync_channel::<()>(0);
    let run = move || {
        // Nobody sends: this ends when the gate is dropped.
        let _ = gone.recv();
        let Err(error) = server.run();
        domus_startup::say(format_args!("domus-console: cannot wait for the console's sockets: {error}"));
        std::process::exit(1);
    };
    threads::start("console".into(), run).map_err(StartError::Thread)?;
    Ok(Gate { _held: gate })
}
