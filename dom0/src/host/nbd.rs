//! Connections to NBD servers. What is said on them is the backend's matter.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use shared_abi::nbd::{NbdServer, NbdUri};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::host::waits::waiting;
use crate::host::{slow, sockets};

/// Longer no server is waited for. The next attempt comes soon.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects to the server of an export; the result is in blocking mode.
///
/// # Errors
/// What the system said, or that it took too long.
pub async fn dial(uri: &NbdUri) -> io::Result<OwnedFd> {
    let late = |why: String| io::Error::new(io::ErrorKind::TimedOut, why);
    match &uri.server {
        NbdServer::Tcp { host, port } => {
            let _told = waiting(|| format!("the NBD server at {host}:{port} to take a connection"));
            let dialed = timeout(PATIENCE, tcp(host, *port)).await;
            dialed.unwrap_or_else(|_| Err(late("it does not answer".into())))
        }
        // The path may be on storage that does not answer.
        NbdServer::Unix(path) => {
            let dialed = slow::within(PATIENCE, path, sockets::dial).await;
            dialed.unwrap_or_else(|slow| Err(late(slow.to_string())))
        }
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<OwnedFd> {
    let stream = TcpStream::connect((host, port)).await?;
    // Requests are small and waited for.
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}
