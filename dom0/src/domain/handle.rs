//! How others reach a domain's task.

use std::path::Path;

use futures_util::future::LocalBoxFuture;
use shared_abi::control::RunnerStatus;
use shared_abi::{DomId, DomainName};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::DomainConfig;
use crate::device::console;
use crate::domain::lifecycle::State;
use crate::domain::task::{Domain, Inbox};
use crate::domain::verb::{Answer, Command, STATUS, Verb};
use crate::domain::view::View;

/// How to reach a domain's task, under whatever name the domain has.
#[derive(Debug)]
pub struct Handle {
    /// Takes wishes until the domain is gone.
    pub wishes: mpsc::UnboundedSender<Command<Domain>>,
    /// Takes questions until then, which are answered when there is no wish.
    questions: mpsc::UnboundedSender<Command<Domain>>,
    /// Set to true with the command to destroy the domain, which then waits for no answer of the runner's.
    pub destroy: watch::Sender<bool>,
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
            runner: None,
            vcpu_counters: None,
            ended: None,
            crashed: false,
            restarts: 0,
            networks: Vec::new(),
            troubles: Vec::new(),
        });
        let inbox = Inbox { wishes: wished, questions: asked, destroyed };
        (Self { wishes, questions, destroy, view: watcher }, inbox, view)
    }

    /// The domain's name of the moment.
    pub fn name(&self) -> DomainName {
        self.view.borrow().name.clone()
    }

    /// Has the domain's task do something with its domain, and waits for what comes of it. For what ends within
    /// seconds: the task does nothing else meanwhile, and nothing at all if whoever has asked has gone before its turn.
    /// None if the domain is gone.
    pub async fn call<T: 'static>(
        &self,
        verb: impl for<'a> FnOnce(&'a mut Domain) -> LocalBoxFuture<'a, Result<T, String>> + 'static,
    ) -> Option<Result<T, String>> {
        Self::send(&self.wishes, verb).await
    }

    /// The same for what changes nothing: it waits until nobody wants anything done.
    pub async fn question<T: 'static>(
        &self,
        question: impl for<'a> FnOnce(&'a mut Domain) -> LocalBoxFuture<'a, Result<T, String>> + 'static,
    ) -> Option<Result<T, String>> {
        Self::send(&self.questions, question).await
    }

    async fn send<T: 'static>(
        to: &mpsc::UnboundedSender<Command<Domain>>,
        verb: impl for<'a> FnOnce(&'a mut Domain) -> LocalBoxFuture<'a, Result<T, String>> + 'static,
    ) -> Option<Result<T, String>> {
        let (answer, answered) = oneshot::channel();
        let verb = Verb(Box::new(move |domain| {
            Box::pin(async move {
                if answer.is_closed() {
                    return Box::new(|| ()) as Answer;
                }
                let result = match domain {
                    Ok(domain) => verb(domain).await,
                    Err(why) => Err(why),
                };
                // Whoever has asked may have gone.
                Box::new(move || drop(answer.send(result))) as Answer
            })
        }));
        to.send(Command::Call(verb)).ok()?;
        answered.await.ok()
    }

    /// What the runner says of itself, if there is one that answers soon.
    pub async fn status(&self) -> Option<RunnerStatus> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(Command::Status(answer)).ok()?;
        // The task may be waiting for the answer to somebody else's wish.
        tokio::time::timeout(STATUS * 2, answered).await.ok()?.ok()
    }
}
