//! Fault injection for tests: points at which dom0 can be killed, before and after each step that outlives dom0.
//!
//! With `DOMUS_FAULT=N` in the environment dom0 kills itself, as by `kill -9`, at the N-th point. Compiled into builds
//! with debug assertions only: debug and lab builds.

/// A step is done, or about to be.
#[cfg(debug_assertions)]
pub fn point() {
    use std::cell::Cell;
    thread_local! {
        static LEFT: Cell<Option<u32>> =
            Cell::new(std::env::var("DOMUS_FAULT").ok().and_then(|n| n.parse().ok()));
    }
    let left = LEFT.get().map(|left| left.saturating_sub(1));
    LEFT.set(left);
    if left == Some(0) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// A step is done, or about to be.
#[cfg(not(debug_assertions))]
pub fn point() {}
