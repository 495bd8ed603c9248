//! Disks without data: every request is answered at once, and in the same way.

use crate::requests::Requests;
use crate::uring::{Completion, Uring};
use crate::worker::Engine;

/// What becomes of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NullDisk {
    /// It is done, without touching data: what is left is the work on the rings, to be measured.
    Zeros,
    /// It fails: what the disk had cannot be had any more.
    Failing,
}

impl Engine for NullDisk {
    fn begin(&mut self, _: &mut Uring, requests: &mut Requests, index: u16) {
        let result = match self {
            Self::Zeros => Ok(()),
            Self::Failing => Err(libc::EIO),
        };
        requests.answer(index, result);
    }

    fn completed(&mut self, _: &mut Uring, _: &mut Requests, _: Completion) {}
}
