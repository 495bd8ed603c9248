//! The error policy of a disk: a failed request is answered with an error, or held until dom0 says "again".
//!
//! ```text
//!   Going on ──a request is held: dom0 is told once──▶ Held ──Retry──▶ Going on (all held are done again)
//! ```

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use domus_startup::{Events, lock};
use shared_abi::control::{BackendEvent, FailedRequest, OnError};
use shared_abi::ids::DeviceId;

use crate::statistics::Op;

/// What a disk does about errors, for all its queues.
#[derive(Debug)]
pub struct Faults {
    read: OnError,
    write: OnError,
    /// Who is told of held requests, and as whose. Without one nothing is ever held.
    teller: Option<(DeviceId, Events)>,
    told: AtomicBool,
    stalls: AtomicU64,
    /// The last request that failed.
    last: Mutex<Option<FailedRequest>>,
}

impl Faults {
    /// Every error is the guest's.
    pub fn reported() -> Self {
        Self {
            read: OnError::Report,
            write: OnError::Report,
            teller: None,
            told: AtomicBool::new(false),
            stalls: AtomicU64::new(0),
            last: Mutex::default(),
        }
    }

    /// Errors of the disk `device` are treated like this.
    pub fn new(read: OnError, write: OnError, device: DeviceId, events: Events) -> Self {
        Self { read, write, teller: Some((device, events)), ..Self::reported() }
    }

    /// Whether a request that failed with this errno is held.
    pub fn holds(&self, op: Op, errno: i32) -> bool {
        let policy = if op == Op::Read { self.read } else { self.write };
        self.teller.is_some() && holds(policy, errno)
    }

    /// A request has failed, whatever becomes of it.
    pub fn failed(&self, op: Op, offset: u64, errno: i32) {
        *lock(&self.last) = Some(FailedRequest { operation: op.name().into(), offset, errno });
    }

    /// The last request that failed.
    pub fn last(&self) -> Option<FailedRequest> {
        lock(&self.last).clone()
    }

    /// A request is held: says so, once until the next [`Self::again`].
    pub fn held(&self, op: Op, offset: u64, errno: i32) {
        if self.told.swap(true, Ordering::Relaxed) {
            return;
        }
        self.stalled();
        if let Some((device, events)) = &self.teller {
            let operation = op.name().into();
            let held = BackendEvent::IoError { device: device.clone(), operation, offset, errno };
            events.stand(&about(device), &held);
        }
    }

    /// The disk cannot go on for now.
    pub fn stalled(&self) {
        self.stalls.fetch_add(1, Ordering::Relaxed);
    }

    /// What is held is done again: the next one that is held is told.
    pub fn again(&self) {
        if let Some((device, events)) = &self.teller {
            events.over(&about(device));
        }
        self.told.store(false, Ordering::Relaxed);
    }

    /// How often the disk could not go on.
    pub fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }
}

/// What a held request is said about.
fn about(device: &DeviceId) -> String {
    format!("a request of {device}")
}

fn holds(policy: OnError, errno: i32) -> bool {
    match policy {
        OnError::Report => false,
        OnError::Pause => true,
        OnError::PauseIfFull => matches!(errno, libc::ENOSPC | libc::EDQUOT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_disk_is_paused_for_if_that_is_asked() {
        assert!(holds(OnError::Pause, libc::EIO) && !holds(OnError::Report, libc::ENOSPC));
        assert!(holds(OnError::PauseIfFull, libc::ENOSPC) && holds(OnError::PauseIfFull, libc::EDQUOT));
        assert!(!holds(OnError::PauseIfFull, libc::EIO));
    }
}
