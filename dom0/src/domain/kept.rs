//! What dom0 keeps of a running domain for its backends: every descriptor they are given, as often as one is started.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use domus_startup::fds::Outgoing;
use domus_startup::memfd;
use shared_abi::Role;
use shared_abi::control::{
    ConsoleRequest, ConsoleStart, Identity, NetCard, NetNic, NetRequest, NetStart, NetWire, NicFilter,
    NicLimits,
};
use shared_abi::limits::NIC_STATE_LEN;

use super::backend::{Message, Start};
use super::disks::Disks;
use crate::config::DomainConfig;
use crate::resources::sockets;

/// Bytes of console output kept for those who attach late.
const CONSOLE_HISTORY: u32 = 1 << 20;

/// The descriptors of one incarnation.
#[derive(Debug)]
pub struct Kept {
    /// Images and what is known of them.
    pub disks: RefCell<Disks>,
    /// One for each NIC.
    pub taps: RefCell<Vec<File>>,
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
            Role::Net => self.net(config, identity),
            // A runner is no backend; nobody asks for its start here.
            Role::Console | Role::Runner => self.console(identity),
        }
    }

    fn net(&self, config: &DomainConfig, identity: &Identity) -> io::Result<Start> {
        let mut fds = Outgoing::default();
        let (mut nics, mut sockets) = (Vec::new(), Vec::new());
        for (nic, tap) in config.nets.iter().zip(self.taps.borrow().iter()) {
            let (ours, theirs) = sockets::pair()?;
            sockets.push((nic.id.clone(), ours));
            let card = NetCard {
                id: nic.id.clone(),
                mac: nic.mac,
                mtu: nic.mtu,
                pairs: 1,
                filter: NicFilter { any_mac: false, addresses: None },
                limits: NicLimits::default(),
                link_up: true,
                state: fds.add(memfd::sealed("nic-state", NIC_STATE_LEN)?),
                socket: fds.add(theirs),
            };
            let wire = NetWire::Tap { queues: vec![fds.add(tap.try_clone()?)], steering: None };
            nics.push(NetNic { card, wire });
        }
        let message = Message::Net(NetRequest::Start(NetStart { identity: identity.clone(), nics }));
        Ok(Start { message, fds: fds.into_vec(), sockets, lifeline: None, marks: None })
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
