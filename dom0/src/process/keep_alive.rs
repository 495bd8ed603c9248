//! Keeps a process alive that no domain owns: starts it, has it watched, and starts it again as often as it ends.
//!
//! ```text
//!   start ─▶ serve ─┬─ nobody needs it any more ─▶ return
//!     ▲             │
//!     └─ (pause) ◀──┴─ ended, or could not be started
//! ```
//!
//! - The pace is bounded: deaths soon after a start, and starts that fail, are followed by ever longer pauses, see
//!   [`backoff`](crate::value::backoff).
//! - The first failures in a row are said, the others are not: a program that cannot run fills no log.
//! - It ends when nobody needs the process any more, and never by itself before that. A caller that drops it instead
//!   kills the process.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::value::backoff::EarlyDeaths;

/// A process that is to be kept alive. Called by one task, one step after the other.
pub trait KeptAlive {
    /// It, while it runs.
    type Running;
    /// Why it cannot be started.
    type Error;

    /// Failures in a row that are said.
    const SAID: u32;

    /// Starts it.
    async fn start(&mut self) -> Result<Self::Running, Self::Error>;

    /// It could not be started, which is to be said if `is_said`.
    fn not_started(&mut self, error: Self::Error, is_said: bool);

    /// Watches it, and does meanwhile what others ask of it. Returns when it is reaped: the text says how it ended.
    /// None if nobody needs it any more.
    async fn serve(&mut self, running: Self::Running) -> Option<String>;

    /// Says how it ended.
    fn say_ended(&self, how: &str);

    /// Somebody needs it. Asked after each pause.
    fn is_needed(&self) -> bool;
}

/// Keeps it alive, beginning with one that runs already where there is one. Returns when nobody needs it any more.
pub async fn keep_alive<K: KeptAlive>(kept: &mut K, mut running: Option<K::Running>) {
    let mut deaths = EarlyDeaths::default();
    loop {
        let started = match running.take() {
            Some(running) => Ok(running),
            None => kept.start().await,
        };
        match started {
            Ok(running) => {
                let since = Instant::now();
                let Some(how) = kept.serve(running).await else { return };
                if deaths.died(since.elapsed()) <= K::SAID {
                    kept.say_ended(&how);
                }
            }
            Err(error) => {
                let is_said = deaths.died(Duration::ZERO) <= K::SAID;
                kept.not_started(error, is_said);
            }
        }
        sleep(deaths.pause()).await;
        if !kept.is_needed() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails to start every second time, and ends at once otherwise, until it has had so many turns.
    #[derive(Default)]
    struct Failing {
        turns: u32,
        said: Vec<&'static str>,
        ends: std::cell::Cell<u32>,
    }

    impl KeptAlive for Failing {
        type Running = u32;
        type Error = ();
        const SAID: u32 = 3;

        async fn start(&mut self) -> Result<u32, ()> {
            self.turns += 1;
            if self.turns.is_multiple_of(2) { Err(()) } else { Ok(self.turns) }
        }

        fn not_started(&mut self, (): (), is_said: bool) {
            self.said.push(if is_said { "not started" } else { "" });
        }

        async fn serve(&mut self, turn: u32) -> Option<String> {
            (turn < 7).then(|| "exited".into())
        }

        fn say_ended(&self, how: &str) {
            assert_eq!(how, "exited");
            self.ends.set(self.ends.get() + 1);
        }

        fn is_needed(&self) -> bool {
            self.turns != 4
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn it_is_started_again_ever_more_slowly_and_said_the_first_times_until_nobody_needs_it() {
        let (mut kept, began) = (Failing::default(), Instant::now());
        keep_alive(&mut kept, Some(0)).await;
        // Ended: turns 0, 1 and 3; not started: 2 and 4. Pauses after the third, fourth and fifth.
        assert_eq!((kept.turns, kept.ends.get(), kept.said.as_slice()), (4, 2, &["not started", ""][..]));
        assert!(began.elapsed() >= Duration::from_millis(50 + 100 + 200));
        kept.turns = 6;
        keep_alive(&mut kept, None).await;
        assert_eq!((kept.turns, kept.ends.get()), (7, 2), "served until nobody needed it");
    }
}
