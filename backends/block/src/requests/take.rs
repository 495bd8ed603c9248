//! Turns a chain into a request in its slot, and an answer into an element of the used ring.

use vu_server::{Chain, Queue, Segment};

use super::Requests;
use crate::in_flight::{InFlight, Work};
use crate::request::{self, HEADER, MAX_SEGMENTS, Refusal, Request, SEGMENT};
use crate::statistics::Op;

/// `VIRTIO_BLK_S_OK`, `_IOERR`, `_UNSUPP` (virtio 1.3 §5.2.6).
pub(super) const OK: u8 = 0;
pub(super) const IO_ERROR: u8 = 1;
pub(super) const UNSUPPORTED: u8 = 2;

/// Most buffers of one request (`IOV_MAX`).
const MAX_BUFFERS: usize = 1024;

/// What becomes of a chain that was popped.
pub(super) enum Taken {
    /// It is in its slot, and something is to be done.
    Begun,
    /// Nothing is to be done; it counts as one of these.
    Done(Option<Op>),
}

impl Requests {
    /// Fills a slot with what a chain asks for.
    pub(super) fn take(
        &mut self,
        queue: &Queue,
        chain: &Chain,
        index: u16,
        status: Segment,
    ) -> Result<Taken, Refusal> {
        let slot = &mut self.slots[usize::from(index)];
        slot.take(chain.head, status);
        slot.again = chain.again;
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
}

/// The last byte of what the device writes.
pub(super) fn status_byte(chain: &Chain) -> Option<Segment> {
    let last = chain.writable.iter().rfind(|segment| segment.len > 0)?;
    Some(Segment { addr: last.addr.checked_add(u64::from(last.len) - 1)?, len: 1 })
}

/// Writes the status and gives the chain back.
pub(super) fn finish(queue: &mut Queue, slot: &InFlight, code: u8) {
    let said = queue.memory().write(&[slot.status], 0, &[code]).is_ok();
    let written = if code == OK { slot.written } else { 0 };
    // Only with the data complete is everything up to the status written (virtio 1.3 §2.7.8.2).
    queue.push(slot.head, if said { written.saturating_add(1) } else { 0 });
}
