//! The receive side of a port: it writes frames into as many of its guest's buffers as they need.
//!
//! Buffers are taken from the ring before a frame is written. If they are too few for the frame, they stay taken for
//! the next one, and the ring's kick reports more. Buffers that are too short for a header, or outside the guest's
//! memory, are given back empty.

use std::sync::Arc;

use domus_net::features::{self, MRG_RXBUF, header_len};
use domus_net::header::LEN;
use domus_net::rx_buffers::RxBuffers;
use shared_abi::control::DropReason;
use vu_server::{Chain, Queue, Segment};

use super::copy::{Places, Source};
use crate::nic::Shared;

/// Most pieces of memory in one chain, and in all the chains that are taken.
const MAX_PIECES: usize = 256;
const MAX_WINDOW: usize = 2048;

/// Bytes that a frame may have beyond the MTU: an Ethernet header and two VLAN tags.
const BEYOND_MTU: u64 = 14 + 8;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// Why a frame was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// There is no room just now.
    Full,
    /// The receiver's limits let it pass so many nanoseconds later.
    Limit(u64),
    /// It is lost for this receiver.
    Lost(DropReason),
}

/// What a receiver takes of a frame with a certain header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// The frame as it is.
    Whole,
    /// The frame with its checksum.
    Filled,
    /// Frames no longer than its MTU.
    Cut,
}

/// A frame for a receiver: `head`, then `rest`.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// The virtio header, checked.
    pub header: &'a [u8; LEN],
    /// The first bytes.
    pub head: &'a [u8],
    /// The others.
    pub rest: &'a Source<'a>,
}

impl Frame<'_> {
    fn len(&self) -> u64 {
        self.head.len() as u64 + self.rest.len()
    }
}

/// The receiving side of a port.
#[derive(Debug)]
pub struct Receive {
    shared: Arc<Shared>,
    queue: Option<Box<Queue>>,
    chain: Chain,
    window: RxBuffers,
    places: Places,
    /// Where the frame in work goes, and the chains with their lengths.
    target: Vec<Segment>,
    filled: Vec<(u16, u64)>,
    /// The driver was asked to kick.
    asked: bool,
    /// It had no room for so long that its senders do not wait for it any more.
    pub stuck: bool,
}

impl Receive {
    /// A port without a ring.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            queue: None,
            chain: Chain::default(),
            window: RxBuffers::default(),
            places: Places::default(),
            target: Vec::new(),
            filled: Vec::new(),
            asked: false,
            stuck: false,
        }
    }

    /// The ring, if it runs.
    pub fn queue(&mut self) -> Option<&mut Queue> {
        self.queue.as_deref_mut()
    }

    /// Works with this ring from now on.
    pub fn start(&mut self, mut queue: Box<Queue>) {
        queue.disable_kicks();
        self.stuck = false;
        self.queue = Some(queue);
    }

    /// Gives the ring back with nothing taken.
    pub fn stop(&mut self) -> Option<Box<Queue>> {
        let mut queue = self.queue.take()?;
        queue.publish();
        // At most the ring's size.
        queue.unpop(self.window.len() as u16);
        self.window.clear();
        Some(queue)
    }

    /// Asks the driver to kick when there are more buffers. True if there are some already, or none will come.
    pub fn ask(&mut self) -> bool {
        self.asked = true;
        self.queue.as_mut().is_none_or(|queue| queue.is_broken() || queue.enable_kicks())
    }

    /// Shows the guest what it got.
    pub fn publish(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.publish();
        }
    }

    /// What the driver takes of a frame with this header.
    pub fn takes(&self, header: &[u8; LEN]) -> Takes {
        // Where nothing is delivered, nothing is done for it.
        let Some(features) = self.queue.as_ref().map(|queue| queue.features()) else { return Takes::Whole };
        let needed = match header[1] & !GSO_ECN {
            0 => 0,
            GSO_TCPV4 => features::GUEST_TSO4,
            GSO_TCPV6 => features::GUEST_TSO6,
            // Datagrams of one of the two, which no driver takes alone.
            _ => features::GUEST_USO4 | features::GUEST_USO6,
        };
        let needed = needed | if header[1] & GSO_ECN == 0 { 0 } else { features::GUEST_ECN };
        if features & needed != needed {
            return Takes::Cut;
        }
        let open = header[0] & NEEDS_CSUM != 0 && features & features::GUEST_CSUM == 0;
        match (open, header[1]) {
            (false, _) => Takes::Whole,
            (true, 0) => Takes::Filled,
            // Virtio allows no such driver (§5.1.3.1), but a frontend may.
            (true, _) => Takes::Cut,
        }
    }

    /// Puts a frame into the guest's buffers; it sees it when it is [published](Self::publish).
    ///
    /// # Errors
    /// [`Obstacle`]; a frame that is lost has been counted.
    pub fn deliver(&mut self, frame: Frame<'_>, now: u64) -> Result<(), Obstacle> {
        self.try_deliver(frame, now).inspect_err(|obstacle| {
            if let Obstacle::Lost(reason) = obstacle {
                self.shared.receive.counters.dropped(*reason);
            }
        })
    }

    /// A frame for it is lost, elsewhere than in [`deliver`](Self::deliver).
    pub fn lose(&self, reason: DropReason) {
        self.shared.receive.counters.dropped(reason);
    }

    fn try_deliver(&mut self, frame: Frame<'_>, now: u64) -> Result<(), Obstacle> {
        if !self.shared.link_up() {
            return Err(Obstacle::Lost(DropReason::LinkDown));
        }
        let len = frame.len();
        if frame.header[1] == 0 && len > u64::from(self.shared.mtu) + BEYOND_MTU {
            return Err(Obstacle::Lost(DropReason::Length));
        }
        let Some(mut queue) = self.queue.take() else { return Err(Obstacle::Lost(DropReason::NoRoom)) };
        let delivered = self.put(&mut queue, frame, len, now);
        self.queue = Some(queue);
        delivered
    }

    fn put(&mut self, queue: &mut Queue, frame: Frame<'_>, len: u64, now: u64) -> Result<(), Obstacle> {
        let header_len = header_len(queue.features());
        let total = header_len as u64 + len;
        self.make_room(queue, total)?;
        if std::mem::take(&mut self.asked) {
            queue.disable_kicks();
        }
        if let Err(wait) = self.shared.receive.gate.pass(|| now, len) {
            self.shared.receive.counters.throttled();
            return Err(Obstacle::Limit(wait));
        }
        self.target.clear();
        self.filled.clear();
        let mut left = total;
        while left > 0
            && let Some((buffer, segments)) = self.window.pop()
        {
            let used = left.min(buffer.len);
            self.target.extend_from_slice(segments);
            self.filled.push((buffer.head, used));
            left -= used;
        }
        let mut header = *frame.header;
        // `num_buffers`: at most the ring's size.
        header[10..].copy_from_slice(&(self.filled.len() as u16).to_le_bytes());
        let heads = [&header[..header_len], frame.head];
        let copied = frame.rest.copy(heads, queue.memory(), &self.target, &mut self.places);
        // The buffers were checked when they were taken, and the memory is the same; after a failed copy they go back
        // empty.
        let whole = copied == Ok(total);
        for &(head, used) in &self.filled {
            // At most a frame's length.
            queue.push(head, if whole { used as u32 } else { 0 });
        }
        if !whole {
            return Err(Obstacle::Lost(DropReason::Memory));
        }
        self.shared.receive.counters.passed(len, [frame.header[0], frame.header[1]]);
        Ok(())
    }

    /// Takes buffers until they hold `total` bytes.
    fn make_room(&mut self, queue: &mut Queue, total: u64) -> Result<(), Obstacle> {
        const NEVER: Obstacle = Obstacle::Lost(DropReason::NoRoom);
        let merge = queue.features() & MRG_RXBUF != 0;
        for _ in 0..=queue.size() {
            match self.window.front() {
                Some(first) if !merge && first.len < total => return Err(NEVER),
                Some(_) if !merge || self.window.bytes() >= total => return Ok(()),
                _ => {}
            }
            // All that the ring has, or more than any driver takes for one frame.
            if self.window.len() >= usize::from(queue.size()) || self.window.segments().len() >= MAX_WINDOW {
                return Err(NEVER);
            }
            if !queue.pop(&mut self.chain) {
                return Err(if queue.is_broken() { NEVER } else { Obstacle::Full });
            }
            // A driver's buffer holds at least the header (virtio 1.3 §5.1.6.3.1).
            let writable = &self.chain.writable;
            if self.chain.writable_len() >= LEN as u64
                && self.places.can_hold(queue.memory(), writable, MAX_PIECES)
            {
                self.window.push(self.chain.head, writable);
            } else if self.window.is_empty() {
                queue.push(self.chain.head, 0);
            } else {
                // Only the last ones can be put back: it comes first when those before it are used.
                queue.unpop(1);
                return Err(NEVER);
            }
        }
        Err(Obstacle::Full)
    }
}
