//! What a domain's directory says about it: all that a dom0 needs that comes after this one.
//!
//! It is written before a step is taken that outlives this process, and again when that step is done, each time as a
//! whole. Whoever reads it does the step again, or takes it back:
//!
//! | it says | a dom0 that comes later |
//! |---|---|
//! | building, nobody told | removes what is there: whoever asked for the domain was told nothing |
//! | building, it has run before | removes what is there, and builds it |
//! | running, paused, stopping | takes over the processes that live, replaces the others, and asks the runner for the same again |
//! | preserved | takes over the console |
//! | anything, under another name than its processes have | the same: the directory's name is the domain's, the other one is in it |
//! | being removed | removes what is left, and builds the next one where it was to be restarted |

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shared_abi::control::IoLimits;
use shared_abi::{DeviceId, DomId, DomainName, Role};

use crate::device::block::open::DiskRecord;
use crate::device::net::attach::NicRecord;
use crate::domain::lifecycle::State;
use crate::domain::machine::build::Incarnation;
use crate::host::proc::ProcessId;
use crate::value::cpus::Scheduling;

/// A domain as it is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The domain's number.
    pub domid: DomId,
    /// The process of the dom0 that wrote this.
    pub owner: u32,
    /// It is a `domus run`'s: nobody takes it over.
    pub foreground: bool,
    /// The running config.
    pub source: Source,
    /// What its next machine is made from, if that is something else.
    #[serde(default)]
    pub next: Option<Source>,
    /// Where it is in its life.
    pub state: State,
    /// Whoever asked for it was told that it runs.
    pub created: bool,
    /// How its last machine ended, for people.
    pub ended: Option<String>,
    /// It ended by a crash.
    pub crashed: bool,
    /// Backends that were started again, or connected to again.
    pub restarts: u64,
    /// The name that its processes were started under, if it has another one now.
    #[serde(default)]
    pub unit: Option<DomainName>,
    /// What is started in place of the installed programs.
    pub programs: BTreeMap<Role, PathBuf>,
    /// Its part of the host's CPUs; the config's, if a dom0 wrote this that knew of none.
    #[serde(default)]
    pub scheduling: Option<Scheduling>,
    /// Its own processes.
    pub processes: Vec<ProcessRecord>,
    /// The passts of its NICs.
    pub passts: Vec<(DeviceId, ProcessId)>,
    /// Its disks, as far as they have changed since they were opened.
    pub disks: Vec<DiskRecord>,
    /// What all of its disks together may do.
    pub disk_limits: IoLimits,
    /// Its NICs, in the same way.
    pub nics: Vec<NicRecord>,
}

impl Record {
    /// The same, with what there is of the domain now.
    pub fn of(mut self, incarnation: &Incarnation) -> Self {
        self.processes = incarnation.processes();
        let Some(kept) = &incarnation.kept else { return self };
        (self.disks, self.disk_limits) = kept.disks.borrow().records();
        (self.nics, self.passts) = kept.nets.borrow().records();
        self
    }

    /// Every process that the domain has or may have.
    pub fn known(&self) -> impl Iterator<Item = ProcessId> {
        let passts = self.passts.iter().map(|(_, known)| *known);
        self.processes.iter().map(|process| process.known).chain(passts)
    }
}

/// A config's text, and what it was read from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The file, for messages.
    pub file: PathBuf,
    /// Where relative paths start.
    pub directory: PathBuf,
    /// The JSON text.
    pub text: String,
}

/// One process of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// What it is for.
    pub role: Role,
    /// Which it is.
    #[serde(flatten)]
    pub known: ProcessId,
}
