//! A vhost-user-blk driver without a guest: one queue, one thread, completions by eventfd. The same code asks every
//! backend.

#![expect(unsafe_code, reason = "maps the memory that the backend reads and writes")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use memmap2::MmapMut;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};

use super::cases::{Access, Case, Storage};
use super::file::{SIZE, STAMPED};

/// Descriptors of the queue: three for each request, and 32 requests.
const QUEUE_SIZE: u16 = 256;

/// A backend that answers nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one run has shown.
#[derive(Debug)]
pub struct Run {
    /// Requests done.
    pub requests: u64,
    /// The time they took together.
    pub time: Duration,
    /// From queueing a request to seeing it done, in nanoseconds.
    pub latency: Histogram<u64>,
}

/// A connected driver.
pub struct Client {
    queue: VirtioBlkQueue<'static, Asked>,
    kick: Box<dyn QueueNotifier>,
    call: std::sync::Arc<EventFd>,
    memory: MmapMut,
    case: Case,
    next: u64,
    // Last: it holds the memory that the queue is in.
    _transport: Box<VirtioBlkTransport>,
}

/// A request under way.
struct Asked {
    buffer: usize,
    offset: u64,
    when: Instant,
}

impl Client {
    /// Connects to the backend that listens on `socket`.
    pub fn connect(socket: &Path, case: &Case) -> Result<Self> {
        let socket = socket.to_str().context("the socket's path is no UTF-8")?;
        // A driver that cannot flush would have every write made durable before it is answered.
        let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        let features = features.bits() | VirtioBlkFeatureFlags::FLUSH.bits();
        let transport = VhostUser::new(socket, features).context("cannot connect to the backend")?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
        let capacity = u64::from(transport.get_config()?.capacity) * 512;
        ensure!(capacity == SIZE, "the backend's disk has {capacity} bytes, {SIZE} are expected");
        let queue = VirtioBlkQueue::setup_queues(&mut *transport, 1, QUEUE_SIZE)?
            .pop()
            .context("the backend has no queue")?;

        let len = case.block as usize * case.depth as usize;
        let file = File::from(memfd_create(c"buffers", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(len as u64)?;
        // SAFETY: the file is this process's own and is not truncated; the backend writes to a buffer only between the
        // moment its request is queued and the moment it is seen done, and no reference to the buffer lives then.
        let memory = unsafe { MmapMut::map_mut(&file) }?;
        transport.map_mem_region(memory.as_ptr() as usize, len, file.as_raw_fd(), 0)?;
        let (kick, call) = (transport.get_submission_notifier(0), transport.get_completion_fd(0));
        Ok(Self { queue, kick, call, memory, case: *case, next: 0, _transport: transport })
    }

    /// Keeps the case's number of requests under way for `time`, then lets them end.
    ///
    /// With `check`, each block read must begin with its offset.
    pub fn run(&mut self, time: Duration, check: bool) -> Result<Run> {
        let mut run =
            Run { requests: 0, time, latency: Histogram::new_with_bounds(1, PATIENCE.as_nanos() as u64, 3)? };
        let check = check && self.case.storage != Storage::Null && self.case.access != Access::RandomWrite;
        let start = Instant::now();
        let mut now = start;
        for buffer in 0..self.case.depth as usize {
            self.ask(buffer, now)?;
        }
        let (mut under_way, mut done) = (self.case.depth, Vec::with_capacity(self.case.depth as usize));
        while under_way > 0 {
            if self.queue.avail_notif_needed() {
                self.kick.notify()?;
            }
            self.queue.set_used_notif_enabled(true);
            if !self.queue.completions().has_next() {
                self.wait()?;
            }
            self.queue.set_used_notif_enabled(false);
            now = Instant::now();
            done.extend(self.queue.completions());
            for completion in done.drain(..) {
                ensure!(completion.ret == 0, "a request ended with error {}", completion.ret);
                let Asked { buffer, offset, when } = completion.context;
                if check {
                    self.check(buffer, offset)?;
                }
                run.requests += 1;
                run.latency.saturating_record((now - when).as_nanos() as u64);
                if now - start < time {
                    self.ask(buffer, now)?;
                } else {
                    under_way -= 1;
                }
            }
        }
        run.time = now - start;
        Ok(run)
    }

    fn ask(&mut self, buffer: usize, when: Instant) -> Result<()> {
        let block = self.case.block as usize;
        let blocks = SIZE / block as u64;
        self.next = match self.case.access {
            Access::SequentialRead => (self.next + 1) % blocks,
            Access::RandomRead | Access::RandomWrite => fastrand::u64(..blocks),
        };
        let offset = self.next * block as u64;
        let bytes = &mut self.memory[buffer * block..][..block];
        let asked = Asked { buffer, offset, when };
        Ok(match self.case.access {
            Access::RandomWrite => {
                bytes[..8].copy_from_slice(&offset.to_le_bytes());
                self.queue.write(offset, bytes, asked)
            }
            Access::RandomRead | Access::SequentialRead => self.queue.read(offset, bytes, asked),
        }?)
    }

    fn check(&self, buffer: usize, offset: u64) -> Result<()> {
        let block = self.case.block as usize;
        for (expected, stamped) in
            (offset..).step_by(STAMPED).zip(self.memory[buffer * block..][..block].chunks(STAMPED))
        {
            ensure!(stamped[..8] == expected.to_le_bytes(), "the read at {offset} gave other bytes");
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        let mut ready = [PollFd::new(self.call.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::try_from(PATIENCE)?)? == 0 {
            bail!("the backend answers nothing for {} s", PATIENCE.as_secs());
        }
        self.call.read()?;
        Ok(())
    }
}
