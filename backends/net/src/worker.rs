//! The thread behind one queue: orders, and turns of work.
//!
//! ```text
//!   turn: do what can be done ─▶ wait for what is missing (an order always; a kick, the wire or time if named) ─▶ turn …
//! ```
//!
//! An idle queue wakes nobody.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vu_server::{Order, Orders, Port, Queue};

use crate::features;
use crate::order::NicOrder;
use crate::settings::Wanted;
use crate::sleeper::{Sleeper, Wait};

/// What a queue is worked with: [`crate::rx::Receive`], [`crate::tx::Transmit`] or [`crate::control::Control`].
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

/// A worker's orders, and where it sleeps.
#[derive(Debug)]
pub struct Desk {
    orders: Orders<NicOrder>,
    sleeper: Sleeper,
    /// The control queue's worker, for the queue whose number is the control queue's for drivers that know of one pair only.
    control: Option<Port<NicOrder>>,
    /// Queues that were started and are not worked with: no driver has two control queues.
    surplus: Vec<Queue>,
}

impl Desk {
    /// A desk for these orders.
    ///
    /// # Errors
    /// As [`Sleeper::new`].
    pub fn new(orders: Orders<NicOrder>) -> std::io::Result<Self> {
        use std::os::fd::AsFd;
        let sleeper = Sleeper::new(orders.as_fd())?;
        Ok(Self { orders, sleeper, control: None, surplus: Vec::new() })
    }

    /// Passes queues on that are the control queue, to its worker.
    pub fn pass_control_on(&mut self, control: Port<NicOrder>) {
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
        if !desk.sleeper.sleep(wait, work.wire()) {
            continue;
        }
        while let Some(order) = desk.orders.take() {
            match order {
                Order::Start(queue) if desk.is_control(&queue) => {
                    passing_on = true;
                    pass_on(&desk, Order::Start(queue));
                }
                Order::Stop { .. } if passing_on => {
                    passing_on = false;
                    pass_on(&desk, order);
                }
                Order::Call { .. } if passing_on => pass_on(&desk, order),
                Order::Start(queue) if !work.takes(&queue) => desk.surplus.push(*queue),
                Order::Start(queue) => {
                    desk.sleeper.add_kick(queue.kick());
                    work.start(queue);
                }
                Order::Stop { queue, reply } => {
                    let stopped = desk
                        .take_surplus(queue)
                        .or_else(|| work.stop().inspect(|queue| desk.sleeper.remove_kick(queue.kick())));
                    if let Some(queue) = stopped {
                        reply.done(queue);
                    }
                }
                Order::Call { queue: index, call } => {
                    // One that is surplus is never called.
                    if let Some(queue) = work.queue()
                        && queue.index() == index
                    {
                        queue.set_call(call);
                    }
                }
                Order::Device(order) => obey(&mut work, &mut desk.sleeper, order),
                Order::Quit => return,
            }
        }
    }
}

fn pass_on(desk: &Desk, order: Order<NicOrder>) {
    if let Some(control) = &desk.control {
        // If that worker has ended, whoever waits for an answer learns it.
        let _ = control.pass_on(order);
    }
}

fn obey(work: &mut impl Work, sleeper: &mut Sleeper, order: NicOrder) {
    match order {
        NicOrder::Wanted(wanted) => work.want(wanted),
        NicOrder::Active(active) => work.activate(active),
        // The next turn does.
        NicOrder::Look => {}
        NicOrder::Connected(socket) => {
            if let Some(wire) = work.wire() {
                sleeper.remove_wire(wire);
            }
            work.connect(socket);
        }
        NicOrder::Settle(settled) => {
            // Whoever asked may have stopped waiting.
            let _ = settled.try_send(());
        }
    }
}
