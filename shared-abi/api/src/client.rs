//! The calls of the interface, as a client makes them.

use futures_util::Stream;

use crate::{
    ApiError, Console, Created, Defined, DiskList, Domains, Dumped, Ended, EventInfo, GuestsStopped,
    HostInfo, LeaseList, Limit, NetworkList, NicList, OneDomain, Reaches, Resized, Sched, Statistics,
    Timeline, Troubles, Upgraded, VcpuList,
};

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
    /// Writes a core of the machine into this file, or without one into the directory of cores. `then` is what
    /// becomes of the domain: "go-on", "destroy" or "reset".
    async fn dump_core(
        &mut self,
        name: &str,
        file: Option<&str>,
        live: bool,
        then: &str,
    ) -> zlink::Result<Result<Dumped, ApiError>>;
    /// Gives a running domain another name.
    async fn rename(&mut self, name: &str, to: &str) -> zlink::Result<Result<(), ApiError>>;
    /// Has the next machine of a running domain made from this config; what it says of the end of this one counts at
    /// once.
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
    /// Gives a disk another size, or without one measures again what has grown by itself; the guest is told. A smaller
    /// one is refused without `shrink`.
    async fn block_resize(
        &mut self,
        name: &str,
        disk: &str,
        bytes: Option<u64>,
        shrink: Option<bool>,
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
    /// What each process of a domain could reach if it were taken over.
    async fn reach(&mut self, name: &str) -> zlink::Result<Result<Reaches, ApiError>>;
    /// Shuts all guests down, in the order opposite to the one they start in; what still runs after so many seconds is
    /// destroyed.
    async fn guests_stop(&mut self, grace: u32) -> zlink::Result<Result<GuestsStopped, ApiError>>;
    /// Puts the installed program in the place of this dom0; domains go on. Answered before that happens.
    async fn succeed(&mut self) -> zlink::Result<Result<(), ApiError>>;
    /// What happens, as it does; with `since_start`, what dom0 remembers comes first. A client that sends anything
    /// else, or hangs up, ends it.
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
