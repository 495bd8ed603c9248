//! Whether the data thread moves: a second thread looks at it from time to time, while it has work.
//!
//! ```text
//!   data thread:  rests ──▶ works, turn, turn, … ──▶ rests          (wakes the watcher if that sleeps)
//!   watcher:      sleeps ──▶ a look each `patience` ──▶ sleeps, as soon as a look finds the data thread at rest
//!                               └── no turn since the last look, and no rest: it stands still
//! ```
//!
//! So a switch that rests has two threads that sleep, and one that works pays for a look now and then. The crate
//! `tests/loom` runs this file in every order of its steps.

use std::sync::PoisonError;
use std::time::Duration;

use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, Thread, current, park, sleep};

/// What the two threads tell each other.
#[derive(Debug)]
pub struct Beat {
    /// Of the data thread so far. Nobody else writes it.
    turns: AtomicU64,
    /// The data thread waits for something to do.
    rests: AtomicBool,
    /// The watcher looks at it.
    watched: AtomicBool,
    watcher: Mutex<Option<Thread>>,
}

impl Default for Beat {
    fn default() -> Self {
        let (rests, watched) = (AtomicBool::new(true), AtomicBool::new(false));
        Self { turns: AtomicU64::new(0), rests, watched, watcher: Mutex::new(None) }
    }
}

impl Beat {
    /// The data thread begins a turn.
    #[inline]
    pub fn turn(&self) {
        // One writer: no need for an atomic addition.
        self.turns.store(self.turns.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// The data thread is going to wait for something to do.
    pub fn rests(&self) {
        self.rests.store(true, Ordering::SeqCst);
    }

    /// The data thread has something to do.
    pub fn works(&self) {
        self.turn();
        // Before the look at the watcher, which looks the other way round: one of the two sees the other.
        self.rests.store(false, Ordering::SeqCst);
        if !self.watched.load(Ordering::SeqCst) {
            self.watched.store(true, Ordering::SeqCst);
            if let Some(watcher) = &*self.watcher.lock().unwrap_or_else(PoisonError::into_inner) {
                watcher.unpark();
            }
        }
    }

    /// Is the watcher: returns when `stopped` has been called, because a turn took at least `patience`.
    pub fn watch(&self, patience: Duration, stopped: impl FnOnce()) {
        *self.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(current());
        loop {
            while !self.watched.load(Ordering::SeqCst) {
                park();
            }
            let before = self.turns.load(Ordering::Relaxed);
            sleep(patience);
            if self.rests.load(Ordering::SeqCst) {
                self.watched.store(false, Ordering::SeqCst);
                // It may have begun to work between the two, and seen that it is watched.
                if !self.rests.load(Ordering::SeqCst) {
                    self.watched.store(true, Ordering::SeqCst);
                }
            } else if self.turns.load(Ordering::Relaxed) == before {
                return stopped();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use super::*;

    #[test]
    fn a_thread_that_turns_or_rests_is_left_alone_and_one_that_stands_still_is_found() {
        const PATIENCE: Duration = Duration::from_millis(200);
        let beat = Arc::new(Beat::default());
        let (sender, stopped) = channel();
        let watcher = {
            let beat = beat.clone();
            std::thread::spawn(move || beat.watch(PATIENCE, move || _ = sender.send(())))
        };
        let silent = |limit| assert_eq!(stopped.recv_timeout(limit), Err(RecvTimeoutError::Timeout));
        for _ in 0..3 {
            beat.works();
            for _ in 0..50 {
                beat.turn();
                silent(PATIENCE / 20);
            }
            beat.rests();
            silent(PATIENCE * 3);
        }
        beat.works();
        stopped.recv_timeout(PATIENCE * 20).unwrap();
        watcher.join().unwrap();
    }
}
