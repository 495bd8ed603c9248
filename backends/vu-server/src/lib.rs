//! A vhost-user backend server: one control thread for each connection, one worker thread for each queue set.
//!
//! ```text
//!   frontend ══socket══▶ Server (control thread)            worker thread
//!                          │  Device: features, config        │
//!                          │── WorkerCommand::Start(Queue) ──────────▶│ pop ▶ work ▶ push ▶ publish
//!                          │── WorkerCommand::Stop ──────────────────▶│ finish what is in flight
//!                          │◀───────────── Queue ─────────────│
//!   driver ═════════════ kick, rings, call ══════════════════▶│
//! ```
//!
//! A [`Queue`] is owned by whoever uses it: it travels to the worker when the ring starts and back when it
//! stops, so that nothing on the ring path is shared or locked. A change of the memory table or of a ring's
//! eventfds stops the rings concerned, which drains them, and starts them again where they were.
//!
//! Refused, with the connection: regions beyond their file, overlapping or overflowing; rings outside the
//! regions, misaligned or of a size that is no power of two; queue numbers and features never offered; sockets, pipes
//! and files in the place of eventfds.
//! Promised: whatever a driver writes into its rings costs at most work in proportion to the ring's size; a ring
//! that cannot be made sense of stands still until it is stopped, and the others go on. A device that says so has an
//! inflight log ([`queue`]): a backend that was killed is replaced by one that does again what the first had not given
//! back, in its order, once. The frontend then starts the rings with their used index as the base.
//!
//! | module | does |
//! |---|---|
//! | [`memory`] | the regions a frontend shares, and the way from its addresses to ours |
//! | [`queue`] | one split virtqueue: chains in, used elements out, notifications as few as the driver asks for |
//! | [`eventfd`], [`aio`] | what is taken for a frontend's eventfd, and how it is signalled |
//! | [`worker`] | what a worker thread is told |
//! | [`device`] | what a device class must say |
//! | [`server`] | the connection: start, stop, hang-up, the next frontend |
//! | [`standalone`] | the command line of the backend program conventions |
//! | [`poll_time`] | how long a worker looks for work before it sleeps |
//! | [`rate`] | one rate with bursts |
//! | [`say`] | one line to standard error, a few a second at most |

pub mod aio;
pub mod device;
pub mod eventfd;
mod mailbox;
pub mod memory;
pub mod poll_time;
pub mod queue;
pub mod rate;
pub mod say;
pub mod server;
pub mod standalone;
mod sync;
pub mod worker;

pub use device::Device;
pub use eventfd::Signals;
pub use memory::{MemoryTable, Segment};
pub use poll_time::PollTime;
pub use queue::{Chain, Queue};
pub use server::Server;
pub use worker::{Commands, Port, WorkerCommand};

/// `VIRTIO_F_RING_INDIRECT_DESC`: chains may be in a table of their own (virtio 1.3 §2.7.5.3).
pub const F_INDIRECT: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`: notifications suppressed by index (virtio 1.3 §2.7.7, §2.7.10).
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1` (virtio 1.3 §6).
pub const F_VERSION_1: u64 = 1 << 32;
/// Largest ring that is served, in descriptors.
pub const MAX_QUEUE_SIZE: u16 = 1024;
