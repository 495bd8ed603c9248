//! Builds a machine: processes started at once, resources opened meanwhile, handed out, all ready.
//!
//! What was made is in the [`Machine`] as soon as it exists, so that a build that fails or is given up half-way is
//! removed in the same way as a machine that has run.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use domus_startup::fds::Outgoing;
use futures_util::future::try_join_all;
use shared_abi::control::{Device, RunnerReply, RunnerRequest, RunnerStart, Unpacked};
use shared_abi::{DeviceId, Role};
use tokio::time::timeout;

use crate::config::DomainConfig;
use crate::domain::directory;
use crate::domain::error::StartError;
use crate::domain::machine::backend::BackendProcess;
use crate::domain::machine::runner::Runner;
use crate::domain::machine::{Machine, scheduling};
use crate::host::kernels::{Given, Which};
use crate::host::slow::{self, StorageFile};
use crate::host::{fault, files, kvm, memory};
use crate::process::Launch;
use crate::process::link::{ChildLink, PATIENCE, unexpected};
use crate::value::text::one_line;

/// Within this time a backend has said why its runner has failed, if it is why.
const CAUSE: Duration = Duration::from_secs(1);

/// What the guest is started from.
struct BootFiles {
    kvm: File,
    kernel: StorageFile,
    which: Option<Which>,
    initrd: Option<StorageFile>,
}

impl BootFiles {
    async fn open(config: &DomainConfig) -> Result<Self, StartError> {
        memory::check(&config.place("memory"), config.memory)?;
        scheduling::check(config)?;
        check_cpu(config)?;
        let kvm = File::options().read(true).write(true).open("/dev/kvm").map_err(StartError::Kvm)?;
        let (kernel, which) = files::kernel(&config.place("boot.kernel"), &config.kernel).await?;
        let initrd = match &config.initrd {
            Some(path) => Some(files::blob(&config.place("boot.initrd"), path).await?),
            None => None,
        };
        Ok(Self { kvm, kernel, which, initrd })
    }
}

/// Refuses a CPU that this host cannot give.
///
/// # Errors
/// [`StartError`] at `cpu`, `nested` or `pmu`.
pub fn check_cpu(config: &DomainConfig) -> Result<(), StartError> {
    let lacks = kvm::lacks(&config.cpu).map_err(StartError::Kvm)?;
    lacks.map_or(Ok(()), |(key, names)| {
        let asked = if key == "cpu" { format!("\"{}\"", config.cpu.model.name()) } else { "true".into() };
        let problem =
            format!("{asked}: this host's KVM cannot give {names}: leave it out, or use another host");
        Err(config.place(key).refuse(problem).into())
    })
}

impl Machine {
    /// The control socket of a child.
    pub(super) fn control(&self, role: Role) -> PathBuf {
        directory::control(&self.owner.directory, role)
    }

    /// Builds it from its config; its vCPUs are paused when this returns. Cancel safe: what was made is written down by
    /// `keep` as often as there is something new, and removed by [`Self::tear_down`].
    ///
    /// # Errors
    /// [`StartError`]; the caller tears it down.
    pub async fn build(
        &mut self,
        config: &DomainConfig,
        write_record: &dyn Fn(&Self),
    ) -> Result<(), StartError> {
        self.timeline.mark("config");
        let boot = BootFiles::open(config).await?;
        let classes = self.devices.all();
        for class in &classes {
            class.prepare(&self.from.networks).await?;
        }
        self.timeline.mark("files");
        directory::clear(&self.owner.directory);
        self.start_processes().await?;
        write_record(self);
        self.timeline.mark("processes");
        for class in &classes {
            // What a build that is given up has made is found in the class.
            class.open(&self.owner, &self.from).await?;
        }
        write_record(self);
        self.hand_out(config, boot).await?;
        self.timeline.mark("ready");
        fault::point();
        self.losses.unmeasured = true;
        Ok(())
    }

    /// All at once: what each does before it listens goes on beside what dom0 does next.
    async fn start_processes(&mut self) -> Result<(), StartError> {
        let roles: Vec<_> = self.devices.roles().chain([Role::Runner]).collect();
        for role in roles {
            let control = self.control(role);
            let whom = self.owner.started_as.as_str();
            let launch = Launch { whom, role, control: &control, program: None, limits: Some(self.limits()) };
            let process = self.from.supervisor.start(launch).await?;
            fault::point();
            match role == Role::Runner {
                true => self.runner = Some(Runner::new(process, self.destroyed.clone())),
                false => self.backends.push(BackendProcess::new(role, process, self.destroyed.clone())),
            }
        }
        Ok(())
    }

    /// Tells every process what to do, and waits until all are ready.
    async fn hand_out(&mut self, config: &DomainConfig, boot: BootFiles) -> Result<(), StartError> {
        let (mut sockets, mut serial, mut starts) = (Vec::new(), None, Vec::new());
        for backend in &self.backends {
            // A process is started for a class that needs one.
            let Some(class) = self.devices.in_role(backend.role) else { return Err(StartError::Cancelled) };
            let start = class.start(&self.owner);
            let mut start =
                start.map_err(|source| StartError::Io { act: "make what a backend is given", source })?;
            serial = start.serial.take().or(serial);
            sockets.append(&mut start.sockets);
            starts.push(start);
        }
        let mut fds = Outgoing::default();
        let devices = self.connect_devices(sockets, &mut fds).await?;
        let mut start = RunnerStart {
            identity: self.owner.identity(),
            kvm: fds.add(boot.kvm),
            vcpus: self.vcpus,
            cpu: config.cpu.clone(),
            memory: self.memory,
            kernel: fds.add(boot.kernel),
            unpacked: None,
            initrd: boot.initrd.map(|initrd| fds.add(initrd)),
            cmdline: config.cmdline.clone(),
            cmdline_yields: config.cmdline_yields,
            serial: serial.map(|serial| fds.add(serial)),
            devices,
        };
        self.timeline.mark("devices");
        let control = self.control(Role::Runner);
        let controls: Vec<_> = self.backends.iter().map(|backend| self.control(backend.role)).collect();
        let (which, kernels) = (boot.which, self.from.kernels.clone());
        let runner = &mut self.runner;
        let runner = async {
            let Some(Runner { process, link, .. }) = runner else { return Ok(()) };
            let connected = ChildLink::connect(Role::Runner, &control, process).await?;
            fault::point();
            let link = link.insert(connected);
            let mut empty = None;
            if link.version() >= 4 {
                start.unpacked = which.and_then(|which| kernels.give(which)).map(|given| match given {
                    Given::Kept(file) => Unpacked::Kept(fds.add(file)),
                    Given::Keep(file, ours) => {
                        empty = Some(ours);
                        Unpacked::Keep(fds.add(file))
                    }
                });
            } else {
                // One of a release before knows of no other command line.
                start.cmdline_yields = false;
            }
            let fds = fds.into_vec();
            let sent = link.send(&RunnerRequest::Start(Box::new(start)), &fds).await;
            slow::close(fds);
            sent?;
            match link.answer(process, PATIENCE, "become ready").await? {
                RunnerReply::Ready => {
                    if let Some(empty) = empty {
                        kernels.keep(empty);
                    }
                    Ok(())
                }
                RunnerReply::Refused { what, why } => Err(StartError::Refused { what, why: one_line(&why) }),
                other => Err(StartError::from(unexpected(Role::Runner, &other))),
            }
        };
        // Each on its own: a runner that waits for a backend's configuration waits no longer than needed.
        let backends = self.backends.iter_mut().zip(starts).zip(controls);
        let backends = backends.map(|((backend, start), control)| async move {
            backend.connect(&control).await?;
            backend.start(start).await
        });
        let (mut backends, mut runner) = (pin!(try_join_all(backends)), pin!(runner));
        tokio::select! {
            biased;
            served = &mut backends => {
                served?;
                runner.await
            }
            ready = &mut runner => match ready {
                Ok(()) => backends.await.map(drop),
                // A backend that refuses what it is given ends, and its runner may say so first.
                Err(error) => match timeout(CAUSE, backends).await {
                    Ok(Err(cause)) => Err(cause),
                    _ => Err(error),
                },
            },
        }
    }

    /// The devices for the runner; `sockets` are those of the domain's own backends.
    async fn connect_devices(
        &self,
        mut sockets: Vec<(DeviceId, OwnedFd)>,
        fds: &mut Outgoing,
    ) -> Result<Vec<Device>, StartError> {
        let mut devices = Vec::new();
        for class in self.devices.all() {
            for spec in class.specs() {
                let own = sockets.iter().position(|(device, _)| *device == spec.id);
                let socket = match own {
                    Some(own) => sockets.swap_remove(own).1,
                    None => class.connect(&spec.id, &self.owner, &self.from).await?,
                };
                devices.push(Device { spec, socket: fds.add(socket) });
            }
        }
        Ok(devices)
    }
}
