//! The disks of one domain: raw images and block devices as vhost-user-blk devices.
//!
//! One process serves all disks of a domain, one thread each queue, one io_uring each thread. The kernel moves the data
//! between image and guest memory; this process touches the 16 bytes of a request's header and its status byte only.
//!
//! ```text
//!   queue ─▶ chain ─▶ request::parse (pure) ─▶ io_uring ─▶ status byte ─▶ used ring
//! ```
//!
//! Refused: reads and writes beyond the end of the disk or not in whole sectors, writes to a read-only disk, requests
//! of a shape that virtio does not allow. Promised: nothing is acknowledged before the kernel has done it, and after a
//! flush is acknowledged everything acknowledged before it survives a power cut. What is in flight when this process is
//! killed is done again by the one that replaces it.
//!
//! | module | does |
//! |---|---|
//! | [`request`] | what a guest asks for, checked: pure |
//! | [`disk`] | an image: its bounds, its name |
//! | [`device`] | the disk as vu-server's `Device`: feature bits and configuration space |
//! | [`uring`] | the io_uring of one thread, restricted to what a disk needs |
//! | [`worker`] | the thread of one queue |
//! | [`threads`] | a disk and its threads |
//! | [`start`] | the start-up contract |
//! | [`standalone`] | the backend program conventions |

pub mod device;
pub mod disk;
pub mod request;
pub mod standalone;
pub mod start;
pub mod threads;
pub mod uring;
pub mod worker;
