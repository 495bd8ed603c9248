//! Threads that have taken their first steps before the sandbox is sealed.
//!
//! A new thread names itself and registers with the kernel (`prctl`, `rseq`, `set_robust_list`), which the
//! sealed process may not do. So [`start`] returns when that is behind it.

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};

/// Stack of each thread, in bytes. Only what is touched is ever backed by memory.
const STACK: usize = 256 << 10;

/// Starts a thread; returns when it is about to do `work`.
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
