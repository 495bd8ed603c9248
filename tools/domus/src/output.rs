//! Standard output of every command, and its lines on standard error.
//!
//! A reader that has gone (`domus list | head -1`) is no failure and no reason to stop half-way: what a command changes
//! is changed. A command that only goes on printing ends ([`until_unread`]).

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How often it is looked whether anybody reads.
const LOOK: Duration = Duration::from_millis(200);

/// Prints a line. A reader that has gone is no failure of the command.
pub fn print(text: &str) -> anyhow::Result<()> {
    write(format!("{text}\n").as_bytes())
}

/// Prints bytes as they are.
pub fn write(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Does what prints without end until that ends by itself, or nobody is left to read it.
pub async fn until_unread(endless: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let unread = async {
        // What fails at once says so first.
        loop {
            tokio::time::sleep(LOOK).await;
            if is_unread() {
                break;
            }
        }
    };
    tokio::select! {
        ended = endless => ended,
        () = unread => Ok(()),
    }
}

/// True for a pipe, a socket or a terminal whose other end is closed.
fn is_unread() -> bool {
    let out = io::stdout();
    let mut asked = [PollFd::new(out.as_fd(), PollFlags::empty())];
    let told = poll(&mut asked, PollTimeout::ZERO).is_ok_and(|told| told > 0);
    told && asked[0].revents().is_some_and(|told| told.intersects(PollFlags::POLLERR | PollFlags::POLLHUP))
}
