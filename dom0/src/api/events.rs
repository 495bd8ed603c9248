//! Events as the API tells them.

use std::os::fd::OwnedFd;
use std::pin::Pin;

use domus_api::EventInfo;
use futures_util::{Stream, stream};
use zlink::Reply;

use crate::api::peer::Peer;
use crate::domain::events::{Follower, Happened};

fn info(happened: Happened, missed: u64) -> EventInfo {
    let Happened { sequence, time_ms, domain, kind, detail } = happened;
    let (domain, id) = domain.map(|(name, id)| (name.to_string(), id.0)).unzip();
    EventInfo { sequence, time_ms, domain, id, kind: kind.name().into(), detail, missed }
}

/// Answers to one call.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Reply<T>>>>;

/// What `follower` sees, until the client stirs; one event without `more`.
pub fn stream(follower: Follower, peer: Option<&OwnedFd>, more: bool) -> Answers<EventInfo> {
    let peer = Peer::new(peer);
    let next = move |(mut follower, peer, first): (Follower, Peer, bool)| async move {
        if !more && !first {
            return None;
        }
        let next = tokio::select! {
            biased;
            () = peer.stirs() => None,
            next = follower.next() => next,
        };
        let (happened, missed) = next?;
        let reply = Reply::new(Some(info(happened, missed))).set_continues(Some(more));
        Some((reply, (follower, peer, false)))
    };
    Box::pin(stream::unfold((follower, peer, true), next))
}
