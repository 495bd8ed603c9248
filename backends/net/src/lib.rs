//! The NICs of one domain: each a vhost-user-net device on a tap, with its offloads.
//!
//! ```text
//! guest ══ transmit ring ══▶ tx thread ── writev ──▶ tap ── readv ──▶ rx thread ══ receive ring ══▶ guest
//! ```
//!
//! Frames go between the tap and the guest's memory without a copy. A checksum that the guest left open and a large
//! TCP segment that it did not cut pass as they are, both ways, as far as its driver takes that; the kernel does the
//! rest.
//!
//! | module | does |
//! |---|---|
//! | [`features`], [`header`], [`filter`], [`stream`], [`offload`], [`window`] | what is decided without I/O |
//! | [`tap`] | `readv`, `writev` and the tun ioctls: the only unsafe code |
//! | [`steering`] | which of a tap's queues a frame comes on |
//! | [`rx`], [`tx`], [`worker`] | one thread for each queue |
//! | [`nic`] | the device behind a connection |
//! | [`start`], [`seal`] | the NICs of a domain for dom0, sealed |
//! | [`alone`] | one NIC for QEMU and others |

pub mod alone;
pub mod features;
pub mod filter;
pub mod header;
pub mod nic;
pub mod offload;
pub mod rx;
pub mod seal;
pub mod start;
pub mod steering;
pub mod stream;
pub mod tap;
pub mod tx;
pub mod window;
pub mod worker;
