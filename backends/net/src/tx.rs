//! Frames from the guest: one chain, one `writev` straight from the guest's memory to the tap.
//!
//! Refused, without a word: what [`header::check`] refuses, chains without a whole header, buffers outside the memory,
//! and packets whose own headers the kernel finds wrong. Their chains are given back like all others.

use std::io;

use nix::errno::Errno;
use vu_server::{Chain, Queue};

use crate::features::header_len;
use crate::header;
use crate::tap::{Pieces, Tap};
use crate::worker::{Wait, Work};

/// Most chains of one turn: a flood keeps orders waiting for no longer.
const BURST: usize = 64;

/// The transmit queue's work.
#[derive(Debug, Default)]
pub struct Transmit {
    queue: Option<Box<Queue>>,
    chain: Chain,
    pieces: Pieces,
}

impl Transmit {
    fn send(&mut self, queue: &Queue, tap: &Tap) -> io::Result<()> {
        let refused = || io::Error::from(io::ErrorKind::InvalidInput);
        let (readable, memory) = (&self.chain.readable, queue.memory());
        let length = header_len(queue.features());
        let mut header = [0; header::LEN];
        if memory.read(readable, 0, &mut header[..length]) != Ok(length) {
            return Err(refused());
        }
        let frame = self.chain.readable_len() - length as u64;
        let header = header::check(header, frame, queue.features()).map_err(|_| refused())?;
        tap.write(&header[..length], memory, readable, (length as u64, frame), &mut self.pieces)
    }
}

impl Work for Transmit {
    fn queue(&mut self) -> &mut Option<Box<Queue>> {
        &mut self.queue
    }

    fn turn(&mut self, tap: &Tap) -> Wait {
        let Some(mut queue) = self.queue.take() else { return Wait::Order };
        let wait = self.burst(&mut queue, tap);
        self.queue = Some(queue);
        wait
    }
}

impl Transmit {
    fn burst(&mut self, queue: &mut Queue, tap: &Tap) -> Wait {
        queue.disable_kicks();
        for _ in 0..BURST {
            if !queue.pop(&mut self.chain) {
                queue.publish();
                return match (queue.is_broken(), queue.enable_kicks()) {
                    (true, _) => Wait::Order,
                    (false, true) => Wait::Nothing,
                    (false, false) => Wait::Kick,
                };
            }
            match self.send(queue, tap) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => {
                    queue.unpop(1);
                    queue.publish();
                    return Wait::Writable;
                }
                // The network may lose what it cannot carry; so does an interface that is down (EIO).
                Err(_) => {}
            }
            queue.push(self.chain.head, 0);
        }
        queue.publish();
        Wait::Nothing
    }
}
