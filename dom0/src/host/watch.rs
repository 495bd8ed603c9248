//! Descriptors that the runtime watches.

#![expect(unsafe_code, reason = "AsyncFd cannot know that a type keeps its descriptor")]

use std::io;
use std::os::fd::OwnedFd;

use domus_startup::Link;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a pidfd, or whatever else becomes readable.
///
/// # Errors
/// What `epoll_ctl(2)` said.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names one descriptor, always the same, and closes it when it is dropped.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}

/// Watches a control socket in non-blocking mode, both ways.
///
/// # Errors
/// What `epoll_ctl(2)` said.
pub fn link(link: Link) -> io::Result<AsyncFd<Link>> {
    // SAFETY: a Link owns one OwnedFd for its whole life and never replaces it.
    unsafe { AsyncFd::register_with_interest(link, Interest::READABLE | Interest::WRITABLE) }
        .map_err(Into::into)
}
