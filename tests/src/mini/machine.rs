//! A domain without dom0: the test makes the descriptors, starts the processes and holds the other end of COM1.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use domus_startup::fds::Outgoing;
use domus_startup::memfd;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use shared_abi::control::{
    BackendEvent, BackendReply, BlockDisk, BlockRequest, BlockStart, Cache, Device, DeviceConfig,
    DeviceFeatures, DeviceSpec, Identity, IoLimits, NetCard, NetNic, NetRequest, NetStart, NetWire,
    RunnerEvent, RunnerReply, RunnerRequest, RunnerStart, StopReason,
};
use shared_abi::cpu::CpuSpec;
use shared_abi::limits::NIC_STATE_LEN;
use shared_abi::{DeviceId, DomId, DomainName, Role};
use tempfile::TempDir;

use super::child::Child;
use super::report::Line;
use super::resource_usage::ResourceUsage;

/// A disk of the guest.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The raw image.
    pub image: PathBuf,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Whether the host's page cache is left out.
    pub direct: bool,
    /// Virtqueues.
    pub queues: u16,
}

/// What to build.
#[derive(Debug)]
pub struct Plan {
    /// The domain's name and number.
    pub domain: (&'static str, u32),
    /// vCPUs.
    pub vcpus: u8,
    /// What they are.
    pub cpu: CpuSpec,
    /// RAM in bytes.
    pub memory: u64,
    /// Disks, which come first on the bus.
    pub disks: Vec<Disk>,
    /// A tap for a NIC, which comes last.
    pub tap: Option<OwnedFd>,
    /// What the guest is told.
    pub cmdline: String,
    /// Its kernel: the mini guest, in some form.
    pub kernel: Cow<'static, [u8]>,
    /// Whether what the guest says is kept, and not printed too.
    pub quiet: bool,
}

impl Plan {
    /// One vCPU, 128 MiB, no devices, these checks.
    pub fn new(cmdline: impl Into<String>) -> Self {
        let (domain, cmdline) = (("mini", 1), cmdline.into());
        Self {
            domain,
            vcpus: 1,
            cpu: CpuSpec::default(),
            memory: 128 << 20,
            disks: Vec::new(),
            tap: None,
            cmdline,
            kernel: mini_guest::IMAGE.into(),
            quiet: false,
        }
    }

    /// With a disk on `image`.
    #[must_use]
    pub fn disk(mut self, image: &Path, queues: u16) -> Self {
        self.disks.push(Disk { image: image.into(), read_only: false, direct: false, queues });
        self
    }
}

type Backend = Child<BackendReply, BackendEvent>;

/// A running guest.
#[derive(Debug)]
pub struct Machine {
    /// The runner.
    pub runner: Child<RunnerReply, RunnerEvent>,
    /// The backend of its disks.
    pub block: Option<Backend>,
    /// The backend of its NIC.
    pub net: Option<Backend>,
    serial: UnixStream,
    lines: Receiver<String>,
    said: Vec<String>,
    _folder: TempDir,
}

impl Machine {
    /// Builds the machine and lets it run.
    pub fn start(programs: &Path, plan: Plan) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let kernel = folder.path().join("mini-guest");
        std::fs::write(&kernel, &plan.kernel).context("cannot write the guest's image")?;
        let uid = if geteuid().is_root() { 64_000 + plan.domain.1 } else { geteuid().as_raw() };
        let identity =
            Identity { domain: plan.domain.0.parse::<DomainName>()?, domid: DomId(plan.domain.1), uid };

        let (mut to_runner, mut to_block, mut to_net) =
            (Outgoing::default(), Outgoing::default(), Outgoing::default());
        let (mut disks, mut nics, mut devices) = (Vec::new(), Vec::new(), Vec::new());
        for (index, disk) in plan.disks.iter().enumerate() {
            let id: DeviceId = format!("disk{index}").parse()?;
            let mut options = File::options();
            options.read(true).write(!disk.read_only);
            if disk.direct {
                options.custom_flags(OFlag::O_DIRECT.bits());
            }
            let image = options.open(&disk.image);
            let image = image.with_context(|| format!("cannot open {}", disk.image.display()))?;
            let (backend, frontend) = UnixStream::pair()?;
            let (image, socket) = (to_block.add(image), to_block.add(backend));
            disks.push(BlockDisk {
                serial: format!("mini-{index}"),
                read_only: disk.read_only,
                queues: disk.queues,
                cache: if disk.direct { Cache::None } else { Cache::Writeback },
                ..BlockDisk::raw(id.clone(), image, socket)
            });
            devices.push(Device {
                spec: DeviceSpec {
                    slot: None,
                    id,
                    virtio_type: 2,
                    pci_class: 0x01_8000,
                    queues: disk.queues,
                    queue_size: 256,
                    config: DeviceConfig::FromBackend(60),
                    features: DeviceFeatures::default(),
                },
                socket: to_runner.add(frontend),
            });
        }
        if let Some(tap) = plan.tap {
            let id: DeviceId = "nic0".parse()?;
            let mac = shared_abi::MacAddress::new([0x02, 0, 0, 0, 0, plan.domain.1 as u8])?;
            let mtu: u16 = 1500;
            let (backend, frontend) = UnixStream::pair()?;
            // virtio 1.3 §5.1.4: mac, status, max_virtqueue_pairs, mtu.
            let mut config = mac.bytes().to_vec();
            config.extend([1, 0, 1, 0]);
            config.extend(mtu.to_le_bytes());
            let state = to_net.add(memfd::sealed("nic-state", NIC_STATE_LEN)?);
            let card = NetCard::plain(id.clone(), mac, state, to_net.add(backend));
            let wire = NetWire::Tap { queues: vec![to_net.add(tap)], steering: None };
            nics.push(NetNic { card, wire });
            devices.push(Device {
                spec: DeviceSpec {
                    slot: None,
                    id,
                    virtio_type: 1,
                    pci_class: 0x02_0000,
                    queues: 2,
                    queue_size: 256,
                    config: DeviceConfig::Given(config),
                    features: DeviceFeatures::default(),
                },
                socket: to_runner.add(frontend),
            });
        }

        let block = (!disks.is_empty())
            .then(|| {
                // Nobody here waits for the kernel to let go of the disks.
                let (_, lifeline) = nix::unistd::pipe()?;
                let lifeline = to_block.add(lifeline);
                let limits = IoLimits::default();
                let locks = Vec::new();
                let limited_files = false;
                let start =
                    BlockStart { identity: identity.clone(), disks, locks, limits, lifeline, limited_files };
                let start = BlockRequest::Start(Box::new(start));
                Backend::start(programs, Role::Block.program(), folder.path(), &start, to_block)
            })
            .transpose()?;
        let net = (!nics.is_empty())
            .then(|| {
                let start = NetRequest::Start(NetStart { identity: identity.clone(), nics });
                Backend::start(programs, Role::Net.program(), folder.path(), &start, to_net)
            })
            .transpose()?;

        let (serial, runner_serial) = UnixStream::pair()?;
        let kvm = File::options().read(true).write(true).open("/dev/kvm").context("cannot open /dev/kvm")?;
        let start = RunnerRequest::Start(Box::new(RunnerStart {
            identity,
            kvm: to_runner.add(kvm),
            vcpus: plan.vcpus,
            cpu: plan.cpu,
            memory: plan.memory,
            kernel: to_runner.add(File::open(&kernel)?),
            initrd: None,
            cmdline: plan.cmdline,
            cmdline_yields: false,
            unpacked: None,
            serial: Some(to_runner.add(runner_serial)),
            devices,
        }));
        let (mut runner, ready) =
            Child::start(programs, Role::Runner.program(), folder.path(), &start, to_runner)?;
        if ready != RunnerReply::Ready {
            bail!("the runner answers its start with {ready:?}");
        }
        let lines = read_lines(serial.try_clone()?, plan.quiet);
        runner.ask(&RunnerRequest::Resume, Outgoing::default())?;
        let (block, net) = (block.map(|(child, _)| child), net.map(|(child, _)| child));
        Ok(Self { runner, block, net, serial, lines, said: Vec::new(), _folder: folder })
    }

    /// The next line of the guest, waited for up to `limit`; `None` when there will be no more.
    pub fn line(&mut self, limit: Duration) -> Result<Option<Line>> {
        match self.lines.recv_timeout(limit) {
            Ok(text) => {
                self.said.push(text.clone());
                Ok(Some(Line::parse(&text)))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "the guest says nothing for {} s; its last words:\n{}",
                    limit.as_secs(),
                    self.last_words()
                )
            }
        }
    }

    /// Reads on until `wanted`, with `limit` for all of it. A failed check or the guest's death is an error.
    pub fn until(&mut self, limit: Duration, mut wanted: impl FnMut(&Line) -> bool) -> Result<Line> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.line(left)? {
                None => {
                    let event = self.runner.event(Duration::from_secs(5));
                    let status = self.runner.process().wait(Duration::from_secs(5))?;
                    bail!("the guest is gone ({event:?}, {status:?}); its last words:\n{}", self.last_words())
                }
                Some(Line::Died(_) | Line::Fail(_)) => {
                    bail!("the guest's check failed:\n{}", self.last_words())
                }
                Some(line) if wanted(&line) => return Ok(line),
                Some(_) => {}
            }
        }
    }

    /// Waits until all checks of the command line are done, and none has failed.
    pub fn done(&mut self, limit: Duration) -> Result<u32> {
        match self.until(limit, |line| matches!(line, Line::Done { .. }))? {
            Line::Done { passed, failed: 0 } if passed > 0 => Ok(passed),
            other => bail!("the guest ends with {other:?}:\n{}", self.last_words()),
        }
    }

    /// Types a line on COM1.
    pub fn type_line(&mut self, text: &str) -> Result<()> {
        Ok(writeln!(self.serial, "{text}")?)
    }

    /// Waits for the machine to stop. Its runner stays until it is ended: it answers whoever asks later why.
    pub fn stopped(&mut self, limit: Duration) -> Result<StopReason> {
        let reason = loop {
            match self.runner.event(limit)? {
                Some(RunnerEvent::Stopped(reason)) => break reason,
                Some(_) => {}
                None => bail!("the machine does not stop; its last words:\n{}", self.last_words()),
            }
        };
        match self.runner.process().ended()? {
            None => Ok(reason),
            Some(status) => bail!("the runner ended with {status} after {reason:?}"),
        }
    }

    /// Checks that no process of the domain has ended.
    pub fn all_alive(&mut self) -> Result<()> {
        let backends = [self.block.as_mut(), self.net.as_mut()];
        let backends = backends.into_iter().flatten().map(Child::process);
        for process in backends.chain([self.runner.process()]) {
            if let Some(status) = process.ended()? {
                bail!("{} ended with {status}", process.name());
            }
        }
        Ok(())
    }

    /// What each process of the domain has taken of the host so far: the runner, then its backends.
    pub fn resource_usages(&self) -> Result<Vec<ResourceUsage>> {
        let backends = [self.block.as_ref(), self.net.as_ref()];
        let backends = backends.into_iter().flatten().map(Child::resource_usage);
        [self.runner.resource_usage()].into_iter().chain(backends).collect()
    }

    /// All `value` lines so far.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.said.iter().filter_map(|line| line.trim_end().strip_prefix("mini: value "))
    }

    /// The last 20 lines the guest has printed.
    pub fn last_words(&self) -> String {
        self.said[self.said.len().saturating_sub(20)..].concat()
    }
}

fn read_lines(serial: UnixStream, quiet: bool) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let mut serial = BufReader::new(serial);
        let mut line = Vec::new();
        while serial.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            if !quiet {
                print!("{text}");
            }
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    lines
}
