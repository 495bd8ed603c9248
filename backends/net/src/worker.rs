//! The thread behind one queue: orders, kicks and the tap, waited for at once.
//!
//! ```text
//!   turn: do what can be done ─▶ wait for what is missing (an order always; a kick or the tap if named) ─▶ turn …
//! ```
//!
//! It never polls busily: an idle queue wakes nobody. A kick descriptor that is none (closed, at its end) is not
//! waited for any more, instead of waking the thread for ever.

use std::convert::Infallible;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vu_server::{Order, Orders, Queue};

use crate::tap::Tap;

/// What a queue is worked with: [`crate::rx::Receive`] or [`crate::tx::Transmit`].
pub trait Work {
    /// The queue to work with, if it runs.
    fn queue(&mut self) -> &mut Option<Box<Queue>>;

    /// Works with this queue from now on: what is available in it is there to be taken, kick or not.
    fn start(&mut self, queue: Box<Queue>) {
        *self.queue() = Some(queue);
    }

    /// Works no more, and gives the queue back with nothing in work.
    fn stop(&mut self) -> Option<Box<Queue>> {
        self.queue().take()
    }

    /// Does a bounded amount of what can be done now. Says what to wait for before the next turn.
    fn turn(&mut self, tap: &Tap) -> Wait;
}

/// What a turn ended for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Nothing is missing: look for orders and go on.
    Nothing,
    /// Nothing can be done before an order comes.
    Order,
    /// The driver must make buffers available.
    Kick,
    /// The tap must have a frame.
    Readable,
    /// The tap must have room.
    Writable,
}

/// Works until told to quit.
pub fn run(mut work: impl Work, tap: &Tap, orders: &Orders<Infallible>) {
    let mut kick_works = true;
    loop {
        let wait = work.turn(tap);
        let (ordered, kicked) = match await_one(wait, kick_works, work.queue().as_deref(), tap, orders) {
            Ok(ready) => ready,
            // Only for want of memory: nothing is lost, the next turn tries again.
            Err(_) => (true, PollFlags::empty()),
        };
        if kicked.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL) {
            kick_works = false;
        } else if kicked.contains(PollFlags::POLLIN)
            && let Some(queue) = work.queue()
        {
            kick_works = !matches!(nix::unistd::read(queue.kick(), &mut [0; 8]), Ok(0));
        }
        if !ordered {
            continue;
        }
        while let Some(order) = orders.take() {
            match order {
                Order::Start(queue) => {
                    kick_works = true;
                    work.start(queue);
                }
                Order::Stop { reply, .. } => {
                    if let Some(queue) = work.stop() {
                        reply.done(queue);
                    }
                }
                Order::Call { call, .. } => {
                    if let Some(queue) = work.queue() {
                        queue.set_call(call);
                    }
                }
                Order::Device(never) => match never {},
                Order::Quit => return,
            }
        }
    }
}

/// Waits; returns whether there may be orders, and what is with the kick descriptor.
fn await_one(
    wait: Wait,
    kick_works: bool,
    queue: Option<&Queue>,
    tap: &Tap,
    orders: &Orders<Infallible>,
) -> nix::Result<(bool, PollFlags)> {
    let orders_fd = PollFd::new(orders.as_fd(), PollFlags::POLLIN);
    let second = match (wait, queue) {
        (Wait::Kick, Some(queue)) if kick_works => Some(PollFd::new(queue.kick(), PollFlags::POLLIN)),
        (Wait::Readable, _) => Some(PollFd::new(tap.as_fd(), PollFlags::POLLIN)),
        (Wait::Writable, _) => Some(PollFd::new(tap.as_fd(), PollFlags::POLLOUT)),
        _ => None,
    };
    let timeout = if wait == Wait::Nothing { PollTimeout::ZERO } else { PollTimeout::NONE };
    let count = 1 + usize::from(second.is_some());
    let mut fds = [orders_fd.clone(), second.unwrap_or(orders_fd)];
    let used = &mut fds[..count];
    while let Err(errno) = poll(used, timeout) {
        if errno != Errno::EINTR {
            return Err(errno);
        }
    }
    let ready = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
    let kicked = if wait == Wait::Kick && used.len() == 2 { ready(&used[1]) } else { PollFlags::empty() };
    Ok((!ready(&used[0]).is_empty(), kicked))
}
