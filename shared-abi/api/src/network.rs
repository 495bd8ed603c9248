//! Networks that dom0 manages, and the addresses that they lend.

use serde::{Deserialize, Serialize};
use zlink::introspect;

/// A network that dom0 manages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct NetworkInfo {
    /// Its name.
    pub name: String,
    /// Its bridge.
    pub bridge: String,
    /// The host's addresses there.
    pub addresses: Vec<String>,
    /// The IPv4 addresses that guests get, as `FROM-TO`.
    pub dhcp: Option<String>,
    /// `nat`, `routed` or `isolated`.
    pub forward: String,
    /// It is started without being asked for.
    pub autostart: bool,
    /// `running`, `stopped`, or `faulty`: it runs, and something of it is not as it was made.
    pub state: String,
    /// What that is, and what has come of putting it right.
    pub fault: Option<String>,
}

/// The answer to `NetworkList`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct NetworkList {
    /// By name.
    pub networks: Vec<NetworkInfo>,
}

/// The answer to `NetworkDefine`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct Defined {
    /// Its name.
    pub name: String,
}

/// An address that a network has lent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct LeaseInfo {
    /// The address.
    pub ip: String,
    /// To whom it is lent.
    pub mac: String,
    /// The name that the guest gives itself.
    pub name: Option<String>,
    /// When it ends, in seconds since 1970; absent if it does not.
    pub expires: Option<u64>,
}

/// The answer to `NetworkLeases`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct LeaseList {
    /// As dnsmasq has them.
    pub leases: Vec<LeaseInfo>,
}
