//! Watches the sockets of all backends: for the peer's hang-up, and for a call that takes too long.
//!
//! One thread serves all devices. A vCPU that calls a backend waits for the answer, and a timeout on the socket does
//! not end the wait, since the `vhost` crate retries. So this thread shuts the socket down when a call has taken
//! [`PATIENCE`], and the call fails. This thread reports the end of every connection once, unless it was [let
//! go](Watched::let_go) before.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use domus_startup::lock;
use domus_startup::threads;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use shared_abi::DeviceId;

use crate::rules::{Gate, WATCH};

/// How long a backend may take for one start, stop or configuration access. Stopping waits for its I/O.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The thread, and what it watches.
pub struct Watcher {
    wake: EventFd,
    watched: Mutex<Vec<Arc<Watched>>>,
    patience: Duration,
}

/// One backend's socket under watch.
pub struct Watched {
    device: DeviceId,
    socket: UnixStream,
    deadline: Mutex<Option<Instant>>,
    ended: OnceLock<Instant>,
    let_go: AtomicBool,
    is_overdue: AtomicBool,
    watcher: Arc<Watcher>,
}

/// A call under way: the socket is shut down if this is still there after the watcher's patience.
pub struct Call<'a>(&'a Watched);

impl Watcher {
    /// Starts the thread. `lost` is called on it, once for each connection that ended.
    ///
    /// # Errors
    /// If there is no eventfd or no thread to be had.
    pub fn start(
        patience: Duration,
        gate: &Gate,
        lost: impl Fn(&DeviceId) + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let watcher = Arc::new(Self { wake, watched: Mutex::default(), patience });
        let own = watcher.clone();
        let ticket = gate.ticket(WATCH);
        threads::start("backend-watch".into(), move || ticket.run(|| own.run(lost)))?;
        Ok(watcher)
    }

    /// Watches `socket`, which is the connection to the backend of `device`, until it hangs up.
    ///
    /// # Errors
    /// If the descriptor cannot be duplicated.
    pub fn watch(self: &Arc<Self>, device: DeviceId, socket: &UnixStream) -> io::Result<Arc<Watched>> {
        let socket = socket.try_clone()?;
        let watched = Arc::new(Watched {
            device,
            socket,
            deadline: Mutex::new(None),
            ended: OnceLock::new(),
            let_go: AtomicBool::new(false),
            is_overdue: AtomicBool::new(false),
            watcher: self.clone(),
        });
        lock(&self.watched).push(watched.clone());
        self.wake();
        Ok(watched)
    }

    fn wake(&self) {
        // It can fail only if the counter is full, and then the thread wakes anyway.
        let _ = self.wake.write(1);
    }

    fn run(&self, lost: impl Fn(&DeviceId)) {
        loop {
            let watched = lock(&self.watched).clone();
            let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            // POLLHUP comes unasked, when the peer has closed its end or this one was shut down.
            fds.extend(watched.iter().map(|one| PollFd::new(one.socket.as_fd(), PollFlags::empty())));
            if poll(&mut fds, timeout(&watched)).is_err() {
                // EINTR; nothing else can happen to a list of valid descriptors.
                continue;
            }
            let _ = self.wake.read();
            let now = Instant::now();
            for (one, fd) in watched.iter().zip(&fds[1..]) {
                if fd.any() == Some(true) {
                    lock(&self.watched).retain(|other| !Arc::ptr_eq(one, other));
                    one.hang_up();
                    if !one.let_go.load(Ordering::Relaxed) {
                        lost(&one.device);
                    }
                } else if lock(&one.deadline).is_some_and(|deadline| deadline <= now) {
                    one.is_overdue.store(true, Ordering::Relaxed);
                    one.hang_up();
                }
            }
        }
    }
}

/// Until the first deadline, rounded up.
fn timeout(watched: &[Arc<Watched>]) -> PollTimeout {
    let first = watched.iter().filter_map(|one| *lock(&one.deadline)).min();
    first.map_or(PollTimeout::NONE, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    })
}

impl Watched {
    /// Bounds the calls made while the result lives.
    pub fn call(&self) -> Call<'_> {
        *lock(&self.deadline) = Some(Instant::now() + self.watcher.patience);
        self.watcher.wake();
        Call(self)
    }

    /// Ends the connection, whoever is waiting for it. It is then reported as lost.
    pub fn hang_up(&self) {
        self.ended.get_or_init(Instant::now);
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Ends the connection on purpose: nobody is told.
    pub fn let_go(&self) {
        self.let_go.store(true, Ordering::Relaxed);
        self.hang_up();
    }

    /// How long it was waited for a call, if the connection was ended since that took too long.
    pub fn overdue(&self) -> Option<Duration> {
        self.is_overdue.load(Ordering::Relaxed).then_some(self.watcher.patience)
    }

    /// When the connection's end was noticed, if it has ended.
    pub fn ended(&self) -> Option<Instant> {
        self.ended.get().copied()
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        *lock(&self.0.deadline) = None;
    }
}
