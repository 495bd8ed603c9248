//! The system calls of a sealed `domus-net`, beyond those of every process.

use domus_startup::sandbox::Allow;

use crate::tap::SEALED_IOCTLS;

/// To be added to [`COMMON`](domus_startup::sandbox::COMMON) and [`vu_server::server::CALLS`].
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
];
