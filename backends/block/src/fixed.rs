//! Disks without data: every request is answered at once, and in the same way.

use crate::intake::Intake;
use crate::uring::{Completion, Uring};
use crate::worker::Engine;

/// What becomes of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fixed {
    /// It is done, without touching data: what is left is the work on the rings, to be measured.
    Nothing,
    /// It fails: what the disk had cannot be had any more.
    Lost,
}

impl Engine for Fixed {
    fn begin(&mut self, _: &mut Uring, intake: &mut Intake, index: u16) {
        let result = match self {
            Self::Nothing => Ok(()),
            Self::Lost => Err(libc::EIO),
        };
        intake.answer(index, result);
    }

    fn completed(&mut self, _: &mut Uring, _: &mut Intake, _: Completion) {}
}
