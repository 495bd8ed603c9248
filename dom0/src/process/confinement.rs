//! What a helper program may do that is not Domus' own: whom it runs as, and what it keeps.
//!
//! Whoever starts it holds it to that from its first moment, as far as it can: [`Direct`](super::Direct) by
//! credentials and a cgroup, [`Systemd`](super::Systemd) by everything that a unit can say, as the templates of Domus'
//! own programs.

use std::path::Path;

/// What a helper program needs.
#[derive(Debug, Clone, Copy)]
pub struct Confinement<'a> {
    /// The user and group that it runs as; none for those of whoever starts it.
    pub uid: Option<u32>,
    /// Capabilities that it has, by number (capabilities(7)).
    pub capabilities: &'a [u8],
    /// Families of its sockets, as systemd calls them.
    pub families: &'a [&'a str],
    /// Namespaces that it makes for itself, as flags of clone(2).
    pub namespaces: u64,
    /// Groups of system calls that it makes besides a service's usual ones.
    pub calls: &'a [&'a str],
    /// Where it writes.
    pub writes: Option<&'a Path>,
    /// Bytes of memory.
    pub memory: u64,
    /// Threads.
    pub tasks: u32,
}

/// Another group, and user, and what may be had at most.
pub const CAP_SETGID: u8 = 6;
/// See [`CAP_SETGID`].
pub const CAP_SETUID: u8 = 7;
/// See [`CAP_SETGID`].
pub const CAP_SETPCAP: u8 = 8;
/// Ports below 1024.
pub const CAP_NET_BIND_SERVICE: u8 = 10;
/// The network's configuration.
pub const CAP_NET_ADMIN: u8 = 12;
/// Raw sockets.
pub const CAP_NET_RAW: u8 = 13;

impl Confinement<'_> {
    /// Its capabilities as a set of bits.
    pub fn capability_bits(&self) -> u64 {
        self.capabilities.iter().fold(0, |bits, capability| bits | 1 << capability)
    }
}
