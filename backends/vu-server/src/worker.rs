//! The commands of a worker thread: a channel with an eventfd, so that the worker can wait for commands and kicks at
//! once.
//!
//! ```text
//!   Start(queue) ─▶ serve it ─▶ Stop{index} ─▶ finish what is in flight ─▶ reply.done(queue)
//! ```
//!
//! A worker pops the available chains as soon as it gets a queue, without waiting for a kick: after a backend was
//! replaced, the kick may have come before the worker was there.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::mailbox::{Inbox, Outbox, mailbox};
use crate::queue::Queue;

/// A command to a worker. `T` is the device class's own command ([`Device::Command`](crate::Device::Command)).
#[derive(Debug)]
pub enum WorkerCommand<T> {
    /// Serve this queue from now on.
    Start(Box<Queue>),
    /// Pop no more of this queue, finish what is in flight, then give it back. Always a queue that was started.
    Stop {
        /// The queue's number.
        queue: u16,
        /// Where it goes.
        reply: Reply,
    },
    /// Give this queue another eventfd to call the driver by ([`Queue::set_call`]).
    Call {
        /// The queue's number.
        queue: u16,
        /// Its new eventfd.
        call: Option<Arc<File>>,
        /// Dropped with the command: somebody waits for that.
        obeyed: Obeyed,
    },
    /// What the device class means by it. It may come at any time, with or without a queue.
    Device(T),
    /// End the thread. No queue is running.
    Quit,
}

/// Where a stopped queue goes.
#[derive(Debug)]
pub struct Reply(SyncSender<Box<Queue>>);

impl Reply {
    /// Gives the queue back: nothing of it is in flight, and everything pushed is published.
    pub fn done(self, queue: Box<Queue>) {
        // The control thread waits for it; if it is gone, so is the connection.
        let _ = self.0.send(queue);
    }
}

/// Part of a command that is waited for.
#[derive(Debug)]
pub struct Obeyed(#[expect(dead_code, reason = "its drop is what counts")] SyncSender<Infallible>);

/// A worker has ended although it should not have.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("a worker thread has ended")]
pub struct WorkerGone;

/// The control thread's end. Clones lead to the same worker.
#[derive(Debug)]
pub struct Port<T>(Outbox<WorkerCommand<T>>);

impl<T> Clone for Port<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Port<T> {
    fn send(&self, command: WorkerCommand<T>) -> Result<(), WorkerGone> {
        if self.0.send(command) { Ok(()) } else { Err(WorkerGone) }
    }

    /// Hands a queue over.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn start(&self, queue: Box<Queue>) -> Result<(), WorkerGone> {
        self.send(WorkerCommand::Start(queue))
    }

    /// Waits until the worker has finished with a queue, and takes it back.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn stop(&self, queue: u16) -> Result<Box<Queue>, WorkerGone> {
        let (reply, done) = sync_channel(1);
        self.send(WorkerCommand::Stop { queue, reply: Reply(reply) })?;
        done.recv().map_err(|_| WorkerGone)
    }

    /// Changes the call eventfd of a running queue. Returns when the worker has it: a frontend that sends one after the
    /// other must not fill this process with descriptors.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn set_call(&self, queue: u16, call: Option<Arc<File>>) -> Result<(), WorkerGone> {
        let (obeyed, done) = sync_channel(0);
        self.send(WorkerCommand::Call { queue, call, obeyed: Obeyed(obeyed) })?;
        // Nothing ever comes: the other end is dropped with the command.
        let Err(_) = done.recv();
        Ok(())
    }

    /// Tells the worker what the device class has to say.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn tell(&self, command: T) -> Result<(), WorkerGone> {
        self.send(WorkerCommand::Device(command))
    }

    /// Passes on what another worker was told: from now on that queue is this worker's.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn pass_on(&self, command: WorkerCommand<T>) -> Result<(), WorkerGone> {
        self.send(command)
    }

    /// Lets the worker end.
    pub fn quit(&self) {
        let _ = self.send(WorkerCommand::Quit);
    }
}

/// The worker's end.
#[derive(Debug)]
pub struct Commands<T>(Inbox<WorkerCommand<T>>);

impl<T> Commands<T> {
    /// The next command, without waiting. Take commands until there is none.
    pub fn take(&self) -> Option<WorkerCommand<T>> {
        self.0.take()
    }
}

impl<T> AsFd for Commands<T> {
    /// Readable when there may be commands.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake().as_fd()
    }
}

/// Both ends of a worker's commands.
///
/// # Errors
/// No eventfd could be made.
pub fn commands<T>() -> io::Result<(Port<T>, Commands<T>)> {
    let (outbox, inbox) = mailbox()?;
    Ok((Port(outbox), Commands(inbox)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::sys::eventfd::EventFd;

    use super::*;

    #[test]
    fn a_flood_of_call_eventfds_waits_for_the_worker() {
        let (port, commands) = commands::<()>().unwrap();
        let call = Arc::new(File::from(OwnedFd::from(EventFd::new().unwrap())));
        let flood = {
            let call = call.clone();
            std::thread::spawn(move || while port.set_call(0, Some(call.clone())).is_ok() {})
        };
        for _ in 0..100 {
            std::thread::sleep(std::time::Duration::from_millis(1));
            // Ours, the thread's, and that of one command.
            assert!(Arc::strong_count(&call) <= 3, "{} descriptors", Arc::strong_count(&call));
            commands.take();
        }
        drop(commands);
        flood.join().unwrap();
    }
}
