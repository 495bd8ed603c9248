//! A connected socket in the thread's ring, with a buffer for what is received.
#![expect(
    unsafe_code,
    reason = "the kernel reads and fills slices that are borrowed by the future that waits"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use libc::iovec;

use crate::async_io::reactor::Reactor;

/// Bytes received ahead: many replies without data, or the headers before some.
const READ_AHEAD: usize = 16 << 10;

/// The sending side. Futures of this module are polled to their end or dropped, and never leaked.
#[derive(Debug, Clone)]
pub struct Sender {
    reactor: Arc<Reactor>,
    socket: Arc<File>,
}

/// The receiving side.
#[derive(Debug)]
pub struct Receiver {
    sender: Sender,
    ahead: Vec<u8>,
    taken: usize,
}

/// Both sides of a socket. It may be blocking or not.
pub fn split(reactor: &Arc<Reactor>, socket: OwnedFd) -> (Sender, Receiver) {
    let sender = Sender { reactor: reactor.clone(), socket: Arc::new(socket.into()) };
    (sender.clone(), Receiver { sender, ahead: Vec::new(), taken: 0 })
}

impl Sender {
    /// Sends `head`, then `data`.
    pub(super) async fn send(&self, mut head: &[u8], mut data: &[u8]) -> io::Result<()> {
        while !head.is_empty() || !data.is_empty() {
            let parts = [head, data]
                .map(|part| iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
            // SAFETY: this future borrows both slices and drops the operation before them; a write only reads from
            // them.
            let sent = match unsafe { self.reactor.write(&self.socket, &parts, 0) }.await {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => usize::try_from(sent).unwrap_or(usize::MAX),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.reactor.ready(self.socket.as_fd(), true).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let of_head = sent.min(head.len());
            head = &head[of_head..];
            data = &data[(sent - of_head).min(data.len())..];
        }
        Ok(())
    }

    async fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        let parts = [iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() }];
        loop {
            // SAFETY: the slice is borrowed mutably by this future, which drops the operation first.
            match unsafe { self.reactor.read(&self.socket, &parts, 0) }.await {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => return Ok(usize::try_from(received).unwrap_or(usize::MAX).min(into.len())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.reactor.ready(self.socket.as_fd(), false).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Receiver {
    /// Fills `into`.
    pub(super) async fn receive(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut done = self.take(into);
        while done < into.len() {
            if into.len() - done >= READ_AHEAD {
                done += self.sender.receive(&mut into[done..]).await?;
                continue;
            }
            self.taken = 0;
            self.ahead.resize(READ_AHEAD, 0);
            let received = self.sender.receive(&mut self.ahead).await?;
            self.ahead.truncate(received);
            done += self.take(&mut into[done..]);
        }
        Ok(())
    }

    /// Takes what was received ahead.
    fn take(&mut self, into: &mut [u8]) -> usize {
        let left = self.ahead.get(self.taken..).unwrap_or_default();
        let count = left.len().min(into.len());
        into[..count].copy_from_slice(&left[..count]);
        self.taken += count;
        count
    }

    pub(super) async fn u16(&mut self) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.receive(&mut bytes).await?;
        Ok(u16::from_be_bytes(bytes))
    }

    pub(super) async fn u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.receive(&mut bytes).await?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub(super) async fn u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.receive(&mut bytes).await?;
        Ok(u64::from_be_bytes(bytes))
    }
}
