//! Builds one incarnation of a domain: processes started at once, resources opened meanwhile, handed out, all ready.
//!
//! What was made is put into the [`Incarnation`] as soon as it exists, so that a build that fails or is given up
//! half-way is removed in the same way as a domain that has run.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use domus_startup::fds::Outgoing;
use futures_util::future::try_join_all;
use shared_abi::control::{
    Device, DeviceConfig, DeviceFeatures, Identity, RunnerEvent, RunnerReply, RunnerRequest, RunnerStart,
};
use shared_abi::{DeviceId, DomId, Role};

use crate::config::DomainConfig;
use crate::device::Owner;
use crate::device::block::config::DiskSource;
use crate::device::block::open::Disks;
use crate::device::console::Console;
use crate::device::devices::Devices;
use crate::device::error::DeviceError;
use crate::device::net::attach::{self, Nets};
use crate::device::net::config::{Net, NetLink};
use crate::domain::chain;
use crate::domain::directory::DomainDir;
use crate::domain::environment::Environment;
use crate::domain::error::StartError;
use crate::domain::machine::attempt::Reviving;
use crate::domain::machine::backend::Backend;
use crate::domain::machine::scheduling;
use crate::domain::machine::timeline::Timeline;
use crate::domain::record::ProcessRecord;
use crate::host::files::{self, For};
use crate::host::links::Links;
use crate::host::proc::ProcessId;
use crate::host::{fault, memory, sockets};
use crate::process::identity::uid;
use crate::process::link::{ChildError, ChildLink, PATIENCE};
use crate::process::{Launch, Limits, Process};

/// Bytes of `struct virtio_blk_config` that every backend knows (virtio 1.3 §5.2.4), up to the write-zeroes fields.
const BLOCK_CONFIG: u16 = 60;

/// Bytes of `struct virtio_net_config` up to the hash types (virtio 1.3 §5.1.4).
const NET_CONFIG: u16 = 24;

/// A network backend that is no VMM's own has no idea of a NIC's address, MTU and link (bits 5, 3 and 16, virtio 1.3
/// §5.1.3): vhost-user leaves them to the frontend. What only a control queue can do is left out, since such a backend
/// serves none: CTRL_GUEST_OFFLOADS (2), CTRL_VQ to CTRL_MAC_ADDR (17 to 23, with GUEST_ANNOUNCE and MQ), and those from
/// bit 50 on: DEVICE_STATS, VQ_NOTF_COAL, NOTF_COAL, HASH_REPORT, RSS, RSC_EXT, STANDBY and SPEED_DUPLEX.
const FRONTEND_FEATURES: DeviceFeatures =
    DeviceFeatures { own: 1 << 3 | 1 << 5 | 1 << 16, withheld: 1 << 2 | 0x7f << 17 | 0xfffc << 48 };

/// `struct virtio_net_config` up to the MTU, of a NIC whose backend leaves it to the frontend.
fn frontend_config(nic: &Net) -> Vec<u8> {
    const LINK_UP: u16 = 1;
    const PAIRS: u16 = 1;
    let words = [LINK_UP, PAIRS, nic.mtu].map(u16::to_le_bytes);
    nic.mac.bytes().into_iter().chain(words.into_iter().flatten()).collect()
}

fn io_error(act: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Io { act, source }
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
    /// Those that are being started again.
    pub reviving: Vec<Reviving>,
    /// What they are started with.
    pub kept: Option<Rc<Devices>>,
    /// When its start came to what.
    pub timeline: Timeline,
    /// NICs that are open before there is the rest of that.
    pub nets: Nets,
}

/// What dom0 opens for a domain before it starts anything.
struct Opened {
    kvm: File,
    kernel: File,
    initrd: Option<File>,
    disks: Disks,
}

async fn open(config: &DomainConfig) -> Result<Opened, StartError> {
    memory::check(&config.place("memory"), config.memory)?;
    scheduling::check(config)?;
    let kvm = File::options().read(true).write(true).open("/dev/kvm").map_err(StartError::Kvm)?;
    let kernel = files::blob(&config.place("boot.kernel"), &config.kernel)?;
    let initrd =
        config.initrd.as_ref().map(|path| files::blob(&config.place("boot.initrd"), path)).transpose()?;
    if let Some(log) = &config.console_log {
        files::appended(&config.place("console.log"), log, For::Use)?;
    }
    let disks = Disks::open(&config.file, &config.disks, config.disk_limits, For::Use).await?;
    Ok(Opened { kvm, kernel, initrd, disks })
}

/// The processes a config needs.
pub fn roles(config: &DomainConfig) -> Vec<Role> {
    let needed = |role: &Role| match role {
        Role::Block => config.disks.iter().any(|disk| disk.own().is_some()),
        Role::Net => config.nets.iter().any(Net::is_own),
        Role::Console | Role::Runner => true,
        Role::Switch => false,
    };
    Role::ALL.into_iter().filter(needed).collect()
}

/// Whom the processes of a domain serve, and become.
pub fn identity(config: &DomainConfig, domid: DomId) -> Identity {
    Identity { domain: config.name.clone(), domid, uid: uid(domid) }
}

/// Whose the devices of a domain are.
pub fn owner(config: &DomainConfig, domid: DomId, dir: &DomainDir) -> Owner {
    Owner {
        file: config.file.clone(),
        name: config.name.clone(),
        started_as: config.unit.clone(),
        domid,
        directory: dir.path().into(),
    }
}

/// The console of a domain.
pub fn console(config: &DomainConfig, dir: &DomainDir) -> Console {
    Console::new(config.file.clone(), config.console_log.clone(), dir.console())
}

/// What the limits of its processes are made from.
pub fn limits(config: &DomainConfig) -> Limits<'_> {
    Limits { domain: &config.unit, uuid: config.uuid, memory: config.memory, vcpus: config.vcpus }
}

/// Builds the machine; its vCPUs are paused when this returns. Cancel safe: what was made is in `made`, and written down by
/// `keep` as often as there is something new.
///
/// # Errors
/// [`StartError`]; the caller removes what is in `made`.
pub async fn build(
    config: &DomainConfig,
    domid: DomId,
    dir: &DomainDir,
    commons: &Environment,
    keep: &dyn Fn(&Incarnation),
    made: &mut Incarnation,
) -> Result<(), StartError> {
    made.domid = Some(domid);
    made.timeline.mark("config");
    let opened = open(config).await?;
    let links =
        if config.nets.is_empty() { None } else { Some(Links::open().map_err(io_error("open rtnetlink"))?) };
    for (n, net) in config.nets.iter().enumerate() {
        if let Some(links) = &links {
            attach::check(&config.place(format_args!("nets[{n}]")), net, links, &commons.providers.networks)
                .await?;
        }
    }
    made.timeline.mark("files");
    dir.clear();
    // All at once: what each does before it listens goes on beside what dom0 does next.
    for role in roles(config) {
        let control = dir.control(role);
        let launch = Launch {
            whom: config.unit.as_str(),
            role,
            control: &control,
            program: None,
            limits: Some(limits(config)),
        };
        let process = commons.providers.supervisor.start(launch).await?;
        fault::point();
        match role {
            Role::Runner => made.runner = Some(Runner { process, link: None }),
            _ => made.backends.push(Backend::new(role, process)),
        }
    }
    keep(made);
    made.timeline.mark("processes");

    let identity = identity(config, domid);
    let owner = owner(config, domid, dir);
    if let Some(links) = &links {
        // Where a build that is given up finds it.
        Nets::open(&owner, &config.nets, &commons.providers, links, &mut made.nets).await?;
    }
    let Opened { kvm, kernel, initrd, disks } = opened;
    let nets = std::mem::take(&mut made.nets);
    made.kept = Some(Rc::new(Devices::new(disks, nets, console(config, dir))));
    keep(made);
    let kept = made.kept.as_ref().ok_or(StartError::GivenUp)?;
    let serial = kept.console.make().map_err(io_error("make the console's socket"))?;

    let mut sockets = VecDeque::new();
    let mut starts = Vec::new();
    for backend in &made.backends {
        let start = kept.start(backend.role, &identity);
        let mut start = start.map_err(io_error("make what a backend is given"))?;
        sockets.extend(std::mem::take(&mut start.sockets));
        starts.push(start);
    }
    for (n, net) in config.nets.iter().enumerate() {
        if let NetLink::Switch(_) = net.link {
            let socket = attach::plug(&owner, &net.id, &kept.nets, &commons.providers).await;
            let refuse =
                |why: DeviceError| config.place(format_args!("nets[{n}].switch")).refuse(chain(&why));
            sockets.push_back((net.id.clone(), socket.map_err(refuse)?));
        }
    }
    let mut fds = Outgoing::default();
    let devices = devices(config, kept, sockets.into(), &mut fds)?;
    let start = RunnerStart {
        identity,
        kvm: fds.add(kvm),
        vcpus: config.vcpus,
        memory: config.memory,
        kernel: fds.add(kernel),
        initrd: initrd.map(|initrd| fds.add(initrd)),
        cmdline: config.cmdline.clone(),
        serial: serial.map(|serial| fds.add(serial)),
        devices,
    };

    made.timeline.mark("devices");
    let runner = &mut made.runner;
    let runner = async {
        let Some(Runner { process, link }) = runner else { return Ok(()) };
        let connected = ChildLink::connect(Role::Runner, &dir.control(Role::Runner), process).await?;
        fault::point();
        let link = link.insert(connected);
        link.send(&RunnerRequest::Start(Box::new(start)), &fds.into_vec()).await?;
        match link.answer(process, PATIENCE, "become ready").await? {
            RunnerReply::Ready => Ok(()),
            other => {
                let why = format!("answered start with {other:?}");
                Err(StartError::from(ChildError::Failed { role: Role::Runner, why }))
            }
        }
    };
    // Each on its own: a runner that waits for a backend's configuration waits no longer than needed.
    let backends = made.backends.iter_mut().zip(starts).map(|(backend, start)| async move {
        backend.connect(&dir.control(backend.role)).await?;
        backend.start(start).await
    });
    tokio::try_join!(try_join_all(backends), runner)?;
    made.timeline.mark("ready");
    fault::point();
    Ok(())
}

/// The devices of the machine, in the order of their PCI slots; `sockets` are those of the domain's own backends.
fn devices(
    config: &DomainConfig,
    kept: &Devices,
    mut sockets: Vec<(DeviceId, OwnedFd)>,
    fds: &mut Outgoing,
) -> Result<Vec<Device>, StartError> {
    let foreign = |at: String, path| -> Result<OwnedFd, StartError> {
        sockets::foreign(&config.place(at), path, true)?.ok_or(StartError::GivenUp)
    };
    let mut own = |id: &DeviceId| {
        let found = sockets.iter().position(|(device, _)| device == id);
        // A backend is started for every device that has no socket of somebody else's.
        found.map(|n| sockets.swap_remove(n).1).ok_or(StartError::GivenUp)
    };
    let mut devices = Vec::new();
    for (n, disk) in config.disks.iter().enumerate() {
        let socket = match &disk.source {
            DiskSource::Own(_) => own(&disk.id)?,
            DiskSource::VhostUser(path) => foreign(format!("disks[{n}].vhost_user_socket"), path)?,
        };
        devices.push(Device {
            id: disk.id.clone(),
            virtio_type: 2,
            pci_class: 0x01_8000,
            queues: disk.queues,
            queue_size: 256,
            config: DeviceConfig::FromBackend(BLOCK_CONFIG),
            features: DeviceFeatures::default(),
            socket: fds.add(socket),
        });
    }
    for (n, nic) in config.nets.iter().enumerate() {
        let (socket, nic_config, features) = match &nic.link {
            NetLink::VhostUser(path) => {
                let socket = foreign(format!("nets[{n}].vhost_user_socket"), path)?;
                (socket, DeviceConfig::Given(frontend_config(nic)), FRONTEND_FEATURES)
            }
            _ => (own(&nic.id)?, DeviceConfig::FromBackend(NET_CONFIG), DeviceFeatures::default()),
        };
        let pairs = kept.nets.borrow().pairs(&nic.id).unwrap_or(nic.pairs);
        devices.push(Device {
            id: nic.id.clone(),
            virtio_type: 1,
            pci_class: 0x02_0000,
            queues: nic.virtqueues(pairs),
            queue_size: 256,
            config: nic_config,
            features,
            socket: fds.add(socket),
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
            features: DeviceFeatures::default(),
            socket: fds.add(socket),
        });
    }
    Ok(devices)
}

impl Incarnation {
    /// Its processes, for a dom0 that comes later.
    pub fn processes(&self) -> Vec<ProcessRecord> {
        let runner = self.runner.iter().map(|runner| (Role::Runner, runner.process.pid()));
        let backends = self.backends.iter().map(|backend| (backend.role, backend.process.pid()));
        let known = |(role, pid)| Some(ProcessRecord { role, known: ProcessId::of(pid)? });
        runner.chain(backends).filter_map(known).collect()
    }

    /// Ends the runner and the backends; the console stays, for its history.
    pub async fn stop_machine(&mut self) {
        self.reviving.clear();
        let console = self.backends.iter().position(|backend| backend.role == Role::Console);
        let console = console.map(|n| self.backends.swap_remove(n));
        self.kill_and_reap().await;
        self.backends.extend(console);
        let kept = self.kept.as_ref().map(|kept| std::mem::take(&mut *kept.nets.borrow_mut()));
        for mut nets in [kept, Some(std::mem::take(&mut self.nets))].into_iter().flatten() {
            nets.close().await;
        }
    }

    /// Ends every process and removes the links.
    pub async fn tear_down(&mut self) {
        self.stop_machine().await;
        self.drain_console().await;
        self.kill_and_reap().await;
        *self = Self::default();
    }

    /// Lets the console pass on the guest's last words: until it has read them, and a moment to send them on.
    async fn drain_console(&self) {
        let Some(kept) = &self.kept else { return };
        if !self.backends.iter().any(|backend| backend.role == Role::Console && backend.link.is_some()) {
            return;
        }
        for _ in 0..100 {
            if !kept.console.has_unread() {
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
            .chain(self.backends.drain(..).map(|backend| backend.into_parts().0))
            .collect();
        processes.iter().for_each(Process::kill);
        for process in processes {
            process.reap().await;
        }
    }
}
