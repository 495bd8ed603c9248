//! What runs of a domain between two restarts.

pub mod attempt;
pub mod backend;
pub mod build;
pub mod core;
pub mod disks;
pub mod events;
pub mod exchange;
pub mod nics;
pub mod recovery;
pub mod runner;
pub mod scheduling;
pub mod timeline;
