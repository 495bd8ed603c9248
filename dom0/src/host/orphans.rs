//! Ends orphans: processes that a dom0 started and did not record, because it was killed in between.
//!
//! An orphan is known by its command line, which names a control socket in this run directory. That is reason enough to
//! end it: any other process with such a command line imitates one of Domus.

use std::fs;
use std::path::Path;

use nix::unistd::Pid;

use crate::host::proc::{ProcessId, control};

/// Kills the processes whose control socket is in `dir` and that are none of these. Blocks for each, a second at most;
/// returns how many there were.
pub fn end(dir: &Path, known: &[ProcessId]) -> usize {
    let mut ended = 0;
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // ProcessId before its command line is read: it is killed only if it is that one still.
        let Some(found) = ProcessId::of(Pid::from_raw(pid)) else { continue };
        let controlled = control(pid).is_some_and(|control| control.parent() == Some(dir));
        if controlled && !known.contains(&found) {
            found.end();
            ended += 1;
        }
    }
    ended
}

/// Every process whose control socket is in `dir`.
pub fn all(dir: &Path) -> Vec<ProcessId> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
    let here = |pid: &i32| control(*pid).is_some_and(|control| control.parent() == Some(dir));
    pids.filter(here).filter_map(|pid| ProcessId::of(Pid::from_raw(pid))).collect()
}
