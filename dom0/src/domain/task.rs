//! One domain: a task that feeds its [state machine](crate::domain::lifecycle) and does what that says.
//!
//! The task owns everything of the domain. Others see its [`View`] and send it commands; it answers each once.
//! After each step the view and the record on disk say what is.

use std::pin::pin;
use std::rc::Rc;

use domus_startup::control::chain;
use shared_abi::control::{RunnerRequest, StopReason};
use shared_abi::{DomId, DomainName, Role};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::config::DomainConfig;
use crate::device::{Owner, console};
use crate::domain::directory::DomainDir;
use crate::domain::environment::Environment;
use crate::domain::error::StartError;
use crate::domain::events::Kind;
use crate::domain::lifecycle::{Action, Event, Life, State};
use crate::domain::machine::{CoreFile, Machine, Notice};
use crate::domain::record::{Record, Source};
use crate::domain::restart::{Pace, Problem};
use crate::domain::verb::{Command, STATUS, Verb};
use crate::domain::view::View;
use crate::host::waits::Waits;
use crate::process::link::ChildError;
use crate::value::text::one_line;

/// What a domain's task is reached by.
#[derive(Debug)]
pub struct Inbox {
    /// What somebody wants done.
    pub wishes: mpsc::UnboundedReceiver<Command<Domain>>,
    /// What somebody wants to know.
    pub questions: mpsc::UnboundedReceiver<Command<Domain>>,
    /// True when one of the wishes is to destroy the domain.
    pub destroyed: watch::Receiver<bool>,
    /// What the task waits for.
    pub waits: Rc<Waits>,
}

impl Inbox {
    /// The next command: wishes come before questions. None if nobody can send one any more. Cancel safe.
    async fn next(&mut self) -> Option<Command<Domain>> {
        tokio::select! {
            biased;
            wish = self.wishes.recv() => wish,
            Some(question) = self.questions.recv() => Some(question),
        }
    }
}

/// Who waits for what of a domain's task.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// For the first start, or why there was none.
    created: Option<oneshot::Sender<Result<DomId, StartError>>>,
    /// Why the build under way failed; told when everything is removed.
    failure: Option<StartError>,
    /// For the domain's end.
    end: Vec<oneshot::Sender<Result<(), String>>>,
}

/// What a domain's task is made of.
pub struct Domain {
    pub(super) config: Rc<DomainConfig>,
    /// What its next machine is made from, if that is something else.
    pub(super) pending_config: Option<Rc<DomainConfig>>,
    pub(super) dir: DomainDir,
    pub(super) env: Rc<Environment>,
    inbox: Inbox,
    pub(super) view: watch::Sender<View>,
    pub(super) life: Life,
    pub(super) machine: Machine,
    pace: Pace,
    waiting: Waiting,
    /// What a dom0 before this one has left of it, until that is taken over.
    inherited: Option<Box<Record>>,
}

impl Domain {
    /// Makes the task of a domain whose name is claimed by `dir`; [`Self::run`] it. The result is told of its first
    /// start.
    pub fn new(
        (config, life): (DomainConfig, Life),
        dir: DomainDir,
        env: Rc<Environment>,
        inbox: Inbox,
        view: watch::Sender<View>,
    ) -> (Self, oneshot::Receiver<Result<DomId, StartError>>) {
        let (created, creation) = oneshot::channel();
        let owner = Owner {
            file: config.file.clone(),
            name: config.name.clone(),
            started_as: config.name.clone(),
            domid: DomId(0),
            directory: dir.path().into(),
        };
        let machine = Machine::new(owner, &config, env.providers.clone(), inbox.destroyed.clone());
        let waiting = Waiting { created: Some(created), ..Waiting::default() };
        let config = Rc::new(config);
        let domain = Self {
            config,
            pending_config: None,
            dir,
            env,
            inbox,
            view,
            life,
            machine,
            pace: Pace::default(),
            waiting,
            inherited: None,
        };
        (domain, creation)
    }

    /// Makes the task of a domain of this name that a dom0 before this one has left in `dir`; [`Self::run`] it.
    pub fn inherited(
        (name, config): (DomainName, DomainConfig),
        dir: DomainDir,
        env: Rc<Environment>,
        inbox: Inbox,
        view: watch::Sender<View>,
        record: Record,
    ) -> Self {
        let owner = Owner {
            file: config.file.clone(),
            name,
            started_as: record.machine.started_as.clone(),
            domid: record.machine.domid,
            directory: dir.path().into(),
        };
        view.send_modify(|view| {
            view.started_as.clone_from(&record.machine.started_as);
            (view.domid, view.state) = (record.machine.domid, record.state);
            // Until it is known better.
            let runner = record.machine.processes.iter().find(|process| process.role == Role::Runner);
            view.runner = runner.map(|process| process.known.pid);
            view.ended.clone_from(&record.ended);
            (view.crashed, view.restarts) = (record.crashed, record.restarts);
        });
        let (from, destroyed) = (env.providers.clone(), inbox.destroyed.clone());
        let machine = Machine::left(owner, config.uuid, &record.machine, from, destroyed);
        let mut domain = Self {
            config: Rc::new(config),
            pending_config: None,
            dir,
            env,
            inbox,
            view,
            life: Life::resumed(record.state, []),
            machine,
            pace: Pace::default(),
            waiting: Waiting::default(),
            inherited: None,
        };
        if let Some(next) = &record.next {
            domain.inherit_pending(next);
        }
        domain.inherited = Some(Box::new(record));
        domain
    }

    /// Its name.
    pub fn name(&self) -> &DomainName {
        &self.machine.owner().name
    }

    /// Its machine, built or not.
    pub fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Its machine, if that has vCPUs that can run. `act` is what is attempted, for a refusal: "reset".
    ///
    /// # Errors
    /// One line.
    pub fn running(&mut self, act: &str) -> Result<&mut Machine, String> {
        match self.life.state().has_machine() {
            true => Ok(&mut self.machine),
            false => Err(format!("cannot {act}: the domain {}", self.life.state())),
        }
    }

    /// Runs the domain until nothing of it is left. `forget` is called before anybody is told that it is gone.
    pub async fn run(self, forget: impl FnOnce()) {
        let waits = self.inbox.waits.clone();
        waits.around(self.live(forget)).await;
    }

    async fn live(mut self, forget: impl FnOnce()) {
        if let Some(record) = self.inherited.take()
            && self.adopt(*record).await.is_err()
        {
            // Its processes are left to themselves.
            self.dir.leave();
            return forget();
        }
        self.publish();
        while self.life.state() != State::Dead {
            if let Err(error) = self.perform().await {
                self.say(&chain(&error));
            }
            if self.life.state() == State::Dead {
                break;
            }
            tokio::select! {
                // The registry never lets go of a domain that is not gone; if it did: nobody could end it any more.
                command = self.inbox.next() => match command {
                    Some(command) => self.command(command).await,
                    None => self.step_with(&Event::Destroy),
                },
                event = self.machine.next() => self.machine.handle(event).await,
            }
            self.apply_notices();
        }
        if let Some(failure) = &self.waiting.failure {
            self.emit(Kind::StartFailed, Some(&chain(failure)));
        }
        self.emit(Kind::Gone, None);
        let Self { dir, env, machine, waiting: Waiting { created, failure, end }, .. } = self;
        drop(dir);
        env.providers.supervisor.release(&machine.owner().started_as);
        forget();
        let told = match (created, failure) {
            (Some(created), failure) => {
                created.send(Err(failure.unwrap_or(StartError::Cancelled))).map_err(Result::err)
            }
            (None, Some(failure)) => Err(Some(failure)),
            (None, None) => Ok(()),
        };
        // A restart that failed, or a creator that has hung up: the log is all that is left.
        if let Err(Some(failure)) = told {
            let name = &machine.owner().name;
            crate::log::stderr::line(format_args!("{name}: cannot be started: {}", chain(&failure)));
        }
        for answer in end {
            let _ = answer.send(Ok(()));
        }
    }

    /// Tells the state machine; its actions are done next.
    pub(super) fn step_with(&mut self, event: &Event) {
        let before = self.life.reached();
        // What is no wish of an operator's is never refused.
        if self.life.step(event, self.policy()).is_ok() {
            self.announce_state(before);
        }
    }

    /// Tells everybody that the domain has reached another state than `before`.
    pub(super) fn announce_state(&self, before: State) {
        let state = self.life.reached();
        self.publish();
        if std::mem::discriminant(&before) == std::mem::discriminant(&state) {
            return;
        }
        let kind = match state {
            // Told when it has its number, and when everything of it is gone.
            State::Building | State::Dead => return,
            State::Running => Kind::Running,
            State::Paused => Kind::Paused,
            State::Stopping(_) => Kind::Stopping,
            State::Preserved { .. } => Kind::Preserved,
            State::Dying(_) => Kind::Dying,
        };
        self.emit(kind, None);
    }

    /// Has the view and the record say what is.
    pub(super) fn publish(&self) {
        let machine = &self.machine;
        self.view.send_if_modified(|view| {
            let now = View {
                name: self.name().clone(),
                started_as: machine.owner().started_as.clone(),
                console: console::socket(self.dir.path()),
                domid: machine.domid(),
                state: self.life.reached(),
                memory: machine.memory(),
                vcpus: machine.vcpus(),
                scheduling: machine.scheduling().clone(),
                runner: machine.runner(),
                networks: machine.networks(),
                vcpu_counters: machine.vcpu_counters(),
                troubles: [self.pace.troubles(self.name()), machine.troubles()].concat(),
                ..view.clone()
            };
            let is_new = *view != now;
            *view = now;
            is_new
        });
        if self.life.state() != State::Dead {
            write(&self.dir, self.name(), &self.record(&self.machine));
        }
    }

    /// What a dom0 that comes later must know.
    fn record(&self, machine: &Machine) -> Record {
        let view = self.view.borrow();
        Record {
            foreground: self.env.foreground,
            next: self.pending_config.as_deref().map(Source::from),
            // One that is built until it runs is so under the next dom0.
            created: self.waiting.created.is_none() || self.life.lasts(),
            ended: view.ended.clone(),
            crashed: view.crashed,
            restarts: view.restarts,
            ..Record::new(self.life.state(), Source::from(&*self.config), machine.record())
        }
    }

    async fn command(&mut self, command: Command<Self>) {
        let (event, turn, answer) = match command {
            Command::Ask { event, turn, answer } => (event, turn, answer),
            Command::Call(Verb(verb)) => {
                let answer = verb(Ok(self)).await;
                self.apply_notices();
                return answer();
            }
            Command::Status(answer) => {
                if !answer.is_closed()
                    && let Some(status) = self.machine.status(STATUS).await
                {
                    let _ = answer.send(status);
                }
                return;
            }
        };
        // Whoever has given up before its turn wants nothing any more, but for one who destroys.
        if answer.is_closed() && event != Event::Destroy {
            return;
        }
        turn.comes();
        let before = self.life.reached();
        if let Err(refused) = self.life.step(&event, self.policy()) {
            let _ = answer.send(Err(refused.to_string()));
            return;
        }
        self.announce_state(before);
        if event == Event::Destroy {
            return self.destroyed_by(answer);
        }
        let result = self.perform().await;
        let _ = answer.send(result.map_err(|error| chain(&error)));
    }

    /// An operator destroys it, and is told when nothing of it is left.
    fn destroyed_by(&mut self, answer: oneshot::Sender<Result<(), String>>) {
        self.view.send_modify(|view| view.ended = Some("was destroyed".into()));
        self.waiting.end.push(answer);
    }

    /// Does what the state machine asks for, and tells it what has come of that.
    ///
    /// # Errors
    /// The first action that failed.
    async fn perform(&mut self) -> Result<(), ChildError> {
        let mut first = Ok(());
        while let Some(action) = self.life.next_action() {
            match self.act(action).await {
                Ok(()) => self.step_with(&Event::Done(action)),
                Err(error) => {
                    self.step_with(&Event::Failed(action));
                    first = match self.life.state() {
                        // It was built and never ran: that is a start that failed.
                        State::Dying(_) => {
                            self.failed(error.into());
                            Ok(())
                        }
                        _ => first.and(Err(error)),
                    };
                }
            }
            // What the machine has told meanwhile comes after what became of the action.
            self.tell_notices();
        }
        self.apply_notices();
        first
    }

    async fn act(&mut self, action: Action) -> Result<(), ChildError> {
        let machine = &mut self.machine;
        match action {
            Action::Build => {
                if let Some(event) = self.build().await {
                    self.step_with(&event);
                }
            }
            Action::Resume => {
                machine.resume().await?;
                self.pace.problem = None;
                if let Some(created) = self.waiting.created.take() {
                    // Written down first: whoever is told may count on it.
                    self.publish();
                    let _ = created.send(Ok(self.machine.domid()));
                }
            }
            Action::Pause => machine.request(&RunnerRequest::Pause, "paused the guest").await?,
            Action::PressPowerButton => {
                machine.request(&RunnerRequest::PowerButton, "pressed the power button").await?;
            }
            Action::DumpCore => self.dump_for_policy().await,
            Action::StopMachine => machine.stop_machine().await,
            Action::TearDown => {
                machine.tear_down().await;
                self.step_with(&Event::Gone);
            }
            Action::Forget => {}
        }
        Ok(())
    }

    /// Writes the core that a policy asks for, and says what has come of it.
    async fn dump_for_policy(&mut self) {
        if CoreFile::is_recent(&self.env.cores, self.name()).await {
            return self.say("no core: the one of its last crash is hardly older");
        }
        let written = match CoreFile::among(&self.env.cores, self.name(), self.machine.memory()).await {
            Ok(core) => self.machine.write_core(core, false, true).await,
            Err(why) => Err(why),
        };
        match written {
            Ok(path) => self.say(&format!("its core is in {}", path.display())),
            Err(why) => self.say(&format!("no core: {why}")),
        }
    }

    /// Builds a machine, or is told to give up. None if the state machine has been told meanwhile.
    async fn build(&mut self) -> Option<Event> {
        let not_before = self.pace.next_start(self.view.borrow().crashed);
        let is_another = self.apply_pending();
        let domid = match self.env.run.next_domid() {
            Ok(domid) => domid,
            Err(error) => {
                self.failed(error.into());
                return Some(Event::BuildFailed);
            }
        };
        self.next_machine(domid, is_another);
        self.view.send_modify(|view| view.crashed = false);
        self.publish();
        self.emit(Kind::Building, None);
        let policy = self.policy();
        let record = self.record(&self.machine);
        let Self { dir, config, machine, inbox, life, .. } = self;
        let name = machine.owner().name.clone();
        let write_record = |machine: &Machine| {
            write(dir, &name, &Record { machine: machine.record(), ..record.clone() });
        };
        let result = {
            let building = async {
                if let Some(at) = not_before {
                    sleep_until(at).await;
                }
                machine.build(config, &write_record).await?;
                Ok::<_, StartError>(machine.apply_scheduling().await?)
            };
            let mut building = pin!(building);
            loop {
                let command = tokio::select! {
                    result = &mut building => break Ok(result),
                    Some(command) = inbox.next() => command,
                };
                let (event, answer) = match command {
                    Command::Ask { event, answer, .. } => (event, answer),
                    Command::Call(Verb(verb)) => {
                        let answer =
                            verb(Err("is being started just now: try again, or see domus why".into())).await;
                        answer();
                        continue;
                    }
                    // There is no runner to ask for its status yet.
                    Command::Status(_) => continue,
                };
                // Only a wish that ends the domain is none that is refused.
                match life.step(&event, policy) {
                    Err(refused) => drop(answer.send(Err(refused.to_string()))),
                    Ok(()) => break Err(answer),
                }
            }
        };
        match result {
            Ok(Ok(())) => Some(Event::Built),
            Ok(Err(error)) => {
                self.failed(error);
                Some(Event::BuildFailed)
            }
            Err(answer) => {
                self.destroyed_by(answer);
                self.announce_state(State::Building);
                None
            }
        }
    }

    /// The machine that is built next. Nothing of the one before it is left; what the supervisor calls its processes is
    /// the domain's name again.
    fn next_machine(&mut self, domid: DomId, is_another: bool) {
        let Owner { name, started_as, .. } = self.machine.owner();
        if name != started_as {
            self.env.providers.supervisor.release(started_as);
        }
        let owner = Owner {
            file: self.config.file.clone(),
            name: name.clone(),
            started_as: name.clone(),
            domid,
            directory: self.dir.path().into(),
        };
        self.machine = self.machine.successor(owner, &self.config, is_another);
    }

    /// The build under way has failed: whoever waits for it is told, or it is said and tried again.
    fn failed(&mut self, error: StartError) {
        if !self.life.lasts() {
            self.waiting.failure = Some(error);
            return;
        }
        let why = chain(&error);
        // Once for each reason.
        if self.pace.problem.as_ref().is_none_or(|problem| problem.why != why) {
            self.say(&format!("cannot be started: {why}: it is tried again"));
            self.emit(Kind::StartFailed, Some(&why));
        }
        let before = self.pace.problem.take();
        let (attempts, since) =
            before.map_or((0, Instant::now()), |problem| (problem.attempts, problem.since));
        self.pace.problem = Some(Problem { why, since, attempts: attempts + 1 });
        if let Some(created) = self.waiting.created.take() {
            let _ = created.send(Err(error));
        }
    }

    /// Does what the machine's notices ask for, and has everybody see what is.
    fn apply_notices(&mut self) {
        self.tell_notices();
        self.publish();
    }

    fn tell_notices(&mut self) {
        for notice in self.machine.notices() {
            match notice {
                Notice::Say(text) => self.say(&text),
                Notice::Event(kind, detail) => self.emit(kind, Some(&detail)),
                Notice::Restarted => self.view.send_modify(|view| view.restarts += 1),
                Notice::Trouble => self.step_with(&Event::Trouble),
                Notice::Stopped(reason) => {
                    self.stopped(&reason);
                    self.step_with(&Event::Stopped(reason));
                }
                Notice::RunnerEnded(how) => self.runner_ended(&how),
            }
        }
    }

    /// The runner is gone without a word.
    pub(super) fn runner_ended(&mut self, how: &str) {
        self.has_ended(format!("crashed: its runner {how}"), true);
        self.say(&format!("the runner {how}"));
        self.emit(Kind::Crashed, Some(&format!("its runner {how}")));
        self.step_with(&Event::RunnerDied);
    }

    /// Keeps how the machine stopped, for people.
    pub(super) fn stopped(&mut self, reason: &StopReason) {
        let (text, crashed) = match reason {
            StopReason::PowerOff => ("switched itself off".into(), false),
            StopReason::Reboot => ("rebooted".into(), false),
            StopReason::TripleFault if self.policy().on_triple_fault.is_none() => {
                ("rebooted by a triple fault".into(), false)
            }
            StopReason::TripleFault => ("crashed: a vCPU had a triple fault".into(), true),
            StopReason::VcpuFailed(why) => (format!("crashed: {}", one_line(why)), true),
        };
        self.say(&text);
        self.emit(if crashed { Kind::Crashed } else { Kind::Stopped }, Some(&text));
        self.has_ended(text, crashed);
    }

    fn has_ended(&mut self, how: String, crashed: bool) {
        self.pace.ended(&how, crashed);
        self.view.send_modify(|view| (view.ended, view.crashed) = (Some(how), crashed));
    }

    /// Writes a line to the domain's log.
    pub(super) fn say(&self, text: &str) {
        crate::log::line(self.name(), text);
    }

    /// Tells whoever follows events.
    pub(super) fn emit(&self, kind: Kind, detail: Option<&str>) {
        let about = (self.name().clone(), self.machine.domid());
        self.env.events.tell(Some(about), kind, detail.map(str::to_owned));
    }
}

/// Writes a record. One that cannot be written is told, and the domain goes on.
fn write(dir: &DomainDir, name: &DomainName, record: &Record) {
    if let Err(error) = dir.write(record) {
        crate::log::stderr::line(format_args!("{name}: cannot write the domain's state: {error}"));
    }
}
