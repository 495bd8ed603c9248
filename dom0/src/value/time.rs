//! Times as people and programs read them: RFC 3339, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use shared_abi::time::written;

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Now.
pub fn now() -> String {
    written(now_ms())
}
