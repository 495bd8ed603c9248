//! A process's log lines on standard error.
//!
//! Not by `eprintln!`, which panics if the line cannot be written: whoever started the process reads the other end of
//! a pipe, and may be gone or slow. A line that cannot be written is lost, and nothing else.

use std::error::Error;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use crate::control::chain;

/// Says a line, in one write, so that the lines of several threads and processes do not mix.
pub fn say(line: impl Display) {
    let _ = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
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
