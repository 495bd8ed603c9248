//! The epoll of a worker: it waits for commands, the kick of its queue and the wire at once.
//!
//! Kicks and the wire are edge-triggered, so no worker has to read a kick's counter and no event wakes a worker twice.
//! The wire is watched only while a worker waits for it. A kick descriptor that cannot kick (closed, at its end, a
//! file) wakes the worker once at most.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// What a worker waits for, besides commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Nothing: look for commands and go on.
    Nothing,
    /// Nothing can be done before a command comes.
    Command,
    /// The driver must make buffers available.
    Kick,
    /// The wire must have a frame.
    Readable,
    /// The wire must have room.
    Writable,
    /// So many nanoseconds must pass.
    Time(u64),
}

/// Nanoseconds after which something is tried again for which the kernel had no memory.
const RETRY_AFTER: u64 = 10_000_000;

const COMMANDS: u64 = 0;
const KICK: u64 = 1;
const WIRE: u64 = 2;

/// The place.
#[derive(Debug)]
pub struct WaitSet {
    epoll: Epoll,
    /// What of the wire is waited for; none if the wire is not known yet.
    wire: Option<EpollFlags>,
}

impl WaitSet {
    /// A place in which `commands` are waited for.
    ///
    /// # Errors
    /// No epoll descriptor could be made.
    pub fn new(commands: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(commands, EpollEvent::new(EpollFlags::EPOLLIN, COMMANDS))?;
        Ok(Self { epoll, wire: None })
    }

    /// A queue starts whose kick this is.
    pub fn add_kick(&self, kick: BorrowedFd<'_>) {
        // What cannot be waited for never kicks.
        let _ = self.epoll.add(kick, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, KICK));
    }

    /// The queue whose kick this is stops.
    pub fn remove_kick(&self, kick: BorrowedFd<'_>) {
        let _ = self.epoll.delete(kick);
    }

    /// The wire at this descriptor is not the wire any more.
    pub fn remove_wire(&mut self, wire: BorrowedFd<'_>) {
        if self.wire.take().is_some() {
            let _ = self.epoll.delete(wire);
        }
    }

    /// Sleeps. True if there may be commands.
    pub fn sleep(&mut self, wait: Wait, wire: Option<BorrowedFd<'_>>) -> bool {
        let (watch, timeout) = match wait {
            Wait::Readable => (EpollFlags::EPOLLIN, EpollTimeout::NONE),
            Wait::Writable => (EpollFlags::EPOLLOUT, EpollTimeout::NONE),
            Wait::Command | Wait::Kick => (EpollFlags::empty(), EpollTimeout::NONE),
            Wait::Nothing => (self.wire.unwrap_or(EpollFlags::empty()), EpollTimeout::ZERO),
            Wait::Time(nanoseconds) => (EpollFlags::empty(), milliseconds(nanoseconds)),
        };
        let mut timeout = timeout;
        if let Some(wire) = wire
            && self.watch(wire, watch).is_err()
        {
            // Only for want of memory: the next turn, soon, tries again.
            self.remove_wire(wire);
            timeout = milliseconds(RETRY_AFTER);
        }
        let mut events = [EpollEvent::empty(); 3];
        match self.epoll.wait(&mut events, timeout) {
            Ok(count) => events[..count].iter().any(|event| event.data() == COMMANDS),
            Err(Errno::EINTR) => false,
            Err(_) => true,
        }
    }

    fn watch(&mut self, wire: BorrowedFd<'_>, watch: EpollFlags) -> nix::Result<()> {
        if self.wire.unwrap_or(EpollFlags::empty()) == watch {
            return Ok(());
        }
        // Not even an error or a hang-up is reported where nothing is waited for: the edge was seen when it came.
        let mut event = EpollEvent::new(watch | EpollFlags::EPOLLET, WIRE);
        match self.wire {
            Some(_) => self.epoll.modify(wire, &mut event)?,
            None => self.epoll.add(wire, event)?,
        }
        self.wire = Some(watch);
        Ok(())
    }
}

fn milliseconds(nanoseconds: u64) -> EpollTimeout {
    let time = Duration::from_millis(nanoseconds.div_ceil(1_000_000));
    EpollTimeout::try_from(time).unwrap_or(EpollTimeout::MAX)
}
