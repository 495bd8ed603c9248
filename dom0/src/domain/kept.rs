//! What dom0 keeps of a running domain for its backends: every descriptor they are given, as often as one is started.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use domus_startup::fds::Outgoing;
use shared_abi::Role;
use shared_abi::control::{ConsoleRequest, ConsoleStart, Identity};

use super::backend::{Message, Start};
use super::disks::Disks;
use super::nets::Nets;
use crate::config::DomainConfig;
use crate::resources::files::{self, For};
use crate::resources::sockets;

/// Bytes of console output kept for those who attach late.
const CONSOLE_HISTORY: u32 = 1 << 20;

/// The descriptors of one incarnation.
#[derive(Debug)]
pub struct Kept {
    /// Images and what is known of them.
    pub disks: RefCell<Disks>,
    /// NICs and what is known of them.
    pub nets: RefCell<Nets>,
    /// The console's end of the serial line: tells when all of it has been read. None if it is the console's alone.
    serial: RefCell<Option<OwnedFd>>,
    /// Where consoles attach. None if it is the console's alone.
    listener: RefCell<Option<UnixListener>>,
    /// The path of that.
    console: RefCell<PathBuf>,
}

impl Kept {
    /// Of a domain whose consoles attach at `console`. What was made for a console before is that one's alone.
    pub fn new(disks: Disks, nets: Nets, console: PathBuf) -> Self {
        Self {
            disks: disks.into(),
            nets: nets.into(),
            serial: RefCell::default(),
            listener: RefCell::default(),
            console: console.into(),
        }
    }

    /// Consoles attach at another path from now on: what is there was moved.
    pub fn moved(&self, console: PathBuf) {
        *self.console.borrow_mut() = console;
    }

    /// Makes what a console is given and is not there yet. Returns the runner's end of the serial line, if that is new.
    ///
    /// # Errors
    /// No descriptors left, or the directory is gone.
    pub fn make_console(&self) -> io::Result<Option<OwnedFd>> {
        if self.listener.borrow().is_none() {
            match std::fs::remove_file(&*self.console.borrow()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&*self.console.borrow())?;
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

    /// The start message of the backend in this role.
    ///
    /// # Errors
    /// No descriptors left; `NotConnected` for a remote disk that has no connection, or a console for which nothing is made.
    pub fn start(&self, role: Role, config: &DomainConfig, identity: &Identity) -> io::Result<Start> {
        match role {
            Role::Block => self.disks.borrow_mut().start(config, identity),
            Role::Net => self.nets.borrow_mut().start(config, identity),
            // A runner is no backend, and a switch no domain's own; nobody asks for their start here.
            Role::Console | Role::Runner | Role::Switch => self.console(config, identity),
        }
    }

    fn console(&self, config: &DomainConfig, identity: &Identity) -> io::Result<Start> {
        let mut fds = Outgoing::default();
        let (serial, listener) = (self.serial.borrow(), self.listener.borrow());
        let (Some(serial), Some(listener)) = (&*serial, &*listener) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        // It could be opened when the domain was built; a console without it is better than none.
        let log = files::console_log(config, For::Use).unwrap_or_else(|error| {
            crate::say::line(format_args!("{}: the console is not logged: {error}", config.name));
            None
        });
        let start = ConsoleStart {
            identity: identity.clone(),
            serial: fds.add(serial.try_clone()?),
            listener: fds.add(listener.try_clone()?),
            history: CONSOLE_HISTORY,
            log: log.map(|log| fds.add(log)),
        };
        let message = Message::Console(ConsoleRequest::Start(start));
        Ok(Start { message, fds: fds.into_vec(), sockets: Vec::new(), lifeline: None, marks: None })
    }
}
