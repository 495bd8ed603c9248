//! The serial console of a domain: its line to the runner, where consoles attach, and what its backend is told.

pub mod config;

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use domus_startup::fds::Outgoing;
use shared_abi::control::{ConsoleRequest, ConsoleStart, Identity};

use crate::device::start::{Message, Start};
use crate::host::files::{self, For};
use crate::host::sockets;
use crate::value::place::Place;

/// Bytes of console output kept for those who attach late.
const HISTORY: u32 = 1 << 20;

/// What dom0 keeps of a domain's console.
#[derive(Debug)]
pub struct Console {
    /// The config file, and the file to which all that the guest prints is appended.
    log: Option<(PathBuf, PathBuf)>,
    /// The console's end of the serial line: tells when all of it has been read. None if only the console has it.
    serial: RefCell<Option<OwnedFd>>,
    /// Where consoles attach. None if only the console has it.
    listener: RefCell<Option<UnixListener>>,
    /// The path of the listener.
    socket: RefCell<PathBuf>,
}

impl Console {
    /// A console that clients attach to at `socket`, and whose output is appended to `log` of the config in `file`. What
    /// dom0 before this one made for it is not known here.
    pub fn new(file: PathBuf, log: Option<PathBuf>, socket: PathBuf) -> Self {
        Self {
            log: log.map(|log| (file, log)),
            serial: RefCell::default(),
            listener: RefCell::default(),
            socket: socket.into(),
        }
    }

    /// Clients attach at another path from now on: the socket was moved.
    pub fn moved(&self, socket: PathBuf) {
        *self.socket.borrow_mut() = socket;
    }

    /// Makes what the console is given and is not there yet. Returns the runner's end of the serial line, if that is new.
    ///
    /// # Errors
    /// No descriptors left, or the directory is gone.
    pub fn make(&self) -> io::Result<Option<OwnedFd>> {
        if self.listener.borrow().is_none() {
            match std::fs::remove_file(&*self.socket.borrow()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&*self.socket.borrow())?;
            listener.set_nonblocking(true)?;
            *self.listener.borrow_mut() = Some(listener);
        }
        let mut serial = self.serial.borrow_mut();
        if serial.is_some() {
            return Ok(None);
        }
        let (ours, theirs) = sockets::pair()?;
        *serial = Some(theirs);
        Ok(Some(ours))
    }

    /// True if the console has not read all that the guest has printed, as far as that can be known.
    pub fn has_unread(&self) -> bool {
        self.serial.borrow().as_ref().is_some_and(sockets::has_unread)
    }

    /// The start message of its backend.
    ///
    /// # Errors
    /// No descriptors left; `NotConnected` before [`Self::make`].
    pub fn start(&self, identity: &Identity) -> io::Result<Start> {
        let mut fds = Outgoing::default();
        let (serial, listener) = (self.serial.borrow(), self.listener.borrow());
        let (Some(serial), Some(listener)) = (&*serial, &*listener) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let log = self.log.as_ref().and_then(|(file, path)| {
            // It could be opened when the domain was built; a console without it is better than none.
            files::appended(&Place::new(file, "console.log"), path, For::Use).unwrap_or_else(|error| {
                let domain = &identity.domain;
                crate::log::stderr::line(format_args!("{domain}: the console is not logged: {error}"));
                None
            })
        });
        let start = ConsoleStart {
            identity: identity.clone(),
            serial: fds.add(serial.try_clone()?),
            listener: fds.add(listener.try_clone()?),
            history: HISTORY,
            log: log.map(|log| fds.add(log)),
        };
        let message = Message::Console(ConsoleRequest::Start(start));
        Ok(Start { message, fds: fds.into_vec(), sockets: Vec::new(), lifeline: None, marks: None })
    }
}
