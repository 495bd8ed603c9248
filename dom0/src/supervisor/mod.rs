//! Starts, watches and ends the processes of domains.
//!
//! Through one trait, so that a domain does not know who starts its processes: [`Direct`] does it itself. It must not
//! matter to a child either: all it gets is the path of its control socket.

mod cgroup;
mod direct;
mod spawn;

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use shared_abi::{DomainName, Role};
use tokio::io::unix::AsyncFd;

use crate::resources::watch;
pub use direct::Direct;

/// Why a process could not be started. One line.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The program is in none of the places.
    #[error(
        "{program} is not installed: looked in {places}; build it, or name its directory by --libexec-dir"
    )]
    NoProgram {
        /// The file name.
        program: &'static str,
        /// The directories, for people.
        places: String,
    },
    /// It is there and could not be started.
    #[error("cannot start {}", .program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A process to start.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// Whose it is.
    pub domain: &'a DomainName,
    /// What it is for.
    pub role: Role,
    /// Where it will listen.
    pub control: &'a Path,
    /// The guest's RAM in bytes, for the limits.
    pub memory: u64,
    /// The guest's vCPUs, for the limits.
    pub vcpus: u8,
}

/// What [`Supervisor::start`] returns.
pub type Starting<'a> = Pin<Box<dyn Future<Output = Result<Process, SupervisorError>> + 'a>>;

/// Starts processes. Each job's process is started once; ending it is up to the [`Process`].
pub trait Supervisor {
    /// Starts a process and returns without waiting for its socket.
    fn start<'a>(&'a self, job: Job<'a>) -> Starting<'a>;

    /// Called when every process of `domain` has ended: removes what was made for them.
    fn release(&self, domain: &DomainName);
}

/// A started process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    reaped: bool,
}

impl Process {
    fn new(pid: Pid, pidfd: OwnedFd) -> io::Result<Self> {
        Ok(Self { pid, pidfd: watch::readable(pidfd)?, reaped: false })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Kills it. No error if it has ended already.
    pub fn kill(&self) {
        spawn::signal(self.pidfd.get_ref().as_fd(), Signal::SIGKILL);
    }

    /// Waits until it has ended; the text says how, for people.
    pub async fn ended(&self) -> String {
        // A pidfd becomes readable when its process ends, and stays so.
        let _ = self.pidfd.readable().await;
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::PIDFd(self.pidfd.get_ref().as_fd()), peek) {
            Ok(WaitStatus::Exited(_, 127)) => "could not be executed".into(),
            Ok(WaitStatus::Exited(_, status)) => format!("exited with status {status}"),
            Ok(WaitStatus::Signaled(_, Signal::SIGSYS, _)) => {
                "was killed by its system call filter (SIGSYS)".into()
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => format!("was killed by {signal}"),
            _ => "ended".into(),
        }
    }

    /// Waits for its end and lets the kernel forget it.
    pub async fn reap(mut self) {
        self.ended().await;
        self.collect(WaitPidFlag::WNOHANG);
    }

    fn collect(&mut self, how: WaitPidFlag) {
        let _ = waitid(Id::PIDFd(self.pidfd.get_ref().as_fd()), WaitPidFlag::WEXITED | how);
        self.reaped = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            // Only on paths that give up everything at once; the orderly one is `reap`.
            self.collect(WaitPidFlag::empty());
        }
    }
}
