//! What has happened to domains: numbered, kept for a while, and told to whoever follows.
//!
//! The last [`KEPT`] events are kept for those who ask later. A follower that takes them more slowly than they come
//! loses the oldest and is told how many; nobody is ever waited for. What a domain's own processes cause is bounded by
//! the domain.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use shared_abi::{DomId, DomainName};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::value::time;

/// Events that are kept, for all who ask and for each follower.
pub const KEPT: usize = 1024;

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// dom0 has begun to serve.
    Dom0Started,
    /// A domain has been taken over from a dom0 before this one.
    Adopted,
    /// A domain's processes are being started.
    Building,
    /// A domain could not be started.
    StartFailed,
    /// Its vCPUs run.
    Running,
    /// They are stopped.
    Paused,
    /// Its guest was asked to switch itself off.
    Stopping,
    /// Its machine has stopped.
    Stopped,
    /// Its machine has stopped, and not of its own will.
    Crashed,
    /// Its machine has stopped, and its console is kept.
    Preserved,
    /// Everything of it is being removed.
    Dying,
    /// Nothing of it is left.
    Gone,
    /// What serves a device is gone.
    BackendLost,
    /// It is back.
    BackendBack,
    /// A request of a disk waits for an operator.
    RequestHeld,
    /// Something of a network is not as it was made.
    NetworkFault,
    /// It is again.
    NetworkMended,
    /// A NIC's cable was plugged in.
    LinkUp,
    /// A NIC's cable was pulled.
    LinkDown,
}

impl Kind {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dom0Started => "dom0-started",
            Self::Adopted => "adopted",
            Self::Building => "building",
            Self::StartFailed => "start-failed",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
            Self::Preserved => "preserved",
            Self::Dying => "dying",
            Self::Gone => "gone",
            Self::BackendLost => "backend-lost",
            Self::BackendBack => "backend-back",
            Self::RequestHeld => "request-held",
            Self::NetworkFault => "network-fault",
            Self::NetworkMended => "network-mended",
            Self::LinkUp => "link-up",
            Self::LinkDown => "link-down",
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// From 1 on, one more each time, as long as this dom0 runs.
    pub sequence: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// To which domain, with the number that it had.
    pub domain: Option<(DomainName, DomId)>,
    /// What.
    pub kind: Kind,
    /// More about it, for people.
    pub detail: Option<String>,
}

/// All events of one dom0. Used by one thread.
#[derive(Debug)]
pub struct Events {
    sequence: Cell<u64>,
    kept: RefCell<VecDeque<Happened>>,
    sender: broadcast::Sender<Happened>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sequence: Cell::new(0), kept: RefCell::default(), sender: broadcast::channel(KEPT).0 }
    }
}

impl Events {
    /// Tells that something has happened.
    pub fn tell(&self, domain: Option<(DomainName, DomId)>, kind: Kind, detail: Option<String>) {
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        let time_ms = time::now_ms();
        let happened = Happened { sequence, time_ms, domain, kind, detail };
        let mut kept = self.kept.borrow_mut();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(happened.clone());
        // Nobody may follow.
        let _ = self.sender.send(happened);
    }

    /// Follows what happens from now on; with `since_start`, what is kept comes first.
    pub fn follow(&self, since_start: bool) -> Follower {
        let before = if since_start { self.kept.borrow().clone() } else { VecDeque::new() };
        let missed = before.front().map_or(0, |first| first.sequence - 1);
        Follower { before, missed, receiver: self.sender.subscribe() }
    }
}

/// One who follows.
#[derive(Debug)]
pub struct Follower {
    before: VecDeque<Happened>,
    missed: u64,
    receiver: broadcast::Receiver<Happened>,
}

impl Follower {
    /// The next event, and how many before it came too fast; none when dom0 ends. Cancel safe.
    pub async fn next(&mut self) -> Option<(Happened, u64)> {
        loop {
            let next = match self.before.pop_front() {
                Some(next) => Ok(next),
                None => self.receiver.recv().await,
            };
            match next {
                Ok(next) => return Some((next, std::mem::take(&mut self.missed))),
                Err(RecvError::Lagged(missed)) => self.missed += missed,
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn who_asks_later_gets_what_is_kept_and_then_what_follows_without_a_gap() {
        let events = Events::default();
        events.tell(None, Kind::Dom0Started, None);
        let web1 = Some(("web1".parse().unwrap(), DomId(1)));
        events.tell(web1.clone(), Kind::Building, None);
        let (mut all, mut later) = (events.follow(true), events.follow(false));
        events.tell(web1, Kind::Running, None);
        let mut seen = Vec::new();
        for _ in 0..3 {
            let (happened, missed) = all.next().await.unwrap();
            seen.push((happened.sequence, happened.kind.name(), missed));
        }
        assert_eq!(seen, [(1, "dom0-started", 0), (2, "building", 0), (3, "running", 0)]);
        assert_eq!(later.next().await.unwrap().0.sequence, 3);
        drop(events);
        assert_eq!(later.next().await, None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_is_too_slow_or_too_late_is_told_how_many_are_lost() {
        let events = Events::default();
        let mut slow = events.follow(false);
        for _ in 0..KEPT + 7 {
            events.tell(None, Kind::Dom0Started, None);
        }
        let (first, missed) = slow.next().await.unwrap();
        assert_eq!((first.sequence, missed), (8, 7));
        assert_eq!(slow.next().await.unwrap().1, 0);
        let (first, missed) = events.follow(true).next().await.unwrap();
        assert_eq!((first.sequence, missed), (8, 7));
    }
}
