//! Who used the processors: a process of ours by nanoseconds, all together by ticks.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Where the client and the backend run: two CPUs if there are two.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// The client's CPU.
    pub client: usize,
    /// The backend's.
    pub backend: usize,
}

impl Places {
    /// Takes the first two CPUs that this process may use, and ties it to the first.
    pub fn take() -> Result<Self> {
        let allowed = sched_getaffinity(THIS)?;
        let mut cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
        let client = cpus.next().context("this process may use no CPU")?;
        let places = Self { client, backend: cpus.next().unwrap_or(client) };
        places.client()?;
        Ok(places)
    }

    /// Ties this thread to the client's CPU.
    pub fn client(&self) -> Result<()> {
        pin_this_thread(self.client)
    }

    /// Ties this thread to the backends' CPU.
    pub fn backend(&self) -> Result<()> {
        pin_this_thread(self.backend)
    }

    /// Lets this thread, and those that it starts from now on, run on both.
    pub fn everywhere(&self) -> Result<()> {
        let mut both = CpuSet::new();
        both.set(self.client)?;
        both.set(self.backend)?;
        Ok(sched_setaffinity(THIS, &both)?)
    }
}

/// The calling thread, for the scheduler.
const THIS: Pid = Pid::from_raw(0);

/// Ties the calling thread to one CPU.
pub fn pin_this_thread(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    Ok(sched_setaffinity(THIS, &only)?)
}

/// Ties every thread of a process to one CPU.
pub fn pin(pid: u32, cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = task?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(thread), &only)?;
    }
    Ok(())
}

/// CPU time that the threads of a process have used, as long as they live.
pub fn of_process(pid: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that ends meanwhile has no more to say.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// CPU time that processes have used on all CPUs since the host's start, and what its hypervisor took from it. Without
/// interrupts, which nobody can be charged with.
fn of_all() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, and steal (proc_stat(5)).
    let used: u64 = [0, 1, 2, 7].iter().filter_map(|&field| ticks.get(field)).sum();
    // A tick of /proc is 1/100 s, whatever the kernel's own is.
    Ok(Duration::from_millis(used * 10))
}

/// CPU time from one moment on, of a process and of others.
#[derive(Debug)]
pub struct Clock {
    pid: u32,
    client: u32,
    start: Instant,
    all: Duration,
    own: Duration,
    process: Duration,
}

/// CPU time between two moments.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// The time between them.
    pub time: Duration,
    /// What the process used of it.
    pub process: Duration,
    /// What others used, in shares of one CPU: neither the process nor its client.
    pub others: f64,
}

impl Clock {
    /// Begins to count what process `pid` uses, whose client is process `client`.
    pub fn start(pid: u32, client: u32) -> Result<Self> {
        let (process, own, all) = (of_process(pid)?, of_process(client)?, of_all()?);
        Ok(Self { pid, client, start: Instant::now(), all, own, process })
    }

    /// What was used since.
    pub fn stop(self) -> Result<Used> {
        let time = self.start.elapsed();
        let process = of_process(self.pid)?.saturating_sub(self.process);
        let own = of_process(self.client)?.saturating_sub(self.own);
        let others = of_all()?.saturating_sub(self.all).saturating_sub(own + process);
        Ok(Used { time, process, others: others.as_secs_f64() / time.as_secs_f64() })
    }
}
