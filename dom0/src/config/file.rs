//! The config file as it is written. The JSON Schema in `dom0/schema/` is made from these types.
//!
//! Nothing is checked here but syntax, types and unknown keys; [`super::check`] does the rest.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Autostart;
use crate::device::block::config::DiskFile;
use crate::device::console::config::ConsoleFile;
use crate::device::external::config::DeviceFile;
use crate::device::net::config::NetFile;
use crate::value::rate::LimitsFile;
use crate::value::size::MemorySize;

/// A domain: one guest with its devices. Relative paths start at the directory of this file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Domus domain")]
pub struct DomainFile {
    /// Where the schema is, for editors. Domus does not read it.
    #[serde(rename = "$schema", default)]
    pub schema: Option<String>,
    /// 1 to 48 of a-z A-Z 0-9 . _ -, the first a letter or digit.
    pub name: String,
    /// UUID of the machine, as its guest and lists have it. Without this key it is made from the name.
    #[serde(default)]
    pub uuid: Option<String>,
    /// Number of vCPUs, 1 to 255.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 255))]
    pub vcpus: u64,
    /// The CPU that the guest sees: `"host"`, a level of the x86-64 psABI, or an object with features by name. A host
    /// that cannot give it refuses the domain.
    #[serde(default)]
    pub cpu: CpuFile,
    /// The guest may run virtual machines itself.
    #[serde(default)]
    pub nested: bool,
    /// The guest has performance counters, which it shares with the host.
    #[serde(default)]
    pub pmu: bool,
    /// RAM: 16MiB up to what the host has.
    #[serde(default = "default_memory")]
    #[schemars(extend("default" = "512MiB"))]
    pub memory: MemorySize,
    /// What is started.
    pub boot: BootFile,
    /// Disks, in the order the guest sees them.
    #[serde(default)]
    pub disks: Vec<DiskFile>,
    /// What all disks that Domus serves may do together a second.
    #[serde(default)]
    pub disk_limits: LimitsFile,
    /// NICs, in the order the guest sees them.
    #[serde(default)]
    pub nets: Vec<NetFile>,
    /// Devices served by vhost-user backends that Domus does not start.
    #[serde(default)]
    pub devices: Vec<DeviceFile>,
    /// The serial console.
    #[serde(default)]
    pub console: ConsoleFile,
    /// The host's CPUs that the vCPUs run on: one set for all, or one for each.
    #[serde(default)]
    pub cpus: Option<CpusFile>,
    /// Its weight beside other domains where CPUs are short: 100.
    #[serde(default)]
    #[schemars(range(min = 1, max = 10000))]
    pub cpu_weight: Option<u64>,
    /// What all its processes may use together, in percent of one CPU; 0 is no cap.
    #[serde(default)]
    #[schemars(range(max = 25500))]
    pub cpu_cap: Option<u64>,
    /// Whether it starts with the host, if this file is in /etc/domus/domains.
    #[serde(default)]
    pub autostart: AutostartFile,
    /// What to do when the guest switches itself off.
    #[serde(default = "destroy")]
    pub on_poweroff: OnStop,
    /// What to do when the guest resets itself.
    #[serde(default = "restart")]
    pub on_reboot: OnStop,
    /// What to do when KVM cannot go on with the guest, or its runner dies.
    #[serde(default = "destroy")]
    pub on_crash: OnStop,
    /// What to do when a vCPU has a triple fault, which is how some guests reset themselves: what `on_reboot` says.
    #[serde(default)]
    pub on_triple_fault: Option<OnStop>,
    /// What becomes of a backend process of Domus' that lives and does not answer: `{ "restart_after": 30 }`.
    #[serde(default)]
    pub on_backend_hang: OnHang,
}

/// A model, or an object that begins with one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "\"host\", \"x86-64-v2\", \"x86-64-v3\", \"x86-64-v4\", or an object with `model`, `require` and \
                 `disable` would do"
)]
pub enum CpuFile {
    /// It is this.
    Model(ModelFile),
    /// It is like this, but for some features.
    Changed(ChangedCpuFile),
}

impl Default for CpuFile {
    fn default() -> Self {
        Self::Model(ModelFile::Host)
    }
}

/// A model of a CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ModelFile {
    /// All that the host has and a guest may have.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// 2009: SSE4.2, POPCNT, CMPXCHG16B.
    #[serde(rename = "x86-64-v2")]
    V2,
    /// 2013: AVX2, BMI2, FMA.
    #[serde(rename = "x86-64-v3")]
    V3,
    /// 2017: AVX-512.
    #[serde(rename = "x86-64-v4")]
    V4,
}

/// A model with more or fewer features, which are named as in `/proc/cpuinfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangedCpuFile {
    /// What it is like.
    #[serde(default)]
    pub model: ModelFile,
    /// Features that it has in any case, such as `"aes"`.
    #[serde(default)]
    pub require: Vec<String>,
    /// Features that it has not, such as `"rtm"`; those that need them go with them.
    #[serde(default)]
    pub disable: Vec<String>,
}

/// Sets of CPUs such as `"0-3"`, `"0,2"`, `"0-7,^4"` or `"all"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a set of CPUs such as \"0-3\", or a list of sets, would do")]
pub enum CpusFile {
    /// One for all vCPUs.
    All(String),
    /// One for each vCPU, in their order.
    Each(Vec<String>),
}

/// Whether a domain starts with the host: `true` or `false`, or an object that says when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "true, false, or an object with `order` and `delay` would do")]
pub enum AutostartFile {
    /// It does, among those that say no more, or it does not.
    Plain(bool),
    /// It does, in its turn.
    InTurn(AutostartTurn),
}

impl Default for AutostartFile {
    fn default() -> Self {
        Self::Plain(false)
    }
}

/// When a domain starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AutostartTurn {
    /// Those with lower numbers start earlier, and end later.
    #[serde(default = "middle")]
    #[schemars(range(max = 1000))]
    pub order: u32,
    /// Seconds from its start to the next one's.
    #[serde(default)]
    #[schemars(range(max = 3600))]
    pub delay: u64,
}

fn middle() -> u32 {
    Autostart::MIDDLE
}

/// What a domain starts.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BootFile {
    /// A distribution's `vmlinuz` (a bzImage), an ELF `vmlinux`, or a unified kernel image: Linux for x86-64, or what
    /// has a PVH note.
    pub kernel: String,
    /// The initial RAM disk. If it is left out, that of a unified kernel image is used.
    #[serde(default)]
    pub initrd: Option<String>,
    /// The kernel's command line, at most 2047 bytes. If it is left out, that of a unified kernel image is used if it
    /// has one, and else `console=ttyS0`.
    #[serde(default)]
    pub cmdline: Option<String>,
}

/// What to do when a domain's machine has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnStop {
    /// Remove everything of it.
    Destroy,
    /// Start it again, with the same name and config and a new number.
    Restart,
    /// Keep it in the list, with its console's history, until it is destroyed.
    Preserve,
    /// Write a core into the directory of cores, and then remove everything of it.
    CoredumpDestroy,
    /// Write a core into the directory of cores, and then start it again.
    CoredumpRestart,
}

fn one() -> u64 {
    1
}

fn default_memory() -> MemorySize {
    MemorySize { mib: 512 }
}

fn destroy() -> OnStop {
    OnStop::Destroy
}

fn restart() -> OnStop {
    OnStop::Restart
}

/// What becomes of a backend process that lives and does not answer dom0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OnHang {
    /// It is killed when it has been silent for so many seconds, 5 to 3600, and another one takes its place. A restart
    /// cures a process that hangs; it does not cure storage that does.
    RestartAfter(u32),
    /// Nothing: its devices stand still.
    Stall,
    /// The domain is paused, until it is unpaused.
    Pause,
}

impl Default for OnHang {
    fn default() -> Self {
        Self::RestartAfter(30)
    }
}
