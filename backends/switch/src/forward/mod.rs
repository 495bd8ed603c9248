//! The data thread: takes frames from the transmit rings of all ports and puts them into receive rings.
//!
//! ```text
//!   for each port with something to send: up to BURST frames ─▶ publish receivers, publish sender
//!   nothing left ─▶ look for a moment, if frames come one soon after the other ─▶ ask for kicks ─▶ sleep
//! ```
//!
//! A frame for one port waits at the head of its sender's ring while the receiver has no room, for up to [`HOLD`]; the
//! sender's later frames wait behind it. After that time the frame is lost, and so are further frames to that receiver
//! until it takes one again: a guest that does not empty its ring delays each sender only once. A frame for all ports
//! never waits.

mod copy;
mod events;
mod pass;
mod receive;
mod table;
#[cfg(test)]
mod tests;
mod transmit;
mod whole;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use domus_startup::time::monotonic as now;
use vu_server::{Commands, PollTime, Queue, WorkerCommand};

use crate::MAX_PORTS;
use crate::beat::Beat;
use crate::nic::{PortCommand, Shared};

use copy::Places;
use events::{Event, Events};
use receive::Receive;
use table::Table;
use transmit::{Transmit, Wait};
use whole::Whole;

/// How long a frame may wait for a receiver without room, in nanoseconds: time for its guest to be called and to give
/// buffers back.
pub const HOLD: u64 = 1_000_000;

/// Passes over all ports between two looks for commands.
const PASSES: u32 = 64;

/// Most commands of one port in a row: its frontend can make as many as it likes.
const COMMANDS: usize = 64;

/// Looks at the rings between two looks at the clock.
const POLLS: u32 = 32;

/// What the data thread is told of the ports.
#[derive(Debug)]
pub enum SwitchCommand {
    /// There is a port in this slot, which was free; its rings come with `commands`.
    Add {
        /// 0 to [`MAX_PORTS`] - 1.
        slot: usize,
        /// The port.
        shared: Arc<Shared>,
        /// Its rings.
        commands: Commands<PortCommand>,
    },
    /// The port in this slot is gone.
    Remove {
        /// The slot.
        slot: usize,
        /// Told when it is.
        done: SyncSender<()>,
    },
}

/// What the data thread cannot make any more once it is sealed.
#[derive(Debug)]
pub struct Prepared {
    commands: Commands<SwitchCommand>,
    events: Events,
}

impl Prepared {
    /// Makes it.
    ///
    /// # Errors
    /// There is no epoll.
    pub fn new(commands: Commands<SwitchCommand>) -> io::Result<Self> {
        let events = Events::new()?;
        events.watch(&commands, Event::Switch)?;
        Ok(Self { commands, events })
    }
}

/// All ports.
#[derive(Debug)]
pub struct Forward {
    commands: Commands<SwitchCommand>,
    events: Events,
    beat: Arc<Beat>,
    ports: Ports,
    /// Commands of each port whose frontend may still come.
    port_orders: Vec<Option<Commands<PortCommand>>>,
    poll_time: PollTime,
    happened: Vec<Event>,
    /// Ports that have more commands than were obeyed in a row, as bits.
    unfinished: u64,
}

/// What a frame meets on its way.
#[derive(Debug)]
struct Ports {
    receive: Vec<Option<Receive>>,
    transmit: Vec<Option<Box<Transmit>>>,
    table: Table,
    /// Addresses of the frame in work, and of its buffers.
    places: Places,
    whole: Whole,
    /// Ports that have been given frames which they have not been shown, as bits.
    unpublished: u64,
    /// Bytes that have been copied in this turn.
    copied: u64,
}

const _: () = assert!(MAX_PORTS <= u64::BITS as usize);

impl Forward {
    /// A switch without ports, to be run by the thread that makes it.
    pub fn new(prepared: Prepared, beat: Arc<Beat>) -> Self {
        let Prepared { commands, events } = prepared;
        let ports = Ports::new();
        let port_orders = (0..MAX_PORTS).map(|_| None).collect();
        let poll_time = PollTime::default();
        Self { commands, events, beat, ports, port_orders, poll_time, happened: Vec::new(), unfinished: 0 }
    }

    /// Works until told to quit.
    pub fn run(mut self) {
        let mut passes = 0;
        loop {
            self.beat.turn();
            let orders_seen = !self.ports.pass_all(now()) && self.rest();
            passes = if orders_seen { 0 } else { passes + 1 };
            // Frames that come one soon after the other keep it from resting, and commands must not wait for ever.
            if passes == PASSES {
                passes = 0;
                self.events.wait(Some(0), &mut self.happened);
            }
            if !self.look() {
                return;
            }
        }
    }

    /// Waits until there is something to do. True if that was where commands are seen.
    fn rest(&mut self) -> bool {
        if self.unfinished != 0 {
            return false;
        }
        let start = now();
        let limit = self.poll_time.limit();
        if limit > 0 && self.ports.look_out(start, limit) {
            self.poll_time.came(now().saturating_sub(start));
            return false;
        }
        // Those who have sent nothing for now are asked to kick; who has something meanwhile need not.
        if self.ports.arm() {
            return false;
        }
        self.beat.rests();
        self.events.wait(self.ports.due_in(now()), &mut self.happened);
        self.beat.works();
        self.poll_time.came(now().saturating_sub(start));
        true
    }

    /// Obeys commands and takes note of kicks. False when told to quit.
    fn look(&mut self) -> bool {
        let mut unfinished = std::mem::take(&mut self.unfinished);
        while unfinished != 0 {
            self.obey_port(unfinished.trailing_zeros() as usize);
            unfinished &= unfinished - 1;
        }
        while let Some(event) = self.happened.pop() {
            match event {
                Event::Switch => {
                    while let Some(order) = self.commands.take() {
                        match order {
                            WorkerCommand::Device(order) => self.obey(order),
                            WorkerCommand::Quit => return false,
                            // The switch itself has no rings.
                            WorkerCommand::Start(_)
                            | WorkerCommand::Stop { .. }
                            | WorkerCommand::Call { .. } => {}
                        }
                    }
                }
                Event::Port(slot) => self.obey_port(slot),
                Event::Receive(slot) => self.ports.has_room(slot),
                // Every pass looks at the ring.
                Event::Transmit(_) => {}
            }
        }
        true
    }

    fn obey(&mut self, order: SwitchCommand) {
        match order {
            SwitchCommand::Add { slot, shared, commands } => {
                if slot >= MAX_PORTS || self.events.watch(&commands, Event::Port(slot)).is_err() {
                    // Without commands there are no rings: the port is silent, and its frontend is told so.
                    return;
                }
                self.ports.table.fix(shared.mac.bytes(), slot);
                self.ports.receive[slot] = Some(Receive::new(shared.clone()));
                self.ports.transmit[slot] = Some(Box::new(Transmit::new(shared)));
                self.port_orders[slot] = Some(commands);
                // What was sent to it before is there already, perhaps.
                self.obey_port(slot);
            }
            SwitchCommand::Remove { slot, done } => {
                self.obey_port(slot);
                if let Some(commands) = self.port_orders.get_mut(slot).and_then(Option::take) {
                    self.events.forget(&commands);
                }
                self.ports.table.forget(slot);
                self.ports.receive[slot] = None;
                self.ports.transmit[slot] = None;
                // Whoever asked may have stopped waiting.
                let _ = done.try_send(());
            }
        }
    }

    fn obey_port(&mut self, slot: usize) {
        let Some(commands) = self.port_orders.get_mut(slot).and_then(Option::take) else { return };
        for turn in 0.. {
            if turn == COMMANDS {
                self.unfinished |= 1 << slot;
                break;
            }
            let Some(order) = commands.take() else { break };
            match order {
                WorkerCommand::Start(queue) => self.start(slot, queue),
                WorkerCommand::Stop { queue, reply } => {
                    if let Some(queue) = self.stop(slot, queue) {
                        reply.done(queue);
                    }
                }
                WorkerCommand::Call { queue, call, .. } => {
                    if let Some(queue) = self.ports.queue(slot, queue) {
                        queue.set_call(call);
                    }
                }
                WorkerCommand::Device(PortCommand::Look(done)) => {
                    self.ports.look_again();
                    let _ = done.try_send(());
                }
                WorkerCommand::Quit => {
                    self.events.forget(&commands);
                    return;
                }
            }
        }
        self.port_orders[slot] = Some(commands);
    }

    fn start(&mut self, slot: usize, queue: Box<Queue>) {
        let (Some(receive), Some(transmit)) = (&mut self.ports.receive[slot], &mut self.ports.transmit[slot])
        else {
            return;
        };
        if queue.index() == RECEIVE {
            self.events.watch_kick(queue.kick(), Event::Receive(slot));
            receive.start(queue);
        } else {
            self.events.watch_kick(queue.kick(), Event::Transmit(slot));
            transmit.start(queue);
        }
    }

    fn stop(&mut self, slot: usize, queue: u16) -> Option<Box<Queue>> {
        let queue = if queue == RECEIVE {
            self.ports.receive[slot].as_mut().and_then(Receive::stop)
        } else {
            self.ports.transmit[slot].as_mut().and_then(|transmit| transmit.stop())
        }?;
        self.events.forget(queue.kick());
        Some(queue)
    }
}

/// Queue 0 receives, queue 1 transmits (virtio 1.3 §5.1.2).
const RECEIVE: u16 = 0;

impl Ports {
    fn new() -> Self {
        Self {
            receive: (0..MAX_PORTS).map(|_| None).collect(),
            transmit: (0..MAX_PORTS).map(|_| None).collect(),
            table: Table::default(),
            places: Places::default(),
            whole: Whole::default(),
            unpublished: 0,
            copied: 0,
        }
    }

    fn queue(&mut self, slot: usize, queue: u16) -> Option<&mut Queue> {
        if queue == RECEIVE {
            self.receive[slot].as_mut()?.queue()
        } else {
            self.transmit[slot].as_mut()?.queue()
        }
    }

    /// Looks at all rings for `limit` nanoseconds; true as soon as one has something to send.
    fn look_out(&self, start: u64, limit: u64) -> bool {
        loop {
            let time = now();
            for _ in 0..POLLS {
                if self.transmit.iter().flatten().any(|transmit| transmit.has_work(time)) {
                    return true;
                }
                std::hint::spin_loop();
            }
            if time.saturating_sub(start) > limit {
                return false;
            }
        }
    }

    /// Asks for the kicks of those who are waited for. True if one need not be waited for.
    fn arm(&mut self) -> bool {
        let time = now();
        let mut busy = false;
        for slot in 0..MAX_PORTS {
            let Some(transmit) = &mut self.transmit[slot] else { continue };
            let Some(wait) = transmit.wait else {
                if let Some(queue) = transmit.queue() {
                    busy |= !queue.is_broken() && queue.enable_kicks();
                }
                continue;
            };
            if let Wait::Room(receiver, _) = wait {
                transmit.retry |= self.receive[receiver].as_mut().is_none_or(Receive::ask);
            }
            busy |= transmit.has_work(time);
        }
        busy
    }

    /// Until the next frame that waits is due, in nanoseconds; none if there is none.
    fn due_in(&self, time: u64) -> Option<u64> {
        let waits = self.transmit.iter().flatten().filter_map(|transmit| transmit.wait);
        waits.map(|wait| wait.due().saturating_sub(time)).min()
    }

    /// This receiver has more room: who waits for it tries again.
    fn has_room(&mut self, slot: usize) {
        for transmit in self.transmit.iter_mut().flatten() {
            if matches!(transmit.wait, Some(Wait::Room(receiver, _)) if receiver == slot) {
                transmit.retry = true;
            }
        }
    }

    /// What a port may do has changed: whoever waits, tries again.
    fn look_again(&mut self) {
        self.transmit.iter_mut().flatten().for_each(|transmit| transmit.retry = true);
    }
}
