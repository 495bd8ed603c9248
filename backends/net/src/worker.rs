//! The thread of one queue: it obeys commands, and does the queue's work in turns.
//!
//! ```text
//!   turn: work until something is missing ─▶ wait for it (a kick, the wire or time) or for a command ─▶ turn …
//! ```
//!
//! The thread of an idle queue sleeps.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vu_server::{Commands, Port, Queue, WorkerCommand};

use crate::features;
use crate::settings::Wanted;
use crate::wait_set::{Wait, WaitSet};
use crate::worker_command::NicCommand;

/// The work of a queue: [`crate::rx::Receive`], [`crate::tx::Transmit`] or [`crate::control_queue::ControlQueue`].
pub trait Work {
    /// The queue to work with, if it runs.
    fn queue(&mut self) -> &mut Option<Box<Queue>>;

    /// Whether this queue is to be worked with.
    fn takes(&self, queue: &Queue) -> bool {
        let _ = queue;
        true
    }

    /// Works with this queue from now on: what is available in it is there to be taken, kick or not.
    fn start(&mut self, queue: Box<Queue>) {
        *self.queue() = Some(queue);
    }

    /// Works no more, and gives the queue back with nothing in work.
    fn stop(&mut self) -> Option<Box<Queue>> {
        self.queue().take()
    }

    /// Does a bounded amount of what can be done now. Says what to wait for before the next turn.
    fn turn(&mut self) -> Wait;

    /// The wire that [`Wait::Readable`] and [`Wait::Writable`] mean.
    fn wire(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// From now on the wire is this connection.
    fn connect(&mut self, socket: Arc<UnixStream>) {
        drop(socket);
    }

    /// The driver wants these frames.
    fn want(&mut self, wanted: Arc<Wanted>) {
        drop(wanted);
    }

    /// The queue pair is in use, or not.
    fn activate(&mut self, active: bool) {
        let _ = active;
    }
}

/// A worker's commands, and where it sleeps.
#[derive(Debug)]
pub struct Desk {
    commands: Commands<NicCommand>,
    wait_set: WaitSet,
    /// The control queue's worker. With a driver that knows one pair only, the control queue has this queue's number.
    control: Option<Port<NicCommand>>,
    /// Queues that were started and are not worked with: no driver has two control queues.
    surplus: Vec<Queue>,
}

impl Desk {
    /// A desk for these commands.
    ///
    /// # Errors
    /// As [`WaitSet::new`].
    pub fn new(commands: Commands<NicCommand>) -> std::io::Result<Self> {
        use std::os::fd::AsFd;
        let wait_set = WaitSet::new(commands.as_fd())?;
        Ok(Self { commands, wait_set, control: None, surplus: Vec::new() })
    }

    /// Passes queues on that are the control queue, to its worker.
    pub fn pass_control_on(&mut self, control: Port<NicCommand>) {
        self.control = Some(control);
    }

    fn take_surplus(&mut self, index: u16) -> Option<Box<Queue>> {
        let found = self.surplus.iter().position(|queue| queue.index() == index)?;
        Some(Box::new(self.surplus.swap_remove(found)))
    }

    /// Whether this queue is the control queue, which another worker has.
    fn is_control(&self, queue: &Queue) -> bool {
        self.control.is_some() && queue.features() & (features::MQ | features::RSS) == 0
    }
}

/// Works until told to quit.
pub fn run(mut work: impl Work, mut desk: Desk) {
    let mut passing_on = false;
    loop {
        let wait = work.turn();
        if !desk.wait_set.sleep(wait, work.wire()) {
            continue;
        }
        while let Some(command) = desk.commands.take() {
            match command {
                WorkerCommand::Start(queue) if desk.is_control(&queue) => {
                    passing_on = true;
                    pass_on(&desk, WorkerCommand::Start(queue));
                }
                WorkerCommand::Stop { .. } if passing_on => {
                    passing_on = false;
                    pass_on(&desk, command);
                }
                WorkerCommand::Call { .. } if passing_on => pass_on(&desk, command),
                WorkerCommand::Start(queue) if !work.takes(&queue) => desk.surplus.push(*queue),
                WorkerCommand::Start(queue) => {
                    desk.wait_set.add_kick(queue.kick());
                    work.start(queue);
                }
                WorkerCommand::Stop { queue, reply } => {
                    let stopped = desk
                        .take_surplus(queue)
                        .or_else(|| work.stop().inspect(|queue| desk.wait_set.remove_kick(queue.kick())));
                    if let Some(queue) = stopped {
                        reply.done(queue);
                    }
                }
                WorkerCommand::Call { queue: index, call, .. } => {
                    // One that is surplus is never called.
                    if let Some(queue) = work.queue()
                        && queue.index() == index
                    {
                        queue.set_call(call);
                    }
                }
                WorkerCommand::Device(command) => obey(&mut work, &mut desk.wait_set, command),
                WorkerCommand::Quit => return,
            }
        }
    }
}

fn pass_on(desk: &Desk, command: WorkerCommand<NicCommand>) {
    if let Some(control) = &desk.control {
        // If that worker has ended, whoever waits for an answer learns it.
        let _ = control.pass_on(command);
    }
}

fn obey(work: &mut impl Work, wait_set: &mut WaitSet, command: NicCommand) {
    match command {
        NicCommand::Wanted(wanted) => work.want(wanted),
        NicCommand::Active(active) => work.activate(active),
        // The next turn does.
        NicCommand::Look => {}
        NicCommand::Connected(socket) => {
            if let Some(wire) = work.wire() {
                wait_set.remove_wire(wire);
            }
            work.connect(socket);
        }
        NicCommand::Settle(settled) => {
            // Whoever asked may have stopped waiting.
            let _ = settled.try_send(());
        }
    }
}
