//! NICs.

pub mod attach;
pub mod config;
pub mod forward;
pub mod passt;
pub mod steering;
pub mod tap;
