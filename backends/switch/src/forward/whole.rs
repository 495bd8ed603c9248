//! What a receiver has not negotiated, done in software: the frame is copied once more, into memory of our own.

use domus_net::header::{LEN, MAX_FRAME};
use domus_net::offload::{self, Cut};
use shared_abi::control::DropReason;
use vu_server::{MemoryTable, Segment};

use super::copy::Source;
use super::receive::{Frame, Obstacle, Receive, Takes};

/// Room for one frame, and for a piece of one.
#[derive(Debug, Default)]
pub struct Whole {
    frame: Vec<u8>,
    piece: Vec<u8>,
}

impl Whole {
    /// Takes a frame over: `head`, and the bytes of a guest's memory from `skip` on up to a length of `len`.
    ///
    /// # Errors
    /// A part of it is outside the memory.
    pub fn load(
        &mut self,
        head: &[u8],
        memory: &MemoryTable,
        segments: &[Segment],
        skip: u64,
        len: u64,
    ) -> Result<(), DropReason> {
        self.frame.clear();
        self.frame.extend_from_slice(head);
        // `header::check` has passed it.
        self.frame.resize(len.min(MAX_FRAME) as usize, 0);
        let rest = self.frame.get_mut(head.len()..).unwrap_or_default();
        match memory.read(segments, skip, rest) {
            Ok(count) if count == rest.len() => Ok(()),
            _ => Err(DropReason::Memory),
        }
    }

    /// Delivers the frame loaded, before which was `header`, as the receiver takes it: in at most so many pieces.
    ///
    /// # Errors
    /// As [`Receive::deliver`]: nothing of it has been delivered.
    pub fn deliver(
        &mut self,
        header: &[u8; LEN],
        receive: &mut Receive,
        takes: Takes,
        most: usize,
        now: u64,
    ) -> Result<(), Obstacle> {
        let plain = [0; LEN];
        let unfit = |receive: &Receive| {
            receive.lose(DropReason::Header);
            Obstacle::Lost(DropReason::Header)
        };
        let rest = Source::empty();
        if takes != Takes::Cut {
            // The frame may go to other receivers, too.
            self.piece.clone_from(&self.frame);
            offload::fill(header, &mut self.piece).map_err(|_| unfit(receive))?;
            return receive.deliver(Frame { header: &plain, head: &self.piece, rest: &rest }, now);
        }
        let cut = Cut::new(header, &self.frame).map_err(|_| unfit(receive))?;
        if cut.segments() > most {
            return Err(unfit(receive));
        }
        for number in 0..cut.segments() {
            cut.segment(number, &mut self.piece);
            match receive.deliver(Frame { header: &plain, head: &self.piece, rest: &rest }, now) {
                Ok(()) => {}
                Err(obstacle) if number == 0 => return Err(obstacle),
                // The guest asks for it again, as it does when a network loses a part.
                Err(Obstacle::Full | Obstacle::Limit(_)) => receive.lose(DropReason::NoRoom),
                Err(Obstacle::Lost(_)) => {}
            }
        }
        Ok(())
    }
}
