//! The vCPU threads of a runner, as the host's scheduler reports them: CPU time, current CPU, allowed CPUs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::value::cpus::CpuSet as Wanted;

/// Threads of one process that are looked at: more than any runner has.
const MAX_THREADS: usize = 1024;

/// One vCPU's thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcpuThread {
    /// Which vCPU it is.
    pub vcpu: u8,
    /// The thread's id.
    pub tid: i32,
    /// It runs or waits for a CPU.
    pub runs: bool,
    /// CPU time that it has used, in clock ticks of a hundredth of a second.
    pub ticks: u64,
    /// The host's CPU that it ran on last.
    pub cpu: u16,
    /// Where it may run.
    pub allowed: BTreeSet<u16>,
}

/// The vCPU threads of the runner `pid`, by number. A runner names its threads, so it can mislead only about its own.
pub fn vcpus(pid: i32) -> Vec<VcpuThread> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().take(MAX_THREADS);
    let mut vcpus: Vec<_> = threads.filter_map(|thread| vcpu(&thread.path())).collect();
    vcpus.sort_by_key(|thread| (thread.vcpu, thread.tid));
    vcpus.dedup_by_key(|thread| thread.vcpu);
    vcpus
}

fn vcpu(task: &Path) -> Option<VcpuThread> {
    let tid = task.file_name()?.to_str()?.parse().ok()?;
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    let (left, right) = stat.rsplit_once(')')?;
    let vcpu = left.split_once('(')?.1.strip_prefix("vcpu")?.parse().ok()?;
    // Fields of proc(5), counted from the third on: state, utime (14), stime (15), processor (39).
    let fields: Vec<&str> = right.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let status = fs::read_to_string(task.join("status")).ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    Some(VcpuThread {
        vcpu,
        tid,
        runs: fields.first() == Some(&"R"),
        ticks: number(14)? + number(15)?,
        cpu: number(39)?.try_into().ok()?,
        allowed: list(allowed),
    })
}

/// A list of CPUs as the kernel writes it.
fn list(text: &str) -> BTreeSet<u16> {
    match text.trim().parse() {
        Ok(Wanted::Only(these)) => these,
        _ => BTreeSet::new(),
    }
}

/// The CPUs of this host that are switched on.
pub fn online() -> BTreeSet<u16> {
    list(&fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default())
}

/// Lets a vCPU's thread of the runner `pid` run on these CPUs only. They take effect at once.
///
/// # Errors
/// The thread is gone, none of the CPUs may be used by dom0 (its cpuset), or the system refuses.
pub fn pin(pid: i32, thread: &VcpuThread, cpus: &BTreeSet<u16>) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(usize::from(*cpu))?;
    }
    // The kernel reuses a thread id only after all others, so a moment after this look the id still names the same
    // thread. A runner's threads live as long as the runner, and a sealed runner cannot make new ones.
    if !Path::new(&format!("/proc/{pid}/task/{}", thread.tid)).exists() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(sched_setaffinity(Pid::from_raw(thread.tid), &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_named_like_a_vcpu_is_found_and_pinned() {
        // Its only thread has its program's name.
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/bin/sleep", dir.path().join("vcpu7")).unwrap();
        let mut child = std::process::Command::new(dir.path().join("vcpu7")).arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        let vcpu = loop {
            if let Some(found) = vcpus(pid).pop() {
                break found;
            }
        };
        assert_eq!((vcpu.vcpu, vcpu.tid), (7, pid));
        assert!(!vcpu.allowed.is_empty() && vcpu.allowed.is_subset(&online()), "{vcpu:?}");
        let last = BTreeSet::from([*vcpu.allowed.last().unwrap()]);
        pin(pid, &vcpu, &last).unwrap();
        assert_eq!(vcpus(pid)[0].allowed, last);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(pin(pid, &vcpu, &last).is_err());
        assert!(vcpus(i32::MAX).is_empty());
    }
}
