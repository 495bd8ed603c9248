//! The serial console: what a config may say of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The serial console, COM1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleFile {
    /// A file to which all that the guest prints is appended, up to 64 MiB. Made where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}
