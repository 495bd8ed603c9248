//! What `mailbox` is made of: `std`'s and an eventfd, and `loom`'s where `tests/loom` runs it in every order of its
//! steps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

pub use std::sync::Arc;
pub use std::sync::mpsc::{Receiver, Sender, channel};

/// A counter that a thread can wait for beside other descriptors: readable while it is not 0.
#[derive(Debug)]
pub struct Wake(EventFd);

impl Wake {
    /// At 0.
    ///
    /// # Errors
    /// No eventfd could be made.
    pub fn new() -> io::Result<Self> {
        Ok(Self(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Adds 1. False if that fails.
    pub fn ring(&self) -> bool {
        self.0.write(1).is_ok()
    }

    /// Sets it to 0.
    pub fn hush(&self) {
        let _ = self.0.read();
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
