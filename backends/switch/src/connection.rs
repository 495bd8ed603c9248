//! The threads that frontends talk to: one for each port, made before the seal, each with one frontend at a time.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use domus_startup::control::chain;
use domus_startup::threads;
use vu_server::Server;

use crate::nic::Nic;

/// How long a frontend that is hung up on may take to be forgotten.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a thread is to do.
struct Job {
    server: Server<Nic>,
    stream: UnixStream,
    /// The same socket, of which the main thread has another: it is over when it is shut down, not when one is closed.
    hang_up: UnixStream,
    /// Told why, if the frontend did not just hang up.
    failed: Box<dyn FnOnce(String) + Send>,
    /// Dropped when all is over.
    done: SyncSender<()>,
}

/// One thread, with or without work.
#[derive(Debug)]
pub struct Connections(SyncSender<Job>);

/// A frontend that is being served, or has hung up.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    done: Receiver<()>,
}

impl Connections {
    /// Starts a thread.
    ///
    /// # Errors
    /// The system has none left.
    pub fn new(number: usize) -> io::Result<Self> {
        let (jobs, waiting) = sync_channel::<Job>(1);
        threads::start(format!("port {number}"), move || {
            for Job { server, stream, hang_up, failed, done } in waiting {
                let served = server.serve(stream);
                // The frontend may have done so itself.
                let _ = hang_up.shutdown(Shutdown::Both);
                // The data thread learns that no more commands come.
                drop(server);
                if let Err(error) = served {
                    failed(chain(&error));
                }
                drop(done);
            }
        })?;
        Ok(Self(jobs))
    }

    /// Has the thread serve a frontend. The one before has been [ended](Connection::end).
    ///
    /// # Errors
    /// The thread has gone, or the socket cannot be used.
    pub fn serve(
        &self,
        server: Server<Nic>,
        stream: UnixStream,
        failed: impl FnOnce(String) + Send + 'static,
    ) -> io::Result<Connection> {
        let (done, over) = sync_channel(0);
        let connection = Connection { stream: stream.try_clone()?, done: over };
        let hang_up = stream.try_clone()?;
        let job = Job { server, stream, hang_up, failed: Box::new(failed), done };
        self.0.try_send(job).map_err(|_| io::Error::other("the port's thread is busy"))?;
        Ok(connection)
    }
}

impl Connection {
    /// Hangs up, and waits until no ring runs and no memory is mapped any more.
    ///
    /// # Errors
    /// The connection has not ended in time.
    pub fn end(&self) -> Result<(), String> {
        // It may have hung up itself.
        let _ = self.stream.shutdown(Shutdown::Both);
        match self.done.recv_timeout(PATIENCE) {
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                Err(format!("its connection has not ended within {} s", PATIENCE.as_secs()))
            }
            _ => Ok(()),
        }
    }
}

/// As many threads as there can be ports.
///
/// # Errors
/// The system has none left.
pub fn pool(count: usize) -> io::Result<Vec<Connections>> {
    (0..count).map(Connections::new).collect()
}
