//! What dom0 keeps of a running domain's devices: every descriptor their backends are given, as often as one is started.

use std::cell::RefCell;
use std::io;

use shared_abi::Role;
use shared_abi::control::Identity;

use crate::device::block::open::Disks;
use crate::device::console::Console;
use crate::device::net::attach::Nets;
use crate::device::start::Start;

/// The devices of one machine, by class.
#[derive(Debug)]
pub struct Devices {
    /// Images and what is known of them.
    pub disks: RefCell<Disks>,
    /// NICs and what is known of them.
    pub nets: RefCell<Nets>,
    /// The serial console.
    pub console: Console,
}

impl Devices {
    /// Of a machine whose disks, NICs and console are these.
    pub fn new(disks: Disks, nets: Nets, console: Console) -> Self {
        Self { disks: disks.into(), nets: nets.into(), console }
    }

    /// The start message of the backend in this role.
    ///
    /// # Errors
    /// No descriptors left; `NotConnected` for a remote disk without a connection or a console that is not made;
    /// `Unsupported` for a role that is no backend of one domain.
    pub fn start(&self, role: Role, identity: &Identity) -> io::Result<Start> {
        match role {
            Role::Block => self.disks.borrow_mut().start(identity),
            Role::Net => self.nets.borrow_mut().start(identity),
            Role::Console => self.console.start(identity),
            Role::Runner | Role::Switch => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// True if the backend in this role must be gone before the next one is told what to serve.
    pub fn exclusive(&self, role: Role) -> bool {
        match role {
            Role::Block => self.disks.borrow().one_at_a_time() || self.disks.borrow().are_absent(),
            Role::Net => self.nets.borrow().are_absent(),
            Role::Console | Role::Runner | Role::Switch => false,
        }
    }
}
