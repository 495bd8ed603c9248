//! Virtio over PCI (virtio 1.3 §4.1, modern only), for any device type: the queues' transport, no device.
//!
//! A device is what dom0's message and its vhost-user backend say it is. The guest's registers are in one BAR;
//! a queue's doorbell there is an ioeventfd that the backend reads, and its interrupt an irqfd that the
//! backend writes, so that after DRIVER_OK no I/O passes through this process.
//!
//! | module | does |
//! |---|---|
//! | [`common`] | the registers and the device status: pure |
//! | [`backend`] | the vhost-user connection |
//! | [`watch`] | hang-ups, and calls that take too long |
//! | [`transport`] | the PCI function that ties them together |
//!
//! When a backend is lost its device stands still: registers answer, kicks are kept, nothing completes. The guest
//! is not told, since another backend takes over, whenever dom0 has one:
//!
//! ```text
//!   serving ──hang-up──▶ lost ───────────────┐
//!      │  ──Detach (drained first)──▶ detached ──Attach: features, memory, log, rings from their used index──▶ serving
//! ```
//!
//! A reset ends when the backend has stopped its rings. Of one that is lost before it has, that is not known: then the
//! reset ends when dom0 says that nothing of it is at work, or attaches the next one.

pub mod backend;
pub mod common;
pub mod transport;
pub mod watch;

pub use transport::{Transport, TransportError};
pub use watch::{PATIENCE, Watcher};
