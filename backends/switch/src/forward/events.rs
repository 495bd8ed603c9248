//! The epoll of the data thread, for commands and kicks.
//!
//! Kicks are edge-triggered, so the thread need not read an eventfd: a write to it is enough. A descriptor is removed
//! from the epoll before it is closed, as other descriptors of the same file may keep it open.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Most events at once; what is left over comes with the next look.
const MAX_EVENTS: usize = 64;

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// There may be commands for the switch.
    Switch,
    /// There may be commands for this port.
    Port(usize),
    /// The guest at this port has made receive buffers available.
    Receive(usize),
    /// The guest at this port has made frames available.
    Transmit(usize),
}

impl Event {
    fn token(self) -> u64 {
        let (kind, port) = match self {
            Self::Switch => (0, 0),
            Self::Port(port) => (1, port),
            Self::Receive(port) => (2, port),
            Self::Transmit(port) => (3, port),
        };
        kind << 32 | port as u64
    }

    fn from_token(token: u64) -> Self {
        let port = token as u32 as usize;
        match token >> 32 {
            0 => Self::Switch,
            1 => Self::Port(port),
            2 => Self::Receive(port),
            _ => Self::Transmit(port),
        }
    }
}

/// The epoll.
#[derive(Debug)]
pub struct Events(Epoll);

impl Events {
    /// Watches nothing.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Watches commands, which are taken until there are none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn watch(&self, fd: impl AsFd, event: Event) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, event.token()))?)
    }

    /// Watches a kick. One that is no eventfd is its frontend's loss: nobody wakes up for it.
    pub fn watch_kick(&self, fd: BorrowedFd<'_>, event: Event) {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let _ = self.0.add(fd, EpollEvent::new(flags, event.token()));
    }

    /// Watches it no more.
    pub fn forget(&self, fd: impl AsFd) {
        let _ = self.0.delete(fd);
    }

    /// Waits for at most this time, rounded up to milliseconds, or for ever; adds the events to `into`.
    pub fn wait(&self, nanoseconds: Option<u64>, into: &mut Vec<Event>) {
        let timeout = match nanoseconds {
            None => EpollTimeout::NONE,
            Some(0) => EpollTimeout::ZERO,
            Some(time) => u16::try_from(time.div_ceil(1_000_000)).unwrap_or(u16::MAX).into(),
        };
        let mut events = [EpollEvent::empty(); MAX_EVENTS];
        match self.0.wait(&mut events, timeout) {
            Ok(count) => into.extend(events[..count].iter().map(|event| Event::from_token(event.data()))),
            // Interrupted, or nothing: the next look tells.
            Err(Errno::EINTR) => {}
            // It is ours and open, so there is nothing else; if there were, this would be no busy loop.
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
        }
    }
}
