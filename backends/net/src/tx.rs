//! Frames from the guest: one chain, one `write` to the wire.
//!
//! ```text
//!   pop ─▶ copy header and head ─▶ check both ─▶ limit ─▶ write the copy and the rest from the guest's memory ─▶ push
//! ```
//!
//! The beginning of a frame is copied out of the guest's memory once. That copy is checked and sent, so the checked
//! bytes are the sent bytes, whatever the guest writes meanwhile. The rest of a long frame is sent without a copy. A
//! short frame is copied whole, which costs less than a second piece.
//!
//! Refused, and counted: frames that [`header::check`] or the NIC's filter refuses, chains without a whole header,
//! buffers outside the memory, and packets whose own headers the kernel finds wrong. Their chains are given back like
//! all others. With the limit reached, frames wait in the ring.
//!
//! While frames come in quick succession, the worker polls the ring for some microseconds ([`RingPoll`]) before it
//! sleeps, which spares the guest its kicks. An idle NIC costs nothing.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use domus_startup::time;
use nix::errno::Errno;
use shared_abi::control::DropReason;
use vu_server::{Chain, Queue};

use crate::features::header_len;
use crate::filter::{Filter, HEAD};
use crate::header;
use crate::link_state::LinkState;
use crate::ring_poll::RingPoll;
use crate::statistics::Counters;
use crate::vectored_io::Part;
use crate::wait_set::Wait;
use crate::wire::Sink;
use crate::worker::Work;

/// Most chains of one turn: a flood keeps commands waiting for no longer.
const BURST: usize = 64;

/// Headers and frames up to this length together are copied whole.
const COPIED: usize = 2048;

/// The transmit queue's work.
pub struct Transmit<S> {
    shared: Arc<LinkState>,
    counters: Arc<Counters>,
    filter: Option<Filter>,
    wire: S,
    queue: Option<Box<Queue>>,
    chain: Chain,
    copy: Box<[u8; COPIED]>,
    ring_poll: RingPoll,
    /// How much of the ring's next frame has passed the limits, while it waits for the wire.
    paid: Option<u64>,
}

/// Why a frame was not sent.
enum Unsent {
    /// It is lost.
    Dropped(DropReason),
    /// It must wait.
    Waits(Wait),
}

impl From<DropReason> for Unsent {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

impl<S: Sink> Transmit<S> {
    /// Without a filter everything passes that the wire takes.
    pub fn new(shared: Arc<LinkState>, counters: Arc<Counters>, filter: Option<Filter>, wire: S) -> Self {
        Self {
            shared,
            counters,
            filter,
            wire,
            queue: None,
            chain: Chain::default(),
            copy: Box::new([0; COPIED]),
            ring_poll: RingPoll::default(),
            paid: None,
        }
    }

    /// Sends the chain that was popped.
    fn send(&mut self, queue: &Queue) -> Result<(), Unsent> {
        if !self.shared.link.load(Ordering::Relaxed) {
            return Err(DropReason::LinkDown.into());
        }
        let (memory, segments) = (queue.memory(), &self.chain.readable[..]);
        let header = header_len(queue.features());
        let total = self.chain.readable_len();
        let frame = total.checked_sub(header as u64).ok_or(DropReason::Length)?;
        let copied = if total <= COPIED as u64 { total as usize } else { header + HEAD };
        let copy = &mut self.copy[..copied];
        if memory.read(segments, 0, copy) != Ok(copied) {
            return Err(DropReason::Memory.into());
        }
        let mut virtio = [0; header::LEN];
        virtio[..header].copy_from_slice(&copy[..header]);
        let virtio = header::check(virtio, frame, queue.features()).map_err(DropReason::from)?;
        copy[..header].copy_from_slice(&virtio[..header]);
        if let Some(filter) = &self.filter {
            let head = &copy[header..];
            filter.check(&virtio, head.get(..HEAD).unwrap_or(head), frame)?;
        }
        match self.shared.transmit.pass_again(time::monotonic, frame, self.paid) {
            Ok(paid) => self.paid = Some(paid),
            Err(time) => {
                self.counters.throttled();
                return Err(Unsent::Waits(Wait::Time(time)));
            }
        }
        let rest = Part { memory, segments, skip: copied as u64, limit: total - copied as u64 };
        self.wire.write(header, copy, rest).map_err(unsent)?;
        self.counters.passed(frame, [virtio[0], virtio[1]]);
        Ok(())
    }

    fn burst(&mut self, queue: &mut Queue) -> Wait {
        queue.disable_kicks();
        for _ in 0..BURST {
            if !queue.pop(&mut self.chain) {
                match self.look_out(queue) {
                    Some(wait) => return wait,
                    None => continue,
                }
            }
            self.ring_poll.not_empty();
            match self.send(queue) {
                Ok(()) => {}
                Err(Unsent::Dropped(reason)) => self.counters.dropped(reason),
                Err(Unsent::Waits(wait)) => {
                    queue.unpop(1);
                    queue.publish();
                    return wait;
                }
            }
            self.paid = None;
            queue.push(self.chain.head, 0);
        }
        queue.publish();
        Wait::Nothing
    }

    /// The ring is empty. What to wait for; none if something has come already.
    fn look_out(&mut self, queue: &mut Queue) -> Option<Wait> {
        queue.publish();
        if queue.is_broken() {
            queue.enable_kicks();
            return Some(Wait::Command);
        }
        if self.ring_poll.poll(queue) {
            return None;
        }
        if queue.enable_kicks() {
            queue.disable_kicks();
            return None;
        }
        Some(Wait::Kick)
    }
}

/// What becomes of a frame that the wire has not taken.
fn unsent(error: io::Error) -> Unsent {
    match (error.raw_os_error().map(Errno::from_raw), error.kind()) {
        (Some(Errno::EAGAIN), _) | (None, io::ErrorKind::WouldBlock) => Unsent::Waits(Wait::Writable),
        (None, io::ErrorKind::InvalidInput) => DropReason::Memory.into(),
        (None, io::ErrorKind::NotConnected) => DropReason::LinkDown.into(),
        // The network may lose what it cannot carry; so does an interface that is down (EIO).
        _ => DropReason::Wire.into(),
    }
}

impl<S: Sink> Work for Transmit<S> {
    fn queue(&mut self) -> &mut Option<Box<Queue>> {
        &mut self.queue
    }

    fn turn(&mut self) -> Wait {
        let wait = match self.queue.take() {
            Some(mut queue) => {
                let wait = self.burst(&mut queue);
                self.queue = Some(queue);
                wait
            }
            None => Wait::Command,
        };
        // The rest of the last frame waits for room even when no other one does; a kick comes through all the same.
        let resting = matches!(wait, Wait::Kick | Wait::Command);
        match self.wire.flush() {
            Err(error) if resting && error.kind() == io::ErrorKind::WouldBlock => Wait::Writable,
            _ => wait,
        }
    }

    fn wire(&self) -> Option<BorrowedFd<'_>> {
        self.wire.fd()
    }

    fn connect(&mut self, socket: Arc<UnixStream>) {
        self.wire.connect(socket);
    }
}
