//! A process that serves several domains, written down so that a dom0 that comes after this one can end it.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::run_dir::started;
use crate::supervisor::spawn::{open_pidfd, signal};

/// Within this time a process that was killed ends, in milliseconds.
const END: u16 = 1000;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    pid: i32,
    /// Its start in clock ticks after boot: a reused pid has another.
    started: u64,
}

/// Writes a process down.
///
/// # Errors
/// What the file system said.
pub fn write(file: &Path, pid: Pid) -> io::Result<()> {
    let pid = pid.as_raw();
    let record = started(pid).map(|started| Record { pid, started });
    fs::write(file, serde_json::to_string(&record)?)
}

/// Kills the process that is written down in `file`, if there is one that is that one still. Waits for its end, a second
/// at most.
pub fn end(file: &Path) {
    let text = fs::read_to_string(file).unwrap_or_default();
    let Ok(Some(Record { pid, started: then })) = serde_json::from_str::<Option<Record>>(&text) else {
        return;
    };
    // Held before it is looked at: what is killed is what was looked at.
    if pid > 1
        && let Ok(pidfd) = open_pidfd(Pid::from_raw(pid))
        && started(pid) == Some(then)
    {
        signal(pidfd.as_fd(), Signal::SIGKILL);
        let _ = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(END));
    }
}
