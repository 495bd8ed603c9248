//! The serial console: what a config may say of it.

use schemars::JsonSchema;
use serde::Deserialize;

/// The serial console, COM1.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleFile {
    /// A file to which all that the guest prints is appended, up to 64 MiB. Made where it is missing, and made again
    /// within seconds where it was renamed (logrotate).
    #[serde(default)]
    pub log: Option<String>,
}
