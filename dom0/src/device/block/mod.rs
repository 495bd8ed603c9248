//! Disks.

pub mod config;
pub mod open;
