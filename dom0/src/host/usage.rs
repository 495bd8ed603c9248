//! What the scheduler knows of a domain and of the host: for the columns State and Time(s) of `domus list`, for
//! `domus top` and for metrics.

use std::collections::BTreeMap;
use std::fs;

use shared_abi::limits::MAX_VCPUS;

/// What the scheduler has given a vCPU, and what it has not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VcpuTime {
    /// Its number.
    pub vcpu: u8,
    /// Nanoseconds that it has run.
    pub ran_ns: u64,
    /// Nanoseconds that it has been ready to run and others had the CPUs: steal time.
    pub waited_ns: u64,
}

/// Seconds of CPU time that a process has used, all its threads together.
pub fn cpu_seconds(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Fields 14 and 15 of proc(5), counted after the name in parentheses.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    seconds(ticks)
}

fn seconds(ticks: u64) -> f64 {
    // USER_HZ is 100 on every Linux that runs KVM on x86.
    ticks as f64 / 100.0
}

/// True if one of a runner's vCPU threads is running or waits for a CPU.
pub fn vcpu_runs(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    stats.any(|stat| {
        let Some((left, right)) = stat.rsplit_once(')') else { return false };
        let vcpu = left.split_once('(').is_some_and(|(_, name)| name.starts_with("vcpu"));
        vcpu && right.trim_start().starts_with('R')
    })
}

/// The times of a runner's vCPUs, by number. The names of its threads are the runner's own: they are believed as far as
/// they are vCPUs that there can be, each once.
pub fn vcpu_times(pid: i32) -> Vec<VcpuTime> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let times = threads.filter_map(|thread| {
        let name = fs::read_to_string(thread.path().join("comm")).ok()?;
        let vcpu = name.trim().strip_prefix("vcpu")?.parse::<u8>().ok().filter(|n| *n < MAX_VCPUS)?;
        // Time on a CPU, time in a run queue, and time slices (Documentation/scheduler/sched-stats.rst).
        let statistics = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let mut fields = statistics.split_whitespace().map_while(|field| field.parse().ok());
        let (ran_ns, waited_ns) = (fields.next()?, fields.next()?);
        Some((vcpu, VcpuTime { vcpu, ran_ns, waited_ns }))
    });
    times.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// Bytes of RAM that a process has touched, its guest's memory with it.
pub fn resident(pid: i32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    // x86-64's pages.
    pages.unwrap_or(0).saturating_mul(4096)
}

/// Seconds of CPU time of the whole host, without what its guests have used.
pub fn host_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal guest guest_nice; user and nice include the guests'.
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|n| fields.get(*n)).sum();
    let guests: u64 = [8, 9].iter().filter_map(|n| fields.get(*n)).sum();
    seconds(busy.saturating_sub(guests))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_some_time_and_the_host_more() {
        let mut n = 0_u64;
        while cpu_seconds(std::process::id() as i32) < 0.02 {
            n = std::hint::black_box(n + 1);
        }
        assert!(host_seconds() > 0.02);
        // Not this process: another test may have a thread here that is called a vCPU.
        assert!(!vcpu_runs(1));
        assert_eq!(cpu_seconds(i32::MAX), 0.0);
        assert_eq!(resident(i32::MAX), 0);
        assert!(resident(std::process::id() as i32) > 4096);
    }

    #[test]
    fn a_thread_that_is_called_a_vcpu_has_its_times_and_others_are_none() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let thread = |name: &str, wait: Option<std::sync::mpsc::Receiver<()>>| {
            let work = move || {
                let mut n = 0_u64;
                for _ in 0..1_000_000 {
                    n = std::hint::black_box(n + 1);
                }
                wait.map(|wait| wait.recv())
            };
            std::thread::Builder::new().name(name.into()).spawn(work).unwrap()
        };
        let it = thread("vcpu3", Some(wait));
        let mut times = Vec::new();
        while times.iter().all(|time: &VcpuTime| time.ran_ns == 0) {
            times = vcpu_times(std::process::id() as i32);
        }
        assert_eq!(times.iter().map(|time| time.vcpu).collect::<Vec<_>>(), [3]);
        drop(go);
        it.join().unwrap();
        thread("vcpu200", None).join().unwrap();
        assert_eq!(vcpu_times(i32::MAX), []);
    }
}
