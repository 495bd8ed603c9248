//! Switches in user space: one process per switch name, which lives as long as the name has NICs.
//!
//! ```text
//!   first port ─▶ started ─▶ serves ─┬─ last port gone ─▶ ended
//!                    ▲               │
//!                    └── (pause) ◀───┴─ died: every runner sees the hang-up, and its domain plugs the port again
//! ```
//!
//! Each switch has a task of its own, so that no domain waits for another domain's request, and none longer than some
//! seconds. A switch belongs to the service: the domain of a `domus run` has no other domain to share a switch with.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use domus_startup::control::chain;
use domus_startup::fds::Outgoing;
use shared_abi::control::{BackendReply, NicRequest, SwitchEvent, SwitchRequest, SwitchStart};
use shared_abi::{DeviceId, DomainName, Role, SwitchName};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::host::run_dir::{RunDir, RunDirError};
use crate::host::{orphans, proc};
use crate::process::identity::uid;
use crate::process::link::{ChildError, ChildLink};
use crate::process::{Launch, Process, Supervisor, SupervisorError};
use crate::value::backoff::{self, GOOD_LIFE};
use crate::value::text::one_line;

/// How long a switch may take to answer, and a domain waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a switch cannot be started. One line.
#[derive(Debug, thiserror::Error)]
enum SwitchError {
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

/// A NIC at a switch.
type Port = (DomainName, DeviceId);

/// The switches of one dom0. Used by one thread.
pub struct Switches {
    run: RunDir,
    /// None in a command, which has no switch.
    supervisor: Option<Rc<dyn Supervisor>>,
    switches: RefCell<BTreeMap<SwitchName, Switch>>,
}

/// One of them.
struct Switch {
    ports: BTreeSet<Port>,
    asks: mpsc::UnboundedSender<Ask>,
    task: JoinHandle<()>,
}

struct Ask {
    request: SwitchRequest,
    fds: Vec<OwnedFd>,
    answer: oneshot::Sender<Result<BackendReply, String>>,
}

impl Switches {
    /// No switches yet. Without a supervisor there will be none.
    pub fn new(run: RunDir, supervisor: Option<Rc<dyn Supervisor>>) -> Self {
        Self { run, supervisor, switches: RefCell::default() }
    }

    /// Takes over the switches of the service before this one. [`Self::settle`] ends those that no domain has
    /// [resumed](Self::resume).
    pub fn begin(&self) {
        for dir in self.dirs() {
            if let Some(name) = dir.file_name().and_then(|name| name.to_str()?.parse::<SwitchName>().ok()) {
                self.switch(&name);
            }
        }
    }

    /// A NIC was plugged in by a service before this one, and is still.
    pub fn resume(&self, name: &SwitchName, port: Port) {
        if let Some(switch) = self.switches.borrow_mut().get_mut(name) {
            switch.ports.insert(port);
        }
    }

    /// Ends the switches that have no NIC.
    pub fn settle(&self) {
        self.switches.borrow_mut().retain(|_, switch| !switch.ports.is_empty());
        for dir in self.dirs() {
            let known = proc::read(&dir.join("switch.json"));
            orphans::end(&dir, known.as_slice());
        }
    }

    /// The directories that there are.
    fn dirs(&self) -> impl Iterator<Item = PathBuf> {
        fs::read_dir(self.dir()).into_iter().flatten().flatten().map(|entry| entry.path())
    }

    /// The switch of this name, made where it is missing. None in a command.
    fn switch(&self, name: &SwitchName) -> Option<()> {
        let supervisor = self.supervisor.clone()?;
        self.switches.borrow_mut().entry(name.clone()).or_insert_with(|| {
            let (asks, asked) = mpsc::unbounded_channel();
            let dir = self.dir().join(name.as_str());
            let served = Served { name: name.clone(), dir, run: self.run.clone(), supervisor, asked };
            Switch { ports: BTreeSet::new(), asks, task: tokio::task::spawn_local(served.run()) }
        });
        Some(())
    }

    fn dir(&self) -> PathBuf {
        self.run.path().join("switches")
    }

    /// Plugs a NIC in; the switch is started for the first. It stays plugged in, whatever comes of this, until
    /// [`Self::unplug`].
    ///
    /// # Errors
    /// One line.
    pub async fn plug(
        &self,
        name: &SwitchName,
        port: Port,
        card: shared_abi::control::NetCard,
        fds: Outgoing,
    ) -> Result<(), String> {
        self.switch(name).ok_or_else(|| {
            format!(
                "\"{name}\" needs the dom0 service, whose domains share it: start that, and use domus create"
            )
        })?;
        self.resume(name, port.clone());
        let (domain, _) = port;
        match self.ask(name, SwitchRequest::Plug { domain, card }, fds).await? {
            BackendReply::Done => Ok(()),
            other => Err(format!("switch {name}: answered with {other:?}")),
        }
    }

    /// Asks about a NIC that is plugged in.
    ///
    /// # Errors
    /// One line.
    pub async fn nic(
        &self,
        name: &SwitchName,
        (domain, nic): Port,
        request: NicRequest,
    ) -> Result<BackendReply, String> {
        self.ask(name, SwitchRequest::Nic { domain, nic, request }, Outgoing::default()).await
    }

    async fn ask(
        &self,
        name: &SwitchName,
        request: SwitchRequest,
        fds: Outgoing,
    ) -> Result<BackendReply, String> {
        let (answer, answered) = oneshot::channel();
        let ask = Ask { request, fds: fds.into_vec(), answer };
        let sent = self.switches.borrow().get(name).is_some_and(|switch| switch.asks.send(ask).is_ok());
        if !sent {
            return Err(format!("switch {name} is not there just now: see domus why"));
        }
        match timeout(PATIENCE * 2, answered).await {
            Ok(Ok(answer)) => answer.map_err(|why| format!("switch {name}: {why}")),
            _ => Err(format!("switch {name} does not answer: it is being started, or stands still")),
        }
    }

    /// Takes a NIC out; with the last one the switch ends, and is gone when this returns.
    pub async fn unplug(&self, name: &SwitchName, port: Port) {
        let ended = {
            let mut switches = self.switches.borrow_mut();
            let Some(switch) = switches.get_mut(name) else { return };
            switch.ports.remove(&port);
            if switch.ports.is_empty() { switches.remove(name) } else { None }
        };
        match ended {
            Some(Switch { asks, task, .. }) => {
                // The task ends the process when nobody can ask it anything any more.
                drop(asks);
                let _ = task.await;
            }
            None => {
                let (domain, nic) = port;
                let _ = self.ask(name, SwitchRequest::Unplug { domain, nic }, Outgoing::default()).await;
            }
        }
    }
}

/// What the task of a switch has.
struct Served {
    name: SwitchName,
    dir: PathBuf,
    run: RunDir,
    supervisor: Rc<dyn Supervisor>,
    asked: mpsc::UnboundedReceiver<Ask>,
}

type SwitchLink = ChildLink<BackendReply, SwitchEvent>;

impl Served {
    async fn run(mut self) {
        let mut young = 0_u32;
        let mut found = self.found().await;
        loop {
            let since = Instant::now();
            let started = match found.take() {
                Some(found) => Ok(found),
                None => self.start().await,
            };
            match started {
                Ok((process, link)) => match self.serve(process, link).await {
                    Some(how) => self.say(young, &format!("domus-switch {how}: it is started again")),
                    None => break,
                },
                Err(error) => {
                    let why = chain(&error);
                    self.say(young, &format!("cannot be started yet: {why}"));
                    while let Ok(ask) = self.asked.try_recv() {
                        let _ = ask.answer.send(Err(why.clone()));
                    }
                }
            }
            young = if since.elapsed() < GOOD_LIFE { young.saturating_add(1) } else { 0 };
            sleep(backoff::pause(young)).await;
            if self.asked.is_closed() {
                break;
            }
        }
        proc::end(&self.dir.join("switch.json"));
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// Says it the first times only.
    fn say(&self, young: u32, text: &str) {
        if young < 3 {
            crate::log::stderr::line(format_args!("switch {}: {text}", self.name));
        }
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

    async fn start(&self) -> Result<(Process, SwitchLink), SwitchError> {
        let io = |act| move |source: io::Error| SwitchError::Io { act, source };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(io("make a directory for a switch"))?;
        let (control, file) = (self.dir.join("switch.sock"), self.dir.join("switch.json"));
        proc::end(&file);
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

    /// Serves until the process ends; then the text says how. None if nobody needs it any more.
    async fn serve(&mut self, process: Process, mut link: SwitchLink) -> Option<String> {
        loop {
            tokio::select! {
                ask = self.asked.recv() => {
                    let Some(Ask { request, fds, answer }) = ask else {
                        process.kill();
                        process.reap().await;
                        return None;
                    };
                    let exchange = async {
                        link.send(&request, &fds).await?;
                        drop(fds);
                        link.answer(&process, PATIENCE, "answered").await
                    };
                    let result = exchange.await;
                    // One that does not answer in time is of no use to anybody: its guests are better off with another.
                    if matches!(result, Err(ChildError::Silent { .. } | ChildError::Link { .. })) {
                        process.kill();
                    }
                    let _ = answer.send(result.map_err(|error| match error {
                        ChildError::Failed { why, .. } => one_line(&why),
                        error => chain(&error),
                    }));
                }
                event = link.event() => match event {
                    Ok(SwitchEvent::PortFailed { domain, nic, why }) => {
                        crate::log::stderr::line(format_args!("switch {}: {domain}: {nic}: {}", self.name, one_line(&why)));
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
}
