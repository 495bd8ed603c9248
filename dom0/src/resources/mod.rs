//! What a domain needs of the host: files, taps, sockets. Opened by dom0, handed to the children, gone with the domain.
//!
//! Every failure is a [`ConfigError`](crate::config::ConfigError) at the value that asked for the resource.

pub mod files;
pub mod host;
pub mod links;
pub mod locks;
pub mod nbd;
pub mod orphans;
pub mod passt;
pub mod programs;
pub mod record;
pub mod run_dir;
pub mod sockets;
pub mod steering;
pub mod tap;
pub mod threads;
pub mod usage;
pub mod watch;
