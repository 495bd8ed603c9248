//! Runs one guest's vCPUs, and nothing else.
//!
//! dom0 passes every descriptor over the control socket; the runner opens no path. It has no device
//! model for disks or networks: a virtio device is a queue transport here and a vhost-user backend elsewhere.
//!
//! | module | does |
//! |---|---|
//! | [`machine`] | builds a machine from the start message, and serves its requests |
//! | [`layout`], [`memory`] | the machine's address map; guest RAM: one sealed memfd |
//! | [`vm`], [`cpuid`], [`msr`], [`vcpu`] | KVM's objects, what CPUID tells, the registers allowed, the vCPU threads |
//! | [`bus`], [`irq`] | port and memory accesses to devices; GSI routes, irqfds |
//! | [`acpi`], [`power`], [`stop`] | the tables; sleep, reset and buttons; how a machine ends |
//! | [`pci`], [`virtio`] | bus 0 with MSI-X; virtio-pci for any device type and the vhost-user frontend |
//! | [`uart`], [`serial`] | COM1 |
//! | [`boot`] | a kernel into guest memory |
//! | [`dump`] | a core of the machine, for debuggers |
//! | [`timeline`] | when a machine did what for the first time |
//! | [`rules`] | the system calls left after sealing |

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod cpuid;
pub mod dump;
pub mod irq;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod msr;
pub mod pci;
pub mod power;
pub mod rules;
pub mod serial;
pub mod stop;
pub mod timeline;
pub mod uart;
pub mod vcpu;
pub mod virtio;
pub mod vm;
