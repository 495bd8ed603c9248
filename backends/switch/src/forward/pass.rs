//! Forwards one frame after the other from its sender to its receivers.

use domus_net::offload::MAX_SEGMENTS;
use shared_abi::control::DropReason;

use super::copy::Source;
use super::receive::{Frame, Obstacle, Takes};
use super::transmit::{Judged, Transmit, Wait};
use super::{HOLD, Ports};
use crate::MAX_PORTS;

/// Most frames of one port in a row, and most bytes that are copied for it but for the last frame: a flood keeps others
/// waiting for no longer.
const BURST: usize = 64;
const BURST_BYTES: u64 = 1 << 20;

/// Most segments of a frame for all ports, for each receiver that does not take it whole: 64 KiB of TCP with the
/// smallest segments that Linux makes when it probes the path's MTU (512 bytes), and the most segments that Linux cuts
/// a datagram into.
const MAX_FLOOD_SEGMENTS: usize = 128;

/// Where the source address is in a frame, and the group bit of an address.
const SOURCE: std::ops::Range<usize> = 6..12;
const GROUP: u8 = 1;

/// What becomes of a frame.
enum Fate {
    /// It is sent, or lost: its buffers go back.
    Done,
    /// It stays at the head of its ring.
    Waits(Wait),
}

impl Ports {
    /// Gives every port that has something to send a turn. False if none has.
    pub fn pass_all(&mut self, now: u64) -> bool {
        let mut any = false;
        for slot in 0..MAX_PORTS {
            if self.transmit[slot].as_ref().is_some_and(|transmit| transmit.has_work(now))
                && let Some(mut transmit) = self.transmit[slot].take()
            {
                any = true;
                self.turn(slot, &mut transmit, now);
                self.transmit[slot] = Some(transmit);
            }
        }
        any
    }

    fn turn(&mut self, slot: usize, transmit: &mut Transmit, now: u64) {
        transmit.retry = false;
        if let Some(queue) = transmit.queue() {
            queue.disable_kicks();
        }
        self.copied = 0;
        for _ in 0..BURST {
            if self.copied > BURST_BYTES || !transmit.pop() {
                break;
            }
            match self.pass(slot, transmit, now) {
                Fate::Done => transmit.done(),
                Fate::Waits(wait) => {
                    transmit.wait_for(wait);
                    break;
                }
            }
        }
        // Receivers first: somebody waits for the frames, and nobody for the buffers.
        while self.unpublished != 0 {
            let receiver = self.unpublished.trailing_zeros() as usize;
            self.unpublished &= self.unpublished - 1;
            if let Some(receive) = &mut self.receive[receiver] {
                receive.publish();
            }
        }
        if let Some(queue) = transmit.queue() {
            queue.publish();
        }
    }

    /// Sends the frame that was popped last.
    fn pass(&mut self, slot: usize, transmit: &mut Transmit, now: u64) -> Fate {
        let judged = match transmit.judge() {
            Ok(judged) => judged,
            Err(reason) => {
                transmit.shared.transmit.counters.dropped(reason);
                return Fate::Done;
            }
        };
        match transmit.shared.transmit.gate.pass_again(|| now, judged.len, transmit.paid) {
            Ok(paid) => transmit.paid = Some(paid),
            Err(wait) => {
                transmit.shared.transmit.counters.throttled();
                return Fate::Waits(Wait::Limit(now.saturating_add(wait)));
            }
        }
        match self.send(slot, transmit, &judged, now) {
            Ok(None) => {
                let kind = [judged.header[0], judged.header[1]];
                transmit.shared.transmit.counters.passed(judged.len, kind);
                Fate::Done
            }
            Ok(Some(wait)) => Fate::Waits(wait),
            Err(reason) => {
                transmit.shared.transmit.counters.dropped(reason);
                Fate::Done
            }
        }
    }

    /// Gives a frame to whom it is for; or says for whom it waits, or why it is lost for all.
    fn send(
        &mut self,
        slot: usize,
        transmit: &Transmit,
        judged: &Judged,
        now: u64,
    ) -> Result<Option<Wait>, DropReason> {
        let mut places = std::mem::take(&mut self.places);
        let sent = self.send_from(slot, transmit, judged, now, &mut places);
        self.places = places;
        sent
    }

    fn send_from(
        &mut self,
        slot: usize,
        transmit: &Transmit,
        judged: &Judged,
        now: u64,
        places: &mut super::Places,
    ) -> Result<Option<Wait>, DropReason> {
        let head = transmit.head(judged);
        // `header::check` lets nothing pass that is shorter than an Ethernet header.
        let (Some(&to), Some(from)) = (head.first_chunk::<6>(), head.get(SOURCE)) else {
            return Err(DropReason::Length);
        };
        if from != transmit.shared.mac.bytes()
            && let Ok(from) = <[u8; 6]>::try_from(from)
            && from[0] & GROUP == 0
        {
            self.table.learn(from, slot, now);
        }
        let Some(memory) = transmit.memory() else { return Err(DropReason::Memory) };
        let skip = (judged.skip + judged.shown) as u64;
        let rest = judged.len - judged.shown as u64;
        let source = Source::new(memory, &transmit.chain.readable, skip, rest, places)
            .map_err(|_| DropReason::Memory)?;
        let mut frame = Prepared {
            frame: Frame { header: &judged.header, head, rest: &source },
            transmit,
            judged,
            skip,
            most: MAX_SEGMENTS,
            loaded: false,
        };
        let one = if to[0] & GROUP == 0 { self.table.find(to, now) } else { None };
        if let Some(receiver) = one {
            // Back to where it came from: its sender has a bridge that knows.
            if receiver == slot {
                return Ok(None);
            }
            return Ok(match self.deliver(receiver, &mut frame, now)? {
                Ok(()) | Err(Obstacle::Lost(_)) => None,
                Err(obstacle) => self.hold(receiver, obstacle, transmit.wait, now),
            });
        }
        frame.most = MAX_FLOOD_SEGMENTS;
        for receiver in (0..MAX_PORTS).filter(|&receiver| receiver != slot) {
            if let Err(Obstacle::Full | Obstacle::Limit(_)) = self.deliver(receiver, &mut frame, now)?
                && let Some(receive) = &self.receive[receiver]
            {
                receive.lose(DropReason::NoRoom);
            }
        }
        Ok(None)
    }

    /// Gives a frame to one receiver.
    fn deliver(
        &mut self,
        receiver: usize,
        frame: &mut Prepared<'_>,
        now: u64,
    ) -> Result<Result<(), Obstacle>, DropReason> {
        let Some(receive) = &mut self.receive[receiver] else { return Ok(Ok(())) };
        let delivered = match receive.takes(frame.frame.header) {
            Takes::Whole => receive.deliver(frame.frame, now),
            takes => {
                if !frame.loaded {
                    frame.load(&mut self.whole)?;
                }
                self.whole.deliver(frame.frame.header, receive, takes, frame.most, now)
            }
        };
        if delivered.is_ok() {
            receive.stuck = false;
            self.copied += frame.judged.len;
        }
        self.unpublished |= 1 << receiver;
        Ok(delivered)
    }

    /// A frame has met an obstacle: it waits for a while, or is lost.
    fn hold(&mut self, receiver: usize, obstacle: Obstacle, before: Option<Wait>, now: u64) -> Option<Wait> {
        let receive = self.receive[receiver].as_mut()?;
        let end = before.and_then(Wait::end).unwrap_or(now.saturating_add(HOLD));
        match obstacle {
            Obstacle::Limit(wait) if now.saturating_add(wait) <= end => {
                return Some(Wait::Receiver(now.saturating_add(wait), end));
            }
            Obstacle::Full if now < end && !receive.stuck => return Some(Wait::Room(receiver, end)),
            Obstacle::Full => receive.stuck = true,
            Obstacle::Limit(_) | Obstacle::Lost(_) => {}
        }
        receive.lose(DropReason::NoRoom);
        None
    }
}

/// A frame on its way, and where it came from.
struct Prepared<'a> {
    frame: Frame<'a>,
    transmit: &'a Transmit,
    judged: &'a Judged,
    skip: u64,
    /// How many pieces it may be cut into.
    most: usize,
    /// It is in memory of our own, too.
    loaded: bool,
}

impl Prepared<'_> {
    fn load(&mut self, whole: &mut super::Whole) -> Result<(), DropReason> {
        let memory = self.transmit.memory().ok_or(DropReason::Memory)?;
        let segments = &self.transmit.chain.readable;
        whole.load(self.frame.head, memory, segments, self.skip, self.judged.len)?;
        self.loaded = true;
        Ok(())
    }
}
