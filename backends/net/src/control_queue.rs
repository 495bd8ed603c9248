//! The control queue (virtio 1.3 §5.1.6.5): one chain, one command, one byte of answer.
//!
//! Promises: every chain is given back. A command costs work in proportion to its length, at most [`MAX_COMMAND`]. An
//! acknowledged command is in force, and a process that replaces this one knows the setting. No driver keeps the host's
//! interfaces busy by repeating its settings without end.

use std::sync::Arc;

use vu_server::{Chain, Queue};

use crate::command::MAX_COMMAND;
use crate::nic::{Nic, Outcome};
use crate::wait_set::Wait;
use crate::worker::Work;

/// `VIRTIO_NET_OK`.
const OK: u8 = 0;
/// `VIRTIO_NET_ERR`.
const ERR: u8 = 1;

/// Most commands of one turn.
const BURST: usize = 8;

/// Nanoseconds to rest after a command for which the tap was set: 200 in a second are more than any driver needs.
const COSTLY_PAUSE: u64 = 5_000_000;

/// The control queue's work.
pub struct ControlQueue {
    nic: Arc<Nic>,
    queue: Option<Box<Queue>>,
    chain: Chain,
    command: Vec<u8>,
}

impl ControlQueue {
    /// Of this NIC.
    pub fn new(nic: Arc<Nic>) -> Self {
        Self { nic, queue: None, chain: Chain::default(), command: Vec::new() }
    }

    fn answer(&mut self, queue: &mut Queue) -> Outcome {
        let outcome = if self.read(queue) {
            self.nic.command(&self.command, queue.features())
        } else {
            Outcome::Refused
        };
        let answer = [if outcome == Outcome::Refused { ERR } else { OK }];
        let written = queue.memory().write(&self.chain.writable, 0, &answer).unwrap_or(0);
        queue.push(self.chain.head, written as u32);
        outcome
    }

    /// Copies the command out of the guest's memory; false if that cannot be.
    fn read(&mut self, queue: &Queue) -> bool {
        let length = self.chain.readable_len();
        if length > MAX_COMMAND as u64 {
            return false;
        }
        self.command.resize(length as usize, 0);
        queue.memory().read(&self.chain.readable, 0, &mut self.command) == Ok(length as usize)
    }

    fn burst(&mut self, queue: &mut Queue) -> Wait {
        queue.disable_kicks();
        for _ in 0..BURST {
            if !queue.pop(&mut self.chain) {
                return match (queue.is_broken(), queue.enable_kicks()) {
                    (true, _) => Wait::Command,
                    (false, true) => Wait::Nothing,
                    (false, false) => Wait::Kick,
                };
            }
            let outcome = self.answer(queue);
            queue.publish();
            if outcome == Outcome::Costly {
                return Wait::Time(COSTLY_PAUSE);
            }
        }
        Wait::Nothing
    }
}

impl Work for ControlQueue {
    fn queue(&mut self) -> &mut Option<Box<Queue>> {
        &mut self.queue
    }

    /// A frontend may run that of the other kind of driver besides.
    fn takes(&self, queue: &Queue) -> bool {
        queue.index() == self.nic.control_queue(queue.features())
    }

    fn turn(&mut self) -> Wait {
        let Some(mut queue) = self.queue.take() else { return Wait::Command };
        let wait = self.burst(&mut queue);
        self.queue = Some(queue);
        wait
    }
}
