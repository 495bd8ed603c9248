//! The rate limits of a NIC. All its queues share them, and dom0 may change them at any time.
//!
//! Without a limit a check costs one relaxed load. With a limit it takes a lock for a few additions.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use domus_startup::lock;
use shared_abi::control::NicLimit;
use vu_server::rate::Limiter;

/// What every frame that goes one way passes.
#[derive(Debug)]
pub struct RateLimit {
    /// False: there is no limit.
    closed: AtomicBool,
    limits: Mutex<Limits>,
}

#[derive(Debug)]
struct Limits {
    bits: Option<Limiter>,
    packets: Option<Limiter>,
}

impl Limits {
    fn new(limit: NicLimit) -> Self {
        Self { bits: limit.bits.map(Limiter::new), packets: limit.packets.map(Limiter::new) }
    }

    fn wait(&self, now: u64) -> u64 {
        let wait = |limiter: &Option<Limiter>| limiter.map_or(0, |limiter| limiter.wait(now));
        wait(&self.bits).max(wait(&self.packets))
    }

    fn charge_bytes(&mut self, now: u64, bytes: u64) {
        if let Some(limiter) = &mut self.bits {
            limiter.charge(now, bytes.saturating_mul(8));
        }
    }

    fn charge(&mut self, now: u64, bytes: u64) {
        self.charge_bytes(now, bytes);
        if let Some(limiter) = &mut self.packets {
            limiter.charge(now, 1);
        }
    }
}

impl RateLimit {
    /// A gate that nothing has passed for long.
    pub fn new(limit: NicLimit) -> Self {
        let gate = Self { closed: AtomicBool::new(false), limits: Mutex::new(Limits::new(limit)) };
        gate.set(limit);
        gate
    }

    /// Changes the limit. Frames that wait must be asked for again.
    pub fn set(&self, limit: NicLimit) {
        let mut limits = lock(&self.limits);
        *limits = Limits::new(limit);
        self.closed.store(limit != NicLimit::default(), Ordering::Relaxed);
    }

    /// Lets a frame of this length through, or says how many nanoseconds later to ask again.
    ///
    /// # Errors
    /// The time, at least 1.
    #[inline]
    pub fn pass(&self, now: impl FnOnce() -> u64, bytes: u64) -> Result<(), u64> {
        if self.closed.load(Ordering::Relaxed) { self.ask(now(), Some(bytes)) } else { Ok(()) }
    }

    /// The same for a frame that may have been let through before, and waits for something else since: then `paid`
    /// bytes of it were. A guest may have made it longer meanwhile, so the difference is charged. Returns what is paid.
    ///
    /// # Errors
    /// The time, at least 1.
    #[inline]
    pub fn pass_again(&self, now: impl FnOnce() -> u64, bytes: u64, paid: Option<u64>) -> Result<u64, u64> {
        match paid {
            None => self.pass(now, bytes).map(|()| bytes),
            Some(paid) if bytes > paid => {
                if self.closed.load(Ordering::Relaxed) {
                    lock(&self.limits).charge_bytes(now(), bytes - paid);
                }
                Ok(bytes)
            }
            Some(paid) => Ok(paid),
        }
    }

    /// Allows a frame of unknown length, or says after how many nanoseconds to ask again. A frame that was received is
    /// [charged](Self::charge) afterwards.
    ///
    /// # Errors
    /// The time, at least 1.
    #[inline]
    pub fn open(&self, now: impl FnOnce() -> u64) -> Result<(), u64> {
        if self.closed.load(Ordering::Relaxed) { self.ask(now(), None) } else { Ok(()) }
    }

    /// A frame has come.
    #[inline]
    pub fn charge(&self, now: impl FnOnce() -> u64, bytes: u64) {
        if self.closed.load(Ordering::Relaxed) {
            lock(&self.limits).charge(now(), bytes);
        }
    }

    #[cold]
    fn ask(&self, now: u64, bytes: Option<u64>) -> Result<(), u64> {
        let mut limits = lock(&self.limits);
        match (limits.wait(now), bytes) {
            (0, Some(bytes)) => limits.charge(now, bytes),
            (0, None) => {}
            (wait, _) => return Err(wait),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use shared_abi::control::Rate;

    use super::*;

    fn a_second(per_second: u64) -> Option<Rate> {
        Some(Rate { per_second, burst: per_second, burst_seconds: 1 })
    }

    #[test]
    fn frames_wait_for_the_stricter_limit_until_there_is_none() {
        let start = 1 << 40;
        let gate = RateLimit::new(NicLimit { bits: a_second(8000), packets: a_second(1000) });
        assert_eq!(gate.pass(|| start, 1000), Ok(()));
        assert_eq!(gate.pass(|| start, 1000), Err(900_000_000), "a tenth of a second comes at once");
        assert_eq!(gate.open(|| start + 900_000_000), Ok(()));
        gate.set(NicLimit { bits: None, packets: a_second(1) });
        assert!(gate.open(|| start).is_ok());
        gate.charge(|| start, 1);
        assert_eq!(gate.open(|| start), Err(1_000_000_000));
        gate.set(NicLimit::default());
        assert!((0..100).all(|_| gate.pass(|| start, 65_536).is_ok()));
    }

    #[test]
    fn a_frame_that_is_let_through_again_pays_for_what_it_has_grown_by() {
        let start = 1 << 40;
        let gate = RateLimit::new(NicLimit { bits: a_second(8000), packets: a_second(1000) });
        let paid = gate.pass_again(|| start, 50, None).unwrap();
        assert_eq!(gate.pass_again(|| start, 50, Some(paid)), Ok(50));
        assert_eq!(gate.pass_again(|| start, 20, Some(paid)), Ok(50));
        assert_eq!(gate.open(|| start), Ok(()), "50 bytes of the 100 that come at once");
        assert_eq!(gate.pass_again(|| start, 1100, Some(paid)), Ok(1100));
        assert_eq!(gate.open(|| start), Err(1_000_000_000));
        gate.set(NicLimit::default());
        assert_eq!(gate.pass_again(|| start, 1100, Some(paid)), Ok(1100));
    }
}
