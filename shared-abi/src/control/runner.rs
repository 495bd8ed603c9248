//! The messages of `domu-runner`.

use serde::{Deserialize, Serialize};

use super::{FdIndex, Identity};
use crate::cpu::CpuSpec;
use crate::ids::{DeviceId, Slot};

/// What dom0 asks of a runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RunnerRequest {
    /// Build the machine, seal, load the kernel, answer [`RunnerReply::Ready`]. Its vCPUs are paused.
    Start(Box<RunnerStart>),
    /// Let the vCPUs run. No error if they do.
    Resume,
    /// Stop the vCPUs; answered when each has left `KVM_RUN`. Devices go on: what they complete is delivered later.
    Pause,
    /// Press the ACPI power button: the guest is asked to shut down.
    PowerButton,
    /// Press the ACPI sleep button.
    SleepButton,
    /// Give a non-maskable interrupt to this vCPU, or with none to all.
    Nmi(Option<u8>),
    /// End the machine as if the guest had reset it.
    Reset,
    /// Let COM1 receive a break and then this byte: what Linux takes for a SysRq key.
    SysRq(u8),
    /// Write a core of the machine into an empty file, also after it has stopped.
    DumpCore {
        /// The file, opened for writing.
        file: FdIndex,
        /// The vCPUs run on meanwhile: what is written is of no single moment.
        live: bool,
        /// The vCPUs do not run again when it is written.
        hold: bool,
    },
    /// Report [`RunnerStatus`].
    Status,
    /// Let the backends of these devices finish what they have in flight, and hang up on them; answered with
    /// [`RunnerReply::Detached`]. The devices stand still until they are attached.
    Detach(Vec<DeviceId>),
    /// These devices have new backends, which go on where the ones before them stopped or died; answered with
    /// [`RunnerReply::Attached`].
    Attach(Vec<Attachment>),
    /// A new peer for COM1, after the old one has hung up; answered with [`RunnerReply::Done`]. The guest's output
    /// since then, as far as the buffer holds it, goes there first.
    Serial(FdIndex),
    /// Report [`MachineTimes`].
    Times,
    /// Ask the device's backend for its configuration space again, and tell the guest if it has changed.
    ReadConfig(DeviceId),
    /// Report [`VcpuCounters`].
    Counters,
    /// These devices' backends are lost, and nothing that they had begun is at work any more: resets that wait for that
    /// are over.
    Gone(Vec<DeviceId>),
}

/// A device and its new backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The device.
    pub device: DeviceId,
    /// A connected stream socket to the vhost-user backend.
    pub socket: FdIndex,
}

/// A machine to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunnerStart {
    /// Whose machine it is.
    pub identity: Identity,
    /// `/dev/kvm`, opened read-write.
    pub kvm: FdIndex,
    /// 1 to [`MAX_VCPUS`](crate::limits::MAX_VCPUS).
    pub vcpus: u8,
    /// What its guest sees of the CPU. A controller before version 3 does not say: the default.
    #[serde(default, skip_serializing_if = "CpuSpec::is_default")]
    pub cpu: CpuSpec,
    /// RAM in bytes, a multiple of [`MEMORY_UNIT`](crate::limits::MEMORY_UNIT).
    pub memory: u64,
    /// The kernel: an ELF `vmlinux`, an x86 bzImage or a unified kernel image, started by PVH if it has the note, else
    /// by Linux's 64-bit boot protocol. A regular file, opened read-only.
    pub kernel: FdIndex,
    /// What the kernel unpacks to, or where to keep that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked: Option<Unpacked>,
    /// The initial RAM disk, as the kernel wants it. With none it is that of a unified kernel image.
    pub initrd: Option<FdIndex>,
    /// The kernel's command line, at most [`MAX_CMDLINE`](crate::limits::MAX_CMDLINE) bytes, without NUL.
    pub cmdline: String,
    /// The command line that the kernel's image itself has, as a unified kernel image may, is used in its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cmdline_yields: bool,
    /// A connected `SOCK_STREAM` socket for COM1: what the guest sends, and what it receives.
    pub serial: Option<FdIndex>,
    /// Virtio devices.
    pub devices: Vec<Device>,
}

/// A memory file for what a packed kernel unpacks to, an ELF `vmlinux`, so that it is unpacked once for many starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Unpacked {
    /// Another runner has written it of the same kernel, and has sealed it: it need not be unpacked again.
    Kept(FdIndex),
    /// An empty one. Before the runner looks at anything but the kernel and this message, it is filled and sealed
    /// against all changes, or sealed against further seals alone: then it holds nothing of use, and never will.
    Keep(FdIndex),
}

/// A virtio device that a vhost-user backend serves. The runner knows no more of it than this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What the guest sees.
    #[serde(flatten)]
    pub spec: DeviceSpec,
    /// A connected stream socket to the vhost-user backend.
    pub socket: FdIndex,
}

/// A virtio device as its guest sees it, for as long as the machine is the same one: through restarts of backends, of
/// dom0, and of the runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Its id, for messages.
    pub id: DeviceId,
    /// Its slot on PCI bus 0. None from a controller of version 1, whose devices take the lowest free slots in their
    /// order.
    #[serde(default)]
    pub slot: Option<Slot>,
    /// The virtio device type (virtio 1.3 §5: 1 net, 2 block, 3 console, …).
    pub virtio_type: u16,
    /// The PCI class code the guest sees, 24 bits: base class, subclass, interface (block: 0x018000).
    pub pci_class: u32,
    /// Number of virtqueues, 1 to [`MAX_QUEUES`](crate::limits::MAX_QUEUES).
    pub queues: u16,
    /// Ring size offered for each queue: a power of two up to [`MAX_QUEUE_SIZE`](crate::limits::MAX_QUEUE_SIZE).
    pub queue_size: u16,
    /// The device-specific configuration space.
    pub config: DeviceConfig,
    /// What the guest is offered beside, or not of, what the backend offers.
    pub features: DeviceFeatures,
}

/// Feature bits that are not the backend's matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceFeatures {
    /// The guest is offered these whatever the backend says, and the backend is never told of them. What they promise
    /// must be in a configuration space that dom0 gives.
    pub own: u64,
    /// The guest is not offered these, even if the backend has them.
    pub withheld: u64,
}

/// Where the device-specific configuration space of a device comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DeviceConfig {
    /// dom0 decides it: at most [`MAX_DEVICE_CONFIG`](crate::limits::MAX_DEVICE_CONFIG) bytes, read-only.
    Given(Vec<u8>),
    /// The backend is asked (vhost-user `GET_CONFIG`, so it must offer `VHOST_USER_PROTOCOL_F_CONFIG`) for this
    /// many bytes, at most [`MAX_DEVICE_CONFIG`](crate::limits::MAX_DEVICE_CONFIG). No more than the device type
    /// has (block: 60): a backend may fail a longer request, and vhost-user has no way to ask for the length.
    FromBackend(u16),
}

/// A runner's answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RunnerReply {
    /// The machine is built and sealed, its kernel is loaded, its vCPUs are paused.
    Ready,
    /// Done.
    Done,
    /// To [`RunnerRequest::Detach`].
    Detached {
        /// Every backend has said that it has finished. If not, one may still be at work.
        drained: bool,
    },
    /// To [`RunnerRequest::Attach`].
    Attached {
        /// How long the devices have stood still, in microseconds: the longest of them, from the loss of its backend or
        /// its detaching on.
        stalled_us: u64,
    },
    /// To [`RunnerRequest::Status`].
    Status(RunnerStatus),
    /// To [`RunnerRequest::Times`].
    Times(MachineTimes),
    /// To [`RunnerRequest::Counters`].
    Counters(VcpuCounters),
    /// To [`RunnerRequest::Start`]: there is no machine, and the runner ends. A controller of version 1 is told
    /// [`Failed`](super::FromChild::Failed) instead.
    Refused {
        /// What of the start message is at fault.
        what: StartPart,
        /// One line for the operator.
        why: String,
    },
}

/// A part of [`RunnerStart`] that an operator has chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartPart {
    /// The kernel image.
    Kernel,
    /// The initial RAM disk.
    Initrd,
    /// The CPU. A controller before version 3 is told that it is something else.
    Cpu,
    /// None of these, or the host.
    Other,
}

/// What a runner knows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunnerStatus {
    /// True while the vCPUs are paused.
    pub paused: bool,
    /// `CLOCK_MONOTONIC` in nanoseconds just before the first `KVM_RUN`; none before it.
    pub first_run_ns: Option<u64>,
    /// Why the machine stopped, if it has.
    pub stopped: Option<StopReason>,
    /// The devices that nobody serves: they stand still.
    pub without_backend: Vec<DeviceId>,
}

/// What the vCPUs of a machine did to their host, and how they share its cores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuCounters {
    /// Accesses that locked the bus for all CPUs, as far as the host tells (`KVM_EXIT_X86_BUS_LOCK`). The vCPU stood
    /// still for a moment after each.
    pub bus_locks: u64,
    /// Times that a vCPU held its core without a chance for an interrupt (`KVM_EXIT_NOTIFY`).
    pub stuck: u64,
    /// The vCPUs share the threads of a core with nobody else (`PR_SCHED_CORE`).
    pub core_scheduling: bool,
}

/// When a machine did what for the first time: `CLOCK_MONOTONIC` in nanoseconds, none where it has not yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineTimes {
    /// The start message was there.
    pub received_ns: Option<u64>,
    /// KVM's objects and the devices were made, and the process was sealed.
    pub built_ns: Option<u64>,
    /// The kernel was unpacked into guest memory, behind the seal.
    pub loaded_ns: Option<u64>,
    /// Just before the first `KVM_RUN`.
    pub first_run_ns: Option<u64>,
    /// The guest had sent a byte on COM1.
    pub first_output_ns: Option<u64>,
    /// A driver had taken a virtio device into use (DRIVER_OK).
    pub first_driver_ns: Option<u64>,
}

/// What a runner reports unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RunnerEvent {
    /// The machine has stopped for good. The runner stays, with what it knows, until dom0 ends it: a dom0 that was away
    /// learns of it, too.
    Stopped(StopReason),
    /// A device's backend has closed its socket or broken the protocol; the device stands still.
    DeviceLost(DeviceId),
}

/// Why a machine stopped. They are told apart, since each has its own policy in the domain's config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StopReason {
    /// The guest switched itself off through ACPI (`on_poweroff`).
    PowerOff,
    /// The guest reset itself through the FADT reset register or port 0x64 (`on_reboot`).
    Reboot,
    /// A vCPU triple-faulted (`KVM_EXIT_SHUTDOWN`; `on_crash`).
    TripleFault,
    /// KVM could not go on with a vCPU (`KVM_EXIT_FAIL_ENTRY`, `KVM_EXIT_INTERNAL_ERROR`; `on_crash`).
    VcpuFailed(String),
}
