//! Starts, watches and ends the processes of domains, through one trait: [`Supervisor`].
//!
//! A domain does not know which implementation starts its processes: [`Direct`] starts them itself, [`Systemd`] has
//! systemd start them. A child must not depend on it either: it gets only the path of its control socket.

mod cgroup;
pub mod confinement;
mod direct;
pub mod identity;
pub(crate) mod keep_alive;
pub mod link;
mod output;
pub mod run;
pub mod spawn;
mod systemd;

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use shared_abi::{DomainName, Role};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use crate::host::proc::ProcessId;
use crate::host::{pidfd, watch};
use crate::process::confinement::Confinement;

pub use direct::Direct;
pub use systemd::{ENVIRONMENTS, Systemd, is_at_hand};

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
pub struct Launch<'a> {
    /// Whom it serves, for messages: a domain, a switch.
    pub whom: &'a str,
    /// What it is for.
    pub role: Role,
    /// Where it will listen.
    pub control: &'a Path,
    /// The program to start; none for the installed one.
    pub program: Option<&'a Path>,
    /// The domain whose limits are its own, if it serves one alone.
    pub limits: Option<Limits<'a>>,
}

/// What the limits of a domain's processes are made from.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// Whose they are.
    pub domain: &'a DomainName,
    /// By which the host's other tools know it.
    pub uuid: Uuid,
    /// The guest's RAM in bytes.
    pub memory: u64,
    /// The guest's vCPUs.
    pub vcpus: u8,
}

/// A helper program to start, such as passt or dnsmasq.
#[derive(Debug, Clone, Copy)]
pub struct HelperProgram<'a> {
    /// Whom it serves, for messages: a domain, a network.
    pub whom: &'a str,
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub args: &'a [String],
    /// Its standard input; without one it has an empty one.
    pub gives: Option<BorrowedFd<'a>>,
    /// The domain whose limits are its own, if it serves one alone.
    pub domain: Option<&'a DomainName>,
    /// What it may do.
    pub confinement: Confinement<'a>,
}

/// What [`Supervisor::start`] returns.
pub type Starting<'a> = Pin<Box<dyn Future<Output = Result<Process, SupervisorError>> + 'a>>;

/// What [`Supervisor::adopt`] returns.
pub type Adopting<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// What [`Supervisor::set_cpu_limits`] returns.
pub type SettingCpuLimits<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + 'a>>;

/// Starts processes. A [`Launch`] starts one process; ending it is up to the [`Process`].
pub trait Supervisor {
    /// Starts a process and returns without waiting for its socket.
    fn start<'a>(&'a self, launch: Launch<'a>) -> Starting<'a>;

    /// Starts a helper program, which has no control socket. It sees the host's processes, as it expects.
    fn start_helper<'a>(&'a self, helper: HelperProgram<'a>) -> Starting<'a>;

    /// Adopts a process that an earlier dom0 started.
    fn adopt<'a>(&'a self, process: &'a mut Process) -> Adopting<'a>;

    /// Changes what the processes of a running domain may have of the CPUs: their weight beside other domains' (1 to
    /// 10000, 100 as it begins), and a cap in percent of one CPU, where 0 is none. What is not named stays.
    ///
    /// # Errors
    /// One line: it has no cgroup, or the system refuses.
    fn set_cpu_limits<'a>(
        &'a self,
        domain: &'a DomainName,
        weight: Option<u32>,
        cap: Option<u32>,
    ) -> SettingCpuLimits<'a>;

    /// Called when every process of `domain` has ended: removes what was made for them.
    fn release(&self, domain: &DomainName);

    /// The same for what serves `whom`, which is no domain: a network, a switch. Waits a moment for its end.
    fn release_other<'a>(&'a self, _whom: &'a str) -> Adopting<'a> {
        Box::pin(std::future::ready(()))
    }
}

/// Within this time what is left in a dead process's pipe is passed on; more is not worth a wait.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What [`Witness::how`] returns.
type Telling<'a> = Pin<Box<dyn Future<Output = String> + 'a>>;

/// Somebody who knows how a process has ended that is nobody's child here.
trait Witness: fmt::Debug {
    /// Says it, after its end. Cancel safe.
    fn how(&self) -> Telling<'_>;
}

/// A started process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    /// Passes on what it says, until its end.
    words: Option<JoinHandle<()>>,
    /// Knows how it ended, if it is no child of this process.
    witness: Option<Box<dyn Witness>>,
    reaped: bool,
}

impl Process {
    /// How one has ended that has done what it was to do.
    const ENDED_WELL: &str = "exited with status 0";

    fn new(pid: Pid, pidfd: OwnedFd) -> io::Result<Self> {
        Ok(Self { pid, pidfd: watch::readable(pidfd)?, words: None, witness: None, reaped: false })
    }

    /// A process that a dom0 before this one has started, if it lives.
    pub fn found(known: ProcessId) -> Option<Self> {
        let pid = Pid::from_raw(known.pid);
        // Held before it is looked at: it is the one that was looked at.
        let pidfd = pidfd::open_pidfd(pid).ok()?;
        if known.lives() { Self::new(pid, pidfd).ok() } else { None }
    }

    /// Lets go of it: it lives on.
    pub fn leave(mut self) {
        self.reaped = true;
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Kills it. No error if it has ended already.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Sends it a signal. No error if it has ended already.
    pub fn signal(&self, signal: Signal) {
        pidfd::signal(self.pidfd.get_ref().as_fd(), signal);
    }

    /// Waits until it has ended; the text says how, for people.
    pub async fn ended(&self) -> String {
        // A pidfd becomes readable when its process ends, and stays so.
        let _ = self.pidfd.readable().await;
        if let Some(witness) = &self.witness {
            return witness.how().await;
        }
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::PIDFd(self.pidfd.get_ref().as_fd()), peek) {
            Ok(WaitStatus::Exited(_, 127)) => "could not be executed".into(),
            Ok(WaitStatus::Exited(_, status)) => format!("exited with status {status}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => killed_by(signal),
            _ => "ended".into(),
        }
    }

    /// Ready when it has ended. The last one who polls is woken.
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.pidfd.poll_read_ready(cx).map(drop)
    }

    /// Waits for its end, passes on its last words, and lets the kernel forget it.
    pub async fn reap(mut self) {
        self.ended().await;
        self.collect();
        if let Some(mut words) = self.words.take()
            && timeout(LAST_WORDS, &mut words).await.is_err()
        {
            words.abort();
        }
    }

    /// Has the kernel forget it if it has ended.
    fn collect(&mut self) {
        let _ = waitid(Id::PIDFd(self.pidfd.get_ref().as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
        self.reaped = true;
    }
}

/// What a signal has done, for people.
fn killed_by(signal: Signal) -> String {
    match signal {
        Signal::SIGSYS => "was killed by its system call filter (SIGSYS)".into(),
        signal => format!("was killed by {signal}"),
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        self.kill();
        self.collect();
        // Only on paths that give up everything at once; the orderly one is `reap`. One that storage holds up ends when
        // that lets go of it: nobody waits for that.
        let Ok(pidfd) = self.pidfd.get_ref().try_clone() else { return };
        let wait = move || {
            let _ = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED);
        };
        let _ = std::thread::Builder::new().name("reap".into()).spawn(wait);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A supervisor whose runner is this script.
    fn with_runner(dir: &Path, script: &str) -> Direct {
        let path = dir.join("domu-runner");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        Direct::new(Some(dir.into()), true)
    }

    async fn start(direct: &Direct, control: &Path) -> Result<Process, SupervisorError> {
        direct.start(Launch { whom: "test", role: Role::Runner, control, program: None, limits: None }).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_process_gets_its_control_path_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let seen = dir.path().join("seen");
        // A descriptor that a careless parent leaks.
        let leak = fs::File::open("/dev/null").unwrap();
        nix::fcntl::fcntl(&leak, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let script = format!(
            "#!/bin/sh\n{{ echo \"$*\"; /bin/ls /proc/self/fd | /usr/bin/wc -l; /usr/bin/env | /bin/grep -vc -e PWD -e _; }} >{}
             [ -p /dev/fd/1 ] && [ -p /dev/fd/2 ] && exit 3\n",
            seen.display()
        );
        let direct = with_runner(dir.path(), &script);
        let process = start(&direct, Path::new("/x/runner.sock")).await.unwrap();
        assert_eq!(process.ended().await, "exited with status 3");
        process.reap().await;
        let seen = fs::read_to_string(seen).unwrap();
        let lines: Vec<&str> = seen.lines().map(str::trim).collect();
        // Descriptors: 0, 1, 2, and the one that ls reads the directory with.
        assert_eq!(lines, ["--control /x/runner.sock", "4", "0"]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn how_a_process_ended_is_told_and_a_dropped_one_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let direct = with_runner(dir.path(), "#!/bin/sh\nexec /bin/sleep 1000\n");
        let process = start(&direct, Path::new("/x")).await.unwrap();
        let pid = process.pid();
        process.kill();
        assert_eq!(process.ended().await, "was killed by SIGKILL");
        process.reap().await;
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        let process = start(&direct, Path::new("/x")).await.unwrap();
        let pid = process.pid();
        drop(process);
        // By a thread that waits for it.
        while Path::new(&format!("/proc/{pid}")).exists() {
            std::thread::yield_now();
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_program_that_is_missing_or_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let direct = Direct::new(Some(dir.path().into()), true);
        let error = start(&direct, Path::new("/x")).await.unwrap_err().to_string();
        assert!(error.contains("domu-runner is not installed") && error.contains("--libexec-dir"), "{error}");
        let direct = with_runner(dir.path(), "\0 no program");
        let process = start(&direct, Path::new("/x")).await.unwrap();
        assert_eq!(process.ended().await, "could not be executed");
    }
}
