//! The thread of one queue: chains in, one io_uring, used elements out.
//!
//! ```text
//!   wait ─▶ completions ─▶ status bytes ─▶ pop what the driver has made available ─▶ publish once ─▶ wait
//! ```
//!
//! The worker sleeps in one place, in the kernel, for kicks, orders and the disk together. Waiting also submits.
//! Nothing is allocated on the way once the buffers of the slots have grown.

use std::sync::Arc;

use libc::iovec;
use vu_server::{Chain, Order, Orders, Queue, Segment, worker::Reply};

use crate::device::Writeback;
use crate::disk::Disk;
use crate::request::{self, HEADER, Refusal, Request};
use crate::uring::{Completion, Uring};

/// `VIRTIO_BLK_S_OK`, `_IOERR`, `_UNSUPP` (virtio 1.3 §5.2.6).
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Most requests in flight: below the completion queue of the ring.
const SLOTS: usize = 256;
/// Most buffers of one request (`IOV_MAX`).
const MAX_BUFFERS: usize = 1024;
/// A slot that had more buffers than this gives the memory back.
const KEEP_BUFFERS: usize = 32;
/// Times that one request is submitted again because the kernel says so.
const RETRIES: u8 = 8;

/// Completions that are no request's: their tags are beyond all slots.
const KICK: u64 = 1 << 32;
const ORDERS: u64 = KICK + 1;
const CANCELLED: u64 = KICK + 2;

/// What a request in flight does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Read,
    Write { durable: bool },
    Flush,
}

/// A request in flight, or a free slot.
#[derive(Debug)]
struct Slot {
    head: u16,
    /// Where the status byte goes.
    status: Segment,
    work: Work,
    /// What is left to do: from here in the image, these buffers from `done` on, so many bytes.
    offset: u64,
    buffers: Vec<iovec>,
    done: usize,
    left: u64,
    /// Bytes that a read writes into the guest's buffers.
    written: u32,
    retries: u8,
}

impl Slot {
    const fn free() -> Self {
        Self {
            head: 0,
            status: Segment { addr: 0, len: 0 },
            work: Work::Flush,
            offset: 0,
            buffers: Vec::new(),
            done: 0,
            left: 0,
            written: 0,
            retries: 0,
        }
    }

    /// Takes `moved` bytes off what is left to do.
    fn advance(&mut self, moved: u64) {
        self.left -= moved;
        self.offset += moved;
        let mut moved = moved as usize;
        while moved > 0 {
            let buffer = &mut self.buffers[self.done];
            if moved < buffer.iov_len {
                buffer.iov_base = buffer.iov_base.wrapping_byte_add(moved);
                buffer.iov_len -= moved;
                break;
            }
            moved -= buffer.iov_len;
            self.done += 1;
        }
    }
}

/// One queue's worker. It lives as long as the process; queues come and go.
pub struct Worker {
    ring: Uring,
    disk: Arc<Disk>,
    writeback: Arc<Writeback>,
    orders: Orders,
    queue: Option<Box<Queue>>,
    chain: Chain,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// A poll of the kick eventfd is submitted.
    kick_polled: bool,
    /// The driver may have made chains available that were not popped.
    ready: bool,
    stopping: Option<Reply>,
}

impl Worker {
    /// A worker for one queue of `disk`; to be run by the thread that enabled the ring.
    pub fn new(ring: Uring, disk: Arc<Disk>, writeback: Arc<Writeback>, orders: Orders) -> Self {
        Self {
            ring,
            disk,
            writeback,
            orders,
            queue: None,
            chain: Chain::default(),
            slots: Vec::new(),
            free: Vec::new(),
            kick_polled: false,
            ready: false,
            stopping: None,
        }
    }

    /// Works until told to quit.
    pub fn run(mut self) {
        use std::os::fd::AsFd;
        self.ring.poll(self.orders.as_fd(), ORDERS);
        loop {
            // With chains left over there is something to do; without a free slot, only a completion helps.
            self.ring.wait(!self.ready || self.free.is_empty());
            let mut ordered = false;
            while let Some(completion) = self.ring.completion() {
                match completion.tag {
                    KICK => self.kicked(completion),
                    ORDERS => {
                        ordered = true;
                        if !completion.more {
                            self.ring.poll(self.orders.as_fd(), ORDERS);
                        }
                    }
                    CANCELLED => {}
                    slot => self.completed(slot as usize, completion.result),
                }
            }
            while ordered {
                match self.orders.take() {
                    Some(Order::Quit) => return,
                    Some(order) => self.obey(order),
                    None => ordered = false,
                }
            }
            self.serve();
            if let Some(queue) = &mut self.queue {
                queue.publish();
            }
            self.finish_stopping();
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Start(queue) => {
                self.ring.poll(queue.kick(), KICK);
                self.kick_polled = true;
                let slots = SLOTS.min(queue.size().into());
                self.slots.resize_with(slots, Slot::free);
                self.free = (0..slots as u16).rev().collect();
                self.queue = Some(queue);
                // Kicks may have come before we were here.
                self.ready = true;
            }
            Order::Stop { reply, .. } => {
                self.stopping = Some(reply);
                self.ready = false;
                self.ring.cancel(KICK, CANCELLED);
            }
            Order::Call { call, .. } => {
                if let Some(queue) = &mut self.queue {
                    queue.set_call(call);
                }
            }
            Order::Quit => {}
        }
    }

    fn kicked(&mut self, Completion { result, more, .. }: Completion) {
        self.kick_polled = more;
        let Some(queue) = &self.queue else { return };
        if self.stopping.is_some() {
            return;
        }
        self.ready = true;
        if more {
            return;
        }
        // A socket that has hung up, for instance, would be reported again and again.
        let dead = i32::from(libc::POLLERR | libc::POLLHUP | libc::POLLNVAL);
        if result >= 0 && result & dead == 0 {
            self.ring.poll(queue.kick(), KICK);
            self.kick_polled = true;
        } else {
            let error = std::io::Error::from_raw_os_error(if result < 0 { -result } else { libc::EPIPE });
            vu_server::say::limited(format_args!(
                "queue {} cannot be kicked any more: {error}",
                queue.index()
            ));
        }
    }

    /// Gives the queue back when nothing of it is left here.
    fn finish_stopping(&mut self) {
        if self.stopping.is_some() && !self.kick_polled && self.free.len() == self.slots.len() {
            self.slots = Vec::new();
            self.free = Vec::new();
            if let (Some(reply), Some(queue)) = (self.stopping.take(), self.queue.take()) {
                reply.done(queue);
            }
        }
    }

    /// Pops what is available: at most a ring's worth, so that orders and completions have their turn.
    fn serve(&mut self) {
        let Some(mut queue) = self.queue.take_if(|_| self.ready) else { return };
        let mut chain = std::mem::take(&mut self.chain);
        queue.disable_kicks();
        let mut budget = queue.size();
        while let Some(&slot) = self.free.last() {
            if budget == 0 {
                break;
            }
            budget -= 1;
            if queue.pop(&mut chain) {
                if self.begin(&mut queue, &chain, slot) {
                    self.free.pop();
                }
            } else if !queue.enable_kicks() {
                self.ready = false;
                break;
            }
        }
        self.chain = chain;
        self.queue = Some(queue);
    }

    /// Starts one request in `slot`. False if it is done already.
    fn begin(&mut self, queue: &mut Queue, chain: &Chain, slot: u16) -> bool {
        let Some(status) = status_byte(chain) else {
            // Nowhere to say anything: the driver gets its buffers back untouched.
            queue.push(chain.head, 0);
            return false;
        };
        match self.prepare(queue, chain, slot, status) {
            Ok(true) => {
                self.submit(slot);
                true
            }
            Ok(false) => {
                let written = self.slots[usize::from(slot)].written;
                finish(queue, chain.head, status, OK, written);
                false
            }
            Err(refusal) => {
                let code = if refusal == Refusal::Unsupported { UNSUPPORTED } else { IO_ERROR };
                finish(queue, chain.head, status, code, 0);
                false
            }
        }
    }

    /// Fills a slot with what a chain asks for. False if there is nothing to wait for.
    fn prepare(&mut self, queue: &Queue, chain: &Chain, slot: u16, status: Segment) -> Result<bool, Refusal> {
        let memory = queue.memory();
        let mut header = [0; HEADER as usize];
        if memory.read(&chain.readable, 0, &mut header) != Ok(header.len()) {
            return Err(Refusal::Bad);
        }
        let given = chain.readable_len() - HEADER;
        let taken = chain.writable_len() - 1;
        let request = request::parse(self.disk.bounds(), &header, given, taken)?;
        let slot = &mut self.slots[usize::from(slot)];
        slot.head = chain.head;
        slot.status = status;
        (slot.offset, slot.left, slot.written, slot.done, slot.retries) = (0, 0, 0, 0, 0);
        slot.buffers.clear();
        match request {
            Request::Read { offset, len } => {
                memory.iovecs(&chain.writable, 0, len, &mut slot.buffers).map_err(|_| Refusal::Bad)?;
                slot.work = Work::Read;
                (slot.offset, slot.left) = (offset, len);
                slot.written = u32::try_from(len).unwrap_or(u32::MAX);
            }
            Request::Write { offset, len } => {
                memory.iovecs(&chain.readable, HEADER, len, &mut slot.buffers).map_err(|_| Refusal::Bad)?;
                slot.work = Work::Write { durable: !self.writeback.get() };
                (slot.offset, slot.left) = (offset, len);
            }
            Request::Flush => {
                slot.work = Work::Flush;
                return Ok(true);
            }
            Request::Id => {
                let id = self.disk.id();
                slot.written = id.len() as u32;
                return match memory.write(&chain.writable, 0, id) {
                    Ok(_) => Ok(false),
                    Err(_) => Err(Refusal::Bad),
                };
            }
        }
        if slot.buffers.len() > MAX_BUFFERS { Err(Refusal::Bad) } else { Ok(slot.left > 0) }
    }

    /// Hands the kernel what is left of a request.
    fn submit(&mut self, index: u16) {
        let slot = &self.slots[usize::from(index)];
        let (file, tag) = (self.disk.file(), u64::from(index));
        let buffers = &slot.buffers[slot.done..];
        match slot.work {
            Work::Flush => self.ring.flush(file, tag),
            #[expect(unsafe_code, reason = "the kernel writes to guest memory")]
            Work::Read => {
                // SAFETY: the buffers are in the queue's memory table, which is kept until the queue is given back, and
                // that is after this slot is free again; the array is the slot's and is not touched before completion.
                unsafe { self.ring.read(file, buffers, slot.offset, tag) }
            }
            #[expect(unsafe_code, reason = "the kernel reads from guest memory")]
            Work::Write { durable } => {
                // SAFETY: as for reading.
                unsafe { self.ring.write(file, buffers, slot.offset, durable, tag) }
            }
        }
    }

    /// One request, or a part of it, is done.
    fn completed(&mut self, index: usize, result: i32) {
        let (Some(slot), Some(queue)) = (self.slots.get_mut(index), &mut self.queue) else { return };
        let status = match (slot.work, u64::try_from(result)) {
            (Work::Flush, Ok(_)) => OK,
            (_, Ok(moved)) if moved > 0 && moved <= slot.left => {
                slot.advance(moved);
                if slot.left > 0 {
                    return self.submit(index as u16);
                }
                OK
            }
            // Nothing moved: the image has become shorter. More than asked for cannot be.
            (_, Ok(_)) => IO_ERROR,
            (_, Err(_)) if matches!(-result, libc::EINTR | libc::EAGAIN) && slot.retries < RETRIES => {
                slot.retries += 1;
                return self.submit(index as u16);
            }
            (work, Err(_)) => {
                let error = std::io::Error::from_raw_os_error(-result);
                vu_server::say::limited(format_args!(
                    "{work:?} at {:#x} of the image failed: {error}",
                    slot.offset
                ));
                IO_ERROR
            }
        };
        let written = if status == OK { slot.written } else { 0 };
        finish(queue, slot.head, slot.status, status, written);
        if slot.buffers.capacity() > KEEP_BUFFERS {
            slot.buffers = Vec::new();
        }
        self.free.push(index as u16);
    }
}

/// The last byte of what the device writes.
fn status_byte(chain: &Chain) -> Option<Segment> {
    let last = chain.writable.iter().rfind(|segment| segment.len > 0)?;
    Some(Segment { addr: last.addr.checked_add(u64::from(last.len) - 1)?, len: 1 })
}

/// Writes the status and gives the chain back. `written` bytes of data were written before the status.
fn finish(queue: &mut Queue, head: u16, status: Segment, code: u8, written: u32) {
    let said = queue.memory().write(&[status], 0, &[code]).is_ok();
    // Only with the data complete is everything up to the status written (virtio 1.3 §2.7.8.2).
    queue.push(head, if !said { 0 } else { written.saturating_add(1) });
}
