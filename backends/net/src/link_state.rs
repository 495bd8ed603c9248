//! State that all threads of a NIC read while they work: whether the cable is plugged in, and the limits.

use std::sync::atomic::AtomicBool;

use shared_abi::control::NicLimits;

use crate::rate_limit::RateLimit;

/// One for each NIC.
#[derive(Debug)]
pub struct LinkState {
    /// The cable is plugged in.
    pub link: AtomicBool,
    /// Somebody is at its other end.
    pub connected: AtomicBool,
    /// To the guest.
    pub receive: RateLimit,
    /// From the guest.
    pub transmit: RateLimit,
}

impl LinkState {
    /// A NIC that is set so.
    pub fn new(link: bool, connected: bool, limits: &NicLimits) -> Self {
        Self {
            link: AtomicBool::new(link),
            connected: AtomicBool::new(connected),
            receive: RateLimit::new(limits.receive),
            transmit: RateLimit::new(limits.transmit),
        }
    }
}
