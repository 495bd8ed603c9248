//! dom0's log lines on standard error. `domus run` is a dom0, too, and its terminal may be in raw mode: the lines of
//! both are said by one rule. Whoever reads the other end may not do so: nobody waits for that.

use std::fmt::Display;
use std::time::Duration;

use domus_startup::say;

use crate::log::writer::Writer;

static WRITER: Writer<String> = Writer::new(|line, lost| {
    if lost > 0 {
        say(format_args!("{lost} line(s) were lost: nobody has read this end"));
    }
    say(line);
});

/// Says a line.
pub fn line(line: impl Display) {
    WRITER.put(line.to_string());
}

/// Waits until all lines are said, for `patience` at most. For a process that ends.
pub fn flush(patience: Duration) {
    WRITER.flush(patience);
}
