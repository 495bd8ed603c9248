//! Threads and the heap of a process that is going to be sealed.
//!
//! A new thread names itself and registers with the kernel (`prctl`, `rseq`, `set_robust_list`), which a sealed
//! process may not do: so [`start`] returns when that is behind it. And the allocator gives each thread that waits for
//! another a heap of its own, with pages that stay mostly empty and a look at the processors (`sched_getaffinity`)
//! that a sealed process may not take: so [`one_heap`] comes first in `main`.

#![expect(unsafe_code, reason = "mallopt has no safe binding among our crates")]

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};

/// Stack of each thread, in bytes. Only what is touched is ever backed by memory.
const STACK: usize = 256 << 10;

/// Blocks from this size on are mappings of their own, which return to the system when they are freed.
const MMAP_THRESHOLD: libc::c_int = 64 << 10;

/// Sets the allocator up for a process that allocates little once it works. To be called first in `main`.
pub fn one_heap() {
    // SAFETY: mallopt takes two integers; no other thread exists that could be allocating.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD) };
}

/// Starts a thread with a small stack; returns when it is about to do `work`. Linux shows 15 bytes of its name.
///
/// # Errors
/// If the system has no thread left.
pub fn start(name: String, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let (sender, started) = sync_channel(1);
    let handle = Builder::new().name(name).stack_size(STACK).spawn(move || {
        // The receiver waits for exactly this.
        let _ = sender.send(());
        work();
    })?;
    let _ = started.recv();
    Ok(handle)
}
