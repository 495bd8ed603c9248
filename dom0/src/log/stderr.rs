//! dom0's log lines on standard error.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};

static RAW: AtomicBool = AtomicBool::new(false);

/// Standard error is a terminal in raw mode, or is no longer: a line then needs a carriage return.
pub fn to_raw_terminal(raw: bool) {
    RAW.store(raw, Ordering::Relaxed);
}

/// Says a line. A reader that is gone is no reason to stop anything.
pub fn line(text: impl Display) {
    use std::io::Write;
    let end = if RAW.load(Ordering::Relaxed) { "\r\n" } else { "\n" };
    // One write, so that the lines of several processes do not mix.
    let _ = std::io::stderr().lock().write_all(format!("{text}{end}").as_bytes());
}
