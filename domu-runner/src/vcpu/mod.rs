//! The vCPU threads: `KVM_RUN`, again and again.
//!
//! ```text
//! waiting for its vCPU ─▶ parked ◀─pause, ask / resume─▶ running ─▶ ended (parked for ever)
//! ```
//!
//! A thread checks its flag before each `KVM_RUN`. A signal makes a running thread return from `KVM_RUN`; it is sent
//! again until every thread is parked, since the first may arrive between the check and the ioctl. A parked thread
//! carries out the jobs for its vCPU, also after the machine has ended.

mod core_scheduling;
mod exit;

use std::collections::VecDeque;
use std::io;
use std::os::raw::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use domus_startup::lock;
use domus_startup::threads;
use kvm_bindings::{KVM_EXIT_NOTIFY, KVM_EXIT_X86_BUS_LOCK};
use kvm_ioctls::{VcpuExit, VcpuFd};
use shared_abi::control::{StopReason, VcpuCounters};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::rules::{Gate, VCPU};
use crate::stop::Stop;
use domus_startup::time::monotonic;
use exit::{PortAccess, internal_error, locked_the_bus, was_stuck};

/// How long a pause waits before it sends its signal again.
const KICK_AGAIN: Duration = Duration::from_millis(2);

/// How long a vCPU stands still that has locked the bus, which all CPUs of the host wait for: such an access takes
/// microseconds of theirs, and a guest that means no harm makes few.
const BUS_LOCK_PAUSE: Duration = Duration::from_millis(1);

/// What the vCPU threads act on.
#[derive(Clone)]
pub struct Buses {
    /// I/O space.
    pub ports: Arc<Bus>,
    /// Physical memory that is not RAM.
    pub memory: Arc<Bus>,
}

/// The vCPUs of one machine, each on its thread.
pub struct Vcpus {
    shared: Arc<Shared>,
    threads: Vec<Thread>,
    core_scheduling: bool,
}

struct Thread {
    handle: JoinHandle<()>,
    vcpu: Mutex<Option<Sender<VcpuFd>>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// For each thread: true if it must leave `KVM_RUN` to park or to do a job. Set and cleared under the lock, so a
    /// cleared flag means that the vCPU is to run and has no job.
    leave: Vec<AtomicBool>,
    first_run: OnceLock<u64>,
    bus_locks: AtomicU64,
    stuck: AtomicU64,
    buses: Buses,
    stop: Stop,
}

struct State {
    running: bool,
    parked: usize,
    /// What each thread is asked to do with its vCPU.
    jobs: Vec<VecDeque<Job>>,
}

type Job = Box<dyn FnOnce(&VcpuFd) + Send>;

/// The signal that makes `KVM_RUN` return.
pub fn kick_signal() -> c_int {
    SIGRTMIN()
}

extern "C" fn kicked(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}

impl Vcpus {
    /// Starts `count` threads, which wait for their vCPUs. To be called before the sandbox forbids new threads.
    ///
    /// # Errors
    /// If the system has no thread or no signal left.
    pub fn spawn(count: u8, buses: Buses, stop: Stop, gate: &Gate) -> io::Result<Self> {
        register_signal_handler(kick_signal(), kicked)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                running: false,
                parked: 0,
                jobs: (0..count).map(|_| VecDeque::new()).collect(),
            }),
            changed: Condvar::new(),
            leave: (0..count).map(|_| AtomicBool::new(true)).collect(),
            first_run: OnceLock::new(),
            bus_locks: AtomicU64::new(0),
            stuck: AtomicU64::new(0),
            buses,
            stop,
        });
        // By a thread that ends: its cookie is for those that it starts, and not for the rest of this process.
        let (own, gate) = (shared.clone(), gate.clone());
        let spawner = std::thread::spawn(move || {
            let core_scheduling = core_scheduling::own_cookie();
            let threads = (0..count).map(|index| own.spawn(index, &gate)).collect::<io::Result<_>>()?;
            Ok((core_scheduling, threads))
        });
        let spawned: io::Result<_> =
            spawner.join().unwrap_or_else(|_| Err(io::Error::other("a thread has panicked")));
        let (core_scheduling, threads) = spawned?;
        Ok(Self { shared, threads, core_scheduling })
    }

    /// Hands each thread its vCPU, ready to run, paused.
    pub fn give(&self, vcpus: Vec<VcpuFd>) {
        for (thread, vcpu) in self.threads.iter().zip(vcpus) {
            let sender = lock(&thread.vcpu).take();
            if let Some(sender) = sender {
                // The thread waits for exactly this.
                let _ = sender.send(vcpu);
            }
        }
    }

    /// Lets the vCPUs run.
    pub fn resume(&self) {
        let mut state = self.shared.lock();
        state.running = true;
        self.shared.changed.notify_all();
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Has the thread of vCPU `index`, which must exist, do `job` between two `KVM_RUN`s, and returns its result. None
    /// if the thread has not started the job within `longest`; it still does the job as soon as it can.
    pub fn ask<T: Send + 'static>(
        &self,
        index: usize,
        job: impl FnOnce(&VcpuFd) -> T + Send + 'static,
        longest: Duration,
    ) -> Option<T> {
        let (sender, done) = sync_channel(1);
        let (thread, end) = (self.threads.get(index)?, Instant::now() + longest);
        {
            let mut state = self.shared.lock();
            // Whoever asked may have given up.
            state.jobs[index].push_back(Box::new(move |vcpu| drop(sender.try_send(job(vcpu)))));
            self.shared.leave[index].store(true, Ordering::Release);
            self.shared.changed.notify_all();
        }
        while Instant::now() < end {
            // A thread never ends while the process lives: its handle is good.
            let _ = thread.handle.kill(kick_signal());
            match done.recv_timeout(KICK_AGAIN) {
                Ok(result) => return Some(result),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        None
    }

    /// Stops the vCPUs; returns when none is in `KVM_RUN`, or one still waits for its backend after `longest`.
    pub fn pause(&self, longest: Duration) {
        let end = Instant::now() + longest;
        let mut state = self.shared.lock();
        self.shared.halt(&mut state);
        while !state.running && state.parked < self.threads.len() && Instant::now() < end {
            for thread in &self.threads {
                // A thread never ends while the process lives: its handle is good.
                let _ = thread.handle.kill(kick_signal());
            }
            let waited = self.shared.changed.wait_timeout(state, KICK_AGAIN);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// True while the vCPUs are paused.
    pub fn paused(&self) -> bool {
        !self.shared.lock().running
    }

    /// What they did to their host, and how they share it.
    pub fn counters(&self) -> VcpuCounters {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        VcpuCounters {
            bus_locks: count(&self.shared.bus_locks),
            stuck: count(&self.shared.stuck),
            core_scheduling: self.core_scheduling,
        }
    }

    /// `CLOCK_MONOTONIC` in nanoseconds just before the first `KVM_RUN`; none before it.
    pub fn first_run(&self) -> Option<u64> {
        self.shared.first_run.get().copied()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn halt(&self, state: &mut State) {
        state.running = false;
        self.leave.iter().for_each(|leave| leave.store(true, Ordering::Release));
    }

    fn spawn(self: &Arc<Self>, index: u8, gate: &Gate) -> io::Result<Thread> {
        let (sender, receiver) = channel();
        let (shared, ticket) = (self.clone(), gate.ticket(&[VCPU]));
        let work = move || shared.thread(index.into(), receiver);
        let handle = threads::start(format!("vcpu{index}"), move || ticket.run(work))?;
        Ok(Thread { handle, vcpu: Mutex::new(Some(sender)) })
    }

    fn thread(&self, index: usize, vcpu: Receiver<VcpuFd>) {
        let Ok(mut vcpu) = vcpu.recv() else { return };
        loop {
            self.park(index, &vcpu);
            self.first_run.get_or_init(monotonic);
            if let Some(reason) = self.run(index, &mut vcpu) {
                // The others run no further than they must: the machine is at its end.
                self.halt(&mut self.lock());
                self.stop.request(reason);
                loop {
                    self.park(index, &vcpu);
                }
            }
            // Tells the guest's watchdogs that the time that passes now was not theirs. A guest without
            // kvm-clock has nothing to be told.
            let _ = vcpu.kvmclock_ctrl();
        }
    }

    /// Does what is asked of the vCPU, and waits until it is to run.
    fn park(&self, index: usize, vcpu: &VcpuFd) {
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        loop {
            if let Some(job) = state.jobs[index].pop_front() {
                drop(state);
                job(vcpu);
                state = self.lock();
            } else if state.running {
                break;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        self.leave[index].store(false, Ordering::Release);
        state.parked -= 1;
    }

    /// Runs the guest until it is paused or asked for something (none), or has come to an end.
    fn run(&self, index: usize, vcpu: &mut VcpuFd) -> Option<StopReason> {
        while !self.leave[index].load(Ordering::Acquire) {
            match vcpu.run() {
                Ok(VcpuExit::MmioRead(address, data)) => self.buses.memory.read(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => self.buses.memory.write(address, data),
                Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => self.port_access(vcpu),
                Ok(VcpuExit::Intr) => {}
                Ok(VcpuExit::Shutdown) => return Some(StopReason::TripleFault),
                Ok(VcpuExit::FailEntry(reason, cpu)) => {
                    let text =
                        format!("the CPU refuses the vCPU's state (reason {reason:#x}, host CPU {cpu})");
                    return Some(StopReason::VcpuFailed(text));
                }
                Ok(VcpuExit::InternalError) => {
                    let error = internal_error(vcpu.get_kvm_run()).unwrap_or(0);
                    return Some(StopReason::VcpuFailed(describe_internal_error(error)));
                }
                Ok(VcpuExit::Unsupported(KVM_EXIT_X86_BUS_LOCK)) => {}
                Ok(VcpuExit::Unsupported(KVM_EXIT_NOTIFY)) => {
                    self.stuck.fetch_add(1, Ordering::Relaxed);
                    if was_stuck(vcpu.get_kvm_run()) == Some(true) {
                        let text = "it held its core for too long, and its state is lost".to_owned();
                        return Some(StopReason::VcpuFailed(text));
                    }
                }
                Ok(other) => {
                    return Some(StopReason::VcpuFailed(format!("unexpected exit {other:?} from KVM_RUN")));
                }
                Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {}
                Err(error) => return Some(StopReason::VcpuFailed(format!("KVM_RUN failed: {error}"))),
            }
            if locked_the_bus(vcpu.get_kvm_run()) {
                self.bus_locks.fetch_add(1, Ordering::Relaxed);
                std::thread::park_timeout(BUS_LOCK_PAUSE);
            }
        }
        None
    }

    fn port_access(&self, vcpu: &mut VcpuFd) {
        let Some(access) = PortAccess::decode(vcpu.get_kvm_run()) else { return };
        for data in access.data.chunks_exact_mut(access.size) {
            if access.read {
                self.buses.ports.read(access.port.into(), data);
            } else {
                self.buses.ports.write(access.port.into(), data);
            }
        }
    }
}

/// `KVM_INTERNAL_ERROR_*` of linux/kvm.h, in words.
fn describe_internal_error(error: u32) -> String {
    let meaning = match error {
        1 => "it cannot emulate an instruction of the guest",
        2 => "two events at once that exclude each other",
        3 => "an event could not be delivered",
        4 => "an exit it does not expect",
        _ => "of an unknown kind",
    };
    format!("internal error {error} of KVM: {meaning}")
}
