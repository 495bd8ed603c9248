//! Commands to a domain's task, generic over the domain so that `task.rs` can import this file.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use shared_abi::control::RunnerStatus;
use tokio::sync::oneshot;

use crate::domain::lifecycle::Event;

/// Within this time a runner says how it is, or is not asked again before it has.
pub const STATUS: Duration = Duration::from_secs(1);

/// What a domain's task is asked.
#[derive(Debug)]
pub enum Command<D> {
    /// A wish of an operator.
    Ask {
        /// One of the operator's events.
        event: Event,
        /// Told when its turn comes.
        turn: Turn,
        /// Answered when it is done or refused; for `Destroy`, when nothing of the domain is left.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Something to do with the domain.
    Call(Verb<D>),
    /// What the runner says of itself; not answered if there is none.
    Status(oneshot::Sender<RunnerStatus>),
}

/// Whether the turn of a wish has come.
#[derive(Debug, Clone, Default)]
pub struct Turn(Rc<Cell<bool>>);

impl Turn {
    /// It has: the wish is in hand from now on.
    pub fn comes(&self) {
        self.0.set(true);
    }

    /// True if it has.
    pub fn has_come(&self) -> bool {
        self.0.get()
    }
}

/// What a domain's task does with its domain when its turn comes; it is given the reason where there is nothing to do
/// it with.
pub struct Verb<D>(pub Box<Work<D>>);

/// What a verb does, with the domain or the reason why there is none.
type Work<D> = dyn for<'a> FnOnce(Result<&'a mut D, String>) -> LocalBoxFuture<'a, Answer>;

/// Tells whoever has asked; called when what was done is written down.
pub type Answer = Box<dyn FnOnce()>;

impl<D> fmt::Debug for Verb<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verb")
    }
}
