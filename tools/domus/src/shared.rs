//! The rules that a command shares with dom0, beside the API: both sides of the socket must agree on them.
//!
//! The commands that do a part of dom0's work themselves (`run`, `check`, `import`, `logs`, `disk`) link that crate;
//! all others reach it through this file only, so that these rules can move into a contract of their own.

/// The run directory of a dom0 that was not told otherwise.
pub use dom0::host::run_dir::default_path as default_run_dir;
/// One line on standard error. `domus run` is a dom0 itself: both must know whether the terminal is in raw mode.
pub use dom0::log::stderr::{line as say, to_raw_terminal};
/// Reads a config or a definition, of bounded length, and tells the directory that its relative paths start at.
pub use dom0::value::text::read as read_config;
/// Writes a moment in milliseconds since 1970 as RFC 3339 has it.
pub use dom0::value::time::written as timestamp;
