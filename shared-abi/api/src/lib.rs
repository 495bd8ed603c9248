//! The Varlink interface `org.domus.Dom0`: its types, its errors, and the client's side of it.
//!
//! dom0 serves it; `domus` and other tools link this crate and not dom0. `org.domus.Dom0.varlink` beside this crate
//! is the same interface as text, for clients in other languages; a test compares it with what the service says of
//! itself.
//!
//! Types, the proxy that `zlink` makes of [`Dom0Client`], and what a client must know beside them: where dom0's socket
//! is ([`api_socket`]) and how a config is read ([`read_config`]). Nothing here opens a socket.

mod block;
mod client;
mod config;
mod cpus;
mod domain;
mod error;
mod event;
mod host;
mod limit;
mod net;
mod network;
mod reach;
mod run_dir;
mod statistics;
mod trouble;

pub use block::{DiskCounters, DiskInfo, DiskList, OpInfo, Resized};
pub use client::Dom0Client;
pub use config::{MAX_CONFIG, UnreadableConfig, read_config};
pub use cpus::{Sched, VcpuList, VcpuPlace};
pub use domain::{Console, Created, DomainInfo, Domains, Dumped, Ended, OneDomain, PhaseInfo, Timeline};
pub use error::ApiError;
pub use event::EventInfo;
pub use host::{GuestsStopped, HostInfo};
pub use limit::{DISK_LIMITS, Limit, NIC_LIMITS};
pub use net::{DropInfo, NicCounters, NicInfo, NicList, TrafficInfo};
pub use network::{Defined, LeaseInfo, LeaseList, NetworkInfo, NetworkList};
pub use reach::{DescriptorInfo, ReachInfo, Reaches, SharedMemoryInfo};
pub use run_dir::{api_socket, default_run_dir};
pub use statistics::{DomainStatistics, Statistics, VcpuInfo};
pub use trouble::{TroubleInfo, Troubles, Upgraded};
