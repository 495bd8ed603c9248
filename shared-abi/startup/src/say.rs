//! What a process tells people, a line at a time, on standard error.
//!
//! Not by `eprintln!`, which panics if the line cannot be written: whoever started the process reads the other end of
//! a pipe, and may be gone or slow. A line that cannot be written is lost, and nothing else.

use std::fmt::Display;
use std::io::Write;

/// Says a line, in one write, so that the lines of several threads and processes do not mix.
pub fn say(line: impl Display) {
    let _ = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}
