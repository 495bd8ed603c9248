//! Events as the API tells them.

use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;

use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use zlink::{Reply, introspect};

use crate::events::{Follower, Happened};
use crate::resources::watch;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct EventInfo {
    /// From 1 on, one more each time, as long as this dom0 runs.
    pub sequence: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// The domain that it is about, if it is about one.
    pub domain: Option<String>,
    /// The number that the domain had then.
    pub id: Option<u32>,
    /// dom0-started, adopted, building, start-failed, running, paused, stopping, stopped, crashed, preserved, dying, gone,
    /// backend-lost, backend-back, request-held, link-up or link-down.
    pub kind: String,
    /// More about it, for people.
    pub detail: Option<String>,
    /// How many events before this one the client was too slow, or too late, for.
    pub missed: u64,
}

impl From<(Happened, u64)> for EventInfo {
    fn from((happened, missed): (Happened, u64)) -> Self {
        let Happened { sequence, time_ms, domain, kind, detail } = happened;
        let (domain, id) = domain.map(|(name, id)| (name.to_string(), id.0)).unzip();
        Self { sequence, time_ms, domain, id, kind: kind.name().into(), detail, missed }
    }
}

/// Answers to one call.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Reply<T>>>>;

/// What has the client's answers end: it hangs up, or says something.
#[derive(Debug)]
struct Peer(Option<AsyncFd<OwnedFd>>);

impl Peer {
    async fn stirs(&self) {
        match &self.0 {
            Some(socket) => drop(socket.readable().await),
            None => std::future::pending().await,
        }
    }
}

/// What `follower` sees, until the client stirs; one event without `more`.
pub fn stream(follower: Follower, peer: Option<&OwnedFd>, more: bool) -> Answers<EventInfo> {
    let socket = peer.and_then(|peer| peer.as_fd().try_clone_to_owned().ok());
    let peer = Peer(socket.and_then(|it| watch::readable(it).ok()));
    let next = move |(mut follower, peer, first): (Follower, Peer, bool)| async move {
        if !more && !first {
            return None;
        }
        let next = tokio::select! {
            biased;
            () = peer.stirs() => None,
            next = follower.next() => next,
        };
        let reply = Reply::new(Some(EventInfo::from(next?))).set_continues(Some(more));
        Some((reply, (follower, peer, false)))
    };
    Box::pin(stream::unfold((follower, peer, true), next))
}
