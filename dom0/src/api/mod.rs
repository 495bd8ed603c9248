//! The Varlink interface `org.domus.Dom0`: types, errors, and the client's side of it.
//!
//! The service describes itself (`varlinkctl introspect`). Whoever may connect may ask; only root, or the user that
//! dom0 runs as, may change anything or have dom0 look at files.

mod bounded;
mod cpus;
mod disks;
mod events;
mod machine;
mod nets;
mod server;
mod service;
mod statistics;

use futures_util::Stream;
use serde::{Deserialize, Serialize};
use zlink::introspect;

pub use cpus::{Sched, VcpuList, VcpuPlace};
pub use disks::{DiskCounters, DiskInfo, DiskList, Limit, OpInfo, Resized, TroubleInfo, Troubles, Upgraded};
pub use events::EventInfo;
pub use nets::{
    Defined, DropInfo, LeaseInfo, LeaseList, NetworkInfo, NetworkList, NicCounters, NicInfo, NicList,
    TrafficInfo,
};
pub use server::{Server, ServerError};
pub use service::{Plan, start_message};
pub use statistics::{DomainStatistics, Statistics, VcpuInfo, collect};

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
    /// `config` (checked), `files` (opened), `processes` (started), `devices` (opened), `machine` (built), `kernel` (unpacked),
    /// `ready` (every process), `run` (the first instruction), `output` (the first byte on COM1), `driver` (the first device
    /// in use).
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

/// The answer to `GuestsStop`: names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::Type)]
pub struct GuestsStopped {
    /// Guests that have switched themselves off.
    pub shut_down: Vec<String>,
    /// Guests that had to be destroyed.
    pub destroyed: Vec<String>,
}

/// The answer to `Info`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, introspect::Type)]
pub struct HostInfo {
    /// The version of dom0.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Its run directory.
    pub run_dir: String,
    /// Where it keeps what is said about each domain; none where the journal has that.
    pub log_dir: Option<String>,
    /// The host's RAM in MiB.
    pub memory_mib: u64,
    /// The host's CPUs.
    pub cpus: u32,
    /// Number of domains, without Domain-0.
    pub domains: u32,
}

/// Why a call failed. Each has one line for the operator: what failed, the value, the cure.
#[derive(Debug, Clone, PartialEq, Eq, zlink::ReplyError, introspect::ReplyError)]
#[zlink(interface = "org.domus.Dom0")]
pub enum ApiError {
    /// The caller may not do this.
    NotAllowed {
        /// One line.
        message: String,
    },
    /// The config is refused.
    BadConfig {
        /// One line.
        message: String,
    },
    /// The domain could not be started; nothing of it is left.
    StartFailed {
        /// One line.
        message: String,
    },
    /// There is no such domain.
    NoSuchDomain {
        /// One line.
        message: String,
    },
    /// The domain's state does not allow it, or its runner has refused.
    Refused {
        /// One line.
        message: String,
    },
}

impl ApiError {
    /// The line for the operator.
    pub fn message(&self) -> &str {
        match self {
            Self::NotAllowed { message }
            | Self::BadConfig { message }
            | Self::StartFailed { message }
            | Self::NoSuchDomain { message }
            | Self::Refused { message } => message,
        }
    }
}

/// What a client calls. One connection makes one call at a time.
#[zlink::proxy("org.domus.Dom0")]
pub trait Dom0Client {
    /// Builds and starts a domain; answered when its vCPUs run.
    async fn create(
        &mut self,
        config: &str,
        file: &str,
        directory: &str,
    ) -> zlink::Result<Result<Created, ApiError>>;
    /// Checks a config and what it needs of the host, and changes nothing.
    async fn check(
        &mut self,
        config: &str,
        file: &str,
        directory: &str,
    ) -> zlink::Result<Result<(), ApiError>>;
    /// All domains.
    async fn list(&mut self) -> zlink::Result<Result<Domains, ApiError>>;
    /// One domain.
    async fn get(&mut self, name: &str) -> zlink::Result<Result<OneDomain, ApiError>>;
    /// Stops a domain's vCPUs.
    async fn pause(&mut self, name: &str) -> zlink::Result<Result<(), ApiError>>;
    /// Lets them run again.
    async fn unpause(&mut self, name: &str) -> zlink::Result<Result<(), ApiError>>;
    /// Asks the guest to switch itself off; answered when it has been asked.
    async fn shutdown(&mut self, name: &str) -> zlink::Result<Result<(), ApiError>>;
    /// Asks the guest to switch itself off, and starts it again then.
    async fn reboot(&mut self, name: &str) -> zlink::Result<Result<(), ApiError>>;
    /// Removes everything of a domain; answered when that is done.
    async fn destroy(&mut self, name: &str) -> zlink::Result<Result<(), ApiError>>;
    /// Presses a button (`power`, `sleep`), gives an NMI to a vCPU or to all (`nmi`), or resets the machine (`reset`).
    async fn trigger(
        &mut self,
        name: &str,
        what: &str,
        vcpu: Option<u32>,
    ) -> zlink::Result<Result<(), ApiError>>;
    /// Has the guest's kernel receive a SysRq key on COM1.
    async fn sysrq(&mut self, name: &str, key: &str) -> zlink::Result<Result<(), ApiError>>;
    /// Writes a core of the machine into this file, or without one into the directory of cores. `then` is what becomes of the
    /// domain: "go-on", "destroy" or "reset".
    async fn dump_core(
        &mut self,
        name: &str,
        file: Option<&str>,
        live: bool,
        then: &str,
    ) -> zlink::Result<Result<Dumped, ApiError>>;
    /// Gives a running domain another name.
    async fn rename(&mut self, name: &str, to: &str) -> zlink::Result<Result<(), ApiError>>;
    /// Has the next machine of a running domain made from this config; what it says of the end of this one counts at once.
    async fn config_update(
        &mut self,
        name: &str,
        config: &str,
        file: &str,
        directory: &str,
    ) -> zlink::Result<Result<(), ApiError>>;
    /// How the start of the machine that a domain has now went; the last phases come after it runs.
    async fn timeline(&mut self, name: &str) -> zlink::Result<Result<Timeline, ApiError>>;
    /// The vCPUs of a domain, with where they run and may run.
    async fn vcpu_list(&mut self, name: &str) -> zlink::Result<Result<VcpuList, ApiError>>;
    /// Lets a vCPU, or with none all of them, run on these of the host's CPUs only: `0-3,^2`, `all`.
    async fn vcpu_pin(
        &mut self,
        name: &str,
        vcpu: Option<u32>,
        cpus: &str,
    ) -> zlink::Result<Result<(), ApiError>>;
    /// Changes a domain's weight and its cap in percent of one CPU, and tells them; what is not named stays.
    async fn sched_set(
        &mut self,
        name: &str,
        weight: Option<u32>,
        cap: Option<u32>,
    ) -> zlink::Result<Result<Sched, ApiError>>;
    /// Where the domain's console is.
    async fn console(&mut self, name: &str) -> zlink::Result<Result<Console, ApiError>>;
    /// Answered when the machine that the domain has now has stopped.
    async fn wait(&mut self, name: &str) -> zlink::Result<Result<Ended, ApiError>>;
    /// The disks of a domain, with what they have done.
    async fn block_list(&mut self, name: &str) -> zlink::Result<Result<DiskList, ApiError>>;
    /// Changes limits of a disk, or without one of all disks together; those not named stay.
    async fn block_set(
        &mut self,
        name: &str,
        disk: Option<&str>,
        limits: &[Limit],
    ) -> zlink::Result<Result<(), ApiError>>;
    /// Gives a disk another size, or without one measures again what has grown by itself; the guest is told.
    async fn block_resize(
        &mut self,
        name: &str,
        disk: &str,
        bytes: Option<u64>,
    ) -> zlink::Result<Result<Resized, ApiError>>;
    /// Exchanges the process that serves a device, for this program if given, while the guest runs.
    async fn backend_upgrade(
        &mut self,
        name: &str,
        device: &str,
        program: Option<&str>,
    ) -> zlink::Result<Result<Upgraded, ApiError>>;
    /// The NICs of a domain, with what they have done.
    async fn nic_list(&mut self, name: &str) -> zlink::Result<Result<NicList, ApiError>>;
    /// Plugs a NIC's cable in or pulls it, has its guest announce itself, changes its limits; those not named stay.
    async fn nic_set(
        &mut self,
        name: &str,
        nic: &str,
        up: Option<bool>,
        announce: bool,
        limits: &[Limit],
    ) -> zlink::Result<Result<(), ApiError>>;
    /// Defines a network, or another one in its place.
    async fn network_define(
        &mut self,
        definition: &str,
        file: &str,
    ) -> zlink::Result<Result<Defined, ApiError>>;
    /// Forgets a network that does not run.
    async fn network_undefine(&mut self, network: &str) -> zlink::Result<Result<(), ApiError>>;
    /// Starts a network.
    async fn network_start(&mut self, network: &str) -> zlink::Result<Result<(), ApiError>>;
    /// Stops a network; without `anyway` only one that no NIC is on.
    async fn network_stop(&mut self, network: &str, anyway: bool) -> zlink::Result<Result<(), ApiError>>;
    /// All networks.
    async fn network_list(&mut self) -> zlink::Result<Result<NetworkList, ApiError>>;
    /// The addresses that a network has lent.
    async fn network_leases(&mut self, network: &str) -> zlink::Result<Result<LeaseList, ApiError>>;
    /// What is amiss with a domain, why, and what to do.
    async fn why(&mut self, name: &str) -> zlink::Result<Result<Troubles, ApiError>>;
    /// Shuts all guests down, in the order opposite to the one they start in; what still runs after so many seconds is
    /// destroyed.
    async fn guests_stop(&mut self, grace: u32) -> zlink::Result<Result<GuestsStopped, ApiError>>;
    /// Puts the installed program in the place of this dom0; domains go on. Answered before that happens.
    async fn succeed(&mut self) -> zlink::Result<Result<(), ApiError>>;
    /// What happens, as it does; with `since_start`, what dom0 remembers comes first. A client that sends anything else, or
    /// hangs up, ends it.
    #[zlink(more)]
    async fn events(
        &mut self,
        since_start: bool,
    ) -> zlink::Result<impl Stream<Item = zlink::Result<Result<EventInfo, ApiError>>>>;
    /// What each domain has used and done until now.
    async fn statistics(&mut self) -> zlink::Result<Result<Statistics, ApiError>>;
    /// The host and dom0 itself.
    async fn info(&mut self) -> zlink::Result<Result<HostInfo, ApiError>>;
}
