//! The control domain.

pub mod config;
