//! Rate-limited log lines on standard error: at most ten in ten seconds, however often a guest causes them.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use domus_startup::{EventLimit, lock};

static LIMIT: Mutex<EventLimit> = Mutex::new(EventLimit::new(10, Duration::from_secs(10)));

/// Says one line that a guest or a frontend can cause. A line beyond the limit is counted and dropped; the count is
/// said with the next line.
pub fn limited(line: fmt::Arguments<'_>) {
    let admitted = lock(&LIMIT).admit(Instant::now());
    match admitted {
        Some(0) => domus_startup::say(format_args!("{line}")),
        Some(dropped) => domus_startup::say(format_args!("{line} ({dropped} lines like this were dropped)")),
        None => {}
    }
}
