//! What the processes of a domain could reach.

use serde::{Deserialize, Serialize};
use zlink::introspect;

/// Descriptors of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct DescriptorInfo {
    /// A path, or what they are: `eventfd`, `socket`, `kvm-vm`.
    pub what: String,
    /// They can be written to.
    pub writable: bool,
    /// How many there are.
    pub count: u32,
}

/// Memory that a process shares with others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct SharedMemoryInfo {
    /// The name of the memory file.
    pub what: String,
    /// Bytes mapped.
    pub bytes: u64,
    /// It can be written to.
    pub writable: bool,
}

/// What a process could reach if it were taken over, measured from `/proc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct ReachInfo {
    /// Its program.
    pub program: String,
    /// It.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its capabilities, as the bit set of capabilities(7).
    pub capabilities: u64,
    /// No program that it executes can give it more.
    pub no_new_privileges: bool,
    /// Lists of system calls that it is held to.
    pub filters: u32,
    /// Namespaces that it shares with dom0.
    pub shared_namespaces: Vec<String>,
    /// What is in its root directory, the first entries.
    pub root: Vec<String>,
    /// Its descriptors.
    pub descriptors: Vec<DescriptorInfo>,
    /// The memory that it shares.
    pub memory: Vec<SharedMemoryInfo>,
    /// The interfaces of its network.
    pub interfaces: Vec<String>,
    /// How long a file it may make or lengthen, in bytes; none for no limit.
    pub longest_file: Option<u64>,
}

/// The answer to `Reach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct Reaches {
    /// The processes of the domain.
    pub processes: Vec<ReachInfo>,
}
