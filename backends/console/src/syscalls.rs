//! The system calls of a sealed stand-alone console, beyond those of every process.

use domus_startup::sandbox::{Allow, SHARED_MEMORY};

/// To be added to [`COMMON`](domus_startup::sandbox::COMMON): what the crate `vhost-user-backend` calls.
pub const CALLS: &[Allow] = &[
    // Its worker waits for kicks, which are added when a ring starts and taken out when it stops.
    Allow::Call(libc::SYS_epoll_wait),
    Allow::Call(libc::SYS_epoll_pwait),
    Allow::Call(libc::SYS_epoll_ctl),
    // A memory region is mapped.
    SHARED_MEMORY,
    // Is its file long enough? With an empty root there is no other file to look at.
    Allow::Call(libc::SYS_fstat),
    Allow::Call(libc::SYS_statx),
    Allow::Call(libc::SYS_lseek),
    // A ring's descriptors are set to non-blocking mode, and cloned.
    Allow::Argument(libc::SYS_fcntl, 1, libc::F_GETFL as u32),
    Allow::Argument(libc::SYS_fcntl, 1, libc::F_SETFL as u32),
    Allow::Argument(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC as u32),
    // Its threads may be setting themselves up as the process is sealed.
    Allow::Call(libc::SYS_rseq),
    Allow::Call(libc::SYS_set_robust_list),
    Allow::Call(libc::SYS_sched_getaffinity),
    Allow::Argument(libc::SYS_prctl, 0, libc::PR_SET_NAME as u32),
    // The connection has ended.
    Allow::Call(libc::SYS_shutdown),
];
