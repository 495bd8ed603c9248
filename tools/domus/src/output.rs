//! Standard output of every command, and its lines on standard error.

use std::io::Write;

use anyhow::Context;

/// Prints a line. A reader that has gone is no failure of the command.
pub fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}
