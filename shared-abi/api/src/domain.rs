//! Domains: the list, one of them, how it started and how it ended.

use serde::{Deserialize, Serialize};
use zlink::introspect;

/// One line of `domus list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::CustomType)]
pub struct DomainInfo {
    /// Its name.
    pub name: String,
    /// Its number; 0 is the host itself.
    pub id: u32,
    /// By which the host's other tools know it; none of what a dom0 before this one has left.
    pub uuid: Option<String>,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// xl's flags, one place each: r(unning) b(locked) p(aused) s(hut down) c(rashed) d(ying).
    pub flags: String,
    /// building, running, paused, stopping, preserved, dying or left-over.
    pub state: String,
    /// CPU time of its vCPUs and everything else of its runner, in seconds.
    pub cpu_seconds: f64,
    /// How its last machine ended, if one has.
    pub ended: Option<String>,
    /// The process id of its runner.
    pub runner_pid: Option<i32>,
    /// Backends that were started again, or connected to again, in its life.
    pub restarts: u64,
}

/// The answer to `List`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::Type)]
pub struct Domains {
    /// By number, Domain-0 first.
    pub domains: Vec<DomainInfo>,
}

/// The answer to `Get`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::Type)]
pub struct OneDomain {
    /// The domain.
    pub domain: DomainInfo,
    /// When its first vCPU first ran: `CLOCK_MONOTONIC` in nanoseconds.
    pub first_run_ns: Option<u64>,
}

/// The answer to `Create`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::Type)]
pub struct Created {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u32,
}

/// The end of one phase of a domain's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct PhaseInfo {
    /// `config` (checked), `files` (opened), `processes` (started), `devices` (opened), `machine` (built), `kernel`
    /// (unpacked), `ready` (every process), `run` (the first instruction), `output` (the first byte on COM1), `driver`
    /// (the first device in use).
    pub name: String,
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub at_ns: u64,
}

/// The answer to `Timeline`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct Timeline {
    /// Those that have ended, in their order.
    pub phases: Vec<PhaseInfo>,
}

/// The answer to `Console`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::Type)]
pub struct Console {
    /// The socket to connect to.
    pub path: String,
    /// The number of the domain that has it now.
    pub id: u32,
}

/// The answer to `DumpCore`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::Type)]
pub struct Dumped {
    /// Where the core is.
    pub file: String,
}

/// The answer to `Wait`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::Type)]
pub struct Ended {
    /// How the machine ended, for people.
    pub ended: Option<String>,
    /// It crashed.
    pub crashed: bool,
    /// It has been started again, with this number.
    pub restarted_as: Option<u32>,
}
