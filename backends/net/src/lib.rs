//! The NICs of one domain: each a vhost-user-net device on a tap, with its offloads, or on a stream.
//!
//! ```text
//! guest ══ transmit ring ══▶ tx thread ── filter, limit, write ──▶ wire ── readv ──▶ rx thread ══ receive ring ══▶ guest
//!       ══ control ring ═══▶ ctl thread ── what the driver sets: kept in a memory file, told to tap and rx threads
//! ```
//!
//! Frames go between a tap and the guest's memory without a copy, but for their beginning, which is checked. A checksum
//! that the guest left open and a large segment that it did not cut pass as they are, both ways, as far as its driver takes
//! that; the kernel does the rest. When this process is killed, the next one finds all that the driver has set.
//!
//! | module | does |
//! |---|---|
//! | [`features`], [`header`], [`filter`], [`stream`], [`offload`], [`rx_buffers`] | what is decided of frames without I/O |
//! | [`settings`], [`command`], [`driver_state`] | what a driver has set: what it means, how it changes, where it is kept |
//! | [`rate_limit`], [`statistics`], [`link_state`] | limits and counters |
//! | [`tap`], [`vectored_io`], [`steering`] | the tun ioctls, `readv` and `writev`, the table on a tap: the only unsafe code |
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
