//! Why something cannot be done with a network.

use std::io;

use shared_abi::NetworkName;

use crate::host::programs::NotInstalled;
use crate::process::SupervisorError;
use crate::value::place::ConfigError;

/// Why something cannot be done with a network. One line.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The definition is refused.
    #[error(transparent)]
    Definition(#[from] ConfigError),
    /// There is none of this name.
    #[error(
        "there is no network \"{0}\": see domus network-list, or define it (domus network-define FILE.json)"
    )]
    NoSuch(String),
    /// It does not run.
    #[error("the network \"{0}\" does not run: start it (domus network-start {0})")]
    NotRunning(NetworkName),
    /// It runs.
    #[error("the network \"{0}\" runs: stop it first (domus network-stop {0})")]
    Runs(NetworkName),
    /// The host could not tell their guests apart.
    #[error(
        "the network \"{0}\" has addresses of \"{1}\", which runs: give one of them others, or stop it (domus network-stop {1})"
    )]
    Overlaps(NetworkName, NetworkName),
    /// Domains use it.
    #[error(
        "the network \"{0}\" has NICs on it ({1}): shut those domains down first, or domus network-destroy {0}"
    )]
    InUse(NetworkName, String),
    /// Each has somebody.
    #[error(
        "the network \"{0}\" has no address left: widen dhcp in its definition, or list one in addresses"
    )]
    Full(NetworkName),
    /// Only the service has networks.
    #[error(
        "the network \"{0}\" does not run, and only the dom0 service can start it (domus network-start {0})"
    )]
    NoService(NetworkName),
    /// Somebody else's interface has the bridge's name.
    #[error("network {0}: an interface {1} exists that is not its own: remove it, or give another bridge")]
    BridgeTaken(NetworkName, String),
    /// dnsmasq does not stay.
    #[error("network {0}: dnsmasq {1}: what it said is in dom0's log; is its address, or port 53, taken?")]
    Dnsmasq(NetworkName, String),
    /// A program is missing.
    #[error(transparent)]
    NotInstalled(#[from] NotInstalled),
    /// A program could not be started.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    /// Something of the host's.
    #[error("network {network}: cannot {act}")]
    Io {
        /// Which.
        network: NetworkName,
        /// What.
        act: String,
        /// What the system said.
        source: io::Error,
    },
}
