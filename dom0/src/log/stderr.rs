//! dom0's log lines on standard error. `domus run` is a dom0, too, and its terminal may be in raw mode: the lines of
//! both are said by one rule.

pub use domus_startup::say as line;
