//! A process's standard output and error: read from a pipe and passed on, a line at a time.
//!
//! A process may be in its guest's hands. So it does not get dom0's own standard error, which may be the operator's
//! terminal; what it says is passed on as printable lines of bounded length that begin with its name, and only so many
//! of them. It is never waited for: what does not fit the pipe is lost.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use domus_startup::EventLimit;
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::host::watch;
use crate::value::text::one_line;

/// Lines that one process may say within [`WINDOW`]. One that works says a few in its life.
const MAX_LINES: u32 = 32;
const WINDOW: Duration = Duration::from_secs(3600);

/// Bytes of a line that are kept: enough for as many characters as [`one_line`] keeps.
const MAX_LINE_LEN: usize = 2048;

/// How long a process that has said too much is left alone between two reads.
const PAUSE: Duration = Duration::from_millis(50);

/// The pipe for a new process: dom0's end, and the process's, which never makes it wait.
///
/// # Errors
/// What `pipe2(2)` said.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK;
    Ok(nix::unistd::pipe2(flags)?)
}

/// Starts to pass on what is read from `pipe`, until its other end is closed.
///
/// # Errors
/// What `epoll_ctl(2)` said.
pub fn pass_on(pipe: OwnedFd, say: impl FnMut(&str) + Send + 'static) -> io::Result<JoinHandle<()>> {
    Ok(tokio::spawn(relay(watch::readable(pipe)?, say)))
}

async fn relay(pipe: AsyncFd<OwnedFd>, mut say: impl FnMut(&str)) {
    let mut limit = EventLimit::new(MAX_LINES, WINDOW);
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        // A pipe that is always readable never makes a task wait; dom0's other tasks want to run too.
        tokio::task::coop::consume_budget().await;
        let Ok(mut guard) = pipe.readable().await else { return };
        let read = match nix::unistd::read(pipe.get_ref(), &mut buffer) {
            Ok(read @ 1..) => &buffer[..read],
            Err(Errno::EAGAIN) => {
                guard.clear_ready();
                continue;
            }
            Err(Errno::EINTR) => continue,
            _ => break,
        };
        for &byte in read {
            match byte {
                b'\n' => say_limited(&mut limit, &std::mem::take(&mut line), &mut say),
                _ if line.len() < MAX_LINE_LEN => line.push(byte),
                _ => {}
            }
        }
        if limit.is_spent() {
            sleep(PAUSE).await;
        }
    }
    if !line.is_empty() {
        say_limited(&mut limit, &line, &mut say);
    }
}

fn say_limited(limit: &mut EventLimit, line: &[u8], say: &mut impl FnMut(&str)) {
    if limit.admit(Instant::now()).is_none() {
        return;
    }
    say(&one_line(&String::from_utf8_lossy(line)));
    if limit.is_spent() {
        say("says too much: its next lines are dropped");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn listen() -> (OwnedFd, JoinHandle<()>, Arc<Mutex<Vec<String>>>) {
        let (ours, theirs) = pipe().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = said.clone();
        let task = pass_on(ours, move |line| heard.lock().unwrap().push(line.into())).unwrap();
        (theirs, task, said)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn lines_come_whole_and_printable_and_the_last_without_its_end() {
        let (theirs, task, said) = listen();
        for part in ["one", " line\nan\x1b[2Jother\n", "last \u{fe}words"] {
            nix::unistd::write(&theirs, part.as_bytes()).unwrap();
            tokio::task::yield_now().await;
        }
        drop(theirs);
        task.await.unwrap();
        assert_eq!(*said.lock().unwrap(), ["one line", "an [2Jother", "last \u{fe}words"]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_flood_is_cut_in_length_and_number_and_holds_neither_side_up() {
        let (theirs, task, said) = listen();
        // The writer is not made to wait for a reader that has not run yet.
        while nix::unistd::write(&theirs, &[b'x'; 4096]).is_ok() {}
        tokio::time::sleep(Duration::from_millis(20)).await;
        while nix::unistd::write(&theirs, b"\n").is_ok() {}
        drop(theirs);
        tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
        let said = said.lock().unwrap();
        assert_eq!(said.len(), MAX_LINES as usize + 1);
        assert!(said.iter().all(|line| line.chars().count() <= 512));
        assert!(said.last().unwrap().contains("too much"));
    }
}
