//! What dom0 answers. One [`Session`] for each connection, so that a call that waits holds up nobody else.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use domus_api::{
    ApiError, Console, Created, Defined, DescriptorInfo, DiskCounters, DiskInfo, DiskList, DomainInfo,
    DomainStatistics, Domains, DropInfo, Dumped, Ended, EventInfo, GuestsStopped, HostInfo, LeaseInfo,
    LeaseList, Limit, MAX_CONFIG, NetworkInfo, NetworkList, NicCounters, NicInfo, NicList, OneDomain, OpInfo,
    PhaseInfo, ReachInfo, Reaches, Resized, Sched, SharedMemoryInfo, Statistics, Timeline, TrafficInfo,
    TroubleInfo, Troubles, Upgraded, VcpuInfo, VcpuList, VcpuPlace,
};
use futures_util::FutureExt;
use shared_abi::ids::IdError;
use shared_abi::{DeviceId, NetworkName};

use crate::api::domains::{describe, domain_0, list, troubles};
use crate::api::events::{self, Answers};
use crate::api::peer::{self, Peer};
use crate::api::statistics::Samples;
use crate::api::{cpus, disks, limits, machine, nets, reach};
use crate::device::net::report::NicChange;
use crate::domain::error::{Attempted, StartError, explain};
use crate::domain::lifecycle::Event;
use crate::domain::{Domain, check};
use crate::host::reach::Reach;
use crate::host::{memory, slow};
use crate::service::autostart::{self, Stopped};
use crate::service::{AskError, Dom0, replace};
use crate::value::place::ConfigError;
use crate::{config, log};

/// Within this time an answer has been sent.
const ANSWER_SENT: Duration = Duration::from_millis(50);

/// What a connection may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Ask.
    Read,
    /// Ask and change.
    Change,
}

/// One connection.
pub struct Session {
    dom0: Rc<Dom0>,
    rights: Rights,
    samples: Rc<Samples>,
    /// The client's socket, once more: whoever waits must be seen to hang up.
    peer: Option<OwnedFd>,
}

impl Session {
    pub(super) fn new(dom0: Rc<Dom0>, rights: Rights, samples: Rc<Samples>, peer: Option<OwnedFd>) -> Self {
        Self { dom0, rights, samples, peer }
    }

    /// What is asked for, unless the client hangs up before there is an answer: then nobody does anything for it any
    /// more. For what changes nothing.
    async fn asked<T>(&self, answer: impl Future<Output = Result<T, AskError>>) -> Result<T, ApiError> {
        let peer = Peer::new(self.peer.as_ref());
        tokio::select! {
            biased;
            answer = answer => Ok(answer?),
            () = peer.hangs_up() => Err(ApiError::Refused { message: "the client has hung up".into() }),
        }
    }

    /// Refuses what somebody may not do, and what nobody waits for any more.
    fn may_change(&self, what: &str) -> Result<(), ApiError> {
        match self.rights {
            Rights::Change if self.peer.as_ref().is_some_and(peer::has_hung_up) => {
                Err(ApiError::Refused { message: "the client has hung up".into() })
            }
            Rights::Change => Ok(()),
            Rights::Read => {
                let message = format!("{what} is for root only: use sudo");
                Err(ApiError::NotAllowed { message })
            }
        }
    }

    fn parse(&self, config: &str, file: &str, directory: &str) -> Result<config::DomainConfig, ApiError> {
        let (file, directory) = (Path::new(file), Path::new(directory));
        if !directory.is_absolute() {
            let problem = format!("the directory \"{}\" is not absolute", directory.display());
            return Err(ConfigError::new(file, "", problem).into());
        }
        if config.len() > MAX_CONFIG {
            return Err(ConfigError::new(file, "", format!("is longer than {MAX_CONFIG} bytes")).into());
        }
        Ok(config::parse(file, directory, config)?)
    }

    fn ask(&self, name: &str, event: Event) -> impl Future<Output = Result<(), ApiError>> {
        let what = match event {
            Event::Pause => "pausing a domain",
            Event::Unpause => "unpausing a domain",
            Event::Shutdown => "shutting a domain down",
            Event::Reboot => "rebooting a domain",
            _ => "destroying a domain",
        };
        let allowed = self.may_change(what);
        let (dom0, name) = (self.dom0.clone(), name.to_owned());
        async move {
            allowed?;
            Ok(dom0.ask(&name, event).await?)
        }
    }
}

fn device(id: &str) -> Result<DeviceId, ApiError> {
    id.parse().map_err(|error: IdError| ApiError::Refused { message: error.to_string() })
}

fn network(name: &str) -> Result<NetworkName, ApiError> {
    name.parse().map_err(|error: IdError| ApiError::Refused { message: error.to_string() })
}

#[zlink::service(
    interface = "org.domus.Dom0",
    types = [
        DomainInfo, DiskInfo, DiskCounters, OpInfo, Limit, TroubleInfo, NicInfo, NicCounters, TrafficInfo, DropInfo,
        NetworkInfo, LeaseInfo, DomainStatistics, ReachInfo, DescriptorInfo, SharedMemoryInfo, VcpuInfo, VcpuPlace, PhaseInfo
    ],
    vendor = "Domus",
    product = "dom0",
    version = env!("CARGO_PKG_VERSION"),
    url = ""
)]
impl Session {
    async fn create(&self, config: String, file: String, directory: String) -> Result<Created, ApiError> {
        self.may_change("creating a domain")?;
        let config = self.parse(&config, &file, &directory)?;
        let plan = Attempted::from(&config);
        match self.dom0.create(config).await {
            Ok(domid) => Ok(Created { name: plan.name.to_string(), id: domid.0 }),
            Err(StartError::Config(error)) => Err(error.into()),
            Err(error) => Err(ApiError::StartFailed { message: explain(&plan, &error) }),
        }
    }

    async fn check(&self, config: String, file: String, directory: String) -> Result<(), ApiError> {
        // Not for everybody: it tells which files there are, with dom0's rights.
        self.may_change("having dom0 check a config")?;
        let config = self.parse(&config, &file, &directory)?;
        if self.dom0.find(config.name.as_str()).is_ok() {
            let problem = format!("\"{}\" is the name of a domain that runs already", config.name);
            return Err(ConfigError::new(&config.file, "name", problem).into());
        }
        let (networks, env) = (self.dom0.networks().clone(), self.dom0.env());
        let (checks, kernels) = (env.checks.clone(), env.providers.kernels.clone());
        match check::check(&config, networks, checks, kernels, self.dom0.promised()).await {
            Ok(()) => Ok(()),
            Err(StartError::Config(error)) => Err(error.into()),
            Err(error) => {
                let message = explain(&Attempted::from(&config), &error);
                Err(ApiError::StartFailed { message })
            }
        }
    }

    async fn list(&self) -> Result<Domains, ApiError> {
        Ok(Domains { domains: list(&self.dom0) })
    }

    async fn get(&self, name: String) -> Result<OneDomain, ApiError> {
        if name == "0" || name == "Domain-0" {
            return Ok(OneDomain { domain: domain_0(), first_run_ns: None });
        }
        let handle = self.dom0.find(&name)?;
        let view = handle.view.borrow().clone();
        let status = handle.status().await;
        let first_run_ns = status.and_then(|status| status.first_run_ns);
        Ok(OneDomain { domain: describe(&view), first_run_ns })
    }

    async fn pause(&self, name: String) -> Result<(), ApiError> {
        self.ask(&name, Event::Pause).await
    }

    async fn unpause(&self, name: String) -> Result<(), ApiError> {
        self.ask(&name, Event::Unpause).await
    }

    async fn shutdown(&self, name: String) -> Result<(), ApiError> {
        self.ask(&name, Event::Shutdown).await
    }

    async fn reboot(&self, name: String) -> Result<(), ApiError> {
        self.ask(&name, Event::Reboot).await
    }

    async fn destroy(&self, name: String) -> Result<(), ApiError> {
        self.ask(&name, Event::Destroy).await
    }

    async fn trigger(&self, name: String, what: String, vcpu: Option<u32>) -> Result<(), ApiError> {
        self.may_change("triggering a domain")?;
        let (request, act) =
            machine::trigger(&what, vcpu).map_err(|message| ApiError::Refused { message })?;
        Ok(self
            .dom0
            .call(&name, move |domain| {
                async move { domain.running(act)?.command(&request, act).await }.boxed_local()
            })
            .await?)
    }

    async fn sysrq(&self, name: String, key: String) -> Result<(), ApiError> {
        self.may_change("sending a SysRq key")?;
        let request = machine::sysrq(&key).map_err(|message| ApiError::Refused { message })?;
        Ok(self
            .dom0
            .call(&name, move |domain| {
                let act = "send a SysRq key";
                async move { domain.running(act)?.command(&request, act).await }.boxed_local()
            })
            .await?)
    }

    async fn dump_core(
        &self,
        name: String,
        file: Option<String>,
        live: bool,
        then: String,
    ) -> Result<Dumped, ApiError> {
        self.may_change("dumping a core")?;
        let dump = machine::dump(file, live, &then).map_err(|message| ApiError::Refused { message })?;
        let file = self.dom0.call(&name, move |domain| domain.dump(dump).boxed_local()).await?;
        Ok(Dumped { file: file.display().to_string() })
    }

    async fn rename(&self, name: String, to: String) -> Result<(), ApiError> {
        self.may_change("renaming a domain")?;
        let to = crate::value::names::domain_name(&to).map_err(|message| ApiError::Refused { message })?;
        Ok(self.dom0.rename(&name, to).await?)
    }

    async fn config_update(
        &self,
        name: String,
        config: String,
        file: String,
        directory: String,
    ) -> Result<(), ApiError> {
        self.may_change("updating a config")?;
        let next = self.parse(&config, &file, &directory)?;
        Ok(self
            .dom0
            .call(&name, move |domain| async move { domain.update(next).await }.boxed_local())
            .await?)
    }

    async fn timeline(&self, name: String) -> Result<Timeline, ApiError> {
        let phases = self
            .dom0
            .question(&name, |domain| {
                async move { domain.running("tell how it started")?.timeline().await }.boxed_local()
            })
            .await?
            .into_iter();
        Ok(Timeline { phases: phases.map(|(name, at_ns)| PhaseInfo { name: name.into(), at_ns }).collect() })
    }

    async fn vcpu_list(&self, name: String) -> Result<VcpuList, ApiError> {
        let vcpus = self
            .asked(
                self.dom0.question(&name, |domain| {
                    async move { Ok(domain.machine().vcpu_reports()) }.boxed_local()
                }),
            )
            .await?;
        Ok(VcpuList { vcpus: vcpus.into_iter().map(Into::into).collect() })
    }

    async fn vcpu_pin(&self, name: String, vcpu: Option<u32>, cpus: String) -> Result<(), ApiError> {
        self.may_change("pinning a vCPU")?;
        let (vcpu, cpus) = cpus::pin(vcpu, &cpus).map_err(|message| ApiError::Refused { message })?;
        let pin = move |domain: &mut Domain| domain.running("pin a vCPU")?.pin(vcpu, cpus);
        Ok(self.dom0.call(&name, |domain| async move { pin(domain) }.boxed_local()).await?)
    }

    async fn sched_set(
        &self,
        name: String,
        weight: Option<u32>,
        cap: Option<u32>,
    ) -> Result<Sched, ApiError> {
        if weight.is_none() && cap.is_none() {
            return Ok(self.dom0.find(&name)?.view.borrow().scheduling.clone().into());
        }
        self.may_change("changing a domain's part of the CPUs")?;
        cpus::check(weight, cap).map_err(|message| ApiError::Refused { message })?;
        let act = "change its part of the CPUs";
        let scheduling = self.dom0.call(&name, move |domain| {
            async move { domain.running(act)?.set_cpu_limits(weight, cap).await }.boxed_local()
        });
        Ok(scheduling.await?.into())
    }

    async fn console(&self, name: String) -> Result<Console, ApiError> {
        let (path, domid) = self.dom0.console(&name)?;
        Ok(Console { path: path.display().to_string(), id: domid.0 })
    }

    async fn wait(&self, name: String) -> Result<Ended, ApiError> {
        let before = self.dom0.find(&name)?.view.borrow().domid;
        let view = self.asked(self.dom0.wait(&name)).await?;
        let restarted_as = if view.domid == before { None } else { Some(view.domid.0) };
        Ok(Ended { ended: view.ended, crashed: view.crashed, restarted_as })
    }

    async fn block_list(&self, name: String) -> Result<DiskList, ApiError> {
        let disks = self
            .asked(
                self.dom0.question(&name, |domain| {
                    async move { Ok(domain.machine().disks().await) }.boxed_local()
                }),
            )
            .await?;
        Ok(DiskList { disks: disks.into_iter().map(Into::into).collect() })
    }

    async fn block_set(
        &self,
        name: String,
        disk: Option<String>,
        limits: Vec<Limit>,
    ) -> Result<(), ApiError> {
        self.may_change("changing a limit")?;
        let change =
            limits::change(&disks::LIMITS, &limits).map_err(|message| ApiError::Refused { message })?;
        let disk = disk.map(|disk| device(&disk)).transpose()?;
        Ok(self
            .dom0
            .call(&name, move |domain| {
                async move { domain.running("change a limit")?.limit(disk, change).await }.boxed_local()
            })
            .await?)
    }

    async fn block_resize(
        &self,
        name: String,
        disk: String,
        bytes: Option<u64>,
        shrink: Option<bool>,
    ) -> Result<Resized, ApiError> {
        self.may_change("resizing a disk")?;
        let disk = device(&disk)?;
        if let Some(bytes) = bytes.filter(|_| shrink != Some(true)) {
            let id = disk.clone();
            // Measured now: the image may have grown since its backend looked.
            let measured = self.dom0.question(&name, move |domain| {
                async move { domain.running("resize a disk")?.resize(id, None).await }.boxed_local()
            });
            let before = self.asked(measured).await?;
            if bytes < before {
                let message = format!(
                    "disk {disk} has {before} bytes: to {bytes} it would lose what is behind its new end; set shrink \
                     if that is meant"
                );
                return Err(ApiError::Refused { message });
            }
        }
        let bytes = self
            .dom0
            .call(&name, move |domain| {
                async move { domain.running("resize a disk")?.resize(disk, bytes).await }.boxed_local()
            })
            .await?;
        Ok(Resized { bytes })
    }

    async fn backend_upgrade(
        &self,
        name: String,
        device: String,
        program: Option<String>,
    ) -> Result<Upgraded, ApiError> {
        self.may_change("upgrading a backend")?;
        let device = self::device(&device)?;
        let program = program.map(PathBuf::from);
        if let Some(program) = program.as_ref().filter(|program| !program.is_absolute()) {
            let message = format!("the program \"{}\" is not absolute", program.display());
            return Err(ApiError::Refused { message });
        }
        let stalled = self
            .dom0
            .call(&name, move |domain| {
                async move { domain.running("upgrade a backend")?.exchange(&device, program).await }
                    .boxed_local()
            })
            .await?;
        Ok(Upgraded { stalled_us: stalled.as_micros() as u64 })
    }

    async fn nic_list(&self, name: String) -> Result<NicList, ApiError> {
        let nics = self
            .asked(
                self.dom0
                    .question(&name, |domain| async move { Ok(domain.machine().nics().await) }.boxed_local()),
            )
            .await?;
        Ok(NicList { nics: nics.into_iter().map(Into::into).collect() })
    }

    async fn nic_set(
        &self,
        name: String,
        nic: String,
        up: Option<bool>,
        announce: bool,
        limits: Vec<Limit>,
    ) -> Result<(), ApiError> {
        self.may_change("changing a NIC")?;
        let limits =
            limits::change(&nets::LIMITS, &limits).map_err(|message| ApiError::Refused { message })?;
        let nic = device(&nic)?;
        let change = NicChange { up, announce, limits };
        Ok(self
            .dom0
            .call(&name, move |domain| {
                async move { domain.running("change a NIC")?.set_nic(&nic, change).await }.boxed_local()
            })
            .await?)
    }

    async fn network_define(&self, definition: String, file: String) -> Result<Defined, ApiError> {
        self.may_change("defining a network")?;
        let name = self.dom0.networks().define(Path::new(&file), &definition).await?;
        Ok(Defined { name: name.to_string() })
    }

    async fn network_undefine(&self, network: String) -> Result<(), ApiError> {
        self.may_change("undefining a network")?;
        Ok(self.dom0.networks().undefine(&self::network(&network)?).await?)
    }

    async fn network_start(&self, network: String) -> Result<(), ApiError> {
        self.may_change("starting a network")?;
        Ok(self.dom0.networks().start(&self::network(&network)?).await?)
    }

    async fn network_stop(&self, network: String, anyway: bool) -> Result<(), ApiError> {
        self.may_change("stopping a network")?;
        Ok(self.dom0.networks().stop(&self::network(&network)?, anyway).await?)
    }

    async fn network_list(&self) -> Result<NetworkList, ApiError> {
        let networks = self.asked(async { Ok(self.dom0.networks().list().await) }).await?;
        Ok(NetworkList { networks: networks.into_iter().map(Into::into).collect() })
    }

    async fn network_leases(&self, network: String) -> Result<LeaseList, ApiError> {
        let leases = self.dom0.networks().leases(&self::network(&network)?).await?;
        Ok(LeaseList { leases: leases.into_iter().map(Into::into).collect() })
    }

    async fn why(&self, name: String) -> Result<Troubles, ApiError> {
        let handle = self.dom0.find(&name)?;
        let view = handle.view.borrow().clone();
        let core_scheduling = view.vcpu_counters.map(|counters| counters.core_scheduling);
        Ok(Troubles {
            state: describe(&view).state,
            core_scheduling,
            troubles: troubles(&handle, self.dom0.networks()),
        })
    }

    async fn reach(&self, name: String) -> Result<Reaches, ApiError> {
        self.may_change("seeing what a domain's processes could reach")?;
        let processes = self
            .asked(
                self.dom0
                    .question(&name, |domain| async move { Ok(domain.machine().processes()) }.boxed_local()),
            )
            .await?;
        let refused = |message| ApiError::Refused { message };
        let mut reaches = Vec::new();
        for (program, pid) in processes {
            // Its memory map may be locked for as long as storage has it wait.
            let found = slow::with(Path::new(&format!("/proc/{pid}")), move |_| Reach::of(pid)).await;
            let found = found.map_err(|slow| refused(slow.to_string()))?;
            let found =
                found.map_err(|error| refused(format!("cannot look at {program} (pid {pid}): {error}")))?;
            reaches.push(reach::describe(program, pid, found));
        }
        Ok(Reaches { processes: reaches })
    }

    async fn guests_stop(&self, grace: u32) -> Result<GuestsStopped, ApiError> {
        self.may_change("shutting guests down")?;
        let grace = Duration::from_secs(grace.into());
        let Stopped { shut_down, destroyed } = autostart::stop(&self.dom0, grace).await;
        Ok(GuestsStopped { shut_down, destroyed })
    }

    async fn succeed(&self) -> Result<(), ApiError> {
        self.may_change("exchanging dom0")?;
        replace::check().map_err(|message| ApiError::Refused { message })?;
        let dom0 = self.dom0.clone();
        // After the answer, which would be lost with the connection.
        tokio::task::spawn_local(async move {
            tokio::time::sleep(ANSWER_SENT).await;
            dom0.succeed();
        });
        Ok(())
    }

    /// What happens, as it does.
    #[zlink(more)]
    async fn events(&self, more: bool, since_start: bool) -> Answers<EventInfo> {
        events::stream(self.dom0.env().events.follow(since_start), self.peer.as_ref(), more)
    }

    async fn statistics(&self) -> Result<Statistics, ApiError> {
        let domains = self.asked(async { Ok(self.samples.take().await) }).await?;
        Ok(Statistics { domains: domains.to_vec() })
    }

    async fn info(&self) -> Result<HostInfo, ApiError> {
        Ok(HostInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            run_dir: self.dom0.run_dir().path().display().to_string(),
            log_dir: log::file::folder().map(|folder| folder.display().to_string()),
            memory_mib: memory::memory() >> 20,
            cpus: memory::cpus() as u32,
            domains: self.dom0.list().len() as u32,
        })
    }
}
