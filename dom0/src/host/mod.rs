//! Access to the host: files, locks, links, sockets, processes, CPUs, the run directory.
//!
//! Every failure that a config's value causes is a [`ConfigError`](crate::value::place::ConfigError) at that value.

pub mod fault;
pub mod files;
pub mod kernels;
pub mod kvm;
pub mod links;
pub mod locks;
pub mod magic;
pub mod memory;
pub mod monitor;
pub mod nbd;
pub mod netlink;
pub mod nftables;
pub mod orphans;
pub mod pidfd;
pub mod proc;
pub mod programs;
pub mod reach;
pub mod resolve;
pub mod rlimits;
pub mod run_dir;
pub mod slow;
pub mod sockets;
pub mod usage;
pub mod vcpus;
pub mod waits;
pub mod watch;
