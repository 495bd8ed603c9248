//! The metrics for Prometheus: domains, vCPU time, steal, memory, disks, NICs, restarts, stalls.
//!
//! A small HTTP/1.1 server that answers only `GET /metrics`, on a Unix socket or a TCP address. An address that other
//! hosts reach needs the operator's consent. Clients are not trusted: a request is bounded in bytes and in time, the
//! number of clients is bounded, and the server reads only the first line of a request.

mod text;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::api::Samples;

/// Clients at the same time; one more is hung up on.
const MAX_CLIENTS: usize = 64;

/// Longest head of a request, in bytes.
const MAX_HEAD_LEN: usize = 8 * 1024;

/// How long a client may take for everything.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take to say what it wants: one that says nothing keeps a place from others.
const HEAD: Duration = Duration::from_secs(2);

/// Where metrics are to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    /// On TCP.
    Address(SocketAddr),
    /// On a Unix stream socket.
    Path(PathBuf),
}

/// Not such a place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "is neither ADDRESS:PORT nor an absolute path: 127.0.0.1:9273, [::1]:9273 or /run/domus/metrics.sock would do"
)]
pub struct WhereError;

impl FromStr for Where {
    type Err = WhereError;

    fn from_str(text: &str) -> Result<Self, WhereError> {
        match text.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(_) if text.starts_with('/') => Ok(Self::Path(text.into())),
            Err(_) => Err(WhereError),
        }
    }
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "http://{address}/metrics"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// Why metrics cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// Others would reach them.
    #[error("--metrics {0}: others reach that address: name 127.0.0.1 or [::1], or add --metrics-public")]
    Public(SocketAddr),
    /// There is no listening there.
    #[error("--metrics: cannot listen on {at}")]
    Listen {
        /// Where.
        at: Where,
        /// Why not.
        source: io::Error,
    },
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The listening socket. Dropping it removes the one in the file system.
pub struct Metrics {
    listener: Listener,
    at: Where,
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.at.fmt(f)
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        if let Where::Path(path) = &self.at {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Metrics {
    /// Begins to listen. A socket without a listener is replaced, any other file is kept. Must be called in a runtime.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub fn bind(at: Where, public: bool) -> Result<Self, MetricsError> {
        let bound = match &at {
            Where::Address(address) if !public && !address.ip().is_loopback() => {
                return Err(MetricsError::Public(*address));
            }
            Where::Address(address) => std::net::TcpListener::bind(address).and_then(|listener| {
                listener.set_nonblocking(true)?;
                let listener = TcpListener::from_std(listener)?;
                // The port may have been the kernel's to choose.
                Ok((Where::Address(listener.local_addr()?), Listener::Tcp(listener)))
            }),
            Where::Path(path) => {
                let is_dead = || {
                    use std::os::unix::fs::FileTypeExt;
                    let is_socket =
                        std::fs::symlink_metadata(path).is_ok_and(|is| is.file_type().is_socket());
                    is_socket && std::os::unix::net::UnixStream::connect(path).is_err()
                };
                if is_dead() {
                    let _ = std::fs::remove_file(path);
                }
                UnixListener::bind(path).map(|listener| (at.clone(), Listener::Unix(listener)))
            }
        };
        match bound {
            Ok((at, listener)) => Ok(Self { listener, at }),
            Err(source) => Err(MetricsError::Listen { at, source }),
        }
    }

    /// Serves for ever. Must run in a `LocalSet`.
    pub async fn serve(self, samples: Rc<Samples>) {
        let clients = Rc::new(Cell::new(0_usize));
        loop {
            let begun = match &self.listener {
                Listener::Tcp(listener) => {
                    listener.accept().await.map(|(stream, _)| begin(&clients, &samples, stream))
                }
                Listener::Unix(listener) => {
                    listener.accept().await.map(|(stream, _)| begin(&clients, &samples, stream))
                }
            };
            if begun.is_err() {
                // No descriptors left, or the like: it passes, and a busy loop would not help.
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

fn begin(
    clients: &Rc<Cell<usize>>,
    samples: &Rc<Samples>,
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
) {
    if clients.get() >= MAX_CLIENTS {
        return;
    }
    clients.set(clients.get() + 1);
    let (clients, samples) = (clients.clone(), samples.clone());
    tokio::task::spawn_local(async move {
        let _ = timeout(PATIENCE, answer(&samples, stream)).await;
        clients.set(clients.get() - 1);
    });
}

/// Answers one request, and hangs up.
async fn answer(samples: &Samples, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    let deadline = Instant::now() + HEAD;
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = timeout_at(deadline, stream.read(&mut buffer)).await;
        let count = read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        if count == 0 {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..count]);
        if head.len() > MAX_HEAD_LEN {
            return reply(
                &mut stream,
                "431 Request Header Fields Too Large",
                "text/plain",
                "the request is too long\n",
            )
            .await;
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    match judge(line) {
        Ok(()) => {
            let text = text::write(&samples.take().await);
            reply(&mut stream, "200 OK", "text/plain; version=0.0.4; charset=utf-8", &text).await
        }
        Err(status) => reply(&mut stream, status, "text/plain", "GET /metrics is all there is\n").await,
    }
}

/// What a request's first line asks for, or the status of its refusal.
fn judge(line: &[u8]) -> Result<(), &'static str> {
    let bad = "400 Bad Request";
    let mut words = std::str::from_utf8(line).map_err(|_| bad)?.split(' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) => {
            let path = target.split('?').next().unwrap_or_default();
            match (method, path) {
                (_, path) if path != "/metrics" => Err("404 Not Found"),
                ("GET", _) => Ok(()),
                _ => Err("405 Method Not Allowed"),
            }
        }
        _ => Err(bad),
    }
}

async fn reply(
    stream: &mut (impl AsyncWrite + Unpin),
    status: &str,
    kind: &str,
    body: &str,
) -> io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_get_metrics_is_answered() {
        assert_eq!(judge(b"GET /metrics HTTP/1.1"), Ok(()));
        assert_eq!(judge(b"GET /metrics?a=b HTTP/1.0"), Ok(()));
        assert_eq!(judge(b"GET / HTTP/1.1"), Err("404 Not Found"));
        assert_eq!(judge(b"POST /metrics HTTP/1.1"), Err("405 Method Not Allowed"));
        for nonsense in [
            &b""[..],
            b"GET /metrics",
            b"GET /metrics HTTP/2",
            b"GET  /metrics HTTP/1.1",
            b"\xff\xff \x00 HTTP/1.1",
        ] {
            assert_eq!(judge(nonsense), Err("400 Bad Request"));
        }
    }

    #[tokio::test]
    async fn an_address_that_others_reach_needs_to_be_meant() {
        let at = |text: &str| text.parse::<Where>().unwrap();
        for public in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
            let Err(error) = Metrics::bind(at(public), false) else { panic!("{public} was taken") };
            assert!(error.to_string().contains("--metrics-public"), "{error}");
        }
        assert!(Metrics::bind(at("127.0.0.1:0"), false).is_ok());
        assert!(Metrics::bind(at("0.0.0.0:0"), true).is_ok());
        assert!("metrics.sock".parse::<Where>().is_err() && "localhost:80".parse::<Where>().is_err());
    }

    #[tokio::test]
    async fn a_dead_socket_gives_way_and_another_file_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let metrics = Metrics::bind(Where::Path(path.clone()), false).unwrap();
        assert!(Metrics::bind(Where::Path(path.clone()), false).is_err(), "a living one has given way");
        drop(metrics);
        assert!(!path.exists());
        std::fs::write(&path, "mine").unwrap();
        assert!(Metrics::bind(Where::Path(path.clone()), false).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}
