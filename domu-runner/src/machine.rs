//! One machine: built from the start message, served until dom0 ends the process.
//!
//! ```text
//! Receiving ─▶ made ─▶ sealed ─▶ kernel loaded ─▶ backends greeted (vCPUs paused) ─▶ running ◀─▶ paused ─▶ stopped
//! ```
//!
//! A byte of a kernel image, of an initrd or of a backend is looked at behind the seal only.

use std::os::fd::OwnedFd;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use domus_startup::control::chain;
use domus_startup::lock;
use domus_startup::{Events, Fds, sandbox, threads};
use kvm_ioctls::VcpuFd;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::sysinfo::sysinfo;
use shared_abi::DeviceId;
use shared_abi::control::{
    self, Attachment, RunnerEvent, RunnerReply, RunnerRequest, RunnerStart, RunnerStatus, StartPart,
    StopReason,
};
use shared_abi::limits::{MAX_CMDLINE, MAX_DEVICES, MAX_VCPUS, MEMORY_UNIT, MIN_MEMORY};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::{Boot, Entry, Image, Keep, Unpacked};
use crate::bus::Bus;
use crate::dump::{self, Registers};
use crate::irq::{Gsi, IrqRouter};
use crate::layout::{
    ACPI_PORT, COM1_PORT, ECAM, ECAM_SIZE, I8042_PORT, PCI_CONFIG_PORT, PCI_WINDOW, PCI_WINDOW_SIZE,
};
use crate::memory::GuestRam;
use crate::pci;
use crate::power::{self, I8042, I8042_PORTS, PowerRegisters, REGISTERS};
use crate::rules::{self, Gate};
use crate::serial::Serial;
use crate::stop::Stop;
use crate::timeline::Timeline;
use crate::vcpu::{Buses, Vcpus};
use crate::virtio::{PATIENCE, Transport, Watcher};
use crate::vm::Vm;

/// How long the end of a machine waits for vCPUs that are busy, and for its last console output to be read.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How long each vCPU may take to do what it is asked.
const VCPU_TIMEOUT: Duration = Duration::from_millis(500);

/// How long all of them may take to park: none waits for a backend longer than
/// [`COURTESY`](crate::virtio::transport::COURTESY), but a host may have few CPUs for many of them.
const LONGEST_EXIT: Duration = Duration::from_secs(10);

/// A machine whose guest can run.
pub struct Machine {
    /// The VM runs in it: it stays mapped as long as the machine is.
    ram: GuestRam,
    vcpus: Arc<Vcpus>,
    power: Arc<PowerRegisters>,
    serial: Arc<Serial>,
    devices: Vec<(DeviceId, Arc<Transport>)>,
    stop: Stop,
    stopped: Arc<Mutex<Option<StopReason>>>,
    timeline: Timeline,
}

impl Machine {
    /// Builds the machine, seals the process, and loads the kernel. The vCPUs are paused.
    ///
    /// # Errors
    /// Whatever stands in the way, for dom0 to report.
    pub fn start(start: RunnerStart, mut fds: Fds, events: &Events) -> anyhow::Result<Self> {
        let timeline = Timeline::default();
        timeline.received.set();
        check(&start)?;
        let kvm = fds.take(start.kvm)?;
        let kernel = Image::new(StartPart::Kernel, fds.take(start.kernel)?.into())?;
        let initrd = match start.initrd {
            Some(initrd) => Some(Image::new(StartPart::Initrd, fds.take(initrd)?.into())?),
            None => None,
        };
        let unpacked = match start.unpacked {
            None => Unpacked::Unknown,
            Some(control::Unpacked::Keep(file)) => {
                Unpacked::Keep(Keep::new(fds.take(file)?.into(), start.memory))
            }
            Some(control::Unpacked::Kept(file)) => {
                Unpacked::Kept(Image::new(StartPart::Kernel, fds.take(file)?.into())?)
            }
        };
        let boot = Boot { kernel, initrd, cmdline: start.cmdline, yields: start.cmdline_yields, unpacked };
        let serial = start.serial.map(|serial| fds.take(serial)).transpose()?;
        let sockets = start.devices.iter().map(|device| fds.take(device.socket));
        let sockets = sockets.collect::<Result<Vec<_>, _>>()?;
        fds.finish()?;

        let ram = GuestRam::new(start.memory)?;
        let Vm { fd, mut vcpus } = Vm::new(kvm, start.vcpus, &start.cpu, &ram)?;
        let irq = Arc::new(IrqRouter::new(fd.clone())?);
        let (stop, reasons) = Stop::channel();
        let interrupt = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        irq.connect(&interrupt, Gsi::COM1)?;
        let serial = Arc::new(Serial::new(serial, interrupt)?);
        let power = Arc::new(PowerRegisters::new(stop.clone(), irq.clone()));

        let (mut ports, mut memory) = (Bus::default(), Bus::default());
        ports.insert(COM1_PORT, 8, serial.clone())?;
        ports.insert(I8042_PORT, I8042_PORTS, Arc::new(I8042(stop.clone())))?;
        ports.insert(ACPI_PORT, REGISTERS, power.clone())?;

        // A core is the only file that a runner ever writes, so a runner under its guest's control cannot fill a disk.
        let core = start.memory + dump::BESIDE_RAM;
        setrlimit(Resource::RLIMIT_FSIZE, core, core).context("cannot limit the length of cores")?;
        sandbox::enter(start.identity.uid)?;
        let mut pci = pci::Root::default();
        let reporter = events.clone();
        let lost = move |device: &DeviceId| reporter.send(&RunnerEvent::DeviceLost(device.clone()));
        let gate = Gate::closed();
        let watcher = Watcher::start(PATIENCE, &gate, lost)?;
        let mut devices = Vec::new();
        for device in &start.devices {
            let (description, function) =
                Transport::new(&device.spec, &ram, fd.clone(), irq.clone(), &watcher, &gate)?;
            devices.push((device.spec.id.clone(), function.clone()));
            pci.add(device.spec.slot, description, function)?;
        }
        let pci = Arc::new(pci);
        ports.insert(PCI_CONFIG_PORT, 8, Arc::new(pci::ConfigPorts::new(pci.clone(), stop.clone())))?;
        memory.insert(ECAM, ECAM_SIZE, Arc::new(pci::Ecam(pci.clone())))?;
        memory.insert(PCI_WINDOW, PCI_WINDOW_SIZE, Arc::new(pci::Window(pci)))?;
        let buses = Buses { ports: Arc::new(ports), memory: Arc::new(memory) };
        let threads = Arc::new(Vcpus::spawn(start.vcpus, buses, stop.clone(), &gate)?);
        serial.start(&gate)?;
        let stopped = Arc::new(Mutex::new(None));
        let end = End {
            vcpus: threads.clone(),
            serial: serial.clone(),
            events: events.clone(),
            stopped: stopped.clone(),
        };
        let ticket = gate.ticket(rules::END);
        threads::start("end".into(), move || ticket.run(|| end.wait(&reasons)))?;
        sandbox::seal(&rules::process())?;
        timeline.built.set();

        // Before anything else is heard: what the kernel unpacks to may be kept for other domains.
        let entry = boot.load(&ram, start.vcpus)?;
        timeline.loaded.set();
        gate.open();
        for ((_, device), socket) in devices.iter().zip(sockets) {
            device.connect(socket)?;
        }
        let first = vcpus.first_mut().context("a machine has a vCPU")?;
        enter_kernel(first, entry).context("cannot set the first vCPU's registers")?;
        sandbox::narrow(&rules::CONTROL.concat())?;
        threads.give(vcpus);
        Ok(Self { ram, vcpus: threads, power, serial, devices, stop, stopped, timeline })
    }

    /// Answers one request.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn handle(&self, request: RunnerRequest, mut fds: Fds) -> Result<RunnerReply, String> {
        let stopped = lock(&self.stopped).clone();
        match request {
            RunnerRequest::Status => {
                let (paused, first_run_ns) = (self.vcpus.paused(), self.vcpus.first_run());
                let still = self.devices.iter().filter(|(_, transport)| transport.stands_still());
                let without_backend = still.map(|(device, _)| device.clone()).collect();
                let status = RunnerStatus { paused, first_run_ns, stopped, without_backend };
                return Ok(RunnerReply::Status(status));
            }
            RunnerRequest::Times => {
                let drivers = self.devices.iter().filter_map(|(_, transport)| transport.first_driver());
                let (first_run, output) = (self.vcpus.first_run(), self.serial.first_output());
                return Ok(RunnerReply::Times(self.timeline.times(first_run, output, drivers.min())));
            }
            RunnerRequest::Counters => return Ok(RunnerReply::Counters(self.vcpus.counters())),
            RunnerRequest::Start(_) => return Err("this runner has its machine already".into()),
            // Also of a machine that has stopped: then it is wanted most.
            RunnerRequest::DumpCore { file, live, hold } => {
                self.dump(fds.take(file).map_err(|error| error.to_string())?, live, hold)?;
            }
            _ if stopped.is_some() => return Err("the machine has stopped".into()),
            RunnerRequest::Resume => self.vcpus.resume(),
            RunnerRequest::Pause => self.vcpus.pause(LONGEST_EXIT),
            RunnerRequest::Detach(devices) => {
                let mut drained = true;
                for device in &devices {
                    drained &= self.device(device)?.detach();
                }
                return Ok(RunnerReply::Detached { drained });
            }
            RunnerRequest::Attach(attachments) => {
                let mut longest = Duration::ZERO;
                for Attachment { device, socket } in attachments {
                    let socket = fds.take(socket).map_err(|error| error.to_string())?;
                    let still = self.device(&device)?.attach(socket).map_err(|error| chain(&error))?;
                    longest = longest.max(still);
                }
                return Ok(RunnerReply::Attached { stalled_us: longest.as_micros() as u64 });
            }
            RunnerRequest::Serial(socket) => {
                self.serial.attach(fds.take(socket).map_err(|error| error.to_string())?);
            }
            RunnerRequest::Gone(devices) => {
                for device in &devices {
                    self.device(device)?.gone();
                }
            }
            RunnerRequest::ReadConfig(device) => self.device(&device)?.read_config(),
            RunnerRequest::PowerButton => self.press(power::POWER_BUTTON)?,
            RunnerRequest::SleepButton => self.press(power::SLEEP_BUTTON)?,
            RunnerRequest::Nmi(vcpu) => self.nmi(vcpu)?,
            RunnerRequest::Reset => self.stop.request(StopReason::Reboot),
            RunnerRequest::SysRq(key) => {
                if !self.serial.send_break(key) {
                    return Err("the guest does not read COM1".into());
                }
            }
        }
        Ok(RunnerReply::Done)
    }

    /// Writes a core. Pauses the vCPUs for the dump unless it is `live`; with `hold` they stay paused after it.
    fn dump(&self, file: OwnedFd, live: bool, hold: bool) -> Result<(), String> {
        let ours = !live && !self.vcpus.paused();
        if ours {
            self.vcpus.pause(LONGEST_EXIT);
        }
        let registers = |vcpu| -> Result<Registers, String> {
            let read = self.vcpus.ask(vcpu, Registers::read, VCPU_TIMEOUT);
            let read = read.ok_or_else(|| format!("vCPU {vcpu} does not park"))?;
            read.map_err(|error| format!("KVM does not tell the registers of vCPU {vcpu}: {error}"))
        };
        let registers = (0..self.vcpus.count()).map(registers).collect::<Result<Vec<_>, _>>();
        let written = registers.and_then(|registers| {
            let written = dump::write(&mut file.into(), &self.ram, &registers);
            written.map_err(|error| format!("cannot write the core: {error}"))
        });
        let stay = hold && written.is_ok();
        if ours && !stay {
            self.vcpus.resume();
        }
        written
    }

    fn press(&self, button: u8) -> Result<(), String> {
        self.power.press(button).map_err(|error| error.to_string())
    }

    /// Gives an NMI to a vCPU, or to all.
    fn nmi(&self, vcpu: Option<u8>) -> Result<(), String> {
        let count = self.vcpus.count();
        let wanted = match vcpu.map(usize::from) {
            None => 0..count,
            Some(vcpu) if vcpu < count => vcpu..vcpu + 1,
            Some(vcpu) => return Err(format!("there is no vCPU {vcpu}: the machine has 0 to {}", count - 1)),
        };
        for vcpu in wanted {
            let nmi = self.vcpus.ask(vcpu, VcpuFd::nmi, VCPU_TIMEOUT);
            let nmi = nmi.ok_or_else(|| format!("vCPU {vcpu} is slow: it gets its NMI later"))?;
            nmi.map_err(|error| format!("KVM cannot give vCPU {vcpu} an NMI: {error}"))?;
        }
        Ok(())
    }

    fn device(&self, id: &DeviceId) -> Result<&Transport, String> {
        let found = self.devices.iter().find(|(device, _)| device == id);
        found.map(|(_, transport)| &**transport).ok_or_else(|| format!("there is no device {id}"))
    }
}

/// Says so when the machine ends.
struct End {
    vcpus: Arc<Vcpus>,
    serial: Arc<Serial>,
    events: Events,
    stopped: Arc<Mutex<Option<StopReason>>>,
}

impl End {
    fn wait(&self, reasons: &Receiver<StopReason>) {
        // The sender lives as long as the vCPU threads, which do not end.
        let Ok(reason) = reasons.recv() else { return };
        *lock(&self.stopped) = Some(reason.clone());
        self.vcpus.pause(LAST_WORDS);
        self.serial.flush(LAST_WORDS);
        self.events.send(&RunnerEvent::Stopped(reason));
    }
}

/// Checks what the message's types leave open.
fn check(start: &RunnerStart) -> anyhow::Result<()> {
    let (vcpus, memory) = (start.vcpus, start.memory);
    ensure!((1..=MAX_VCPUS).contains(&vcpus), "{vcpus} vCPUs: 1 to {MAX_VCPUS} are possible");
    ensure!(
        memory >= MIN_MEMORY && memory.is_multiple_of(MEMORY_UNIT),
        "{memory} bytes of memory: at least {} MiB, in whole MiB, are possible",
        MIN_MEMORY >> 20
    );
    let host = sysinfo()?.ram_total();
    ensure!(memory <= host, "{} MiB of memory: this host has {} MiB", memory >> 20, host >> 20);
    let length = start.cmdline.len();
    ensure!(
        length <= MAX_CMDLINE,
        "a kernel command line of {length} bytes: at most {MAX_CMDLINE} are possible"
    );
    ensure!(!start.cmdline.contains('\0'), "a kernel command line with a NUL in it");
    let devices = start.devices.len();
    ensure!(devices <= MAX_DEVICES, "{devices} devices: at most {MAX_DEVICES} are possible");
    Ok(())
}

fn enter_kernel(vcpu: &mut VcpuFd, entry: Entry) -> Result<(), vmm_sys_util::errno::Error> {
    let (regs, sregs) = entry.registers(vcpu.get_sregs()?);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)
}
