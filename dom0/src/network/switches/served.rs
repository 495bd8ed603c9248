//! The task of one switch: its process, kept alive for as long as there are NICs, and the requests to it.
//!
//! Requests are answered one after the other. A switch that does not answer within [`PATIENCE`] is killed; requests
//! that wait while it cannot be started are answered with the reason. When nobody can ask any more, the process ends
//! and its directory is removed.

use std::cell::Cell;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use domus_startup::control::chain;
use shared_abi::control::{BackendReply, SwitchEvent, SwitchRequest, SwitchStart};
use shared_abi::{Role, SwitchName};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::host::proc;
use crate::host::run_dir::{RunDir, RunDirError};
use crate::process::identity::uid;
use crate::process::keep_alive::{KeptAlive, keep_alive};
use crate::process::link::{ChildError, ChildLink};
use crate::process::{Launch, Process, Supervisor, SupervisorError};
use crate::value::text::one_line;

/// How long a switch may take to answer, and a domain waits for it.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// So often a switch is asked for a sign of life.
const BEAT: Duration = Duration::from_secs(3);

/// A request to a switch.
pub struct Ask {
    pub request: SwitchRequest,
    pub fds: Vec<OwnedFd>,
    pub answer: oneshot::Sender<Result<BackendReply, String>>,
}

/// Why a switch cannot be started. One line.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// Its process could not be started.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    /// Its process did not get ready.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// It has no user of its own.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// Something of dom0's own.
    #[error("cannot {act}")]
    Io {
        /// What.
        act: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What the task of a switch has.
pub struct Served {
    pub name: SwitchName,
    pub dir: PathBuf,
    pub run: RunDir,
    pub supervisor: Rc<dyn Supervisor>,
    pub asked: mpsc::UnboundedReceiver<Ask>,
    /// Since when an answer is owed.
    pub owes: Rc<Cell<Option<Instant>>>,
}

type SwitchLink = ChildLink<BackendReply, SwitchEvent>;

impl Served {
    /// Serves until nobody can ask any more; then the process ends, and nothing is left of it.
    pub async fn run(mut self) {
        let found = self.found().await;
        keep_alive(&mut self, found).await;
        proc::end(&self.dir.join("switch.json")).await;
        let _ = fs::remove_dir_all(&self.dir);
        self.supervisor.release_other(&format!("switch {}", self.name)).await;
    }

    fn say(&self, text: &str) {
        crate::log::stderr::line(format_args!("switch {}: {text}", self.name));
    }

    /// The process that a service before this one has left, if it lives and talks.
    async fn found(&self) -> Option<(Process, SwitchLink)> {
        let mut process = Process::found(proc::read(&self.dir.join("switch.json"))?)?;
        self.supervisor.adopt(&mut process).await;
        let control = self.dir.join("switch.sock");
        let link = timeout(PATIENCE, SwitchLink::connect(Role::Switch, &control, &process)).await;
        // One that cannot be talked to ends here.
        Some((process, link.ok()?.ok()?))
    }
}

/// Has the switch do something. One that does not answer in time is of no use to anybody, and is killed: its guests are
/// better off with another.
async fn exchange(
    link: &mut SwitchLink,
    process: &Process,
    owes: &Cell<Option<Instant>>,
    request: &SwitchRequest,
    fds: Vec<OwnedFd>,
) -> Result<BackendReply, ChildError> {
    owes.set(Some(Instant::now()));
    let result = async {
        link.send(request, &fds).await?;
        drop(fds);
        link.answer(process, PATIENCE, "answered").await
    };
    let result = result.await;
    owes.set(None);
    if matches!(result, Err(ChildError::Silent { .. } | ChildError::Link { .. })) {
        process.kill();
    }
    result
}

impl KeptAlive for Served {
    type Running = (Process, SwitchLink);
    type Error = SwitchError;
    const SAID: u32 = 3;

    async fn start(&mut self) -> Result<(Process, SwitchLink), SwitchError> {
        let io = |act| move |source: io::Error| SwitchError::Io { act, source };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(io("make a directory for a switch"))?;
        let (control, file) = (self.dir.join("switch.sock"), self.dir.join("switch.json"));
        proc::end(&file).await;
        let _ = fs::remove_file(&control);
        let whom = format!("switch {}", self.name);
        let launch =
            Launch { whom: &whom, role: Role::Switch, control: &control, program: None, limits: None };
        let process = self.supervisor.start(launch).await?;
        proc::write(&file, process.pid()).map_err(io("write a switch's state"))?;
        let mut link = SwitchLink::connect(Role::Switch, &control, &process).await?;
        // A user of its own, as each domain has: the numbers come from one counter.
        let start = SwitchStart { name: self.name.clone(), uid: uid(self.run.next_domid()?) };
        link.send(&SwitchRequest::Start(start), &[]).await?;
        match link.answer(&process, PATIENCE, "become ready").await? {
            BackendReply::Ready => Ok((process, link)),
            other => {
                let why = format!("answered start with {other:?}");
                Err(ChildError::Failed { role: Role::Switch, why }.into())
            }
        }
    }

    fn not_started(&mut self, error: SwitchError, is_said: bool) {
        let why = chain(&error);
        if is_said {
            self.say(&format!("cannot be started yet: {why}"));
        }
        while let Ok(ask) = self.asked.try_recv() {
            let _ = ask.answer.send(Err(why.clone()));
        }
    }

    async fn serve(&mut self, (process, mut link): (Process, SwitchLink)) -> Option<String> {
        let mut next_beat = Instant::now() + BEAT;
        loop {
            tokio::select! {
                ask = self.asked.recv() => {
                    let Some(Ask { request, fds, answer }) = ask else {
                        process.kill();
                        process.reap().await;
                        return None;
                    };
                    let result = exchange(&mut link, &process, &self.owes, &request, fds).await;
                    let _ = answer.send(result.map_err(|error| match error {
                        ChildError::Failed { why, .. } => one_line(&why),
                        error => chain(&error),
                    }));
                }
                () = sleep_until(next_beat), if link.version() >= 3 => {
                    next_beat = Instant::now() + BEAT;
                    if let Err(ChildError::Silent { seconds, .. }) =
                        exchange(&mut link, &process, &self.owes, &SwitchRequest::Ping, Vec::new()).await
                    {
                        self.say(&format!("domus-switch has not answered for {seconds} s: another one takes its place"));
                    }
                }
                event = link.event() => match event {
                    Ok(SwitchEvent::PortFailed { domain, nic, why }) => {
                        self.say(&format!("{domain}: {nic}: {}", one_line(&why)));
                    }
                    Err(_) => {
                        process.kill();
                        let how = process.ended().await;
                        process.reap().await;
                        return Some(how);
                    }
                },
                how = process.ended() => {
                    process.reap().await;
                    return Some(how);
                }
            }
        }
    }

    fn say_ended(&self, how: &str) {
        self.say(&format!("domus-switch {how}: it is started again"));
    }

    fn is_needed(&self) -> bool {
        !self.asked.is_closed()
    }
}
