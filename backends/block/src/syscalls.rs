//! The system calls of a sealed `domus-block`.

use domus_startup::sandbox::{Allow, COMMON};
use vu_server::server;

use crate::raw;

/// The system calls of a sealed `domus-block` beyond [`COMMON`] and those of vu-server: to wait for and feed the rings.
const OWN: &[Allow] = &[Allow::Call(libc::SYS_io_uring_enter)];

/// Every system call of a sealed `domus-block`.
pub fn calls() -> Vec<Allow> {
    [COMMON, server::CALLS, server::LOG_CALLS, OWN, raw::CALLS].concat()
}
