//! What an operator may want to know of.

use tokio::time::Instant;

/// A loss, or a fault, that an operator may want to know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What it is about: a disk, a backend.
    pub layer: String,
    /// Since when, if that is known.
    pub since: Option<Instant>,
    /// What has happened.
    pub cause: String,
    /// What to do, or what is being done.
    pub next: String,
}
