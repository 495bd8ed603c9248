//! One domain: a task that feeds its [state machine](lifecycle) and does what that says.
//!
//! The task owns everything of the domain. Others see its [`View`] and send it [`Command`]s; it answers each once.

mod adopt;
pub mod check;
pub mod directory;
pub mod environment;
pub mod error;
pub mod events;
pub mod lifecycle;
pub mod machine;
mod pending;
pub mod record;
pub mod rename;
mod tell;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use shared_abi::control::{RunnerEvent, RunnerReply, RunnerRequest, RunnerStatus, StopReason};
use shared_abi::{DeviceId, DomId, DomainName, Role};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::config::DomainConfig;
use crate::domain::directory::DomainDir;
use crate::domain::environment::Environment;
use crate::domain::error::StartError;
use crate::domain::events::Kind;
use crate::domain::lifecycle::{Action, Event, State, step};
use crate::domain::machine::build::{Incarnation, Runner, build};
use crate::domain::machine::events::{BackendHappening, Happening};
use crate::domain::machine::recovery::Held;
use crate::domain::record::Record;
use crate::host::run_dir::RunDir;
use crate::process::link::{ANSWER, ChildError, ChildLink};
use crate::value::cpus::Scheduling;
use crate::value::text::one_line;

pub use machine::recovery::Trouble;

/// A guest that stops at once is not started again sooner than this after its last start.
const LEAST_LIFE: Duration = Duration::from_secs(1);

/// A guest that crashes time and again is started at least this often, and one that has lived as long starts afresh.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Lines about what the children of one incarnation said that are written.
const LINES: u32 = 32;

/// Within this time a runner says how it is, or is not asked again before it has.
const STATUS: Duration = Duration::from_secs(1);

/// What others see of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The name that its processes have: nobody else can have it.
    pub unit: DomainName,
    /// Its number; another one after each restart.
    pub domid: DomId,
    /// By which the host's other tools know it.
    pub uuid: Uuid,
    /// Where it is in its life.
    pub state: State,
    /// RAM in bytes.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// The runner's process, while there is one.
    pub runner: Option<i32>,
    /// How the last machine ended, for people.
    pub ended: Option<String>,
    /// It ended by a crash.
    pub crashed: bool,
    /// Backends that were started again, or connected to again.
    pub restarts: u64,
    /// What is amiss just now.
    pub troubles: Vec<Trouble>,
}

impl View {
    /// Of a domain that has not been built yet.
    fn first(config: &DomainConfig) -> Self {
        Self {
            unit: config.unit.clone(),
            domid: DomId(0),
            uuid: config.uuid,
            state: State::Building,
            memory: config.memory,
            vcpus: config.vcpus,
            runner: None,
            ended: None,
            crashed: false,
            restarts: 0,
            troubles: Vec::new(),
        }
    }
}

/// What a domain's task is asked.
#[derive(Debug)]
pub enum Command {
    /// A wish of an operator.
    Ask {
        /// One of the operator's events.
        event: Event,
        /// Answered when it is done or refused; for `Destroy`, when nothing of the domain is left.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Something to do with the domain.
    Call(Verb),
    /// What the runner says of itself; not answered if there is none.
    Status(oneshot::Sender<RunnerStatus>),
}

/// What a domain's task does with its domain when its turn comes; it is given the reason where there is nothing to do it with.
pub struct Verb(Box<Work>);

/// What a verb does, with the domain or the reason why there is none.
type Work = dyn for<'a> FnOnce(Result<&'a mut Domain, String>) -> LocalBoxFuture<'a, ()>;

impl fmt::Debug for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verb")
    }
}

/// How to reach a domain's task.
#[derive(Debug)]
pub struct Handle {
    /// Its name.
    pub name: DomainName,
    /// Where its console is.
    pub console: std::path::PathBuf,
    /// Takes wishes until the domain is gone.
    pub commands: mpsc::UnboundedSender<Command>,
    /// Set to true with the command to destroy the domain, which then waits for no answer of the runner's.
    pub destroy: watch::Sender<bool>,
    /// Closed when the domain is gone.
    pub view: watch::Receiver<View>,
}

impl Handle {
    /// Has the domain's task do something with its domain, and waits for what comes of it. For what ends within seconds: the
    /// task does nothing else meanwhile. None if the domain is gone.
    pub async fn call<T: 'static>(
        &self,
        verb: impl for<'a> FnOnce(&'a mut Domain) -> LocalBoxFuture<'a, Result<T, String>> + 'static,
    ) -> Option<Result<T, String>> {
        let (answer, answered) = oneshot::channel();
        let verb = Verb(Box::new(move |domain| {
            Box::pin(async move {
                let result = match domain {
                    Ok(domain) => verb(domain).await,
                    Err(why) => Err(why),
                };
                // Whoever has asked may have gone.
                let _ = answer.send(result);
            })
        }));
        self.commands.send(Command::Call(verb)).ok()?;
        answered.await.ok()
    }

    /// What the runner says of itself, if there is one that answers soon.
    pub async fn status(&self) -> Option<RunnerStatus> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Status(answer)).ok()?;
        // The task may be waiting for the answer to somebody else's wish.
        tokio::time::timeout(STATUS * 2, answered).await.ok()?.ok()
    }
}

/// What a domain's task is made of.
pub struct Domain {
    config: Rc<DomainConfig>,
    run: RunDir,
    dir: DomainDir,
    commons: Rc<Environment>,
    /// What is started in place of the installed programs.
    programs: BTreeMap<Role, PathBuf>,
    /// How many backends in a row have died young.
    young: BTreeMap<Role, u32>,
    /// NICs whose passt has died young, how often in a row, and when the last one did.
    young_passts: BTreeMap<DeviceId, (u32, Instant)>,
    /// Requests of disks that wait for an operator.
    held: Vec<Held>,
    commands: mpsc::UnboundedReceiver<Command>,
    destroy: watch::Receiver<bool>,
    view: watch::Sender<View>,
    state: State,
    incarnation: Incarnation,
    actions: VecDeque<Action>,
    /// Told of the first start, or why there was none.
    created: Option<oneshot::Sender<Result<DomId, StartError>>>,
    /// Why the build under way failed; told when everything is removed.
    failure: Option<StartError>,
    /// Told when the domain is gone.
    at_end: Vec<oneshot::Sender<Result<(), String>>>,
    last_build: Option<Instant>,
    /// The next build comes at least this long after the last one.
    pause: Duration,
    /// Lines about what children said that may still be written for this incarnation.
    lines_left: u32,
    /// What its next machine is made from, if that is something else.
    next: Option<Rc<DomainConfig>>,
    /// What a dom0 before this one has left of it, until that is taken over.
    left: Option<Box<Record>>,
    /// Its part of the host's CPUs, as it was changed last.
    scheduling: Scheduling,
    /// It could not be taken over: its processes are left to themselves.
    abandoned: bool,
}

impl Domain {
    /// Makes the task of a domain whose name is claimed by `dir`; [`Self::run`] it.
    pub fn new(
        config: DomainConfig,
        run: RunDir,
        dir: DomainDir,
        commons: Rc<Environment>,
    ) -> (Self, Handle, oneshot::Receiver<Result<DomId, StartError>>) {
        let (created, creation) = oneshot::channel();
        let first = View::first(&config);
        let (mut domain, handle) = Self::made(config, run, dir, commons, first);
        domain.actions.push_back(Action::Build);
        domain.created = Some(created);
        (domain, handle, creation)
    }

    /// Makes the task of a domain that a dom0 before this one has left in `dir`; [`Self::run`] it.
    pub fn left(
        config: DomainConfig,
        run: RunDir,
        dir: DomainDir,
        commons: Rc<Environment>,
        record: Record,
    ) -> (Self, Handle) {
        let first = View {
            domid: record.domid,
            state: record.state,
            // Until it is known better.
            runner: record.processes.iter().find(|p| p.role == Role::Runner).map(|p| p.known.pid),
            ended: record.ended.clone(),
            crashed: record.crashed,
            restarts: record.restarts,
            ..View::first(&config)
        };
        let (mut domain, handle) = Self::made(config, run, dir, commons, first);
        domain.programs.clone_from(&record.programs);
        if let Some(scheduling) = &record.scheduling {
            domain.scheduling.clone_from(scheduling);
        }
        if let Some(next) = &record.next {
            domain.take_over_next(next);
        }
        domain.left = Some(Box::new(record));
        (domain, handle)
    }

    fn made(
        config: DomainConfig,
        run: RunDir,
        dir: DomainDir,
        commons: Rc<Environment>,
        first: View,
    ) -> (Self, Handle) {
        let (sender, commands) = mpsc::unbounded_channel();
        let (destroyer, destroy) = watch::channel(false);
        let state = first.state;
        let (view, watcher) = watch::channel(first);
        let handle = Handle {
            name: config.name.clone(),
            console: dir.console(),
            commands: sender,
            destroy: destroyer,
            view: watcher,
        };
        let domain = Self {
            scheduling: config.scheduling.clone(),
            config: Rc::new(config),
            run,
            dir,
            commons,
            programs: BTreeMap::new(),
            young: BTreeMap::new(),
            young_passts: BTreeMap::new(),
            held: Vec::new(),
            commands,
            destroy,
            view,
            state,
            incarnation: Incarnation::default(),
            actions: VecDeque::new(),
            created: None,
            failure: None,
            at_end: Vec::new(),
            last_build: None,
            pause: Duration::ZERO,
            lines_left: LINES,
            next: None,
            left: None,
            abandoned: false,
        };
        (domain, handle)
    }

    /// Runs the domain until nothing of it is left. `forget` is called before anybody is told that it is gone.
    pub async fn run(mut self, forget: impl FnOnce(&DomainName)) {
        if let Some(record) = self.left.take() {
            self.adopt(*record).await;
        }
        while self.state != State::Dead {
            if let Some(action) = self.actions.pop_front() {
                match self.act(action).await {
                    Ok(()) => {}
                    // It was built and never ran: that is a start that failed, and no crash of a guest.
                    Err(error) if self.created.is_some() => {
                        self.failure = Some(error.into());
                        self.feed(&Event::Destroy);
                    }
                    Err(error) => self.say(&chain(&error)),
                }
                continue;
            }
            match self.happening().await {
                Happening::Command(Some(command)) => self.command(command).await,
                // The registry never lets go of a domain that is not gone; if it did: nobody could end it any more.
                Happening::Command(None) => self.feed(&Event::Destroy),
                Happening::Runner(Ok(RunnerEvent::Stopped(reason))) => {
                    self.ended(&reason);
                    self.feed(&Event::Stopped(reason));
                }
                Happening::Runner(Ok(RunnerEvent::DeviceLost(device))) => {
                    self.device_lost(&device);
                }
                // Its end, if that is the cause, is seen by its pidfd.
                Happening::Runner(Err(_)) => {
                    if let Some(runner) = &mut self.incarnation.runner {
                        runner.link = None;
                        runner.process.kill();
                    }
                }
                Happening::RunnerEnded(how) => self.runner_ended(&how),
                Happening::Backend(n, happening) => self.backend(n, happening),
                Happening::PasstEnded(nic) => self.passt_ended(nic).await,
                Happening::Revived(n, result) => self.revived(n, result).await,
                Happening::Overdue => self.pause_for_the_lost(),
            }
        }
        if !self.abandoned {
            if let Some(failure) = &self.failure {
                self.happened(Kind::StartFailed, Some(&chain(failure)));
            }
            self.happened(Kind::Gone, None);
        }
        let Self { dir, commons, config, created, failure, at_end, abandoned, .. } = self;
        if abandoned {
            dir.leave();
            return forget(&config.name);
        }
        drop(dir);
        commons.providers.supervisor.release(&config.unit);
        forget(&config.name);
        let told = match (created, failure) {
            (Some(created), failure) => {
                created.send(Err(failure.unwrap_or(StartError::GivenUp))).map_err(Result::err)
            }
            (None, Some(failure)) => Err(Some(failure)),
            (None, None) => Ok(()),
        };
        // A restart that failed, or a creator that has hung up: the log is all that is left.
        if let Err(Some(failure)) = told {
            crate::log::stderr::line(format_args!("{}: cannot be started: {}", config.name, chain(&failure)));
        }
        for answer in at_end {
            let _ = answer.send(Ok(()));
        }
    }

    /// Tells the state machine; its actions are done next.
    fn feed(&mut self, event: &Event) {
        if let Ok((state, actions)) = step(self.state, event, self.policy()) {
            self.enter(state, actions);
        }
    }

    fn enter(&mut self, state: State, actions: Vec<Action>) {
        let before = std::mem::replace(&mut self.state, state);
        self.actions.extend(actions);
        let runner = self.incarnation.runner.as_ref().map(|runner| runner.process.pid().as_raw());
        self.view.send_modify(|view| {
            view.state = state;
            view.runner = runner;
        });
        self.entered(before);
        self.keep();
    }

    /// What a dom0 that comes later must know.
    fn record(&self) -> Record {
        let view = self.view.borrow();
        let record = Record {
            domid: view.domid,
            owner: std::process::id(),
            foreground: self.commons.foreground,
            source: pending::source(&self.config),
            next: self.next.as_deref().map(pending::source),
            state: self.state,
            created: self.created.is_none(),
            ended: view.ended.clone(),
            crashed: view.crashed,
            restarts: view.restarts,
            unit: Some(self.config.unit.clone()),
            programs: self.programs.clone(),
            scheduling: Some(self.scheduling.clone()),
            processes: Vec::new(),
            passts: Vec::new(),
            disks: Vec::new(),
            disk_limits: self.config.disk_limits,
            nics: Vec::new(),
        };
        record.of(&self.incarnation)
    }

    /// Writes down what a dom0 that comes later must know. One that cannot be written is told, and the domain goes on.
    fn keep(&self) {
        if self.state != State::Dead {
            keep(&self.dir, &self.record(), &self.config.name);
        }
    }

    async fn command(&mut self, command: Command) {
        let (event, answer) = match command {
            Command::Ask { event, answer } => (event, answer),
            Command::Call(Verb(verb)) => return verb(Ok(self)).await,
            Command::Status(answer) => {
                let link = self.incarnation.runner.as_ref().and_then(|runner| runner.link.as_ref());
                if answer.is_closed() || link.is_some_and(ChildLink::is_late) {
                    return;
                }
                if let Ok(Some(RunnerReply::Status(status))) =
                    self.talk(&RunnerRequest::Status, STATUS, "said how it is").await
                {
                    let _ = answer.send(status);
                }
                return;
            }
        };
        let mut before = self.state;
        match step(self.state, &event, self.policy()) {
            Err(refused) => {
                let _ = answer.send(Err(refused.to_string()));
            }
            Ok((state, actions)) => {
                self.enter(state, actions);
                if event == Event::Destroy {
                    self.view.send_modify(|view| view.ended = Some("was destroyed".into()));
                    self.at_end.push(answer);
                    return;
                }
                let mut result = Ok(());
                while let Some(action) = self.actions.pop_front() {
                    match self.act(action).await {
                        Ok(()) if action == Action::Resume => before = State::Running,
                        Ok(()) => {}
                        // The runner has refused: the machine is as it was.
                        Err(error) => {
                            self.enter(before, vec![]);
                            self.actions.clear();
                            result = Err(chain(&error));
                        }
                    }
                }
                let _ = answer.send(result);
            }
        }
    }

    async fn act(&mut self, action: Action) -> Result<(), ChildError> {
        match action {
            Action::Build => {
                if let Some(event) = self.build().await {
                    self.feed(&event);
                }
                Ok(())
            }
            Action::Resume => {
                self.retry().await;
                self.request(&RunnerRequest::Resume, "let the guest run").await?;
                if let (Some(created), Some(domid)) = (self.created.take(), self.incarnation.domid) {
                    self.keep();
                    let _ = created.send(Ok(domid));
                    self.learn_sizes().await;
                }
                Ok(())
            }
            Action::Pause => self.request(&RunnerRequest::Pause, "paused the guest").await,
            Action::PressPowerButton => {
                self.request(&RunnerRequest::PowerButton, "pressed the power button").await
            }
            Action::DumpCore => {
                self.dump_for_policy().await;
                Ok(())
            }
            Action::StopMachine => {
                self.incarnation.stop_machine().await;
                self.enter(self.state, vec![]);
                Ok(())
            }
            Action::TearDown => {
                self.incarnation.tear_down().await;
                self.held.clear();
                self.tell();
                self.feed(&Event::Gone);
                Ok(())
            }
            Action::Forget => Ok(()),
        }
    }

    /// The runner's answer; none if there is no runner. Does not keep an operator waiting who destroys the domain.
    async fn talk(
        &mut self,
        request: &RunnerRequest,
        patience: Duration,
        done: &'static str,
    ) -> Result<Option<RunnerReply>, ChildError> {
        self.talk_with(request, Vec::new(), patience, done).await
    }

    async fn talk_with(
        &mut self,
        request: &RunnerRequest,
        fds: Vec<OwnedFd>,
        patience: Duration,
        done: &'static str,
    ) -> Result<Option<RunnerReply>, ChildError> {
        let Some(Runner { process, link: Some(link) }) = &mut self.incarnation.runner else {
            return Ok(None);
        };
        let exchange = async {
            link.send(request, &fds).await?;
            link.answer(process, patience, done).await.map(Some)
        };
        tokio::select! {
            biased;
            Ok(_) = self.destroy.wait_for(|destroy| *destroy) => {
                Err(ChildError::Failed { role: Role::Runner, why: "the domain is being destroyed".into() })
            }
            answer = exchange => answer,
        }
    }

    async fn request(&mut self, request: &RunnerRequest, done: &'static str) -> Result<(), ChildError> {
        match self.talk(request, ANSWER, done).await? {
            None | Some(RunnerReply::Done | RunnerReply::Ready) => Ok(()),
            Some(other) => {
                Err(ChildError::Failed { role: Role::Runner, why: format!("answered with {other:?}") })
            }
        }
    }

    /// Builds an incarnation, or is told to give up. None if the state machine has been told meanwhile.
    async fn build(&mut self) -> Option<Event> {
        if let Some(last) = self.last_build {
            self.pause = pause(self.pause, last.elapsed(), self.view.borrow().crashed);
        }
        let not_before = self.last_build.map(|last| last + self.pause);
        self.last_build = Some(not_before.map_or(Instant::now(), |at| at.max(Instant::now())));
        self.lines_left = LINES;
        self.turn_over();
        self.settle_name();
        let domid = match self.run.next_domid() {
            Ok(domid) => domid,
            Err(error) => {
                self.failure = Some(error.into());
                return Some(Event::BuildFailed);
            }
        };
        self.view.send_modify(|view| {
            view.domid = domid;
            view.crashed = false;
        });
        self.happened(Kind::Building, None);
        let commons = self.commons.clone();
        let (record, policy) = (self.record(), self.policy());
        let write = |made: &Incarnation| keep(&self.dir, &record.clone().of(made), &self.config.name);
        let result = {
            let building = async {
                if let Some(at) = not_before {
                    sleep_until(at).await;
                }
                build(&self.config, domid, &self.dir, &commons, &write, &mut self.incarnation).await
            };
            let mut building = pin!(building);
            loop {
                let command = tokio::select! {
                    result = &mut building => break Ok(result),
                    Some(command) = self.commands.recv() => command,
                };
                let (event, answer) = match command {
                    Command::Ask { event, answer } => (event, answer),
                    Command::Call(Verb(verb)) => {
                        verb(Err("is being started just now: try again".into())).await;
                        continue;
                    }
                    // There is no runner to ask for its status yet.
                    Command::Status(_) => continue,
                };
                match step(self.state, &event, policy) {
                    Err(refused) => drop(answer.send(Err(refused.to_string()))),
                    Ok(next) => break Err((answer, next)),
                }
            }
        };
        match result {
            Ok(Ok(())) => match self.settle().await {
                Ok(()) => Some(Event::Built),
                Err(error) => {
                    self.failure = Some(error.into());
                    Some(Event::BuildFailed)
                }
            },
            Ok(Err(error)) => {
                self.failure = Some(error);
                Some(Event::BuildFailed)
            }
            Err((answer, (state, actions))) => {
                self.at_end.push(answer);
                self.enter(state, actions);
                None
            }
        }
    }

    fn backend(&mut self, n: usize, happening: BackendHappening) {
        let backend = &mut self.incarnation.backends[n];
        match happening {
            BackendHappening::Event(event) => {
                let role = backend.role;
                self.backend_event(role, event);
            }
            // It does not know what it says, or says too much: another one takes its place.
            BackendHappening::LinkLost => {
                backend.link = None;
                backend.process.kill();
            }
            BackendHappening::Ended(how) => self.backend_ended(n, &how),
        }
    }

    /// The runner is gone without a word.
    fn runner_ended(&mut self, how: &str) {
        self.view.send_modify(|view| {
            view.ended = Some(format!("crashed: its runner {how}"));
            view.crashed = true;
        });
        self.say(&format!("the runner {how}"));
        self.happened(Kind::Crashed, Some(&format!("its runner {how}")));
        self.feed(&Event::RunnerDied);
    }

    /// Keeps how the machine ended, for people.
    fn ended(&mut self, reason: &StopReason) {
        let (text, crashed) = match reason {
            StopReason::PowerOff => ("switched itself off".into(), false),
            StopReason::Reboot => ("rebooted".into(), false),
            StopReason::TripleFault => ("crashed: a vCPU had a triple fault".into(), true),
            StopReason::VcpuFailed(why) => (format!("crashed: {}", one_line(why)), true),
        };
        self.say(&text);
        self.happened(if crashed { Kind::Crashed } else { Kind::Stopped }, Some(&text));
        self.view.send_modify(|view| {
            view.ended = Some(text);
            view.crashed = crashed;
        });
    }

    fn say(&self, text: &str) {
        crate::log::line(&self.config.name, text);
    }

    /// Says what a child said, a bounded number of times: it may be in its guest's hands.
    fn say_of_child(&mut self, text: &str) {
        if self.lines_left > 0 {
            self.lines_left -= 1;
            self.say(text);
        }
    }
}

fn keep(dir: &DomainDir, record: &Record, name: &DomainName) {
    if let Err(error) = dir.write(record) {
        crate::log::stderr::line(format_args!("{name}: cannot write the domain's state: {error}"));
    }
}

/// How long after its last start a guest is started again, at the soonest.
fn pause(before: Duration, lived: Duration, crashed: bool) -> Duration {
    match crashed && lived < LONGEST_PAUSE {
        true => (before * 2).clamp(LEAST_LIFE, LONGEST_PAUSE),
        false => LEAST_LIFE,
    }
}

/// An error and its causes in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    domus_startup::control::chain(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_crashes_in_a_loop_is_started_less_and_less_often() {
        let seconds = Duration::from_secs;
        let mut now = Duration::ZERO;
        let pauses = [(); 8].map(|()| {
            now = pause(now, seconds(1), true);
            now.as_secs()
        });
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause(now, seconds(61), true), LEAST_LIFE);
        assert_eq!(pause(now, seconds(1), false), LEAST_LIFE);
    }
}
