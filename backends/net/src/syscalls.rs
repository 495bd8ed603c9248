//! The system calls of a sealed `domus-net`, beyond those of every process.

use domus_startup::sandbox::Allow;

use crate::tap::SEALED_IOCTLS;

/// To be added to [`COMMON`](domus_startup::sandbox::COMMON).
pub const CALLS: &[Allow] = &[
    // A driver's features are settled, so the tap's header and offloads are.
    Allow::Ioctl(SEALED_IOCTLS),
    // Workers wait for commands, kicks and the wire at once.
    Allow::Call(libc::SYS_epoll_ctl),
    Allow::Call(libc::SYS_epoll_wait),
    // What a driver sets is kept in a memory file, and read from it.
    Allow::Call(libc::SYS_pread64),
    Allow::Call(libc::SYS_pwrite64),
    // A new connection of a stream is made non-blocking, as the first was, and a connection without a peer is shut
    // down.
    Allow::Ioctl(&[libc::FIONBIO]),
    Allow::Call(libc::SYS_shutdown),
    // A ring starts: its eventfds are cloned for the worker.
    Allow::Argument(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC as u32),
    // A memory region is mapped: is its file long enough? With an empty root there is no other file to look at.
    Allow::Call(libc::SYS_fstat),
    Allow::Call(libc::SYS_statx),
    Allow::Call(libc::SYS_lseek),
];
