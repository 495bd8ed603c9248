//! Processes of a dom0 that was killed between their start and the moment it had written them down.
//!
//! Nobody knows them but by their command line, which names a control socket in this run directory. That is good enough to
//! end them: whoever has such a command line and is none of ours has made itself look like it.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::record::Known;
use crate::supervisor::spawn::{open_pidfd, signal};

/// Within this time one that was killed ends, in milliseconds.
const END: u16 = 1000;

/// Kills the processes whose control socket is in `dir` and that are none of these. Waits for each, a second at most;
/// returns how many there were.
pub fn end(dir: &Path, known: &[Known]) -> usize {
    let mut ended = 0;
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // Held before it is looked at: what is killed is what was looked at.
        let Ok(pidfd) = open_pidfd(Pid::from_raw(pid)) else { continue };
        let controlled = control(pid).is_some_and(|control| control.parent() == Some(dir));
        let Some(found) = Known::of(Pid::from_raw(pid)).filter(|_| controlled) else { continue };
        if !known.contains(&found) {
            signal(pidfd.as_fd(), Signal::SIGKILL);
            let _ = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(END));
            ended += 1;
        }
    }
    ended
}

/// The control socket on a process's command line: `PROGRAM --control PATH`.
fn control(pid: i32) -> Option<PathBuf> {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut arguments = arguments.split(|byte| *byte == 0).skip(1);
    if arguments.next()? != b"--control" {
        return None;
    }
    Some(Path::new(std::ffi::OsStr::from_bytes(arguments.next()?)).into())
}
