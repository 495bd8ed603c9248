//! The devices of a domain, by class: what a config says of one, what dom0 keeps open of it, what its backend is told.

pub mod block;
pub mod console;
pub mod devices;
pub mod error;
pub mod external;
pub mod net;
pub mod start;

use std::path::PathBuf;
use std::rc::Rc;

use shared_abi::{DomId, DomainName};

use crate::network::managed::Networks;
use crate::network::switches::Switches;
use crate::process::Supervisor;
use crate::value::place::Place;

/// The domain that a device belongs to.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The config file, for messages.
    pub file: PathBuf,
    /// Its name.
    pub name: DomainName,
    /// The name that its processes were started under.
    pub started_as: DomainName,
    /// Its number.
    pub domid: DomId,
    /// Its run directory.
    pub directory: PathBuf,
}

impl Owner {
    /// The value at a JSON path of its config.
    pub fn place(&self, at: impl std::fmt::Display) -> Place<'_> {
        Place::new(&self.file, at)
    }
}

/// What gives devices processes and connections, for all domains of one dom0.
#[derive(Clone)]
pub struct Providers {
    /// Starts processes.
    pub supervisor: Rc<dyn Supervisor>,
    /// The networks that NICs name.
    pub networks: Rc<Networks>,
    /// The switches that NICs share.
    pub switches: Rc<Switches>,
}
