//! The other end of a NIC's cable, as its queues see it: a source and a sink of frames.
//!
//! Here every frame has a virtio header before it. A wire without virtio headers ignores the header of a sent frame and
//! gives a header of zeros with a received one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::tap::Tap;
use crate::vectored_io::{Part, VectoredIo};

/// Where frames for the guest come from.
pub trait Source {
    /// What becomes readable when there is a frame; none if nobody is there.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Reads one frame with a header of `header` bytes before it: into `head`, which has room for the header, then into
    /// the guest's buffers, then into `spill`. Returns the total length; bytes beyond the room are lost.
    ///
    /// # Errors
    /// `WouldBlock` if there is none, `NotConnected` if nobody is there, others as [`VectoredIo::read`].
    fn read(
        &mut self,
        header: usize,
        head: &mut [u8],
        buffers: Part<'_>,
        spill: &mut [u8],
    ) -> io::Result<usize>;

    /// Takes one frame away. `scratch` may be overwritten.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn skip(&mut self, scratch: &mut [u8]) -> io::Result<()>;

    /// The receive ring of this wire runs, or not.
    fn running(&mut self, running: bool) {
        let _ = running;
    }

    /// Nobody is there: a read has failed.
    fn gone(&mut self) {}

    /// From now on frames come from here.
    fn connect(&mut self, socket: Arc<UnixStream>) {
        drop(socket);
    }
}

/// Where frames of the guest go to.
pub trait Sink {
    /// What becomes writable when there is room; none if nobody is there.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Sends one frame: its virtio header of `header` bytes and its beginning are in `head`, which may be overwritten,
    /// the rest is in the guest's buffers.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room, `NotConnected` if nobody is there, others as [`VectoredIo::write`]. No part of
    /// the frame was sent then.
    fn write(&mut self, header: usize, head: &mut [u8], rest: Part<'_>) -> io::Result<()>;

    /// Sends what is left of frames that were taken already.
    ///
    /// # Errors
    /// `WouldBlock` if there is still something left.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// From now on frames go here.
    fn connect(&mut self, socket: Arc<UnixStream>) {
        drop(socket);
    }
}

/// One queue of a tap, both ways.
#[derive(Debug)]
pub struct OnTap {
    tap: Arc<Tap>,
    pieces: VectoredIo,
    follows: bool,
}

impl OnTap {
    /// A wire on this queue. With `follows` the queue receives frames only while its receive ring runs, and is
    /// [detached](Tap::attach) at the start: for frontends that implement the control queue themselves and run the
    /// rings of the pairs in use.
    pub fn new(tap: Arc<Tap>, follows: bool) -> Self {
        Self { tap, pieces: VectoredIo::default(), follows }
    }
}

impl Source for OnTap {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tap.as_fd())
    }

    fn read(
        &mut self,
        _header: usize,
        head: &mut [u8],
        buffers: Part<'_>,
        spill: &mut [u8],
    ) -> io::Result<usize> {
        self.pieces.read(self.tap.as_fd(), head, buffers, spill)
    }

    fn skip(&mut self, scratch: &mut [u8]) -> io::Result<()> {
        nix::unistd::read(self.tap.as_fd(), scratch)?;
        Ok(())
    }

    fn running(&mut self, running: bool) {
        if self.follows {
            // It answers for as long as there is an interface; without one there are no frames.
            let _ = self.tap.attach(running);
        }
    }
}

impl Sink for OnTap {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tap.as_fd())
    }

    fn write(&mut self, header: usize, head: &mut [u8], rest: Part<'_>) -> io::Result<()> {
        // The filter has judged what follows a header of this length; with another the kernel would send other bytes.
        if !self.tap.takes_header(header) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.pieces.write(self.tap.as_fd(), head, rest).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use vu_server::MemoryTable;

    use super::*;

    #[test]
    fn a_frame_behind_a_header_that_the_tap_has_not_is_not_sent() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let tap = Arc::new(Tap::in_place(ours.into()).unwrap());
        let mut wire = OnTap::new(tap.clone(), false);
        let memory = MemoryTable::default();
        let mut send = |header| {
            let rest = Part { memory: &memory, segments: &[], skip: 0, limit: 0 };
            wire.write(header, &mut [7; 60], rest).map_err(|error| error.kind())
        };
        let came = || theirs.recv(&mut [0; 100]).is_ok();
        for (set, header, sent) in
            [(None, 12, true), (Some(12), 12, true), (Some(10), 12, false), (None, 10, true)]
        {
            set.into_iter().for_each(|set| tap.expect_header(set));
            assert_eq!(send(header), if sent { Ok(()) } else { Err(io::ErrorKind::InvalidData) });
            assert_eq!(came(), sent, "{set:?} {header}");
        }
    }
}
