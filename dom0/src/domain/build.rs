//! Builds one incarnation of a domain: processes started at once, resources opened meanwhile, handed out, all ready.
//!
//! What was made is put into the [`Incarnation`] as soon as it exists, so that a build that fails or is given up
//! half-way is removed in the same way as a domain that has run.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use domus_startup::fds::Outgoing;
use futures_util::future::try_join_all;
use nix::fcntl::OFlag;
use shared_abi::control::{
    BackendEvent, BackendReply, BlockDisk, BlockRequest, BlockStart, ConsoleRequest, ConsoleStart, Device,
    DeviceConfig, Identity, IoLimits, NetNic, NetRequest, NetStart, RunnerEvent, RunnerReply, RunnerRequest,
    RunnerStart,
};
use shared_abi::{DomId, Role};

use crate::child::{ChildError, ChildLink, PATIENCE};
use crate::config::{ConfigError, DiskSource, DomainConfig};
use crate::resources::files::{self, For};
use crate::resources::links::Links;
use crate::resources::run_dir::{DomainDir, ProcessRecord, Record, RunDirError, started};
use crate::resources::{host, sockets, tap};
use crate::supervisor::{Job, Process, Supervisor, SupervisorError};

/// Bytes of `struct virtio_blk_config` that every backend knows (virtio 1.3 §5.2.4), up to the write-zeroes fields.
const BLOCK_CONFIG: u16 = 60;

/// Bytes of `struct virtio_net_config` up to the MTU (virtio 1.3 §5.1.4).
const NET_CONFIG: u16 = 12;

/// Bytes of console output kept for those who attach late.
const CONSOLE_HISTORY: u32 = 1 << 20;

/// The first user id of domains; a domain's own is this plus its number. Outside every range that login.defs,
/// systemd (container uids end at 1879048191) and Debian policy give out.
pub const FIRST_UID: u32 = 1_900_000_000;

/// Why a domain could not be started. One line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The config asks for what the host does not have.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// A process could not be started.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    /// A process did not get ready.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// The host cannot run virtual machines.
    #[error(
        "cannot open /dev/kvm: switch on virtualization in the firmware, load kvm_intel or kvm_amd, or join group kvm"
    )]
    Kvm(#[source] io::Error),
    /// Something of dom0's own.
    #[error("cannot {act}")]
    Io {
        /// What.
        act: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It was destroyed while it was built.
    #[error("was destroyed while it was built")]
    GivenUp,
}

fn io_error(act: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Io { act, source }
}

/// A started child with its link, of any role.
#[derive(Debug)]
pub struct Backend {
    /// What it is for.
    pub role: Role,
    /// Its process.
    pub process: Process,
    /// Its control socket, once connected.
    pub link: Option<ChildLink<BackendReply, BackendEvent>>,
}

/// The runner with its link.
#[derive(Debug)]
pub struct Runner {
    /// Its process.
    pub process: Process,
    /// Its control socket, once connected.
    pub link: Option<ChildLink<RunnerReply, RunnerEvent>>,
}

/// Everything of a domain between two restarts.
#[derive(Debug, Default)]
pub struct Incarnation {
    /// Its number.
    pub domid: Option<DomId>,
    /// The runner.
    pub runner: Option<Runner>,
    /// The other processes.
    pub backends: Vec<Backend>,
    /// dom0's own descriptors of the taps: they keep a tap while its backend is started again.
    pub taps: Vec<File>,
    /// dom0's own descriptor of the console's end of the serial line: tells when all of it has been read.
    pub serial: Option<OwnedFd>,
}

/// What dom0 opens for a domain before it starts anything.
struct Opened {
    kvm: File,
    kernel: File,
    initrd: Option<File>,
    /// None for a disk that somebody else serves.
    images: Vec<Option<File>>,
}

async fn open(config: &DomainConfig) -> Result<Opened, StartError> {
    host::check_memory(config)?;
    let kvm = File::options().read(true).write(true).open("/dev/kvm").map_err(StartError::Kvm)?;
    let kernel = files::blob(config, "boot.kernel", &config.kernel)?;
    let initrd = config.initrd.as_ref().map(|path| files::blob(config, "boot.initrd", path)).transpose()?;
    let mut images = Vec::new();
    for (n, disk) in config.disks.iter().enumerate() {
        images.push(match &disk.source {
            DiskSource::Image { path, read_only, .. } => {
                Some(files::image(config, n, path, *read_only, For::Use).await?)
            }
            DiskSource::VhostUser(_) => None,
        });
    }
    Ok(Opened { kvm, kernel, initrd, images })
}

/// The processes a config needs.
fn roles(config: &DomainConfig) -> Vec<Role> {
    let needed = |role: &Role| match role {
        Role::Block => config.disks.iter().any(|disk| matches!(disk.source, DiskSource::Image { .. })),
        Role::Net => !config.nets.is_empty(),
        Role::Console | Role::Runner => true,
    };
    Role::ALL.into_iter().filter(needed).collect()
}

/// The user id of a domain's processes.
fn uid(domid: DomId) -> u32 {
    let own = nix::unistd::geteuid();
    if own.is_root() { FIRST_UID + domid.0 } else { own.as_raw() }
}

/// Builds the machine; its vCPUs are paused when this returns. Cancel safe: what was made is in `made`.
///
/// # Errors
/// [`StartError`]; the caller removes what is in `made`.
pub async fn build(
    config: &DomainConfig,
    domid: DomId,
    dir: &DomainDir,
    supervisor: &dyn Supervisor,
    made: &mut Incarnation,
) -> Result<(), StartError> {
    made.domid = Some(domid);
    let opened = open(config).await?;
    let links =
        if config.nets.is_empty() { None } else { Some(Links::open().map_err(io_error("open rtnetlink"))?) };
    for (net, n) in config.nets.iter().zip(0..) {
        if let Some(links) = &links {
            tap::check(config, n, net, links).await?;
        }
    }
    dir.clear();
    // All at once: what each does before it listens goes on beside what dom0 does next.
    for role in roles(config) {
        let control = dir.control(role);
        let job =
            Job { domain: &config.name, role, control: &control, memory: config.memory, vcpus: config.vcpus };
        let process = supervisor.start(job).await?;
        match role {
            Role::Runner => made.runner = Some(Runner { process, link: None }),
            _ => made.backends.push(Backend { role, process, link: None }),
        }
    }
    record(domid, dir, made).map_err(io_error("write the domain's state"))?;

    let identity = Identity { domain: config.name.clone(), domid, uid: uid(domid) };
    let mut taps = Vec::new();
    if let Some(links) = &links {
        for (n, net) in config.nets.iter().enumerate() {
            let tap = tap::open(config, domid, n, net, links).await?;
            taps.push(tap.try_clone().map_err(io_error("duplicate a tap's descriptor"))?);
            made.taps.push(tap);
        }
    }
    let starts = starts(config, &identity, opened, taps, dir, &mut made.serial)?;
    hand_out(starts, dir, made).await
}

/// The start messages of all children, with their descriptors.
struct Starts {
    runner: (RunnerRequest, Outgoing),
    block: (BlockRequest, Outgoing),
    net: (NetRequest, Outgoing),
    console: (ConsoleRequest, Outgoing),
}

fn starts(
    config: &DomainConfig,
    identity: &Identity,
    opened: Opened,
    taps: Vec<File>,
    dir: &DomainDir,
    serial_end: &mut Option<OwnedFd>,
) -> Result<Starts, StartError> {
    let pair = || sockets::pair().map_err(io_error("make a socket pair"));
    let foreign = |at: String, path| -> Result<OwnedFd, StartError> {
        sockets::foreign(config, &at, path, true)?.ok_or(StartError::GivenUp)
    };
    let (mut runner, mut block, mut net, mut console) =
        (Outgoing::default(), Outgoing::default(), Outgoing::default(), Outgoing::default());
    let mut devices = Vec::new();

    let mut disks = Vec::new();
    for (n, (disk, image)) in config.disks.iter().zip(opened.images).enumerate() {
        let socket = match (&disk.source, image) {
            (DiskSource::Image { read_only, serial, .. }, Some(image)) => {
                let (ours, theirs) = pair()?;
                let (image, theirs) = (block.add(image), block.add(theirs));
                disks.push(BlockDisk {
                    serial: serial.clone(),
                    read_only: *read_only,
                    queues: disk.queues,
                    ..BlockDisk::raw(disk.id.clone(), image, theirs)
                });
                ours
            }
            (DiskSource::VhostUser(path), _) => foreign(format!("disks[{n}].vhost_user_socket"), path)?,
            (DiskSource::Image { .. }, None) => return Err(StartError::GivenUp),
        };
        devices.push(Device {
            id: disk.id.clone(),
            virtio_type: 2,
            pci_class: 0x01_8000,
            queues: disk.queues,
            queue_size: 256,
            config: DeviceConfig::FromBackend(BLOCK_CONFIG),
            socket: runner.add(socket),
        });
    }
    let mut nics = Vec::new();
    for (nic, tap) in config.nets.iter().zip(taps) {
        let (ours, theirs) = pair()?;
        nics.push(NetNic {
            id: nic.id.clone(),
            mac: nic.mac,
            mtu: nic.mtu,
            tap: net.add(tap),
            socket: net.add(theirs),
        });
        devices.push(Device {
            id: nic.id.clone(),
            virtio_type: 1,
            pci_class: 0x02_0000,
            queues: 2,
            queue_size: 256,
            config: DeviceConfig::FromBackend(NET_CONFIG),
            socket: runner.add(ours),
        });
    }
    for (n, device) in config.devices.iter().enumerate() {
        let socket = foreign(format!("devices[{n}].vhost_user_socket"), &device.socket)?;
        devices.push(Device {
            id: device.id.clone(),
            virtio_type: device.virtio_type,
            pci_class: device.pci_class,
            queues: device.queues,
            queue_size: device.queue_size,
            config: device.config.clone(),
            socket: runner.add(socket),
        });
    }
    let (serial, theirs) = pair()?;
    *serial_end = Some(theirs.try_clone().map_err(io_error("duplicate a descriptor"))?);
    let listener = UnixListener::bind(dir.console())
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(io_error("make the console's socket"))?;
    let console_start = ConsoleStart {
        identity: identity.clone(),
        serial: console.add(theirs),
        listener: console.add(listener),
        history: CONSOLE_HISTORY,
        log: None,
    };
    let runner_start = RunnerStart {
        identity: identity.clone(),
        kvm: runner.add(opened.kvm),
        vcpus: config.vcpus,
        memory: config.memory,
        kernel: runner.add(opened.kernel),
        initrd: opened.initrd.map(|initrd| runner.add(initrd)),
        cmdline: config.cmdline.clone(),
        serial: Some(runner.add(serial)),
        devices,
    };
    let (_, lifeline) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| io_error("make a pipe")(errno.into()))?;
    let lifeline = block.add(lifeline);
    let block_start = BlockStart { identity: identity.clone(), disks, limits: IoLimits::default(), lifeline };
    Ok(Starts {
        runner: (RunnerRequest::Start(Box::new(runner_start)), runner),
        block: (BlockRequest::Start(Box::new(block_start)), block),
        net: (NetRequest::Start(NetStart { identity: identity.clone(), nics }), net),
        console: (ConsoleRequest::Start(console_start), console),
    })
}

/// Connects to every child, sends its start message and waits until all are ready; each on its own.
async fn hand_out(starts: Starts, dir: &DomainDir, made: &mut Incarnation) -> Result<(), StartError> {
    let Starts { runner: (runner_start, runner_fds), block, net, console } = starts;
    let (mut block, mut net, mut console) = (Some(block), Some(net), Some(console));
    let backends = made.backends.iter_mut().map(|backend| {
        let (block, net, console) = match backend.role {
            Role::Block => (block.take(), None, None),
            Role::Net => (None, net.take(), None),
            _ => (None, None, console.take()),
        };
        async move {
            let path = dir.control(backend.role);
            let link = ChildLink::connect(backend.role, &path, &backend.process).await?;
            let link = backend.link.insert(link);
            if let Some((request, fds)) = block {
                link.send(&request, &fds.into_vec()).await?;
            } else if let Some((request, fds)) = net {
                link.send(&request, &fds.into_vec()).await?;
            } else if let Some((request, fds)) = console {
                link.send(&request, &fds.into_vec()).await?;
            }
            match link.answer(&backend.process, PATIENCE, "become ready").await? {
                BackendReply::Ready => Ok::<(), StartError>(()),
                other => Err(unexpected(backend.role, &other)),
            }
        }
    });
    let runner = &mut made.runner;
    let runner = async move {
        let Some(Runner { process, link }) = runner else { return Ok(()) };
        let connected = ChildLink::connect(Role::Runner, &dir.control(Role::Runner), process).await?;
        let link = link.insert(connected);
        link.send(&runner_start, &runner_fds.into_vec()).await?;
        match link.answer(process, PATIENCE, "become ready").await? {
            RunnerReply::Ready => Ok(()),
            other => Err(unexpected(Role::Runner, &other)),
        }
    };
    let everybody = async {
        tokio::try_join!(try_join_all(backends), runner)?;
        Ok(())
    };
    everybody.await
}

fn unexpected(role: Role, answer: &impl std::fmt::Debug) -> StartError {
    ChildError::Failed { role, why: format!("answered start with {answer:?}") }.into()
}

/// Writes down which processes the domain has.
fn record(domid: DomId, dir: &DomainDir, made: &Incarnation) -> io::Result<()> {
    let runner = made.runner.iter().map(|runner| (Role::Runner, runner.process.pid()));
    let backends = made.backends.iter().map(|backend| (backend.role, backend.process.pid()));
    let processes = runner.chain(backends).filter_map(|(role, pid)| {
        let pid = pid.as_raw();
        Some(ProcessRecord { role, pid, started: started(pid)? })
    });
    dir.write(&Record { domid, owner: std::process::id(), processes: processes.collect() })
}

impl Incarnation {
    /// Ends the runner and the backends; the console stays, for its history.
    pub async fn stop_machine(&mut self) {
        let console = self.backends.iter().position(|backend| backend.role == Role::Console);
        let console = console.map(|n| self.backends.swap_remove(n));
        self.kill_and_reap().await;
        self.backends.extend(console);
        self.taps.clear();
    }

    /// Ends every process and removes the taps.
    pub async fn tear_down(&mut self) {
        self.stop_machine().await;
        self.drain_console().await;
        self.kill_and_reap().await;
        *self = Self::default();
    }

    /// Lets the console pass on the guest's last words: until it has read them, and a moment to send them on.
    async fn drain_console(&self) {
        let Some(serial) = &self.serial else { return };
        if !self.backends.iter().any(|backend| backend.role == Role::Console && backend.link.is_some()) {
            return;
        }
        for _ in 0..100 {
            if !sockets::has_unread(serial) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    async fn kill_and_reap(&mut self) {
        let processes: Vec<Process> = self
            .runner
            .take()
            .map(|runner| runner.process)
            .into_iter()
            .chain(self.backends.drain(..).map(|backend| backend.process))
            .collect();
        processes.iter().for_each(Process::kill);
        for process in processes {
            process.reap().await;
        }
    }
}
