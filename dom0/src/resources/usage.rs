//! What the scheduler knows of a domain and of the host: for the columns State and Time(s) of `domus list`.

use std::fs;

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
        assert!(!vcpu_runs(std::process::id() as i32));
        assert_eq!(cpu_seconds(i32::MAX), 0.0);
    }
}
