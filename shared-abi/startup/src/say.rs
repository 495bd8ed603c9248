//! A process's log lines on standard error.
//!
//! Not by `eprintln!`, which panics if the line cannot be written: whoever started the process reads the other end of
//! a pipe, and may be gone or slow. A line that cannot be written is lost, and nothing else.

use std::error::Error;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::control::chain;

static RAW: AtomicBool = AtomicBool::new(false);

/// Standard error is a terminal in raw mode, or is no longer: a line then needs a carriage return.
pub fn to_raw_terminal(raw: bool) {
    RAW.store(raw, Ordering::Relaxed);
}

/// Says a line, in one write, so that the lines of several threads and processes do not mix.
pub fn say(line: impl Display) {
    let end = if RAW.load(Ordering::Relaxed) { "\r\n" } else { "\n" };
    let _ = std::io::stderr().lock().write_all(format!("{line}{end}").as_bytes());
}

/// What `main` returns: an error is said in one line with its causes, after the program's name.
pub fn report(program: &str, result: Result<(), impl Into<Box<dyn Error>>>) -> ExitCode {
    match result.map_err(Into::into) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("{program}: {}", chain(&*error)));
            ExitCode::FAILURE
        }
    }
}
