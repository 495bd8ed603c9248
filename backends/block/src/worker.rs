//! The thread of one queue: chains in, one io_uring, used elements out.
//!
//! ```text
//!   wait ─▶ completions ─▶ commands ─▶ what the driver has made available ─▶ publish ─▶ wait
//! ```
//!
//! The worker sleeps in one place, in the kernel, for kicks, commands and the disk together. Waiting also submits.
//! Nothing is allocated on the way once the buffers of the slots have grown.
//!
//! Waking up costs more than most requests. So where requests have come one soon after the other, the worker looks at
//! the rings for a few microseconds (`PollTime`) before it sleeps; a disk that rests costs nothing.

use std::os::fd::AsFd;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use domus_startup::time;
use vu_server::{Commands, PollTime, WorkerCommand};

use crate::requests::Requests;
use crate::uring::{Completion, Uring, Wait};
use crate::worker_command::BlockCommand;

/// Completions that are no request's: their tags are beyond all that an [`Engine`] may use.
const KICK: u64 = 1 << 32;
const COMMANDS: u64 = KICK + 1;
const CANCELLED: u64 = KICK + 2;

/// Looks at the rings between two looks at the clock.
const POLLS: u32 = 32;

/// What carries out the requests of one queue.
pub trait Engine: Send + 'static {
    /// Carries out the request in slot `index` of `requests`: answers it ([`Requests::answer`]), or submits an
    /// operation to `ring` with a tag below 2^32.
    fn begin(&mut self, ring: &mut Uring, requests: &mut Requests, index: u16);

    /// Something that was submitted is completed.
    fn completed(&mut self, ring: &mut Uring, requests: &mut Requests, completion: Completion);
}

/// One queue's worker. It lives as long as the process; queues come and go.
pub struct Worker<E> {
    ring: Uring,
    requests: Requests,
    engine: E,
    commands: Commands<BlockCommand>,
    /// A poll of the kick eventfd is submitted.
    kick_polled: bool,
    /// To the driver where nothing is in flight, and to the disk where one request is. With more in flight the next one
    /// is never far, and looking for it would cost more than waking up for it.
    poll_time: [PollTime; 2],
    /// Who wants to know when nothing reaches beyond the end of the disk.
    settling: Vec<SyncSender<()>>,
}

impl<E: Engine> Worker<E> {
    /// A worker for one queue; to be run by the thread that enabled the ring.
    pub fn new(ring: Uring, requests: Requests, engine: E, commands: Commands<BlockCommand>) -> Self {
        Self {
            ring,
            requests,
            engine,
            commands,
            kick_polled: false,
            poll_time: Default::default(),
            settling: Vec::new(),
        }
    }

    /// Works until told to quit.
    pub fn run(mut self) {
        self.ring.poll(self.commands.as_fd(), COMMANDS);
        loop {
            let before = self.requests.now();
            let expecting = self.requests.expecting().filter(|&in_flight| in_flight < 2);
            let wait = self.wait(expecting);
            self.ring.wait(wait);
            let now = time::monotonic();
            if let Some(in_flight) = expecting {
                self.poll_time[in_flight].came(now.saturating_sub(before));
            }
            self.requests.begin_batch(now);
            let mut ordered = false;
            while let Some(completion) = self.ring.completion() {
                match completion.tag {
                    KICK => self.kicked(completion),
                    COMMANDS => {
                        ordered = true;
                        if !completion.more {
                            self.ring.poll(self.commands.as_fd(), COMMANDS);
                        }
                    }
                    CANCELLED => {}
                    _ => self.engine.completed(&mut self.ring, &mut self.requests, completion),
                }
            }
            while ordered {
                match self.commands.take() {
                    Some(WorkerCommand::Quit) => return,
                    Some(command) => self.obey(command),
                    None => ordered = false,
                }
            }
            while let Some(index) = self.requests.next_request() {
                self.engine.begin(&mut self.ring, &mut self.requests, index);
                self.requests.publish_some();
            }
            self.settle();
            self.requests.publish();
            if !self.kick_polled {
                self.requests.finish();
            }
        }
    }

    /// How long there is nothing to do.
    fn wait(&mut self, expecting: Option<usize>) -> Wait {
        if let Some(limit) = expecting.map(|in_flight| self.poll_time[in_flight].limit())
            && self.look_out(limit)
        {
            return Wait::Not;
        }
        if !self.requests.rests() {
            return Wait::Not;
        }
        match self.requests.wake_in(self.requests.now()) {
            Some(time) => Wait::AtMost(Duration::from_nanos(time)),
            None => Wait::Completion,
        }
    }

    /// Looks for the next request, or for anything else to do, for `limit` nanoseconds. True if it has come.
    fn look_out(&mut self, limit: u64) -> bool {
        if limit == 0 {
            return false;
        }
        // What is queued must be under way before anything can come of it.
        self.ring.wait(Wait::Not);
        let start = time::monotonic();
        loop {
            for _ in 0..POLLS {
                if self.requests.expect_more() || self.ring.has_completed() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if time::monotonic().saturating_sub(start) > limit {
                return false;
            }
        }
    }

    fn obey(&mut self, command: WorkerCommand<BlockCommand>) {
        match command {
            WorkerCommand::Start(queue) => {
                self.ring.poll(queue.kick(), KICK);
                self.kick_polled = true;
                self.requests.start(queue);
                self.requests.begin_batch(self.requests.now());
            }
            WorkerCommand::Stop { reply, .. } => {
                self.requests.stop(reply);
                self.ring.cancel(KICK, CANCELLED);
            }
            WorkerCommand::Call { call, .. } => self.requests.set_call(call),
            WorkerCommand::Device(BlockCommand::Again) => self.requests.do_again(),
            WorkerCommand::Device(BlockCommand::Limits) => self.requests.look_again(),
            WorkerCommand::Device(BlockCommand::Settle(done)) => self.settling.push(done),
            // Whoever waits for an answer learns that there is none.
            WorkerCommand::Device(BlockCommand::Resize(..) | BlockCommand::Offer(_))
            | WorkerCommand::Quit => {}
        }
    }

    fn kicked(&mut self, Completion { result, more, .. }: Completion) {
        self.kick_polled = more;
        self.requests.kicked();
        if more || self.requests.is_stopping() {
            return;
        }
        if self.requests.kick_ended(result)
            && let Some(kick) = self.requests.kick()
        {
            self.ring.poll(kick, KICK);
            self.kick_polled = true;
        }
    }

    fn settle(&mut self) {
        if !self.settling.is_empty() && self.requests.settle() {
            for done in self.settling.drain(..) {
                // Whoever asked may have stopped waiting.
                let _ = done.try_send(());
            }
        }
    }
}
