//! The system calls of a sealed switch, beyond those of every process.

use domus_startup::sandbox::Allow;

/// To be added to [`COMMON`](domus_startup::sandbox::COMMON) and [`vu_server::server::CALLS`].
pub const CALLS: &[Allow] = &[
    // The data thread sleeps in one place, and learns of a new port's rings there.
    Allow::Call(libc::SYS_epoll_wait),
    Allow::Call(libc::SYS_epoll_ctl),
    // A port is plugged in: the way to tell the data thread about its rings.
    Allow::Call(libc::SYS_eventfd2),
    // A frontend shares memory: could it become shorter?
    Allow::Argument(libc::SYS_fcntl, 1, libc::F_GET_SEALS as u32),
    // A port is unplugged: its frontend is hung up on.
    Allow::Call(libc::SYS_shutdown),
];
