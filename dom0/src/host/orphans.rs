//! Processes of a dom0 that was killed between their start and the moment it had written them down.
//!
//! Nobody knows them but by their command line, which names a control socket in this run directory. That is good enough to
//! end them: whoever has such a command line and is none of ours has made itself look like it.

use std::fs;
use std::path::Path;

use nix::unistd::Pid;

use crate::host::proc::{ProcessId, control};

/// Kills the processes whose control socket is in `dir` and that are none of these. Waits for each, a second at most;
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
