//! The NICs of one domain: each a vhost-user-net device on a tap, with its offloads, or on a stream.
//!
//! ```text
//! guest ══ transmit ring ══▶ tx thread ─ filter, limit, write ─▶ wire ─ readv ─▶ rx thread ══ receive ring ══▶ guest
//!       ══ control ring ═══▶ ctl thread ─ settings: kept in a memory file, sent to the tap and the rx threads
//! ```
//!
//! Frames go between a tap and the guest's memory without a copy; only their beginning is copied, to be checked.
//! Checksums that the sender left open and large segments that it did not cut pass unchanged, both ways, as far as the
//! driver has negotiated them; the kernel completes them. When this process is killed, its successor finds all settings
//! of the driver.
//!
//! | module | does |
//! |---|---|
//! | [`features`], [`header`], [`filter`], [`stream`] | decisions about frames, without I/O |
//! | [`offload`], [`rx_buffers`] | the same: checksums and segmentation in software, the guest's receive buffers |
//! | [`settings`], [`command`], [`driver_state`] | the driver's settings: meaning, changes, storage |
//! | [`rate_limit`], [`statistics`], [`link_state`] | limits and counters |
//! | [`tap`], [`vectored_io`], [`steering`] | tun ioctls, `readv` and `writev`, a tap's table: the only unsafe code |
//! | [`wire`], [`on_stream`] | where frames come from and go to: a tap's queue, or a stream |
//! | [`rx`], [`tx`], [`control_queue`] | the work of one queue each |
//! | [`worker`], [`wait_set`], [`ring_poll`], [`worker_command`] | the thread behind it |
//! | [`nic`], [`device`], [`prepared`] | a NIC, the virtio device that it is, its threads |
//! | [`start`], [`syscalls`], [`control`] | the NICs of a domain for dom0, sealed, and what it asks of them |
//! | [`standalone`] | one NIC for QEMU and others |

pub mod command;
pub mod control;
pub mod control_queue;
pub mod device;
pub mod driver_state;
pub mod features;
pub mod filter;
pub mod header;
pub mod link_state;
pub mod nic;
pub mod offload;
pub mod on_stream;
pub mod prepared;
pub mod rate_limit;
pub mod ring_poll;
pub mod rx;
pub mod rx_buffers;
pub mod settings;
pub mod standalone;
pub mod start;
pub mod statistics;
pub mod steering;
pub mod stream;
pub mod syscalls;
pub mod tap;
pub mod tx;
pub mod vectored_io;
pub mod wait_set;
pub mod wire;
pub mod worker;
pub mod worker_command;
