//! The limits of a disk, and of all disks of a domain together: every queue shares them, and they change at any time.
//!
//! A [`Gate`] belongs to one disk and knows the domain's limits too. Asking it costs one relaxed load where there is
//! no limit, and a lock that is held for a few additions where there is one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use domus_startup::lock;
use shared_abi::control::{IoLimit, IoLimits};
use vu_server::rate::Limiter;

/// Which limits a request is under, besides those of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Reads.
    Read,
    /// Writes, discards and write-zeroes.
    Write,
}

impl Direction {
    /// Reads for writes, and the other way round.
    pub fn other(self) -> Self {
        match self {
            Self::Read => Self::Write,
            Self::Write => Self::Read,
        }
    }
}

/// One [`IoLimit`]: requests and bytes.
#[derive(Debug, Default)]
struct Pair {
    requests: Option<Limiter>,
    bytes: Option<Limiter>,
}

impl Pair {
    fn new(limit: IoLimit) -> Self {
        Self { requests: limit.iops.map(Limiter::new), bytes: limit.bytes.map(Limiter::new) }
    }

    fn wait(&self, now: u64) -> u64 {
        let wait = |limiter: &Option<Limiter>| limiter.map_or(0, |limiter| limiter.wait(now));
        wait(&self.requests).max(wait(&self.bytes))
    }

    fn charge(&mut self, now: u64, bytes: u64) {
        if let Some(limiter) = &mut self.requests {
            limiter.charge(now, 1);
        }
        if let Some(limiter) = &mut self.bytes {
            limiter.charge(now, bytes);
        }
    }
}

/// Limits in force, full: they have rested for long.
#[derive(Debug, Default)]
pub struct Limits {
    any: bool,
    total: Pair,
    read: Pair,
    write: Pair,
}

impl Limits {
    fn new(limits: IoLimits) -> Self {
        let any = limits != IoLimits::default();
        Self {
            any,
            total: Pair::new(limits.total),
            read: Pair::new(limits.read),
            write: Pair::new(limits.write),
        }
    }

    fn one(&mut self, direction: Direction) -> &mut Pair {
        match direction {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        }
    }

    fn wait(&mut self, now: u64, direction: Direction) -> u64 {
        self.total.wait(now).max(self.one(direction).wait(now))
    }

    fn charge(&mut self, now: u64, direction: Direction, bytes: u64) {
        self.total.charge(now, bytes);
        self.one(direction).charge(now, bytes);
    }
}

/// Limits that several disks share.
pub type Shared = Arc<Mutex<Limits>>;

/// Limits for all disks of a domain together.
pub fn shared(limits: IoLimits) -> Shared {
    Arc::new(Mutex::new(Limits::new(limits)))
}

/// What every request of one disk passes.
#[derive(Debug)]
pub struct Gate {
    /// False: neither the disk nor the domain has a limit.
    closed: AtomicBool,
    own: Mutex<Limits>,
    domain: Shared,
}

impl Gate {
    /// A gate of a disk with these limits, and with those of its domain.
    pub fn new(own: IoLimits, domain: Shared) -> Self {
        let gate = Self { closed: AtomicBool::new(false), own: Mutex::new(Limits::new(own)), domain };
        gate.look();
        gate
    }

    /// Changes the disk's own limits. Requests that wait must be asked for again.
    pub fn set(&self, limits: IoLimits) {
        *lock(&self.own) = Limits::new(limits);
        self.look();
    }

    /// The limits of the domain have changed ([`change`]).
    pub fn look(&self) {
        let any = lock(&self.own).any || lock(&self.domain).any;
        self.closed.store(any, Ordering::Relaxed);
    }

    /// Lets a request through, or says how many nanoseconds later to ask again.
    ///
    /// # Errors
    /// The time, at least 1.
    #[inline]
    pub fn pass(&self, now: impl FnOnce() -> u64, direction: Direction, bytes: u64) -> Result<(), u64> {
        if self.closed.load(Ordering::Relaxed) { self.ask(now(), direction, bytes) } else { Ok(()) }
    }

    /// A request goes, whatever the limits say: those after it wait the longer.
    pub fn charge(&self, now: u64, direction: Direction, bytes: u64) {
        if self.closed.load(Ordering::Relaxed) {
            // In the order of `ask`.
            let mut own = lock(&self.own);
            let mut domain = lock(&self.domain);
            own.charge(now, direction, bytes);
            domain.charge(now, direction, bytes);
        }
    }

    #[cold]
    fn ask(&self, now: u64, direction: Direction, bytes: u64) -> Result<(), u64> {
        // Always in this order.
        let mut own = lock(&self.own);
        let mut domain = lock(&self.domain);
        match own.wait(now, direction).max(domain.wait(now, direction)) {
            0 => {
                own.charge(now, direction, bytes);
                domain.charge(now, direction, bytes);
                Ok(())
            }
            wait => Err(wait),
        }
    }
}

/// Changes shared limits. Every gate that knows them must [`look`](Gate::look) afterwards.
pub fn change(shared: &Shared, limits: IoLimits) {
    *lock(shared) = Limits::new(limits);
}

#[cfg(test)]
mod tests {
    use shared_abi::control::Rate;

    use super::*;

    fn a_second(per_second: u64) -> Option<Rate> {
        Some(Rate { per_second, burst: per_second, burst_seconds: 1 })
    }

    #[test]
    fn a_read_limit_stops_reads_and_a_total_limit_stops_both() {
        let read = IoLimit { iops: a_second(1), bytes: None };
        let gate = Gate::new(IoLimits { read, ..IoLimits::default() }, shared(IoLimits::default()));
        let ask = |direction| gate.pass(|| 1 << 40, direction, 512).is_ok();
        assert!(ask(Direction::Read) && !ask(Direction::Read));
        assert!(ask(Direction::Write) && ask(Direction::Write));
        gate.set(IoLimits { total: IoLimit { iops: None, bytes: a_second(512) }, ..IoLimits::default() });
        assert!(ask(Direction::Read) && !ask(Direction::Write));
        gate.set(IoLimits::default());
        assert!((0..100).all(|_| ask(Direction::Read) && ask(Direction::Write)));
    }

    #[test]
    fn disks_share_the_limits_of_their_domain() {
        let domain = shared(IoLimits::default());
        let (a, b) =
            (Gate::new(IoLimits::default(), domain.clone()), Gate::new(IoLimits::default(), domain.clone()));
        let ask = |gate: &Gate, at| gate.pass(|| at, Direction::Write, 1 << 20);
        assert!((0..10).all(|_| ask(&a, 0).is_ok() && ask(&b, 0).is_ok()));
        let write = IoLimit { iops: a_second(1), bytes: None };
        change(&domain, IoLimits { write, ..IoLimits::default() });
        a.look();
        b.look();
        assert!(ask(&a, 0).is_ok());
        assert_eq!(ask(&b, 0), Err(1_000_000_000));
        assert!(ask(&b, 1_000_000_000).is_ok());
        assert!(ask(&a, 1_000_000_001).is_err());
    }
}
