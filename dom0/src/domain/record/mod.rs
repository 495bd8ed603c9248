//! What a domain's directory says about it: all that a dom0 needs that comes after this one.
//!
//! It is written before a step is taken that outlives this process, and again when that step is done, each time as a
//! whole. Whoever reads it does the step again, or takes it back:
//!
//! | it says | a dom0 that comes later |
//! |---|---|
//! | building, nobody told | removes what is there: whoever asked for the domain was told nothing |
//! | building, it has run before | removes what is there, and builds it |
//! | running, paused, stopping | adopts the processes that live, replaces the others, repeats the last wish |
//! | preserved | takes over the console |
//! | anything, under another name than its processes have | the same: the directory's name is the domain's |
//! | being removed | removes what is left, and builds the next one where it was to be restarted |
//!
//! A record of version 1, which dom0 wrote before there was a number, is read as one of version 2 (`v1.rs`).

mod v1;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shared_abi::{DomId, DomainName, Role};

use crate::config::OnHang;
use crate::device::classes::DeviceRecords;
use crate::domain::lifecycle::State;
use crate::host::proc::ProcessId;
use crate::value::cpus::Scheduling;

/// The version of the records that this dom0 writes.
const VERSION: u32 = 2;

/// A domain as it is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this record.
    pub version: u32,
    /// The process of the dom0 that wrote this.
    pub owner: u32,
    /// It is a `domus run`'s: nobody takes it over.
    pub foreground: bool,
    /// The config that its machine was made from.
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
    /// What runs.
    #[serde(flatten)]
    pub machine: MachineRecord,
}

/// A machine: what runs, whatever has become of the text that it was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// The domain's number.
    pub domid: DomId,
    /// The name that its processes were started under.
    pub started_as: DomainName,
    /// RAM in bytes.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Its part of the host's CPUs.
    pub scheduling: Scheduling,
    /// What is started in place of the installed programs.
    pub programs: BTreeMap<Role, PathBuf>,
    /// What becomes of a backend that does not answer.
    #[serde(default)]
    pub on_hang: OnHang,
    /// Its own processes.
    pub processes: Vec<ProcessRecord>,
    /// Its devices, each with what the guest sees of it.
    pub devices: DeviceRecords,
}

impl Record {
    /// What is known of a domain beside its machine: the rest is to be filled in.
    pub fn new(state: State, source: Source, machine: MachineRecord) -> Self {
        Self {
            version: VERSION,
            owner: std::process::id(),
            foreground: false,
            source,
            next: None,
            state,
            created: false,
            ended: None,
            crashed: false,
            restarts: 0,
            machine,
        }
    }

    /// Reads what a dom0 wrote of the domain that is called `name` now.
    ///
    /// # Errors
    /// It is no record, or one of a version that this dom0 does not know.
    pub fn read(json: &[u8], name: &DomainName) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Versioned {
            #[serde(default = "first")]
            version: u32,
        }
        fn first() -> u32 {
            1
        }
        match serde_json::from_slice::<Versioned>(json)?.version {
            1 => v1::read(json, name),
            VERSION => serde_json::from_slice(json),
            other => Err(serde::de::Error::custom(format_args!(
                "a record of version {other}: this dom0 knows 1 to {VERSION}"
            ))),
        }
    }

    /// Every process that the domain has or may have.
    pub fn known(&self) -> impl Iterator<Item = ProcessId> {
        let own = self.machine.processes.iter().map(|process| process.known);
        own.chain(self.machine.devices.processes())
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
