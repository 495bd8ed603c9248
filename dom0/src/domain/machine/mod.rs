//! A machine: what runs of a domain, from one start of its guest to the next.
//!
//! ```text
//!   new ──build──▶ ready ──resume──▶ runs ◀──▶ paused ──▶ stop_machine (the console stays) ──▶ tear_down
//!   left by another dom0 ──greet──▶ runs
//! ```
//!
//! It knows nothing of policies and wishes: what has happened it hands on as [`Notice`]s. What describes it is what
//! runs, in a [`MachineRecord`], and not a config's text. Whatever fails or is dropped half-way, [`Machine::tear_down`]
//! removes it.

mod adopt;
mod attempt;
mod backend;
mod build;
mod core;
mod disks;
mod events;
mod exchange;
mod hang;
mod nics;
mod recovery;
mod runner;
mod scheduling;
mod timeline;
mod vcpu_load;

use std::collections::BTreeMap;
use std::mem;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use domus_startup::control::chain;
use futures_util::future::join_all;
use nix::unistd::Pid;
use shared_abi::control::{
    BackendReply, ConsoleRequest, RunnerReply, RunnerRequest, RunnerStatus, StopReason, VcpuCounters,
};
use shared_abi::{DomId, DomainName, Role};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::config::{DomainConfig, OnHang};
use crate::device::classes::Devices;
use crate::device::loss::Loss;
use crate::device::{Owner, Providers};
use crate::domain::events::Kind;
use crate::domain::machine::attempt::Losses;
use crate::domain::machine::backend::BackendProcess;
use crate::domain::machine::runner::Runner;
use crate::domain::machine::timeline::{Phase, Timeline};
use crate::domain::machine::vcpu_load::VcpuLoad;
use crate::domain::record::{MachineRecord, ProcessRecord};
use crate::host::proc::ProcessId;
use crate::host::slow;
use crate::host::waits::waiting;
use crate::process::link::{ANSWER, ChildError};
use crate::process::{Limits, Process};
use crate::value::cpus::Scheduling;

pub use adopt::{Found, MEANWHILE};
pub use build::check_cpu;
pub use core::CoreFile;
pub use events::MachineEvent;
pub use scheduling::{VcpuReport, check as check_scheduling};

/// Within this time a process that was killed ends, if nothing holds it in the kernel.
const END: Duration = Duration::from_secs(5);

/// Lines about what the children of one machine said that are written.
const MAX_LINES: u32 = 32;

/// What runs of a domain.
#[derive(Debug)]
pub struct Machine {
    owner: Owner,
    uuid: Uuid,
    memory: u64,
    vcpus: u8,
    from: Providers,
    /// Set to true when an operator destroys the domain: nobody waits for its runner then.
    destroyed: watch::Receiver<bool>,
    devices: Rc<Devices>,
    scheduling: Scheduling,
    /// What is started in place of the installed programs.
    programs: BTreeMap<Role, PathBuf>,
    runner: Option<Runner>,
    backends: Vec<BackendProcess>,
    losses: Losses,
    on_hang: OnHang,
    /// When the children are asked for a sign of life next.
    next_beat: Instant,
    /// What the runner has told of its vCPUs.
    vcpu_load: VcpuLoad,
    timeline: Timeline,
    /// Lines about what children said that may still be written.
    log_budget: u32,
    /// A guest of the domain has run, on this machine or one before it.
    has_run: bool,
    notices: Vec<Notice>,
}

/// What a machine tells its domain.
#[derive(Debug)]
pub enum Notice {
    /// A line for the domain's log.
    Say(String),
    /// An event for whoever follows them.
    Event(Kind, String),
    /// A backend is back, or a connection.
    Restarted,
    /// A request or a device waits for an operator, and the guest is not to run on without it.
    Trouble,
    /// The guest has stopped.
    Stopped(StopReason),
    /// The runner has ended, as the text says.
    RunnerEnded(String),
}

impl Machine {
    /// The machine of a config, not built.
    pub fn new(
        owner: Owner,
        config: &DomainConfig,
        from: Providers,
        destroyed: watch::Receiver<bool>,
    ) -> Self {
        let devices = Devices::new(&owner.file, &config.devices);
        Self {
            owner,
            uuid: config.uuid,
            memory: config.memory,
            vcpus: config.vcpus,
            from,
            destroyed,
            devices: Rc::new(devices),
            scheduling: config.scheduling.clone(),
            programs: BTreeMap::new(),
            runner: None,
            backends: Vec::new(),
            losses: Losses::default(),
            on_hang: config.on_hang,
            next_beat: Instant::now(),
            vcpu_load: VcpuLoad::default(),
            timeline: Timeline::default(),
            log_budget: MAX_LINES,
            has_run: false,
            notices: Vec::new(),
        }
    }

    /// A machine of a config that is built to see whether its kernel and its images are what they should be, and
    /// whether KVM can make it. It has no guest.
    pub fn to_look_into(
        owner: Owner,
        config: &DomainConfig,
        from: Providers,
        destroyed: watch::Receiver<bool>,
    ) -> Self {
        let devices = Devices::to_look_into(&owner.file, &config.devices);
        Self { devices: Rc::new(devices), ..Self::new(owner, config, from, destroyed) }
    }

    /// The machine after this one, of which nothing is left: from the same config, with what has been changed of it
    /// since, or from another one, which says all of that itself. Exchanged programs stay.
    pub fn successor(&mut self, owner: Owner, config: &DomainConfig, is_another: bool) -> Self {
        let next = Self::new(owner, config, self.from.clone(), self.destroyed.clone());
        if self.has_run {
            next.devices.disks.set_used();
        }
        let scheduling = if is_another { next.scheduling.clone() } else { mem::take(&mut self.scheduling) };
        let losses = Losses { deaths: mem::take(&mut self.losses.deaths), ..Losses::default() };
        let programs = mem::take(&mut self.programs);
        Self { scheduling, programs, losses, has_run: self.has_run, ..next }
    }

    /// The machine that a dom0 before this one has left. Nobody has been greeted yet.
    pub fn left(
        owner: Owner,
        uuid: Uuid,
        record: &MachineRecord,
        from: Providers,
        destroyed: watch::Receiver<bool>,
    ) -> Self {
        let devices = Devices::adopted(&owner, &record.devices, &from);
        Self {
            owner,
            uuid,
            memory: record.memory,
            vcpus: record.vcpus,
            from,
            destroyed,
            devices: Rc::new(devices),
            scheduling: record.scheduling.clone(),
            programs: record.programs.clone(),
            runner: None,
            backends: Vec::new(),
            losses: Losses::default(),
            on_hang: record.on_hang,
            next_beat: Instant::now(),
            vcpu_load: VcpuLoad::default(),
            timeline: Timeline::default(),
            log_budget: MAX_LINES,
            has_run: true,
            notices: Vec::new(),
        }
    }

    /// For a dom0 that comes later.
    pub fn record(&self) -> MachineRecord {
        let known = |(role, pid)| Some(ProcessRecord { role, known: ProcessId::of(pid)? });
        MachineRecord {
            domid: self.owner.domid,
            started_as: self.owner.started_as.clone(),
            memory: self.memory,
            vcpus: self.vcpus,
            scheduling: self.scheduling.clone(),
            programs: self.programs.clone(),
            on_hang: self.on_hang,
            processes: self.own_processes().filter_map(known).collect(),
            devices: self.devices.records(),
        }
    }

    /// Whose it is.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Its number.
    pub fn domid(&self) -> DomId {
        self.owner.domid
    }

    /// RAM in bytes.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> u8 {
        self.vcpus
    }

    /// Its part of the host's CPUs.
    pub fn scheduling(&self) -> &Scheduling {
        &self.scheduling
    }

    /// The runner's process, while there is one.
    pub fn runner(&self) -> Option<i32> {
        self.runner.as_ref().map(|runner| runner.process.pid().as_raw())
    }

    fn own_processes(&self) -> impl Iterator<Item = (Role, Pid)> {
        let runner = self.runner.iter().map(|runner| (Role::Runner, runner.process.pid()));
        runner.chain(self.backends.iter().map(|backend| (backend.role, backend.process.pid())))
    }

    /// Its processes, those of its devices' helpers among them, with their programs' names.
    pub fn processes(&self) -> Vec<(String, i32)> {
        let own = self.own_processes().map(|(role, pid)| (role.program().into(), pid.as_raw()));
        own.chain(self.devices.records().processes().map(|helper| (helper.name(), helper.pid))).collect()
    }

    /// What it has to tell.
    pub fn notices(&mut self) -> Vec<Notice> {
        mem::take(&mut self.notices)
    }

    /// The domain has another name and directory. Its processes keep what they are called.
    pub fn rename(&mut self, name: DomainName, directory: &Path) {
        (self.owner.name, self.owner.directory) = (name, directory.into());
    }

    /// Why it cannot have another name just now.
    ///
    /// # Errors
    /// One line.
    pub fn may_be_renamed(&self) -> Result<(), String> {
        if !self.losses.open.is_empty() {
            return Err("a backend is being started again: see domus why, and try again".into());
        }
        self.devices.all().iter().try_for_each(|class| class.may_be_renamed())
    }

    /// Has the requests done again that wait for an operator, and the vCPUs run.
    ///
    /// # Errors
    /// The runner refuses, or is silent.
    pub async fn resume(&mut self) -> Result<(), ChildError> {
        self.retry().await;
        self.request(&RunnerRequest::Resume, "let the guest run").await?;
        self.has_run = true;
        Ok(())
    }

    /// Has the runner do something, if there is one.
    ///
    /// # Errors
    /// It refuses, or is silent.
    pub async fn request(&mut self, request: &RunnerRequest, done: &'static str) -> Result<(), ChildError> {
        match &mut self.runner {
            Some(runner) if runner.link.is_some() => runner.done(request, done).await,
            _ => Ok(()),
        }
    }

    /// Has the runner do what it answers with "done". `act` is what is attempted, for a refusal: "reset".
    ///
    /// # Errors
    /// One line.
    pub async fn command(&mut self, request: &RunnerRequest, act: &str) -> Result<(), String> {
        let Some(runner) = &mut self.runner else { return Err(format!("cannot {act}: the runner is gone")) };
        let done = runner.done(request, "done what it was asked").await;
        done.map_err(|error| format!("cannot {act}: {}", chain(&error)))
    }

    /// What the runner says of itself. None if there is none, it owes an answer, or does not give one within
    /// `patience`.
    pub async fn status(&mut self, patience: Duration) -> Option<RunnerStatus> {
        let runner = self.runner.as_mut().filter(|runner| !runner.is_late())?;
        match runner.ask(&RunnerRequest::Status, Vec::new(), patience, "said how it is").await {
            Ok(RunnerReply::Status(status)) => Some(status),
            _ => None,
        }
    }

    /// What its vCPUs did to the host, as far as the runner has told.
    pub fn vcpu_counters(&self) -> Option<VcpuCounters> {
        self.vcpu_load.counters()
    }

    /// What its start came to, and when; the later phases are there when they have come.
    ///
    /// # Errors
    /// One line: there is no runner, or it does not answer.
    pub async fn timeline(&mut self) -> Result<Vec<Phase>, String> {
        let none = "cannot tell how it started";
        let runner = self.runner.as_mut().ok_or_else(|| format!("{none}: there is no runner"))?;
        match runner.ask(&RunnerRequest::Times, Vec::new(), ANSWER, "said when it did what").await {
            Ok(RunnerReply::Times(times)) => Ok(self.timeline.with(&times)),
            Ok(other) => Err(format!("{none}: the runner answered with {other:?}")),
            Err(error) => Err(format!("{none}: {}", chain(&error))),
        }
    }

    /// Ends the runner and the backends; the console stays, for its history.
    pub async fn stop_machine(&mut self) {
        self.losses.open.clear();
        let console = self.backends.iter().position(|backend| backend.role == Role::Console);
        let console = console.map(|n| self.backends.swap_remove(n));
        self.kill_and_reap().await;
        self.backends.extend(console);
        for class in self.devices.all() {
            class.close(&self.from).await;
        }
    }

    /// Ends every process, and removes what was made.
    pub async fn tear_down(&mut self) {
        self.stop_machine().await;
        self.drain_console().await;
        self.kill_and_reap().await;
        self.losses.paused.clear();
        slow::closed(self.devices.all().iter().flat_map(|class| class.release()).collect()).await;
        self.devices = Rc::new(self.devices.closed(&self.owner.file));
    }

    /// Lets the console pass on the guest's last words: until it has read them, and a moment to send them on.
    async fn drain_console(&mut self) {
        if !self.backends.iter().any(|backend| backend.role == Role::Console && backend.link.is_some()) {
            return;
        }
        for _ in 0..100 {
            if !self.devices.console.has_unread() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        for _ in 0..50 {
            // One of a release before has written all that it has read.
            let Some(console) = self.backend(Role::Console).filter(|console| console.version() >= Some(3))
            else {
                return;
            };
            match console.question(&ConsoleRequest::Ping).await {
                Ok(BackendReply::Console { unwritten: 1.., .. }) => {}
                _ => return,
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn kill_and_reap(&mut self) {
        let runner = self.runner.take().map(|runner| runner.process);
        let backends = self.backends.drain(..).map(|backend| backend.into_parts().0);
        let processes: Vec<Process> = runner.into_iter().chain(backends).collect();
        processes.iter().for_each(Process::kill);
        let _told = waiting(|| "its processes, which were killed, to end".into());
        if timeout(END, join_all(processes.into_iter().map(Process::reap))).await.is_err() {
            // A thread of its own goes on waiting for each.
            self.say("a process was killed and does not end: see what its storage waits for".into());
        }
    }

    /// What the limits of its processes are made from.
    fn limits(&self) -> Limits<'_> {
        Limits { domain: &self.owner.started_as, uuid: self.uuid, memory: self.memory, vcpus: self.vcpus }
    }

    fn say(&mut self, text: String) {
        self.notices.push(Notice::Say(text));
    }

    /// Says what a child said, a bounded number of times: it may be in its guest's hands.
    fn say_of_child(&mut self, text: String) {
        if self.log_budget > 0 {
            self.log_budget -= 1;
            self.say(text);
        }
    }

    /// Says what has become of something lost: what is the host's and not a child's, as often as it happens.
    fn say_of(&mut self, loss: &Loss, text: String) {
        match loss {
            Loss::Wire(_) => self.say(text),
            _ => self.say_of_child(text),
        }
    }

    /// Tells it, as often.
    fn event_of(&mut self, loss: &Loss, kind: Kind, detail: String) {
        match loss {
            Loss::Wire(_) => self.notices.push(Notice::Event(kind, detail)),
            _ => self.event_of_child(kind, detail),
        }
    }

    /// Tells what a child has caused, as often as its lines are said.
    fn event_of_child(&mut self, kind: Kind, detail: String) {
        if self.log_budget > 0 {
            self.notices.push(Notice::Event(kind, detail));
        }
    }
}
