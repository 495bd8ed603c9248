//! What a device class tells the server: nothing about sockets, nothing about rings.

use std::fmt::Debug;

use crate::eventfd::Signals;
use crate::memory::MAX_REGIONS;

/// A device class: its features and its configuration space. Its work is done by workers ([`crate::worker`]).
///
/// Every argument is chosen by an untrusted frontend.
pub trait Device: Send + 'static {
    /// The class's own command to its workers, besides the common ones
    /// ([`WorkerCommand::Device`](crate::WorkerCommand::Device)); [`Infallible`](std::convert::Infallible) for none.
    type Command: Debug + Send + 'static;

    /// The device-specific feature bits offered (virtio 1.3 §2.2: 0 to 23 and 50 to 127). The ring features
    /// that the server has are added by it.
    fn features(&self) -> u64;

    /// The device-specific configuration space as it is now, little-endian, at most 256 bytes. What a frontend
    /// reads behind its end is 0.
    fn config(&self) -> Vec<u8>;

    /// The driver writes `bytes` at `offset` of the configuration space. Returns false if it may not: then they are
    /// ignored.
    fn write_config(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let _ = (offset, bytes);
        false
    }

    /// A driver has settled on these features (`SET_FEATURES`), a subset of those offered.
    fn set_features(&mut self, features: u64) {
        let _ = features;
    }

    /// Offer frontends to keep a log of what is in flight, so that a backend that is killed can be replaced
    /// (`INFLIGHT_SHMFD`). For devices whose chains all come back: block, not net.
    fn inflight(&self) -> bool {
        false
    }

    /// How the eventfds of its frontends are signalled. A process that serves several domains must not wait for one.
    fn signals(&self) -> Signals {
        Signals::Write
    }

    /// Most regions of memory, up to [`MAX_REGIONS`]: each is an open file, and those of a process are bounded.
    fn max_regions(&self) -> usize {
        MAX_REGIONS
    }

    /// The device is reset (`RESET_DEVICE`): forget what the driver has set. No ring runs.
    fn reset(&mut self) {}

    /// The frontend has gone, and with it its rings and its memory. The driver may be there still: the frontend, or the
    /// process that takes over from this one, goes on where this one stopped. A device that keeps nothing of its driver
    /// outside this process is reset.
    fn abandoned(&mut self) {
        self.reset();
    }
}
