//! A client's stream with bounds of our own.
//!
//! zlink reads as much as there is and serves every call of it before it waits again, keeps 100 MiB of an unfinished
//! call, and every descriptor that comes with it. Here a call is handed out when it is whole, one at a time; between
//! two calls every other task of dom0's has its turn, and a client who may only ask has a budget. A call without an
//! answer (`oneway`) is refused: nothing would ever hold such a client up.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep_until};
use zlink::connection::socket::{ReadHalf, ReadResult, Socket};
use zlink::tokio::unix::Stream;

/// Longest call, in bytes: the longest config, as JSON within JSON, and more.
const MAX_CALL: usize = 1 << 20;

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Calls a second that one user who may only ask gets answers to, over all of that user's connections.
const CALLS: u32 = 100;

/// Calls that such a user may be ahead of that.
const BURST: u32 = 200;

/// The calls of one user, over all connections.
#[derive(Debug)]
pub struct Budget(RefCell<Instant>);

impl Budget {
    /// Waits until one more call may be served.
    async fn spend(&self) {
        let cost = Duration::from_secs(1) / CALLS;
        let at = {
            let mut next = self.0.borrow_mut();
            // What was not used up to the burst is gone.
            let earliest = Instant::now().checked_sub(cost * BURST).unwrap_or(*next);
            *next = (*next).max(earliest) + cost;
            *next
        };
        sleep_until(at).await;
    }
}

/// The budgets of users who are connected, or have been a moment ago.
#[derive(Debug, Default)]
pub struct Budgets(RefCell<BTreeMap<u32, Rc<Budget>>>);

impl Budgets {
    /// That of a user, who has one as long as a connection holds it, and until what was spent has come again.
    pub fn of(&self, uid: u32) -> Rc<Budget> {
        let mut budgets = self.0.borrow_mut();
        let now = Instant::now();
        let full = now.checked_sub(Duration::from_secs(1) / CALLS * BURST).unwrap_or(now);
        budgets.retain(|_, budget| Rc::strong_count(budget) > 1 || *budget.0.borrow() > full);
        let fresh = || Rc::new(Budget(RefCell::new(full)));
        budgets.entry(uid).or_insert_with(fresh).clone()
    }
}

/// A stream of bounded calls, whose descriptors are closed unseen.
#[derive(Debug)]
pub struct Bounded {
    /// The client's stream.
    pub stream: Stream,
    /// None for a client whose calls are not counted.
    pub budget: Option<Rc<Budget>>,
}

/// The reading half.
#[derive(Debug)]
pub struct BoundedRead {
    inner: <Stream as Socket>::ReadHalf,
    budget: Option<Rc<Budget>>,
    /// What was read and is not handed out yet.
    pending: Vec<u8>,
    /// So many bytes at its beginning are of a call that is being handed out.
    granted: usize,
}

impl Socket for Bounded {
    type ReadHalf = BoundedRead;
    type WriteHalf = <Stream as Socket>::WriteHalf;

    fn split(self) -> (Self::ReadHalf, Self::WriteHalf) {
        let (inner, write) = self.stream.split();
        (BoundedRead { inner, budget: self.budget, pending: Vec::new(), granted: 0 }, write)
    }
}

/// What of a call decides whether it is served.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    oneway: bool,
}

impl BoundedRead {
    /// Length of the first call that is whole, with the NUL byte at its end.
    fn first(&self) -> Option<usize> {
        self.pending.iter().position(|byte| *byte == 0).map(|end| end + 1)
    }
}

impl ReadHalf for BoundedRead {
    /// Cancel safe: what was read is kept until it is handed out.
    async fn read(&mut self, buffer: &mut [u8]) -> zlink::Result<ReadResult> {
        while self.granted == 0 {
            // One that is always ready never waits by itself.
            tokio::task::yield_now().await;
            let Some(length) = self.first() else {
                if self.pending.len() > MAX_CALL {
                    return Err(zlink::Error::BufferOverflow);
                }
                let mut chunk = vec![0; CHUNK];
                let mut result = self.inner.read(&mut chunk).await?;
                drop(result.take_fds());
                if result.bytes_read() == 0 {
                    return Ok(result);
                }
                self.pending.extend_from_slice(&chunk[..result.bytes_read()]);
                continue;
            };
            // What is no call at all is zlink's to refuse.
            let call = serde_json::from_slice::<Head>(&self.pending[..length - 1]);
            if length > MAX_CALL || call.is_ok_and(|call| call.oneway) {
                return Err(zlink::Error::BufferOverflow);
            }
            if let Some(budget) = &self.budget {
                budget.spend().await;
            }
            self.granted = length;
        }
        let now = self.granted.min(buffer.len());
        buffer[..now].copy_from_slice(&self.pending[..now]);
        self.pending.drain(..now);
        self.granted -= now;
        Ok(ReadResult::new(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn whoever_connects_again_has_spent_what_was_spent() {
        let budgets = Budgets::default();
        let first = budgets.of(1000);
        for _ in 0..BURST {
            first.spend().await;
        }
        let next = *first.0.borrow();
        drop(first);
        assert_eq!(*budgets.of(1000).0.borrow(), next);
        assert!(*budgets.of(1001).0.borrow() < next, "somebody else's is its own");
    }
}
