//! dom0's side of a child's control socket: one of Domus' programs is started by its contract, greeted, told and asked.
//!
//! A child's messages are received with [`Link::receive`] as they come, or with [`ask`] up to an answer. Both wait for
//! as long as the child lives.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use domus_startup::fds::Outgoing;
use domus_startup::{Link, LinkError};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared_abi::control::FromChild;

use crate::process::Running;

/// How long a program may take until it listens.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connects to the control socket at `path`. The child has yet to be greeted.
///
/// # Errors
/// Nobody listens there.
pub fn dial(path: &Path) -> nix::Result<Link> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

/// Starts a program that makes its control socket at `path`, and greets it. `name` is what errors call it.
///
/// # Errors
/// It ends instead, does not listen within a minute, or speaks no version that this side does.
pub fn start(name: &str, program: &mut Command, path: &Path) -> Result<(Running, Link)> {
    let process = Running::start(name, program.arg("--control").arg(path));
    let mut process = process.with_context(|| format!("cannot start {name}"))?;
    let link = process.until(PATIENCE, || dial(path))?;
    let link = link.greeted().with_context(|| format!("cannot greet {name}"))?;
    Ok((process, link))
}

/// Sends a request with the descriptors that it names, and closes these.
///
/// # Errors
/// See [`LinkError`].
pub fn send<R: Serialize>(link: &Link, request: &R, fds: Outgoing) -> Result<(), LinkError> {
    let fds = fds.into_vec();
    link.send_request(request, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())
}

/// Sends a request and waits for its answer; returns it, and the events that came before it.
///
/// # Errors
/// See [`LinkError`].
pub fn ask<R, A, E>(link: &Link, request: &R, fds: Outgoing) -> Result<(FromChild<A, E>, Vec<E>), LinkError>
where
    R: Serialize,
    A: DeserializeOwned,
    E: DeserializeOwned,
{
    send(link, request, fds)?;
    let mut events = Vec::new();
    loop {
        match link.receive()?.0 {
            FromChild::Event(event) => events.push(event),
            answer => return Ok((answer, events)),
        }
    }
}
