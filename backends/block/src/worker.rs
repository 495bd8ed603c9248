//! The thread of one queue: chains in, one io_uring, used elements out.
//!
//! ```text
//!   wait ─▶ completions ─▶ orders ─▶ what the driver has made available ─▶ publish ─▶ wait
//! ```
//!
//! The worker sleeps in one place, in the kernel, for kicks, orders and the disk together. Waiting also submits.
//! Nothing is allocated on the way once the buffers of the slots have grown.
//!
//! Waking up costs more than most requests. So where requests have come one soon after the other, the worker looks at
//! the rings for a few microseconds (`Attention`) before it sleeps; a disk that rests costs nothing.

use std::os::fd::AsFd;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use vu_server::{Attention, Order, Orders};

use crate::clock;
use crate::intake::Intake;
use crate::order::BlockOrder;
use crate::uring::{Completion, Uring, Wait};

/// Completions that are no request's: their tags are beyond all that an [`Engine`] may use.
const KICK: u64 = 1 << 32;
const ORDERS: u64 = KICK + 1;
const CANCELLED: u64 = KICK + 2;

/// Looks at the rings between two looks at the clock.
const LOOKS: u32 = 32;

/// What carries out the requests of one queue.
pub trait Engine: Send + 'static {
    /// Carries out the request in slot `index` of `intake`: answers it ([`Intake::answer`]), or submits something to
    /// `ring` with a tag below 2^32.
    fn begin(&mut self, ring: &mut Uring, intake: &mut Intake, index: u16);

    /// Something that was submitted is completed.
    fn completed(&mut self, ring: &mut Uring, intake: &mut Intake, completion: Completion);
}

/// One queue's worker. It lives as long as the process; queues come and go.
pub struct Worker<E> {
    ring: Uring,
    intake: Intake,
    engine: E,
    orders: Orders<BlockOrder>,
    /// A poll of the kick eventfd is submitted.
    kick_polled: bool,
    /// To the driver where nothing is in flight, and to the disk where one request is. With more in flight the next one
    /// is never far, and looking for it would cost more than waking up for it.
    attention: [Attention; 2],
    /// Who wants to know when nothing reaches beyond the end of the disk.
    settling: Vec<SyncSender<()>>,
}

impl<E: Engine> Worker<E> {
    /// A worker for one queue; to be run by the thread that enabled the ring.
    pub fn new(ring: Uring, intake: Intake, engine: E, orders: Orders<BlockOrder>) -> Self {
        Self {
            ring,
            intake,
            engine,
            orders,
            kick_polled: false,
            attention: Default::default(),
            settling: Vec::new(),
        }
    }

    /// Works until told to quit.
    pub fn run(mut self) {
        self.ring.poll(self.orders.as_fd(), ORDERS);
        loop {
            let before = self.intake.now();
            let expecting = self.intake.expecting().filter(|&in_flight| in_flight < 2);
            let wait = self.wait(expecting);
            self.ring.wait(wait);
            let now = clock::now();
            if let Some(in_flight) = expecting {
                self.attention[in_flight].came(now.saturating_sub(before));
            }
            self.intake.begin_batch(now);
            let mut ordered = false;
            while let Some(completion) = self.ring.completion() {
                match completion.tag {
                    KICK => self.kicked(completion),
                    ORDERS => {
                        ordered = true;
                        if !completion.more {
                            self.ring.poll(self.orders.as_fd(), ORDERS);
                        }
                    }
                    CANCELLED => {}
                    _ => self.engine.completed(&mut self.ring, &mut self.intake, completion),
                }
            }
            while ordered {
                match self.orders.take() {
                    Some(Order::Quit) => return,
                    Some(order) => self.obey(order),
                    None => ordered = false,
                }
            }
            while let Some(index) = self.intake.next_request() {
                self.engine.begin(&mut self.ring, &mut self.intake, index);
                self.intake.publish_some();
            }
            self.settle();
            self.intake.publish();
            if !self.kick_polled {
                self.intake.finish();
            }
        }
    }

    /// How long there is nothing to do.
    fn wait(&mut self, expecting: Option<usize>) -> Wait {
        if let Some(limit) = expecting.map(|in_flight| self.attention[in_flight].limit())
            && self.look_out(limit)
        {
            return Wait::Not;
        }
        if !self.intake.rests() {
            return Wait::Not;
        }
        match self.intake.wake_in(self.intake.now()) {
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
        let start = clock::now();
        loop {
            for _ in 0..LOOKS {
                if self.intake.expect_more() || self.ring.has_completed() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if clock::now().saturating_sub(start) > limit {
                return false;
            }
        }
    }

    fn obey(&mut self, order: Order<BlockOrder>) {
        match order {
            Order::Start(queue) => {
                self.ring.poll(queue.kick(), KICK);
                self.kick_polled = true;
                self.intake.start(queue);
                self.intake.begin_batch(self.intake.now());
            }
            Order::Stop { reply, .. } => {
                self.intake.stop(reply);
                self.ring.cancel(KICK, CANCELLED);
            }
            Order::Call { call, .. } => self.intake.set_call(call),
            Order::Device(BlockOrder::Again) => self.intake.do_again(),
            Order::Device(BlockOrder::Limits) => self.intake.look_again(),
            Order::Device(BlockOrder::Settle(done)) => self.settling.push(done),
            // Whoever waits for an answer learns that there is none.
            Order::Device(BlockOrder::Resize(..) | BlockOrder::Offer(_)) | Order::Quit => {}
        }
    }

    fn kicked(&mut self, Completion { result, more, .. }: Completion) {
        self.kick_polled = more;
        self.intake.kicked();
        if more || self.intake.is_stopping() {
            return;
        }
        if self.intake.kick_ended(result)
            && let Some(kick) = self.intake.kick()
        {
            self.ring.poll(kick, KICK);
            self.kick_polled = true;
        }
    }

    fn settle(&mut self) {
        if !self.settling.is_empty() && self.intake.settle() {
            for done in self.settling.drain(..) {
                // Whoever asked may have stopped waiting.
                let _ = done.try_send(());
            }
        }
    }
}
