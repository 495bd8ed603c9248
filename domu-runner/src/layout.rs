//! The layout of a guest's physical address space and I/O space.
//!
//! ```text
//! 0                     RAM, up to 3 GiB
//! 0xc000_0000 ─ 3 GiB   PCI: 32-bit BARs
//! 0xe000_0000           PCI: ECAM of bus 0
//! 0xfec0_0000           IOAPIC        (in the kernel)
//! 0xfee0_0000           LAPICs        (in the kernel)
//! 0xfffb_c000           KVM's own pages (identity map, TSS)
//! 0x1_0000_0000 ─ 4 GiB the rest of RAM
//! ```

/// Where the hole for devices begins and ends: there is no RAM in it.
pub use shared_abi::limits::{HIGH_RAM_START as HOLE_END, LOW_RAM_END as HOLE_START};

/// The window for 32-bit PCI BARs.
pub const PCI_WINDOW: u64 = 0xc000_0000;
/// Length of [`PCI_WINDOW`]: 512 MiB.
pub const PCI_WINDOW_SIZE: u64 = 0x2000_0000;

/// PCI Express enhanced configuration space of bus 0, the only bus.
pub const ECAM: u64 = 0xe000_0000;
/// Length of [`ECAM`]: 32 devices of 8 functions of 4 KiB.
pub const ECAM_SIZE: u64 = 0x10_0000;

/// The IOAPIC's registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The LAPIC's registers.
pub const LAPIC: u64 = 0xfee0_0000;
/// One page that KVM needs on some Intel hosts (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs on some Intel hosts (`KVM_SET_TSS_ADDR`).
pub const TSS: u64 = 0xfffb_d000;

/// COM1: eight ports.
pub const COM1_PORT: u64 = 0x3f8;
/// The keyboard controller's ports; a command to the last of them resets the machine: [`crate::power::I8042`].
pub const I8042_PORT: u64 = 0x60;
/// PCI configuration mechanism #1: address and data, eight ports.
pub const PCI_CONFIG_PORT: u64 = 0xcf8;
/// The sleep, reset and event registers that ACPI names: [`crate::power`].
pub const ACPI_PORT: u64 = 0x600;
