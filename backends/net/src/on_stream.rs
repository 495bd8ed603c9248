//! The two ends of a stream wire: a socket on which frames follow their lengths ([`crate::stream`]).
//!
//! The end that first notices a lost peer shuts the socket down, so that the other end notices too; the reader reports
//! the loss. Until the next connection nothing is received, and frames that are sent are lost. A frame of which the
//! socket has taken a part is finished before the next one: the rest is kept here, one frame at most.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::header::MAX_FRAME;
use crate::stream::{Decoder, PREFIX, prefix};
use crate::vectored_io::{Part, VectoredIo};
use crate::wire::{Sink, Source};

/// Where frames come from.
#[derive(Debug, Default)]
pub struct Reader {
    socket: Option<Arc<UnixStream>>,
    decoder: Decoder,
}

impl Reader {
    /// From this connection, or from none.
    pub fn new(socket: Option<Arc<UnixStream>>) -> Self {
        Self { socket, decoder: Decoder::default() }
    }

    /// Gives the next frame to `take`.
    fn next<T>(&mut self, take: impl FnOnce(&[u8]) -> io::Result<T>) -> io::Result<T> {
        let Some(socket) = &self.socket else { return Err(io::ErrorKind::NotConnected.into()) };
        loop {
            let frame = self.decoder.frame();
            if let Some(frame) = frame.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
                return take(frame);
            }
            match (&**socket).read(self.decoder.room()) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.decoder.received(count),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Source for Reader {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|socket| socket.as_fd())
    }

    fn read(
        &mut self,
        header: usize,
        head: &mut [u8],
        buffers: Part<'_>,
        spill: &mut [u8],
    ) -> io::Result<usize> {
        self.next(|frame| {
            let (virtio, look) = head.split_at_mut(header.min(head.len()));
            virtio.fill(0);
            let (first, rest) = frame.split_at(look.len().min(frame.len()));
            look[..first.len()].copy_from_slice(first);
            // The receiver has checked the buffers.
            let written = buffers.memory.write(buffers.segments, buffers.skip, rest);
            let rest = &rest[written.map_err(|_| io::ErrorKind::InvalidInput)?..];
            let spilled = rest.len().min(spill.len());
            spill[..spilled].copy_from_slice(&rest[..spilled]);
            Ok(header + frame.len())
        })
    }

    fn skip(&mut self, _scratch: &mut [u8]) -> io::Result<()> {
        self.next(|_| Ok(()))
    }

    fn gone(&mut self) {
        if let Some(socket) = &self.socket {
            // It may be gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn connect(&mut self, socket: Arc<UnixStream>) {
        self.socket = Some(socket);
        self.decoder.clear();
    }
}

/// Where frames go to.
#[derive(Debug, Default)]
pub struct Writer {
    socket: Option<Arc<UnixStream>>,
    /// Somebody is at its other end.
    connected: bool,
    pieces: VectoredIo,
    /// What is left of the last frame.
    left: Vec<u8>,
}

impl Writer {
    /// To this connection, or to none.
    pub fn new(socket: Option<Arc<UnixStream>>) -> Self {
        Self { connected: socket.is_some(), socket, ..Self::default() }
    }

    /// Nobody is there any more.
    fn hang_up(&mut self) {
        if let Some(socket) = &self.socket {
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.connected = false;
        self.left.clear();
    }

    /// What an error of the socket comes to.
    fn failed<T>(&mut self, error: io::Error) -> io::Result<T> {
        match error.kind() {
            io::ErrorKind::WouldBlock => Err(error),
            _ => {
                self.hang_up();
                Err(io::ErrorKind::NotConnected.into())
            }
        }
    }
}

impl Sink for Writer {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|socket| socket.as_fd())
    }

    fn write(&mut self, header: usize, head: &mut [u8], rest: Part<'_>) -> io::Result<()> {
        self.flush()?;
        let Some(socket) = self.socket.clone().filter(|_| self.connected) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let frame = (head.len() - header) as u64 + rest.limit;
        // The length takes the place of the header's end.
        let start = header - PREFIX;
        head[start..header].copy_from_slice(&prefix(frame));
        let head = &head[start..];
        let written = match self.pieces.write(socket.as_fd(), head, rest) {
            Ok(written) => written,
            // The guest's buffers, not the socket.
            Err(error) if error.raw_os_error().is_none() => return Err(error),
            Err(error) => return self.failed(error),
        };
        if (written as u64) < PREFIX as u64 + frame {
            self.left.extend_from_slice(head.get(written..).unwrap_or_default());
            let skip = written.saturating_sub(head.len()) as u64;
            let start = self.left.len();
            // At most a frame's length: the header was checked.
            self.left.resize(start + rest.limit.saturating_sub(skip).min(MAX_FRAME) as usize, 0);
            // Mapped, or it could not have been written.
            let _ = rest.memory.read(rest.segments, rest.skip + skip, &mut self.left[start..]);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while let (false, Some(socket)) = (self.left.is_empty(), &self.socket) {
            match (&**socket).write(&self.left) {
                Ok(0) => return self.failed(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.left.drain(..count)),
                Err(error) => return self.failed(error),
            }
        }
        Ok(())
    }

    fn connect(&mut self, socket: Arc<UnixStream>) {
        self.left.clear();
        self.socket = Some(socket);
        self.connected = true;
    }
}
