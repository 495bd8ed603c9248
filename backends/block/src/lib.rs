//! The disks of one domain as vhost-user-blk devices: raw images, block devices, qcow2 images, exports of NBD servers.
//!
//! One process serves all disks of a domain, with one io_uring per thread. A raw disk has one thread per queue: the
//! kernel moves the data between image and guest memory, and this process touches only the 16 bytes of a request's
//! header and its status byte. A qcow2 image ([`qcow2`]) and an NBD export ([`nbd`]) have one thread, which copies the
//! data.
//!
//! ```text
//!   queue ─▶ chain ─▶ request::parse (pure) ─▶ limits ─▶ engine (io_uring) ─▶ status byte ─▶ used ring
//! ```
//!
//! Refused: reads and writes beyond the end of the disk or not in whole sectors, writes to a read-only disk, requests
//! of a shape that virtio does not allow. Promised: a request is acknowledged only after the kernel has done it. After
//! a flush is acknowledged, every write acknowledged before it survives a power cut. When this process is killed, its
//! successor does the requests in flight again.
//!
//! | module | does |
//! |---|---|
//! | [`request`] | what a guest asks for, checked: pure |
//! | [`disk`] | what every disk has: size, shape, name, cache |
//! | [`device`] | the disk as vu-server's `Device`: feature bits and configuration space |
//! | [`throttle`], [`faults`], [`statistics`] | its limits, what becomes of its errors, what it has done |
//! | [`requests`], [`in_flight`] | requests between the driver and whoever carries them out |
//! | [`worker`], [`worker_command`] | the thread of one queue, what it is told, and the contract of an engine |
//! | [`uring`] | the io_uring of one thread, restricted to what a disk needs |
//! | [`raw`], [`null_disk`] | engines: raw images, disks without data |
//! | [`async_io`] | the thread and the ring of disks whose work is asynchronous code |
//! | [`qcow2`], [`nbd`], [`open`] | such disks: qcow2 images, exports of NBD servers; how both are opened |
//! | [`storage`] | what is behind a disk, as far as its size is concerned |
//! | [`threads`] | a disk and its threads |
//! | [`spec`] | from the description of a disk to its rings |
//! | [`start`], [`syscalls`], [`control`] | the start-up contract, and what dom0 asks afterwards |
//! | [`standalone`], [`rates`] | the backend program conventions, limits on a command line |

pub mod async_io;
pub mod control;
pub mod device;
pub mod disk;
pub mod faults;
pub mod in_flight;
pub mod nbd;
pub mod null_disk;
pub mod open;
pub mod qcow2;
pub mod rates;
pub mod raw;
pub mod request;
pub mod requests;
pub mod spec;
pub mod standalone;
pub mod start;
pub mod statistics;
pub mod storage;
pub mod syscalls;
pub mod threads;
pub mod throttle;
pub mod uring;
pub mod worker;
pub mod worker_command;
