//! Processes, written down so that a dom0 that comes after this one can tell them from every other.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::host::pidfd::{open_pidfd, signal};

/// Within this time a process that was killed ends, in milliseconds.
const KILL_TIMEOUT: u16 = 1000;

/// One process, and no other that has got its pid since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its process id.
    pub pid: i32,
    /// Its start in clock ticks after boot (field 22 of `/proc/PID/stat`): a reused pid has another.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this pid now, if it lives.
    pub fn of(pid: Pid) -> Option<Self> {
        let pid = pid.as_raw();
        Some(Self { pid, started: started(pid)? })
    }

    /// What its program is called, or nothing if it has ended.
    pub fn name(&self) -> String {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        name.trim_end().into()
    }

    /// It lives. One that has ended and waits for its parent does not.
    pub fn lives(&self) -> bool {
        self.pid > 1 && started(self.pid) == Some(self.started)
    }

    /// Kills it, if it lives. Blocks until its end, a second at most.
    pub fn end(&self) {
        // Held before it is looked at: what is killed is what was looked at.
        if let Ok(pidfd) = open_pidfd(Pid::from_raw(self.pid))
            && self.lives()
        {
            signal(pidfd.as_fd(), Signal::SIGKILL);
            let _ =
                poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(KILL_TIMEOUT));
        }
    }
}

/// The control socket on the command line of one of our processes: `PROGRAM --control PATH`.
pub fn control(pid: i32) -> Option<PathBuf> {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut arguments = arguments.split(|byte| *byte == 0).skip(1);
    if arguments.next()? != b"--control" {
        return None;
    }
    Some(OsStr::from_bytes(arguments.next()?).into())
}

/// The start time of a process, if it lives.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Writes a process down.
///
/// # Errors
/// What the file system said.
pub fn write(file: &Path, pid: Pid) -> io::Result<()> {
    fs::write(file, serde_json::to_string(&ProcessId::of(pid))?)
}

/// The process that is written down in `file`, if it lives.
pub fn read(file: &Path) -> Option<ProcessId> {
    let text = fs::read_to_string(file).ok()?;
    serde_json::from_str::<Option<ProcessId>>(&text).ok()?.filter(ProcessId::lives)
}

/// Kills the process that is written down in `file`, if it lives. Waits for its end, a second at most.
pub async fn end(file: &Path) {
    if let Some(known) = read(file) {
        // Without a thread nothing is ended; whoever has asked makes another one then, or says that it cannot.
        let _ = tokio::task::spawn_blocking(move || known.end()).await;
    }
}
