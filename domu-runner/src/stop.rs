//! The end of a machine: any thread reports the reason, and one thread acts on it.
//!
//! The first reason counts. Saying it never waits, so devices and vCPU threads may.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use shared_abi::control::StopReason;

/// Says that the machine is to end. Cheap to clone, usable from every thread.
#[derive(Debug, Clone)]
pub struct Stop(SyncSender<StopReason>);

impl Stop {
    /// The sender, and what the thread that ends the machine waits on.
    pub fn channel() -> (Self, Receiver<StopReason>) {
        let (sender, receiver) = sync_channel(1);
        (Self(sender), receiver)
    }

    /// Ends the machine for this reason, unless it is ending already.
    pub fn request(&self, reason: StopReason) {
        let _ = self.0.try_send(reason);
    }
}
