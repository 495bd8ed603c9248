//! How others reach a domain's task.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use shared_abi::control::RunnerStatus;
use shared_abi::{DomId, DomainName};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::config::DomainConfig;
use crate::device::console;
use crate::domain::lifecycle::{Event, State};
use crate::domain::task::{Domain, Inbox};
use crate::domain::verb::{Answer, Command, STATUS, Turn, Verb};
use crate::domain::view::View;
use crate::host::waits::Waits;
use crate::value::trouble::Trouble;

/// A command whose turn has not come within this time is refused: what is before it waits for somebody.
const TURN: Duration = Duration::from_secs(5);

/// How to reach a domain's task, under whatever name the domain has.
#[derive(Debug)]
pub struct Handle {
    /// Takes wishes until the domain is gone.
    wishes: mpsc::UnboundedSender<Command<Domain>>,
    /// Takes questions until then, which are answered when there is no wish.
    questions: mpsc::UnboundedSender<Command<Domain>>,
    /// Set to true with the command to destroy the domain, which then waits for no answer of the runner's.
    destroy: watch::Sender<bool>,
    /// What the task waits for.
    waits: Rc<Waits>,
    /// Closed when the domain is gone.
    pub view: watch::Receiver<View>,
}

impl Handle {
    /// The handle of a domain of this name that is to be made, and what its task is made with.
    pub fn new(
        name: DomainName,
        config: &DomainConfig,
        directory: &Path,
    ) -> (Self, Inbox, watch::Sender<View>) {
        let (wishes, wished) = mpsc::unbounded_channel();
        let (questions, asked) = mpsc::unbounded_channel();
        let (destroy, destroyed) = watch::channel(false);
        let (view, watcher) = watch::channel(View {
            started_as: name.clone(),
            name,
            console: console::socket(directory),
            domid: DomId(0),
            uuid: config.uuid,
            state: State::Building,
            memory: config.memory,
            vcpus: config.vcpus,
            scheduling: config.scheduling.clone(),
            runner: None,
            vcpu_counters: None,
            ended: None,
            crashed: false,
            restarts: 0,
            networks: Vec::new(),
            troubles: Vec::new(),
        });
        let waits = Rc::new(Waits::default());
        let inbox = Inbox { wishes: wished, questions: asked, destroyed, waits: waits.clone() };
        (Self { wishes, questions, destroy, waits, view: watcher }, inbox, view)
    }

    /// The domain's name of the moment.
    pub fn name(&self) -> DomainName {
        self.view.borrow().name.clone()
    }

    /// What its task has been waiting for, for long.
    pub fn waits(&self) -> Vec<Trouble> {
        self.waits.troubles()
    }

    /// Puts an operator's wish to the domain, and waits until it is done or refused. None if the domain is gone.
    pub async fn ask(&self, event: Event) -> Option<Result<(), String>> {
        let is_destroy = event == Event::Destroy;
        let (answer, answered) = oneshot::channel();
        let turn = Turn::default();
        self.wishes.send(Command::Ask { event, turn: turn.clone(), answer }).ok()?;
        if is_destroy {
            self.destroy.send_replace(true);
            return answered.await.ok();
        }
        self.in_turn(&turn, answered).await
    }

    /// Has the domain's task do something with its domain, and waits for what comes of it. For what ends within
    /// seconds: the task does nothing else meanwhile, and nothing at all if whoever has asked has gone before its turn.
    /// None if the domain is gone.
    pub async fn call<T: 'static>(
        &self,
        verb: impl for<'a> FnOnce(&'a mut Domain) -> LocalBoxFuture<'a, Result<T, String>> + 'static,
    ) -> Option<Result<T, String>> {
        let turn = Turn::default();
        let answered = Self::send(&self.wishes, turn.clone(), verb)?;
        self.in_turn(&turn, answered).await
    }

    /// The answer to a command; a refusal if its turn does not come.
    async fn in_turn<T>(
        &self,
        turn: &Turn,
        mut answered: oneshot::Receiver<Result<T, String>>,
    ) -> Option<Result<T, String>> {
        tokio::select! {
            answer = &mut answered => return answer.ok(),
            () = sleep(TURN) => {}
        }
        if turn.has_come() {
            return answered.await.ok();
        }
        let seconds = TURN.as_secs();
        Some(Err(match self.waits.longest() {
            Some((what, since)) => {
                let since = since.elapsed().as_secs();
                format!("waits for {what}, for {since} s by now: try again, or see domus why")
            }
            None => format!("has been busy for {seconds} s: try again, or see domus why"),
        }))
    }

    /// The same for what changes nothing: it waits until nobody wants anything done.
    pub async fn question<T: 'static>(
        &self,
        question: impl for<'a> FnOnce(&'a mut Domain) -> LocalBoxFuture<'a, Result<T, String>> + 'static,
    ) -> Option<Result<T, String>> {
        let turn = Turn::default();
        let answered = Self::send(&self.questions, turn.clone(), question)?;
        self.in_turn(&turn, answered).await
    }

    fn send<T: 'static>(
        to: &mpsc::UnboundedSender<Command<Domain>>,
        turn: Turn,
        verb: impl for<'a> FnOnce(&'a mut Domain) -> LocalBoxFuture<'a, Result<T, String>> + 'static,
    ) -> Option<oneshot::Receiver<Result<T, String>>> {
        let (answer, answered) = oneshot::channel();
        let verb = Verb(Box::new(move |domain| {
            Box::pin(async move {
                if answer.is_closed() {
                    return Box::new(|| ()) as Answer;
                }
                turn.comes();
                let result = match domain {
                    Ok(domain) => verb(domain).await,
                    Err(why) => Err(why),
                };
                // Whoever has asked may have gone.
                Box::new(move || drop(answer.send(result))) as Answer
            })
        }));
        to.send(Command::Call(verb)).ok()?;
        Some(answered)
    }

    /// What the runner says of itself, if there is one that answers soon.
    pub async fn status(&self) -> Option<RunnerStatus> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(Command::Status(answer)).ok()?;
        // The task may be waiting for the answer to somebody else's wish.
        timeout(STATUS * 2, answered).await.ok()?.ok()
    }
}
