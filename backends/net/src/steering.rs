//! The steering table by which a tap with several queues spreads frames over them ([`shared_abi::steering`]).
//!
//! A frame that arrives while the table is written may be hashed by half the old rules and half the new: it comes on a
//! queue that works, and that is all a driver may expect (virtio 1.3 §5.1.6.5.6.4).
#![expect(unsafe_code, reason = "memory shared with the kernel is reached through a raw pointer")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapOptions, MmapRaw};
pub use shared_abi::steering::Rules;
use shared_abi::steering::WORDS;

/// The table of one tap, mapped.
#[derive(Debug)]
pub struct Steering(MmapRaw);

impl Steering {
    /// Maps the table behind this descriptor.
    ///
    /// # Errors
    /// It is none, or is too short.
    pub fn map(table: &OwnedFd) -> io::Result<Self> {
        let mapping = MmapOptions::new().len(WORDS * 4).map_raw(table.as_raw_fd())?;
        Ok(Self(mapping))
    }

    /// Spreads frames by these rules from now on. False, and nothing is changed, if they are none.
    pub fn set(&self, rules: &Rules) -> bool {
        let Some(words) = rules.words() else { return false };
        let start = self.0.as_mut_ptr().cast::<AtomicU32>();
        for (n, word) in words.into_iter().enumerate() {
            // SAFETY: `words` has WORDS entries and the mapping WORDS * 4 bytes.
            let place = unsafe { start.add(n) };
            // SAFETY: the mapping starts at a page, so each word is aligned; it lives as long as `self`; whoever else
            // reads it (the kernel) or writes it does so word by word, and any bytes are a valid AtomicU32.
            unsafe { &*place }.store(word, Ordering::Relaxed);
        }
        true
    }
}
