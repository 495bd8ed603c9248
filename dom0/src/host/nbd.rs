//! Connections to NBD servers. What is said on them is the backend's matter.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use shared_abi::nbd::{NbdServer, NbdUri};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Longer no server is waited for. The next attempt comes soon.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects to the server of an export; the result is in blocking mode.
///
/// # Errors
/// What the system said, or that it took too long.
pub async fn dial(uri: &NbdUri) -> io::Result<OwnedFd> {
    let dialed = timeout(PATIENCE, connect(&uri.server)).await;
    dialed.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")))
}

async fn connect(server: &NbdServer) -> io::Result<OwnedFd> {
    match server {
        NbdServer::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            // Requests are small and waited for.
            stream.set_nodelay(true)?;
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            Ok(stream.into())
        }
        NbdServer::Unix(path) => {
            let stream = UnixStream::connect(path).await?.into_std()?;
            stream.set_nonblocking(false)?;
            Ok(stream.into())
        }
    }
}
