//! The sending side of a port: what its guest wants to send, judged.

use std::sync::Arc;

use domus_net::features::header_len;
use domus_net::filter::HEAD;
use domus_net::header::{self, LEN};
use shared_abi::control::DropReason;
use vu_server::{Chain, MemoryTable, Queue};

use crate::nic::Shared;

/// Why the next frame of a port is not looked at now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The port's limits let it pass at this time.
    Limit(u64),
    /// This receiver has no room; at this time the frame is lost.
    Room(usize, u64),
    /// The limits of its receiver let it pass at the first time; at the second it is lost.
    Receiver(u64, u64),
}

impl Wait {
    /// When it is over at the latest.
    pub fn due(self) -> u64 {
        match self {
            Self::Limit(at) | Self::Room(_, at) | Self::Receiver(at, _) => at,
        }
    }

    /// When the frame is lost, if its receiver is what it waits for.
    pub fn end(self) -> Option<u64> {
        match self {
            Self::Limit(_) => None,
            Self::Room(_, end) | Self::Receiver(_, end) => Some(end),
        }
    }
}

/// The sending side of a port.
#[derive(Debug)]
pub struct Transmit {
    /// What the port's threads share.
    pub shared: Arc<Shared>,
    queue: Option<Box<Queue>>,
    /// The frame in work, as its guest describes it.
    pub chain: Chain,
    /// Its first bytes: the virtio header, which has `header_len` bytes, and the frame's.
    head: [u8; LEN + HEAD],
    /// Why it waits. Forgotten when it is done with.
    pub wait: Option<Wait>,
    /// What it waits for may have come.
    pub retry: bool,
    /// How many of its bytes have passed the port's limits, while it waits for its receiver.
    pub paid: Option<u64>,
}

/// A frame that may be sent.
#[derive(Debug, Clone, Copy)]
pub struct Judged {
    /// The virtio header, checked.
    pub header: [u8; LEN],
    /// Its length.
    pub len: u64,
    /// Where it starts in the chain's readable part.
    pub skip: usize,
    /// How many of its bytes have been copied.
    pub shown: usize,
}

impl Transmit {
    /// A port without a ring.
    pub fn new(shared: Arc<Shared>) -> Self {
        let head = [0; LEN + HEAD];
        Self { shared, queue: None, chain: Chain::default(), head, wait: None, retry: false, paid: None }
    }

    /// The ring, if it runs.
    pub fn queue(&mut self) -> Option<&mut Queue> {
        self.queue.as_deref_mut()
    }

    /// Works with this ring from now on.
    pub fn start(&mut self, mut queue: Box<Queue>) {
        queue.disable_kicks();
        (self.wait, self.paid) = (None, None);
        self.queue = Some(queue);
    }

    /// Gives the ring back.
    pub fn stop(&mut self) -> Option<Box<Queue>> {
        let mut queue = self.queue.take()?;
        (self.wait, self.paid) = (None, None);
        queue.publish();
        Some(queue)
    }

    /// The guest's memory.
    pub fn memory(&self) -> Option<&MemoryTable> {
        Some(self.queue.as_ref()?.memory())
    }

    /// Takes the next frame, if there is one.
    pub fn pop(&mut self) -> bool {
        let popped = self.queue.as_mut().is_some_and(|queue| queue.pop(&mut self.chain));
        if !popped {
            // One that has waited may have been taken back.
            (self.wait, self.paid) = (None, None);
        }
        popped
    }

    /// The frame in work is done with.
    pub fn done(&mut self) {
        (self.wait, self.paid) = (None, None);
        if let Some(queue) = &mut self.queue {
            queue.push(self.chain.head, 0);
        }
    }

    /// Puts the frame in work back.
    pub fn wait_for(&mut self, wait: Wait) {
        self.wait = Some(wait);
        if let Some(queue) = &mut self.queue {
            queue.unpop(1);
        }
    }

    /// Whether there is something to be done now.
    #[inline]
    pub fn has_work(&self, now: u64) -> bool {
        let Some(queue) = &self.queue else { return false };
        match self.wait {
            None => queue.has_available(),
            // Whatever the guest has made of its ring meanwhile, the wait ends.
            Some(wait) => self.retry || now >= wait.due(),
        }
    }

    /// The first bytes of the frame in work.
    pub fn head(&self, judged: &Judged) -> &[u8] {
        &self.head[judged.skip..judged.skip + judged.shown]
    }

    /// Copies the head of the popped frame, and judges it.
    ///
    /// # Errors
    /// Why it is lost.
    pub fn judge(&mut self) -> Result<Judged, DropReason> {
        let Some(queue) = &self.queue else { return Err(DropReason::Header) };
        let skip = header_len(queue.features());
        let wanted = &mut self.head[..skip + HEAD];
        let read = queue.memory().read(&self.chain.readable, 0, wanted).map_err(|_| DropReason::Memory)?;
        let shown = read.checked_sub(skip).ok_or(DropReason::Header)?;
        let mut header = [0; LEN];
        header[..skip].copy_from_slice(&self.head[..skip]);
        let len = self.chain.readable_len() - skip as u64;
        let header = header::check(header, len, queue.features())?;
        if !self.shared.link_up() {
            return Err(DropReason::LinkDown);
        }
        self.shared.filter.check(&header, &self.head[skip..read], len)?;
        Ok(Judged { header, len, skip, shown })
    }
}
