//! The settings that a frontend has made for one ring, and whether the ring runs.
//!
//! ```text
//!   Stopped ──(size, addresses, kick, enabled)──▶ Running ──(GET_VRING_BASE, disabled, reset, hang-up)──▶ Stopped
//! ```

use std::fs::File;
use std::sync::Arc;

use crate::eventfd::Signals;
use crate::memory::MemoryTable;
use crate::queue::{LogPlace, Queue, QueueError, QueueSetup, RingAddresses};
use crate::worker::{Port, WorkerGone};

/// Why a ring could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum VringError {
    /// Its areas or its log cannot be used.
    #[error("queue {index}")]
    Queue {
        /// The ring's number.
        index: u16,
        /// Why.
        source: QueueError,
    },
    /// The worker has ended.
    #[error(transparent)]
    Worker(#[from] WorkerGone),
}

/// One ring as the frontend sees it.
#[derive(Debug)]
pub struct Vring<T> {
    index: u16,
    worker: Port<T>,
    pub size: u16,
    pub addresses: Option<RingAddresses>,
    pub base: u16,
    pub kick: Option<Arc<File>>,
    call: Option<Arc<File>>,
    pub error: Option<Arc<File>>,
    pub enabled: bool,
    running: bool,
}

impl<T> Vring<T> {
    pub fn new(index: u16, worker: Port<T>) -> Self {
        Self {
            index,
            worker,
            size: 0,
            addresses: None,
            base: 0,
            kick: None,
            call: None,
            error: None,
            enabled: false,
            running: false,
        }
    }

    pub fn index(&self) -> u16 {
        self.index
    }

    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Whether all it needs is there, and it does not run yet.
    pub fn can_start(&self) -> bool {
        self.addresses.is_some() && self.kick.is_some() && self.enabled && !self.running
    }

    /// Starts the ring if it can.
    pub fn start(
        &mut self,
        device: &Arc<str>,
        features: u64,
        memory: &Arc<MemoryTable>,
        log: Option<LogPlace>,
        signals: Signals,
    ) -> Result<(), VringError> {
        let (Some(addresses), Some(kick), true, false) =
            (self.addresses, &self.kick, self.enabled, self.running)
        else {
            return Ok(());
        };
        let queue = Queue::new(QueueSetup {
            device: device.clone(),
            index: self.index,
            size: self.size,
            features,
            memory: memory.clone(),
            addresses,
            next_available: self.base,
            kick: kick.clone(),
            call: self.call.clone(),
            error: self.error.clone(),
            signals,
            log,
        })
        .map_err(|source| VringError::Queue { index: self.index, source })?;
        self.worker.start(Box::new(queue))?;
        self.running = true;
        Ok(())
    }

    /// Stops the ring if it runs: what is in flight is finished, and `base` is where it will go on.
    pub fn stop(&mut self) -> Result<(), VringError> {
        if self.running {
            self.running = false;
            self.base = self.worker.stop(self.index)?.next_available();
        }
        Ok(())
    }

    /// Changes the call eventfd, while the ring runs or not.
    pub fn set_call(&mut self, call: Option<Arc<File>>) -> Result<(), VringError> {
        if self.running {
            self.worker.set_call(self.index, call.clone())?;
        }
        self.call = call;
        Ok(())
    }

    /// Forgets all the frontend has set. The ring does not run.
    pub fn forget(&mut self) {
        debug_assert!(!self.running);
        *self = Self::new(self.index, self.worker.clone());
    }
}
