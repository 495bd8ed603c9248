//! What dom0 keeps of a running domain for its backends: every descriptor they are given, as often as one is started.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use domus_startup::fds::Outgoing;
use shared_abi::Role;
use shared_abi::control::{ConsoleRequest, ConsoleStart, Identity};

use super::backend::{Message, Start};
use super::disks::Disks;
use super::nets::Nets;
use crate::config::DomainConfig;

/// Bytes of console output kept for those who attach late.
const CONSOLE_HISTORY: u32 = 1 << 20;

/// The descriptors of one incarnation.
#[derive(Debug)]
pub struct Kept {
    /// Images and what is known of them.
    pub disks: RefCell<Disks>,
    /// NICs and what is known of them.
    pub nets: RefCell<Nets>,
    /// The console's end of the serial line: tells when all of it has been read.
    pub serial: OwnedFd,
    /// Where consoles attach.
    pub listener: UnixListener,
}

impl Kept {
    /// The start message of the backend in this role.
    ///
    /// # Errors
    /// No descriptors left; `NotConnected` for a remote disk that has no connection.
    pub fn start(&self, role: Role, config: &DomainConfig, identity: &Identity) -> io::Result<Start> {
        match role {
            Role::Block => self.disks.borrow_mut().start(config, identity),
            Role::Net => self.nets.borrow_mut().start(config, identity),
            // A runner is no backend, and a switch no domain's own; nobody asks for their start here.
            Role::Console | Role::Runner | Role::Switch => self.console(identity),
        }
    }

    fn console(&self, identity: &Identity) -> io::Result<Start> {
        let mut fds = Outgoing::default();
        let start = ConsoleStart {
            identity: identity.clone(),
            serial: fds.add(self.serial.try_clone()?),
            listener: fds.add(self.listener.try_clone()?),
            history: CONSOLE_HISTORY,
            log: None,
        };
        let message = Message::Console(ConsoleRequest::Start(start));
        Ok(Start { message, fds: fds.into_vec(), sockets: Vec::new(), lifeline: None, marks: None })
    }
}
