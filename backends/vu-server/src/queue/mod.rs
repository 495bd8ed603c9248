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
//! With an inflight log (`SET_INFLIGHT_FD`) `pop` marks a head and `publish` crosses it off; a queue that takes over
//! from a backend that was killed pops first, in order, what that one had popped and not given back.

mod area;
mod chain;
mod log;
mod ring;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

pub use chain::{Chain, INDIRECT, NEXT, RingError, WRITE};
use log::Log;
pub use log::{LogError, log_len};
pub use ring::RingAddresses;
use ring::{NO_INTERRUPT, NO_NOTIFY, Ring};

use vm_memory::MmapRegion;

use crate::eventfd::Signals;
use crate::memory::MemoryTable;
use crate::{F_EVENT_IDX, F_INDIRECT, say};

/// A mapping, and the offset of [`log_len`] bytes in it.
pub type LogPlace = (Arc<MmapRegion>, usize);

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
    pub kick: Arc<File>,
    /// Written to when chains have been used; none if the driver polls.
    pub call: Option<Arc<File>>,
    /// Written to when the ring is broken.
    pub error: Option<Arc<File>>,
    /// How they are written to.
    pub signals: Signals,
    /// Where the inflight log of this ring is.
    pub log: Option<LogPlace>,
}

/// Why a queue cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// An area is not in the guest's memory or not aligned, or the size is no power of two.
    #[error("a ring of {0} descriptors is not in the shared memory, or not aligned")]
    Ring(u16),
    /// The log is outside its mapping.
    #[error("the inflight log has no room for a ring of {0} descriptors")]
    LogRoom(u16),
    /// The log makes no sense.
    #[error(transparent)]
    Log(#[from] LogError),
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
    kick: Arc<File>,
    call: Option<Arc<File>>,
    error: Option<Arc<File>>,
    signals: Signals,
    log: Option<Log>,
    /// What a killed backend had popped and not given back, the first last.
    again: Vec<u16>,
    broken: bool,
}

impl Queue {
    /// A queue, ready to pop.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn new(setup: QueueSetup) -> Result<Self, QueueError> {
        let size = setup.size;
        let ring = Ring::new(&setup.memory, setup.addresses, size).ok_or(QueueError::Ring(size))?;
        let used = ring.used_index();
        let (mut log, mut again, mut next_available) = (None, Vec::new(), setup.next_available);
        let mut used_before = used != 0;
        if let Some((mapping, offset)) = setup.log {
            let mut found = Log::new(mapping, offset, size).ok_or(QueueError::LogRoom(size))?;
            used_before |= found.is_begun();
            again = found.recover(used)?;
            again.reverse();
            if !again.is_empty() {
                // Everything popped was either given back or is to be done again.
                next_available = used.wrapping_add(again.len() as u16);
            }
            log = Some(found);
        }
        // Whoever served this ring before may have been killed between showing what it used and calling the driver.
        if used_before && let Some(call) = &setup.call {
            setup.signals.signal(call);
        }
        Ok(Self {
            device: setup.device,
            index: setup.index,
            features: setup.features,
            memory: setup.memory,
            ring,
            next_available,
            next_used: used,
            published: used,
            kick: setup.kick,
            call: setup.call,
            error: setup.error,
            signals: setup.signals,
            log,
            again,
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

    /// True if what is popped and not pushed is done again by whoever serves the ring next (`SET_INFLIGHT_FD`).
    pub fn is_logged(&self) -> bool {
        self.log.is_some()
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
        let indirect = self.features & F_INDIRECT != 0;
        if let Some(head) = self.again.pop() {
            chain.walk(&self.ring, &self.memory, head, indirect)?;
            chain.again = true;
            return Ok(true);
        }
        let ahead = self.ring.available_index().wrapping_sub(self.next_available);
        if ahead == 0 {
            return Ok(false);
        }
        if ahead > self.size() {
            return Err(RingError::AvailableIndex(ahead, self.size()));
        }
        let head = self.ring.available_head(self.next_available);
        chain.walk(&self.ring, &self.memory, head, indirect)?;
        chain.again = false;
        if let Some(log) = &mut self.log {
            log.popped(head);
        }
        self.next_available = self.next_available.wrapping_add(1);
        Ok(true)
    }

    /// Puts the last `count` popped chains back, which must be neither in work nor pushed: the next
    /// [`pop`](Self::pop) takes them again. Not with an inflight log ([`Device::inflight`](crate::Device::inflight)),
    /// which would still hold them.
    pub fn unpop(&mut self, count: u16) {
        debug_assert!(self.log.is_none());
        self.next_available = self.next_available.wrapping_sub(count);
    }

    /// Gives a chain back, of which the first `written` bytes of the writable part were written. The driver sees it
    /// after [`publish`](Self::publish).
    pub fn push(&mut self, head: u16, written: u32) {
        if let Some(log) = &mut self.log {
            log.pushed(head);
        }
        self.ring.set_used_element(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// How many chains were pushed that the driver has not been shown.
    #[inline]
    pub fn unpublished(&self) -> u16 {
        self.next_used.wrapping_sub(self.published)
    }

    /// Shows the driver all that was pushed, and calls it if it wants to be called. Does nothing if nothing was pushed.
    pub fn publish(&mut self) {
        if self.next_used == self.published {
            return;
        }
        let old = std::mem::replace(&mut self.published, self.next_used);
        self.ring.set_used_index(self.published);
        if let Some(log) = &mut self.log {
            log.published(self.published);
        }
        // The index must be visible before the driver's wish is read, or both sides could wait for each other.
        fence(Ordering::SeqCst);
        let wanted = if self.features & F_EVENT_IDX != 0 {
            crossed(self.ring.used_event(), old, self.published)
        } else {
            self.ring.available_flags() & NO_INTERRUPT == 0
        };
        if wanted && let Some(call) = &self.call {
            self.signals.signal(call);
        }
    }

    /// Asks the driver not to kick: the worker is popping anyway. A driver may kick nevertheless.
    pub fn disable_kicks(&mut self) {
        // With EVENT_IDX the driver kicks once for each `avail_event`: not moving it is enough.
        if self.features & F_EVENT_IDX == 0 {
            self.ring.set_used_flags(NO_NOTIFY);
        }
    }

    /// Asks the driver to kick for the next chain. True if a chain is there already: its kick may be missing, so pop
    /// again.
    pub fn enable_kicks(&mut self) -> bool {
        if self.features & F_EVENT_IDX != 0 {
            self.ring.set_available_event(self.next_available);
        } else {
            self.ring.set_used_flags(0);
        }
        // The wish must be visible before the index is read, for the same reason as in `publish`.
        fence(Ordering::SeqCst);
        self.has_available()
    }

    /// Whether [`pop`](Self::pop) would find something, or find the ring broken.
    pub fn has_available(&self) -> bool {
        !self.broken && (!self.again.is_empty() || self.ring.available_index() != self.next_available)
    }

    /// Marks the ring as broken, once.
    fn fail(&mut self, error: RingError) {
        self.broken = true;
        say::limited(format_args!(
            "{}: queue {} stands still until it is reset: {error}",
            self.device, self.index
        ));
        if let Some(fd) = &self.error {
            self.signals.signal(fd);
        }
    }

    /// From now on the driver is called here (`SET_VRING_CALL`).
    pub fn set_call(&mut self, call: Option<Arc<File>>) {
        // What was published just now may have been called on the old one, which nobody may read any more. A call too
        // many is harmless.
        if let Some(call) = &call {
            self.signals.signal(call);
        }
        self.call = call;
    }
}

/// True if `event` is among the indices from `old` up to but not with `new` (virtio 1.3 §2.7.7.2).
fn crossed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests;
