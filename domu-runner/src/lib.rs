//! Runs one guest's vCPUs, and nothing else.
//!
//! dom0 passes every descriptor over the control socket; the runner opens no path. It has no device
//! model for disks or networks: a virtio device is a queue transport here and a vhost-user backend elsewhere.
//!
//! | module | does |
//! |---|---|
//! | [`layout`] | the machine's address map |
//! | [`memory`] | guest RAM: one sealed memfd |
//! | [`bus`] | port and memory accesses to devices |
//! | [`irq`] | GSI routes, irqfds |
//! | [`pci`] | bus 0: configuration space, BARs, MSI-X |

pub mod bus;
pub mod irq;
pub mod layout;
pub mod memory;
pub mod pci;
