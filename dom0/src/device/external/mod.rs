//! Devices of backends that Domus does not start.

pub mod config;
