//! A queue's requests between the driver and whoever carries them out.
//!
//! ```text
//!             pop, parse      gate                        ok / error
//!   queue ──▶ refused? ──▶ limited? ──▶ next ──▶ engine ──▶ answer() ──▶ used ring
//!                 │           │ ▲                               │ │ ▲
//!                 ▼           ▼ │ time                          ▼ │ │ again()
//!              answered      waiting                           held
//! ```
//!
//! It knows no storage: an engine takes slots from [`Intake::next_request`] and gives each back once, by [`Intake::answer`].
//! Refused requests, ids, and flushes that have nothing to do are answered in here.
//!
//! Promised: a request keeps its slot, and its buffers stay mapped, from there to its answer. A queue that is being
//! stopped comes to an end although requests wait or are held: what waits is let through, what is held stays in the
//! inflight log for the next backend, or is failed where there is no log.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vu_server::worker::Reply;
use vu_server::{Chain, MemoryTable, Queue, Segment};

use crate::disk::Disk;
use crate::request::{self, HEADER, MAX_SEGMENTS, Refusal, Request, SEGMENT};
use crate::slot::{Slot, Work};
use crate::statistics::{Counters, Op};
use crate::throttle::Direction;

/// `VIRTIO_BLK_S_OK`, `_IOERR`, `_UNSUPP` (virtio 1.3 §5.2.6).
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Most requests in flight in one queue.
pub const SLOTS: usize = 256;
/// Most buffers of one request (`IOV_MAX`).
const MAX_BUFFERS: usize = 1024;

/// What becomes of a chain that was popped.
enum Taken {
    /// It is in its slot, and something is to be done.
    Begun,
    /// Nothing is to be done; it counts as one of these.
    Done(Option<Op>),
}

/// The requests of one queue. It lives as long as its worker; queues come and go.
pub struct Intake {
    disk: Arc<Disk>,
    counters: Arc<Counters>,
    queue: Option<Box<Queue>>,
    chain: Chain,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Slots whose requests wait for a limit, in order: reads, and what writes.
    waiting: [VecDeque<u16>; 2],
    /// When to ask again for them.
    wake: u64,
    /// Slots whose requests have failed and are held.
    held: Vec<u16>,
    /// Slots to be done again, in order.
    again: VecDeque<u16>,
    stopping: Option<Reply>,
    /// The driver may have made chains available that were not popped.
    ready: bool,
    /// Kicks are asked for.
    armed: bool,
    /// Chains that may still be popped in this batch.
    budget: u16,
    now: u64,
    order: u64,
}

impl Intake {
    /// Of one queue of `disk`, which counts in `counters`.
    pub fn new(disk: Arc<Disk>, counters: Arc<Counters>) -> Self {
        Self {
            disk,
            counters,
            queue: None,
            chain: Chain::default(),
            slots: Vec::new(),
            free: Vec::new(),
            waiting: Default::default(),
            wake: 0,
            held: Vec::new(),
            again: VecDeque::new(),
            stopping: None,
            ready: false,
            armed: false,
            budget: 0,
            now: 0,
            order: 0,
        }
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// The queue's kick eventfd, if there is a queue.
    pub fn kick(&self) -> Option<BorrowedFd<'_>> {
        self.queue.as_deref().map(Queue::kick)
    }

    /// The queue's number, if there is a queue.
    pub fn index(&self) -> Option<u16> {
        self.queue.as_deref().map(Queue::index)
    }

    /// The guest's memory, if there is a queue.
    pub fn memory(&self) -> Option<&MemoryTable> {
        self.queue.as_deref().map(Queue::memory)
    }

    /// Takes a queue.
    pub fn start(&mut self, queue: Box<Queue>) {
        let slots = SLOTS.min(queue.size().into());
        self.slots.resize_with(slots, Slot::free);
        self.free = (0..slots as u16).rev().collect();
        self.queue = Some(queue);
        // Kicks may have come before we were here.
        self.ready = true;
        self.armed = false;
    }

    /// Pops no more. What is held is let go, and what waits is let through.
    pub fn stop(&mut self, reply: Reply) {
        self.stopping = Some(reply);
        self.ready = false;
        self.again.clear();
        for index in 0..self.slots.len() as u16 {
            // What is held, or was about to be done again.
            if self.slots[usize::from(index)].stage == HELD {
                self.let_go(index, libc::EIO);
            }
        }
        self.held.clear();
    }

    /// Whether the queue is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Gives the queue back if it is being stopped and nothing of it is left here.
    pub fn finish(&mut self) {
        if self.stopping.is_some() && self.free.len() == self.slots.len() {
            self.slots = Vec::new();
            self.free = Vec::new();
            self.counters.depth(0, 0);
            if let (Some(reply), Some(queue)) = (self.stopping.take(), self.queue.take()) {
                reply.done(queue);
            }
        }
    }

    /// The driver is called on another eventfd.
    pub fn set_call(&mut self, call: Option<Arc<File>>) {
        if let Some(queue) = &mut self.queue {
            queue.set_call(call);
        }
    }

    /// The driver has kicked.
    pub fn kicked(&mut self) {
        if self.stopping.is_none() && self.queue.is_some() {
            self.ready = true;
        }
    }

    /// Begins a batch, in which a ring's worth of chains is popped at most, so that everything else has its turn.
    pub fn begin_batch(&mut self, now: u64) {
        self.now = now;
        if let Some(queue) = &mut self.queue {
            self.budget = queue.size();
            if self.ready && self.armed {
                queue.disable_kicks();
                self.armed = false;
            }
        }
    }

    /// The time of this batch, in nanoseconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Shows the driver what was answered.
    pub fn publish(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.publish();
            self.counters.depth(self.slots.len() - self.free.len(), self.held.len());
        }
    }

    /// Whether there is nothing to do before a kick, a completion, an order or [`Self::wake_in`]. Asks for kicks.
    pub fn rests(&mut self) -> bool {
        if !self.again.is_empty() {
            return false;
        }
        let Some(queue) = &mut self.queue else { return true };
        if self.ready && !self.free.is_empty() {
            if queue.enable_kicks() {
                return false;
            }
            self.armed = true;
            self.ready = false;
        }
        true
    }

    /// Whether nothing is in flight and all depends on the driver, which was busy just now.
    pub fn is_expecting(&self) -> bool {
        self.ready && self.free.len() == self.slots.len()
    }

    /// Whether chains have come, without having asked for kicks.
    #[inline]
    pub fn expect_more(&self) -> bool {
        self.queue.as_deref().is_some_and(Queue::has_available)
    }

    /// Nanoseconds until a limit lets something through; none if nothing waits.
    pub fn wake_in(&self, now: u64) -> Option<u64> {
        let waits = self.waiting.iter().any(|waiting| !waiting.is_empty());
        waits.then(|| self.wake.saturating_sub(now))
    }

    /// A request in flight.
    #[inline]
    pub fn slot(&mut self, index: u16) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }

    /// Whether there is a request in flight in this slot.
    pub fn is_busy(&self, index: u16) -> bool {
        self.slots.get(usize::from(index)).is_some_and(|slot| slot.busy)
    }

    /// The next request to carry out.
    pub fn next_request(&mut self) -> Option<u16> {
        if let Some(index) = self.again.pop_front() {
            let slot = self.slot(index);
            (slot.stage, slot.retries) = (0, 0);
            return Some(index);
        }
        if let Some(index) = self.let_through() {
            return Some(index);
        }
        let mut queue = self.queue.take_if(|_| self.ready)?;
        let mut chain = std::mem::take(&mut self.chain);
        let next = self.pop(&mut queue, &mut chain);
        self.chain = chain;
        self.queue = Some(queue);
        next
    }

    /// Pops until there is a request to carry out.
    fn pop(&mut self, queue: &mut Queue, chain: &mut Chain) -> Option<u16> {
        while let Some(&index) = self.free.last() {
            if self.budget == 0 || !queue.pop(chain) {
                return None;
            }
            self.budget -= 1;
            let Some(status) = status_byte(chain) else {
                // Nowhere to say anything: the driver gets its buffers back untouched.
                queue.push(chain.head, 0);
                continue;
            };
            match self.take(queue, chain, index, status) {
                Ok(Taken::Begun) => {
                    self.free.pop();
                    if self.pass(index) {
                        return Some(index);
                    }
                }
                Ok(Taken::Done(op)) => {
                    if let Some(op) = op {
                        self.counters.answered(op, true, 0, 0);
                    }
                    finish(queue, &self.slots[usize::from(index)], OK);
                }
                Err(refusal) => {
                    let code = if refusal == Refusal::Unsupported { UNSUPPORTED } else { IO_ERROR };
                    finish(queue, &self.slots[usize::from(index)], code);
                }
            }
        }
        None
    }

    /// Fills a slot with what a chain asks for.
    fn take(&mut self, queue: &Queue, chain: &Chain, index: u16, status: Segment) -> Result<Taken, Refusal> {
        let slot = &mut self.slots[usize::from(index)];
        slot.take(chain.head, status);
        let memory = queue.memory();
        let mut header = [0; HEADER as usize];
        if memory.read(&chain.readable, 0, &mut header) != Ok(header.len()) {
            return Err(Refusal::Bad);
        }
        let (given, taken) = (chain.readable_len() - HEADER, chain.writable_len() - 1);
        let bounds = self.disk.bounds();
        let request = request::parse(bounds, &header, given, taken)?;
        match request {
            Request::Read { offset, len } => {
                memory.iovecs(&chain.writable, 0, len, &mut slot.buffers).map_err(|_| Refusal::Bad)?;
                (slot.work, slot.offset, slot.left) = (Work::Read, offset, len);
                slot.written = u32::try_from(len).unwrap_or(u32::MAX);
            }
            Request::Write { offset, len } => {
                memory.iovecs(&chain.readable, HEADER, len, &mut slot.buffers).map_err(|_| Refusal::Bad)?;
                (slot.work, slot.offset, slot.left) = (Work::Write, offset, len);
            }
            Request::Flush if self.disk.flushes() => {}
            Request::Flush => return Ok(Taken::Done(Some(Op::Flush))),
            Request::Id => {
                let id = self.disk.id();
                slot.written = id.len() as u32;
                let said = memory.write(&chain.writable, 0, id);
                return said.map(|_| Taken::Done(None)).map_err(|_| Refusal::Bad);
            }
            Request::Discard { segments } | Request::WriteZeroes { segments } => {
                let zeroes = matches!(request, Request::WriteZeroes { .. });
                slot.work = if zeroes { Work::WriteZeroes } else { Work::Discard };
                let mut bytes = [0; SEGMENT * MAX_SEGMENTS];
                let bytes = &mut bytes[..SEGMENT * segments];
                if memory.read(&chain.readable, HEADER, bytes) != Ok(bytes.len()) {
                    return Err(Refusal::Bad);
                }
                for bytes in bytes.as_chunks().0 {
                    let range = request::segment(bounds, zeroes, bytes)?;
                    if range.len > 0 {
                        slot.ranges.push(range);
                        slot.bytes += range.len;
                        slot.end = slot.end.max(range.offset + range.len);
                    }
                }
            }
        }
        if slot.buffers.len() > MAX_BUFFERS {
            return Err(Refusal::Bad);
        }
        if matches!(slot.work, Work::Read | Work::Write) {
            slot.bytes = slot.left;
            slot.end = slot.offset + slot.left;
        }
        if slot.work != Work::Flush && slot.bytes == 0 {
            return Ok(Taken::Done(Some(slot.work.op())));
        }
        slot.durable = slot.work != Work::Read && self.disk.is_durable();
        (slot.taken, slot.order, slot.busy) = (self.now, self.order, true);
        self.order += 1;
        Ok(Taken::Begun)
    }

    /// Whether a request may go now. If not, it waits.
    fn pass(&mut self, index: u16) -> bool {
        let slot = &self.slots[usize::from(index)];
        let Some(direction) = slot.work.direction() else { return true };
        let waiting = &mut self.waiting[direction as usize];
        let (now, bytes) = (self.now, slot.bytes);
        let wait = if waiting.is_empty() {
            match self.disk.gate().pass(|| now, direction, bytes) {
                Ok(()) => return true,
                Err(wait) => now.saturating_add(wait),
            }
        } else {
            // In its turn.
            self.wake
        };
        waiting.push_back(index);
        let others = self.waiting[direction.other() as usize].is_empty();
        self.wake = if others { wait } else { self.wake.min(wait) };
        self.counters.throttled();
        false
    }

    /// The first of those that wait that may go now.
    fn let_through(&mut self) -> Option<u16> {
        let stopping = self.stopping.is_some();
        let waits = self.waiting.iter().any(|waiting| !waiting.is_empty());
        if !waits || (self.now < self.wake && !stopping) {
            return None;
        }
        let mut wake = u64::MAX;
        for direction in [Direction::Read, Direction::Write] {
            let Some(&index) = self.waiting[direction as usize].front() else { continue };
            let (now, bytes) = (self.now, self.slots[usize::from(index)].bytes);
            match self.disk.gate().pass(|| now, direction, bytes) {
                Err(wait) if !stopping => wake = wake.min(now.saturating_add(wait)),
                _ => return self.waiting[direction as usize].pop_front(),
            }
        }
        self.wake = wake;
        None
    }

    /// The limits have changed.
    pub fn look_again(&mut self) {
        self.wake = 0;
    }

    /// What is held is done again, in the order in which it was taken.
    pub fn do_again(&mut self) {
        let slots = &self.slots;
        self.held.sort_unstable_by_key(|&index| slots[usize::from(index)].order);
        self.again.extend(self.held.drain(..));
    }

    /// Fails what waits, or is held, beyond the end of the disk. True if nothing else reaches beyond it.
    pub fn settle(&mut self) -> bool {
        let end = self.disk.bytes();
        for index in 0..self.slots.len() as u16 {
            let slot = &self.slots[usize::from(index)];
            let rests = slot.stage == HELD || self.waiting.iter().any(|waiting| waiting.contains(&index));
            if slot.busy && slot.end > end && rests {
                self.waiting.iter_mut().for_each(|waiting| waiting.retain(|&other| other != index));
                self.held.retain(|&other| other != index);
                self.again.retain(|&other| other != index);
                self.tell(index, Err(libc::EIO));
            }
        }
        !self.slots.iter().any(|slot| slot.busy && slot.end > end)
    }

    /// A request was carried out, or has failed with an errno: it is answered or held.
    pub fn answer(&mut self, index: u16, result: Result<(), i32>) {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        if let Err(errno) = result {
            let (op, position) = (slot.work.op(), slot.position());
            vu_server::say::limited(format_args!(
                "{} at {position:#x} of the disk failed: {}",
                op.name(),
                std::io::Error::from_raw_os_error(errno)
            ));
            if self.disk.faults().holds(op, errno) {
                self.disk.faults().held(op, position, errno);
                slot.stage = HELD;
                if self.stopping.is_some() {
                    return self.let_go(index, errno);
                }
                return self.held.push(index);
            }
        }
        self.tell(index, result);
    }

    /// Lets go of a request that is held: it is in the log, or fails.
    fn let_go(&mut self, index: u16, errno: i32) {
        if self.queue.as_deref().is_some_and(Queue::is_logged) {
            self.release(index);
        } else {
            self.tell(index, Err(errno));
        }
    }

    /// Answers a request.
    fn tell(&mut self, index: u16, result: Result<(), i32>) {
        let slot = &self.slots[usize::from(index)];
        let time = self.now.saturating_sub(slot.taken);
        self.counters.answered(slot.work.op(), result.is_ok(), slot.bytes, time);
        if let Some(queue) = &mut self.queue {
            finish(queue, slot, if result.is_ok() { OK } else { IO_ERROR });
        }
        self.release(index);
    }

    fn release(&mut self, index: u16) {
        let slot = self.slot(index);
        slot.stage = 0;
        slot.release();
        self.free.push(index);
    }
}

/// The [`stage`](Slot::stage) of a request that is held.
const HELD: u8 = u8::MAX;

/// The last byte of what the device writes.
fn status_byte(chain: &Chain) -> Option<Segment> {
    let last = chain.writable.iter().rfind(|segment| segment.len > 0)?;
    Some(Segment { addr: last.addr.checked_add(u64::from(last.len) - 1)?, len: 1 })
}

/// Writes the status and gives the chain back.
fn finish(queue: &mut Queue, slot: &Slot, code: u8) {
    let said = queue.memory().write(&[slot.status], 0, &[code]).is_ok();
    let written = if code == OK { slot.written } else { 0 };
    // Only with the data complete is everything up to the status written (virtio 1.3 §2.7.8.2).
    queue.push(slot.head, if said { written.saturating_add(1) } else { 0 });
}
