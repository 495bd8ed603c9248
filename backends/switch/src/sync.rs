//! What `beat` is made of: `std`'s, and `loom`'s where `tests/loom` runs it in every order of its steps.

pub use std::sync::Mutex;
pub use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
pub use std::thread::{Thread, current, park, sleep};
