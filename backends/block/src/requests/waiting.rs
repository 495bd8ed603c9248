//! Requests that wait for a limit: reads in one line, writes in another, each in the order in which they came.

use super::Requests;
use crate::throttle::Direction;

impl Requests {
    /// Nanoseconds until a limit lets something through; none if nothing waits.
    pub fn wake_in(&self, now: u64) -> Option<u64> {
        let waits = self.waiting.iter().any(|waiting| !waiting.is_empty());
        waits.then(|| self.wake.saturating_sub(now))
    }

    /// Whether a request may go now. If not, it waits.
    pub(super) fn pass(&mut self, index: u16) -> bool {
        let slot = &self.slots[usize::from(index)];
        let Some(direction) = slot.work.direction() else { return true };
        let waiting = &mut self.waiting[direction as usize];
        let (now, bytes) = (self.now, slot.bytes);
        let wait = if waiting.is_empty() {
            match self.disk.gate().pass(|| now, direction, bytes) {
                Ok(()) => return true,
                Err(wait) => now.saturating_add(wait),
            }
        } else {
            // In its turn.
            self.wake
        };
        waiting.push_back(index);
        let others = self.waiting[direction.other() as usize].is_empty();
        self.wake = if others { wait } else { self.wake.min(wait) };
        self.counters.throttled();
        false
    }

    /// The first of those that wait that may go now.
    pub(super) fn let_through(&mut self) -> Option<u16> {
        let stopping = self.stopping.is_some();
        let waits = self.waiting.iter().any(|waiting| !waiting.is_empty());
        if !waits || (self.now < self.wake && !stopping) {
            return None;
        }
        let mut wake = u64::MAX;
        for direction in [Direction::Read, Direction::Write] {
            let Some(&index) = self.waiting[direction as usize].front() else { continue };
            let (now, bytes) = (self.now, self.slots[usize::from(index)].bytes);
            match self.disk.gate().pass(|| now, direction, bytes) {
                Err(wait) if !stopping => {
                    wake = wake.min(now.saturating_add(wait));
                    continue;
                }
                // A queue can always be stopped. What that lets through is a debt, which the queue's next driver pays.
                Err(_) => self.disk.gate().charge(now, direction, bytes),
                Ok(()) => {}
            }
            return self.waiting[direction as usize].pop_front();
        }
        self.wake = wake;
        None
    }

    /// The limits have changed.
    pub fn look_again(&mut self) {
        self.wake = 0;
    }
}
