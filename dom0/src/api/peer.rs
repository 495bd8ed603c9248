//! A client's socket, looked at beside what is done for the client.

use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::host::watch;

/// A client's socket, once more.
#[derive(Debug)]
pub struct Peer(Option<AsyncFd<OwnedFd>>);

/// True if a client has hung up: one that has only said its last word has not.
pub fn has_hung_up(socket: &OwnedFd) -> bool {
    let mut sockets = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    // Does not wait.
    let polled = poll(&mut sockets, PollTimeout::ZERO);
    polled == Ok(1) && sockets[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

impl Peer {
    /// Looks at a client's socket, if there is one to look at.
    pub fn new(socket: Option<&OwnedFd>) -> Self {
        let socket = socket.and_then(|socket| socket.as_fd().try_clone_to_owned().ok());
        Self(socket.and_then(|socket| watch::readable(socket).ok()))
    }

    /// Waits until the client hangs up, or says something.
    pub async fn stirs(&self) {
        match &self.0 {
            Some(socket) => drop(socket.readable().await),
            None => std::future::pending().await,
        }
    }

    /// Waits until the client hangs up.
    pub async fn hangs_up(&self) {
        let Some(socket) = &self.0 else { return std::future::pending().await };
        loop {
            match socket.ready(Interest::READABLE).await {
                Ok(guard) if guard.ready().is_read_closed() => return,
                // It has said something: its next call.
                Ok(mut guard) => guard.clear_ready(),
                Err(_) => return,
            }
        }
    }
}
