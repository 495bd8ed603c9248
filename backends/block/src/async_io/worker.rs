//! The thread of a disk whose work is asynchronous: all its queues, one ring, one set of futures.
//!
//! ```text
//!   wait ─▶ completions (wake futures) ─▶ commands ─▶ next requests ─▶ poll futures ─▶ answers ─▶ publish ─▶ wait
//! ```
//!
//! Bounded: so many requests are futures at once, the others stay in their rings.

use std::convert::Infallible;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use domus_startup::time;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, Stream};
use vu_server::{Commands, WorkerCommand};

use super::AsyncDisk;
use super::carry::{Carried, Pool, carry, errno};
use super::guest::GuestBuffers;
use super::reactor::{Alarm, OWN_TAGS, Reactor};
use crate::requests::Requests;
use crate::uring::{Completion, Wait};
use crate::worker_command::BlockCommand;

/// Most requests that are carried out at once.
const DEPTH: usize = 64;

/// Completions that are no operation's: the kick of queue *n* is `KICKS + n`.
const COMMANDS: u64 = OWN_TAGS;
const KICKS: u64 = OWN_TAGS + 1;

/// One queue.
struct Lane {
    requests: Requests,
    /// A poll of the kick eventfd is submitted.
    kick_polled: bool,
}

/// A request that is done.
struct Done {
    lane: usize,
    slot: u16,
    request: Carried,
    result: Result<(), i32>,
}

/// The worker of one disk. It lives as long as the process; queues come and go.
pub struct AsyncWorker<D> {
    reactor: Arc<Reactor>,
    disk: Rc<D>,
    pool: Rc<Pool>,
    commands: Commands<BlockCommand>,
    lanes: Vec<Lane>,
    running: FuturesUnordered<LocalBoxFuture<'static, Done>>,
    /// What is asked for by others than the driver.
    chores: FuturesUnordered<LocalBoxFuture<'static, ()>>,
    /// Who wants to know when nothing reaches beyond the end of the disk.
    settling: Vec<SyncSender<()>>,
}

impl<D: AsyncDisk> AsyncWorker<D> {
    /// A worker for these queues; to be run by the thread that enabled the ring.
    pub fn new(
        reactor: Arc<Reactor>,
        disk: D,
        queues: Vec<Requests>,
        commands: Commands<BlockCommand>,
    ) -> Self {
        let lanes = queues.into_iter().map(|requests| Lane { requests, kick_polled: false }).collect();
        let (disk, pool) = (Rc::new(disk), Rc::default());
        let (running, chores) = (FuturesUnordered::new(), FuturesUnordered::new());
        Self { reactor, disk, pool, commands, lanes, running, chores, settling: Vec::new() }
    }

    /// Works until told to quit.
    pub fn run(mut self) {
        let alarm = Arc::new(Alarm::default());
        let waker = Waker::from(alarm.clone());
        let mut context = Context::from_waker(&waker);
        let disk = self.disk.clone();
        let mut drive: LocalBoxFuture<'static, Infallible> = Box::pin(async move { disk.drive().await });
        self.reactor.poll(self.commands.as_fd(), COMMANDS);
        let mut own = Vec::new();
        let mut wait = Wait::Not;
        loop {
            self.reactor.wait(wait, |completion| own.push(completion));
            let now = time::monotonic();
            self.lanes.iter_mut().for_each(|lane| lane.requests.begin_batch(now));
            for completion in own.drain(..) {
                if !self.completed(completion) {
                    return;
                }
            }
            let Poll::Pending = drive.as_mut().poll(&mut context);
            while let Poll::Ready(Some(())) = Pin::new(&mut self.chores).poll_next(&mut context) {}
            self.carry_on(&mut context);
            self.settle();
            for lane in &mut self.lanes {
                lane.requests.publish();
                if !lane.kick_polled {
                    lane.requests.finish();
                }
            }
            wait = if alarm.take() { Wait::Not } else { self.rest() };
        }
    }

    /// Takes requests and answers them as long as some are done.
    fn carry_on(&mut self, context: &mut Context<'_>) {
        loop {
            for lane in 0..self.lanes.len() {
                while self.running.len() < DEPTH
                    && let Some(slot) = self.lanes[lane].requests.next_request()
                {
                    self.begin(lane, slot);
                }
            }
            let Poll::Ready(Some(done)) = Pin::new(&mut self.running).poll_next(context) else { return };
            let Done { lane, slot, request, result } = done;
            let requests = &mut self.lanes[lane].requests;
            if requests.slot(slot).again {
                request.changes().for_each(|(offset, len)| self.disk.doubt(offset, len));
            }
            // As they were: a request that is held is done again from there.
            requests.slot(slot).buffers = request.guest.into_inner();
            requests.slot(slot).ranges = request.ranges;
            requests.answer(slot, result);
        }
    }

    fn begin(&mut self, lane: usize, index: u16) {
        let slot = self.lanes[lane].requests.slot(index);
        #[expect(unsafe_code, reason = "reaches guest memory")]
        // SAFETY: a slot's buffers are mapped guest memory until it is answered, and that is after this has gone.
        let guest = unsafe { GuestBuffers::new(std::mem::take(&mut slot.buffers)) };
        let ranges = std::mem::take(&mut slot.ranges);
        let (work, durable, offset, len) = (slot.work, slot.durable, slot.offset, slot.left);
        let request = Carried { work, durable, offset, len, guest, ranges };
        let (disk, pool) = (self.disk.clone(), self.pool.clone());
        self.running.push(Box::pin(async move {
            let result = carry(&*disk, &pool, &request).await;
            Done { lane, slot: index, request, result: result.map_err(|error| errno(&error)) }
        }));
    }

    /// How long there is nothing to do.
    fn rest(&mut self) -> Wait {
        let full = self.running.len() == DEPTH;
        let mut first = None;
        for Lane { requests, .. } in &mut self.lanes {
            // With no room for more, only a completion helps.
            if !full && !requests.rests() {
                return Wait::Not;
            }
            let time = requests.wake_in(requests.now());
            first = match (first, time) {
                (Some(first), Some(time)) => Some(time.min(first)),
                (first, time) => first.or(time),
            };
        }
        match first {
            Some(time) if !full => Wait::AtMost(Duration::from_nanos(time)),
            _ => Wait::Completion,
        }
    }

    /// Something of our own is completed. False if this is the end.
    fn completed(&mut self, completion: Completion) -> bool {
        if completion.tag != COMMANDS {
            self.kicked(completion);
            return true;
        }
        if !completion.more {
            self.reactor.poll(self.commands.as_fd(), COMMANDS);
        }
        while let Some(command) = self.commands.take() {
            match command {
                WorkerCommand::Quit => return false,
                command => self.obey(command),
            }
        }
        true
    }

    fn obey(&mut self, command: WorkerCommand<BlockCommand>) {
        match command {
            WorkerCommand::Start(queue) => {
                let index = queue.index();
                let Some(lane) = self.lanes.get_mut(usize::from(index)) else { return };
                self.reactor.poll(queue.kick(), KICKS + u64::from(index));
                lane.kick_polled = true;
                lane.requests.start(queue);
                lane.requests.begin_batch(lane.requests.now());
            }
            WorkerCommand::Stop { queue, reply } => {
                if let Some(lane) = self.lanes.get_mut(usize::from(queue)) {
                    lane.requests.stop(reply);
                    self.reactor.cancel(KICKS + u64::from(queue));
                }
            }
            WorkerCommand::Call { queue, call, .. } => {
                if let Some(lane) = self.lanes.get_mut(usize::from(queue)) {
                    lane.requests.set_call(call);
                }
            }
            WorkerCommand::Device(BlockCommand::Again) => {
                self.lanes.iter_mut().for_each(|lane| lane.requests.do_again())
            }
            WorkerCommand::Device(BlockCommand::Limits) => {
                self.lanes.iter_mut().for_each(|lane| lane.requests.look_again());
            }
            WorkerCommand::Device(BlockCommand::Settle(done)) => self.settling.push(done),
            WorkerCommand::Device(BlockCommand::Offer(offer)) => self.disk.offer(offer),
            WorkerCommand::Device(BlockCommand::Resize(bytes, done)) => self.resize(bytes, done),
            WorkerCommand::Quit => {}
        }
    }

    fn resize(&mut self, bytes: Option<u64>, done: SyncSender<Result<u64, String>>) {
        let disk = self.disk.clone();
        // Not among the requests: it is not counted, and answers somebody else.
        self.chores.push(Box::pin(async move {
            let resized = disk.resize(bytes).await.map_err(|error| error.to_string());
            // Whoever asked may have stopped waiting.
            let _ = done.try_send(resized);
        }));
    }

    fn kicked(&mut self, Completion { tag, result, more }: Completion) {
        let index = tag - KICKS;
        let Some(lane) = usize::try_from(index).ok().and_then(|index| self.lanes.get_mut(index)) else {
            return;
        };
        lane.kick_polled = more;
        lane.requests.kicked();
        if more || lane.requests.is_stopping() {
            return;
        }
        if lane.requests.kick_ended(result)
            && let Some(kick) = lane.requests.kick()
        {
            self.reactor.poll(kick, tag);
            lane.kick_polled = true;
        }
    }

    fn settle(&mut self) {
        if self.settling.is_empty() {
            return;
        }
        // All of them, not up to the first that is not done: each fails what rests beyond the end.
        let unsettled =
            self.lanes.iter_mut().filter_map(|lane| (!lane.requests.settle()).then_some(())).count();
        if unsettled == 0 {
            for done in self.settling.drain(..) {
                // Whoever asked may have stopped waiting.
                let _ = done.try_send(());
            }
        }
    }
}
