//! Why a device cannot be had.

use std::io;

use shared_abi::DeviceId;

use crate::device::net::passt::PasstError;
use crate::value::place::ConfigError;

/// Why a device, or what is behind it, cannot be had. One line.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The config asks for what the host does not have.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A remote disk's server does not let itself be connected to.
    #[error("\"{server}\" cannot be reached: start the NBD server")]
    Unreachable {
        /// Its URI.
        server: String,
        /// What the system said.
        source: io::Error,
    },
    /// A NIC has no passt.
    #[error(transparent)]
    Passt(#[from] PasstError),
    /// A NIC cannot be plugged into its switch.
    #[error("{0}")]
    Switch(String),
    /// The machine has no such device, or it has nothing like that.
    #[error("device {0} has nothing to connect to")]
    NotHere(DeviceId),
    /// The class of devices has no such helper.
    #[error("{0} is nothing that can be started again")]
    NoHelper(String),
    /// Something of dom0's own.
    #[error("cannot {act}")]
    Io {
        /// What.
        act: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
