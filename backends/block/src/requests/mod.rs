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
//! This module knows no storage: an engine takes slots from [`Requests::next_request`] and gives each back once, by
//! [`Requests::answer`]. Refused requests, requests for the disk's id, and flushes with nothing to flush are answered
//! here.
//!
//! Promised: a request keeps its slot, and its buffers stay mapped, from `next_request` to its answer. A queue can
//! always be stopped, although requests wait for a limit or are held after an error: waiting requests are let through
//! and charged; held requests stay in the inflight log for the next backend or, without a log, fail.

mod take;
mod waiting;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vu_server::worker::Reply;
use vu_server::{Chain, MemoryTable, Queue};

use crate::disk::Disk;
use crate::in_flight::InFlight;
use crate::request::Refusal;
use crate::statistics::{Counters, SLOTS};
use take::{IO_ERROR, OK, Taken, UNSUPPORTED, finish, status_byte};

/// Polls of a kick descriptor that may end without a new chain. The poll of an eventfd ends on its own only when the
/// completion ring overflows; another kind of descriptor may end it again and again.
const VAIN_KICKS: u16 = 64;
/// Answers that a driver is shown before its batch is done: it works on them beside us, and asks for more.
const EARLY_ANSWERS: u16 = 4;
/// The requests of one queue. It lives as long as its worker; queues come and go.
pub struct Requests {
    disk: Arc<Disk>,
    counters: Arc<Counters>,
    queue: Option<Box<Queue>>,
    chain: Chain,
    slots: Vec<InFlight>,
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
    /// How often the poll of the kick eventfd has ended since a chain came.
    vain: u16,
    /// Chains that may still be popped in this batch.
    budget: u16,
    now: u64,
    order: u64,
}

impl Requests {
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
            vain: 0,
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
        self.slots.resize_with(slots, InFlight::free);
        self.free = (0..slots as u16).rev().collect();
        self.queue = Some(queue);
        // Kicks may have come before we were here.
        self.ready = true;
        self.armed = false;
        self.vain = 0;
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

    /// The poll of the kick eventfd has ended with `result`. True if another poll is worth it. A descriptor that is no
    /// eventfd may be reported ready again and again without a kick: the queue then takes no more kicks, and a log line
    /// says so.
    pub fn kick_ended(&mut self, result: i32) -> bool {
        let dead = i32::from(libc::POLLERR | libc::POLLHUP | libc::POLLNVAL);
        self.vain += 1;
        let why = match result {
            _ if result < 0 => io::Error::from_raw_os_error(-result),
            _ if result & dead != 0 => io::Error::from_raw_os_error(libc::EPIPE),
            _ if self.vain > VAIN_KICKS => io::Error::other("that is no eventfd"),
            _ => return true,
        };
        let index = self.index().unwrap_or_default();
        vu_server::say::limited(format_args!("queue {index} cannot be kicked any more: {why}"));
        false
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

    /// Shows the driver what was answered, if it is enough to keep it busy while more is done.
    #[inline]
    pub fn publish_some(&mut self) {
        if let Some(queue) = self.queue.as_deref_mut().filter(|queue| queue.unpublished() >= EARLY_ANSWERS) {
            queue.publish();
        }
    }

    /// Shows the driver what was answered.
    pub fn publish(&mut self) {
        if let Some(queue) = &mut self.queue {
            // Before the driver sees an answer: whoever asks then finds it counted.
            self.counters.depth(self.slots.len() - self.free.len(), self.held.len());
            queue.publish();
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

    /// How many requests are in flight, if the driver was busy just now.
    pub fn expecting(&self) -> Option<usize> {
        (self.ready && !self.free.is_empty()).then(|| self.slots.len() - self.free.len())
    }

    /// Whether chains have come, without having asked for kicks.
    #[inline]
    pub fn expect_more(&self) -> bool {
        self.queue.as_deref().is_some_and(Queue::has_available)
    }

    /// A request in flight.
    #[inline]
    pub fn slot(&mut self, index: u16) -> &mut InFlight {
        &mut self.slots[usize::from(index)]
    }

    /// Whether there is a request in flight in this slot.
    pub fn is_busy(&self, index: u16) -> bool {
        self.slots.get(usize::from(index)).is_some_and(|slot| slot.busy)
    }

    /// The next request to carry out.
    pub fn next_request(&mut self) -> Option<u16> {
        let index = self.choose()?;
        self.counters.given(index, self.now);
        Some(index)
    }

    fn choose(&mut self) -> Option<u16> {
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
            self.vain = 0;
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

    /// What is held is done again, in the order in which it was taken.
    pub fn do_again(&mut self) {
        let slots = &self.slots;
        self.held.sort_unstable_by_key(|&index| slots[usize::from(index)].order);
        self.again.extend(self.held.drain(..));
        self.counters.depth(self.slots.len() - self.free.len(), 0);
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
        self.counters.taken_back(index);
        if let Err(errno) = result {
            let (op, position) = (slot.work.op(), slot.position());
            self.disk.faults().failed(op, position, errno);
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

/// The [`stage`](InFlight::stage) of a request that is held.
const HELD: u8 = u8::MAX;
