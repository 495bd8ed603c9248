//! One split virtqueue (virtio 1.3 §2.7), owned by whoever serves it.
//!
//! ```text
//!   pop ─▶ Chain ─▶ (work) ─▶ push(head, written) … ─▶ publish: one index update, at most one call
//! ```
//!
//! Promises: a chain is walked in at most as many steps as the ring has slots; a ring that breaks a rule is marked
//! broken, which is said once, told on the error eventfd and ends the popping; what was popped before can still be
//! pushed. Notifications are suppressed both ways, by index where `VIRTIO_F_EVENT_IDX` is negotiated and by flag
//! where not.
//!
//! The inflight log (`SET_INFLIGHT_FD`) belongs here too: `pop` would mark a head, `publish` unmark it.

mod chain;
mod ring;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

pub use chain::{Chain, INDIRECT, NEXT, RingError, WRITE};
pub use ring::RingAddresses;
use ring::{NO_INTERRUPT, NO_NOTIFY, Ring};

use crate::memory::MemoryTable;
use crate::{F_EVENT_IDX, F_INDIRECT, say};

/// What a queue is made of, as the frontend has set it up.
#[derive(Debug)]
pub struct QueueSetup {
    /// Its device's name, for messages.
    pub device: Arc<str>,
    /// Its number in the device.
    pub index: u16,
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// The feature bits that driver and device have settled on.
    pub features: u64,
    /// The guest's memory.
    pub memory: Arc<MemoryTable>,
    /// Where the ring is.
    pub addresses: RingAddresses,
    /// The first entry of the available ring that was not popped yet (`SET_VRING_BASE`).
    pub next_available: u16,
    /// Becomes readable when the driver has made chains available.
    pub kick: File,
    /// Written to when chains have been used; none if the driver polls.
    pub call: Option<File>,
    /// Written to when the ring is broken.
    pub error: Option<File>,
}

/// A running queue.
#[derive(Debug)]
pub struct Queue {
    device: Arc<str>,
    index: u16,
    features: u64,
    memory: Arc<MemoryTable>,
    ring: Ring,
    next_available: u16,
    /// Where the next used element goes.
    next_used: u16,
    /// `used.idx` as the driver sees it.
    published: u16,
    kick: File,
    call: Option<File>,
    error: Option<File>,
    broken: bool,
}

impl Queue {
    /// `None` if the ring's areas are not in the guest's memory, not aligned, or its size is no power of two.
    pub fn new(setup: QueueSetup) -> Option<Self> {
        let ring = Ring::new(&setup.memory, setup.addresses, setup.size)?;
        let used = ring.used_index();
        Some(Self {
            device: setup.device,
            index: setup.index,
            features: setup.features,
            memory: setup.memory,
            ring,
            next_available: setup.next_available,
            next_used: used,
            published: used,
            kick: setup.kick,
            call: setup.call,
            error: setup.error,
            broken: false,
        })
    }

    /// Its number in the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The feature bits that driver and device have settled on.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The guest's memory. It stays mapped as long as this queue lives.
    pub fn memory(&self) -> &MemoryTable {
        &self.memory
    }

    /// Becomes readable when the driver has made chains available. It is an eventfd of the frontend's making: it may
    /// be blocking or not, and whether it is read is up to the worker.
    pub fn kick(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// True once the driver has broken its ring.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The entry of the available ring to pop next (`GET_VRING_BASE`).
    pub fn next_available(&self) -> u16 {
        self.next_available
    }

    /// Takes the next chain. False if there is none, or if the ring is broken.
    pub fn pop(&mut self, chain: &mut Chain) -> bool {
        if self.broken {
            return false;
        }
        match self.try_pop(chain) {
            Ok(popped) => popped,
            Err(error) => {
                self.fail(error);
                false
            }
        }
    }

    fn try_pop(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        let ahead = self.ring.available_index().wrapping_sub(self.next_available);
        if ahead == 0 {
            return Ok(false);
        }
        if ahead > self.size() {
            return Err(RingError::AvailableIndex(ahead, self.size()));
        }
        let head = self.ring.available_head(self.next_available);
        chain.walk(&self.ring, &self.memory, head, self.features & F_INDIRECT != 0)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(true)
    }

    /// Puts the last `count` popped chains back, which must be neither in work nor pushed: the next
    /// [`pop`](Self::pop) takes them again.
    pub fn unpop(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_sub(count);
    }

    /// Gives a chain back, of which the first `written` bytes of the writable part were written. The driver sees it
    /// after [`publish`](Self::publish).
    pub fn push(&mut self, head: u16, written: u32) {
        self.ring.set_used_element(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver all that was pushed, and calls it if it wants to be called. Does nothing if nothing was pushed.
    pub fn publish(&mut self) {
        if self.next_used == self.published {
            return;
        }
        let old = std::mem::replace(&mut self.published, self.next_used);
        self.ring.set_used_index(self.published);
        // The index must be visible before the driver's wish is read, or both sides could wait for each other.
        fence(Ordering::SeqCst);
        let wanted = if self.features & F_EVENT_IDX != 0 {
            crossed(self.ring.used_event(), old, self.published)
        } else {
            self.ring.available_flags() & NO_INTERRUPT == 0
        };
        if wanted && let Some(call) = &self.call {
            signal(call);
        }
    }

    /// Asks the driver not to kick: the worker is popping anyway. A driver may kick nevertheless.
    pub fn disable_kicks(&mut self) {
        // With EVENT_IDX the driver kicks once for each `avail_event`: not moving it is enough.
        if self.features & F_EVENT_IDX == 0 {
            self.ring.set_used_flags(NO_NOTIFY);
        }
    }

    /// Asks the driver to kick for the next chain. True if there is one already: then there may be no kick, so pop again.
    pub fn enable_kicks(&mut self) -> bool {
        if self.features & F_EVENT_IDX != 0 {
            self.ring.set_available_event(self.next_available);
        } else {
            self.ring.set_used_flags(0);
        }
        // The wish must be visible before the index is read, for the same reason as in `publish`.
        fence(Ordering::SeqCst);
        !self.broken && self.ring.available_index() != self.next_available
    }

    /// Marks the ring as broken, once.
    fn fail(&mut self, error: RingError) {
        self.broken = true;
        say::limited(format_args!(
            "{}: queue {} stands still until it is reset: {error}",
            self.device, self.index
        ));
        if let Some(fd) = &self.error {
            signal(fd);
        }
    }

    /// From now on the driver is called here (`SET_VRING_CALL`).
    pub fn set_call(&mut self, call: Option<File>) {
        // What was published just now may have been called on the old one, which nobody may read any more. A call too
        // many is harmless.
        if let Some(call) = &call {
            signal(call);
        }
        self.call = call;
    }
}

/// True if `event` is among the indices from `old` up to but not with `new` (virtio 1.3 §2.7.7.2).
fn crossed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Adds one to an eventfd. A full one needs nothing more, and a descriptor that is none is its owner's loss.
fn signal(fd: &File) {
    let _ = nix::unistd::write(fd, &1_u64.to_ne_bytes());
}

#[cfg(test)]
mod tests;
