//! The system calls of a sealed switch.

use domus_startup::sandbox::{Allow, COMMON};
use vu_server::{aio, server};

/// The system calls of a sealed switch beyond [`COMMON`] and those of vu-server.
const OWN: &[Allow] = &[
    // The data thread sleeps in one place, and learns of a new port's rings there.
    Allow::Call(libc::SYS_epoll_wait),
    Allow::Call(libc::SYS_epoll_ctl),
    // A port is plugged in: the way to tell the data thread about its rings.
    Allow::Call(libc::SYS_eventfd2),
    // A port is unplugged: its frontend is hung up on.
    Allow::Call(libc::SYS_shutdown),
];

/// Every system call of a sealed switch.
pub fn calls() -> Vec<Allow> {
    [COMMON, server::CALLS, aio::CALLS, OWN].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_can_make_no_memory_file_for_another_switch_to_trip_over() {
        let makes = |line: &Allow| match *line {
            Allow::Call(call) | Allow::Bits(call, _) => {
                [libc::SYS_memfd_create, libc::SYS_ftruncate, libc::SYS_fcntl].contains(&call)
            }
            Allow::Argument(call, _, value) => {
                [libc::SYS_memfd_create, libc::SYS_ftruncate].contains(&call)
                    || (call, value) == (libc::SYS_fcntl, libc::F_ADD_SEALS as u32)
            }
            Allow::Ioctl(_) => false,
        };
        assert_eq!(calls().into_iter().find(makes), None);
        let any = |line: &Allow| *line == Allow::Call(libc::SYS_memfd_create);
        assert!(!server::LOG_CALLS.iter().any(any), "a log's file is made with known flags");
    }
}
