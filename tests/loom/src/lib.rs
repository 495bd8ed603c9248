//! Protocols between threads whose proof is an order of atomic operations. The tests run the product's own files, here
//! with `loom`'s threads and atomics, in every order of their steps that the memory model allows.

/// What the files take from `crate::sync`: in the product that is `std`'s, and an eventfd.
pub mod sync {
    use std::io;
    use std::sync::PoisonError;
    use std::time::Duration;

    use loom::sync::Condvar;

    pub use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    pub use loom::sync::mpsc::{Receiver, Sender, channel};
    pub use loom::sync::{Arc, Mutex};
    pub use loom::thread::{Thread, current, park};

    /// Time passes while others run.
    pub fn sleep(_: Duration) {
        loom::thread::yield_now();
    }

    /// A counter that a thread can wait for, as an eventfd is one.
    #[derive(Debug)]
    pub struct Wake {
        count: Mutex<u64>,
        changed: Condvar,
    }

    impl Wake {
        /// At 0.
        ///
        /// # Errors
        /// Never.
        pub fn new() -> io::Result<Self> {
            Ok(Self { count: Mutex::new(0), changed: Condvar::new() })
        }

        /// Adds 1.
        pub fn ring(&self) -> bool {
            *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            self.changed.notify_all();
            true
        }

        /// Sets it to 0.
        pub fn hush(&self) {
            *self.count.lock().unwrap_or_else(PoisonError::into_inner) = 0;
        }

        /// Waits while it is 0, as `poll` does.
        pub fn wait(&self) {
            let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
            while *count == 0 {
                count = self.changed.wait(count).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

#[path = "../../../backends/switch/src/beat.rs"]
pub mod beat;

#[path = "../../../backends/vu-server/src/mailbox.rs"]
pub mod mailbox;
