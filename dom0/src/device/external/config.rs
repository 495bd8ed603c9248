//! Devices of vhost-user backends that Domus does not start: what a config may say of one, and what that comes to.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shared_abi::DeviceId;
use shared_abi::control::DeviceConfig;
use shared_abi::limits::{MAX_DEVICE_CONFIG, MAX_QUEUE_SIZE, MAX_QUEUES};

use crate::device::spec::{usual_class, usual_config};
use crate::value::place::{ConfigError, Context};

/// A virtio device of any type, served by a vhost-user backend that Domus does not start.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceFile {
    /// Unique in the domain: 1 to 20 of a-z A-Z 0-9 _ -, the first a letter or digit.
    pub id: String,
    /// The virtio device type (virtio 1.3 §5): 4 entropy, 19 vsock, 26 file system, and so on.
    #[schemars(range(min = 1, max = 63))]
    pub virtio_type: u64,
    /// The PCI class code the guest sees, 24 bits.
    #[serde(default)]
    #[schemars(range(max = 16777215))]
    pub pci_class: Option<u64>,
    /// Number of virtqueues, 1 to 64.
    #[schemars(range(min = 1, max = 64))]
    pub queues: u64,
    /// Ring size: a power of two up to 1024.
    #[serde(default = "default_queue_size")]
    #[schemars(range(min = 2, max = 1024))]
    pub queue_size: u64,
    /// Bytes of its configuration space to ask the backend for, up to 256.
    #[serde(default)]
    #[schemars(range(max = 256))]
    pub config_size: Option<u64>,
    /// Its configuration space in hexadecimal, where the backend does not know it.
    #[serde(default)]
    pub config: Option<String>,
    /// The socket the backend listens on.
    pub vhost_user_socket: String,
}

fn default_queue_size() -> u64 {
    256
}

/// A device of any virtio type, served by a vhost-user backend that Domus did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalDevice {
    /// Its id.
    pub id: DeviceId,
    /// The virtio device type (virtio 1.3 §5).
    pub virtio_type: u16,
    /// The PCI class code, 24 bits.
    pub pci_class: u32,
    /// Number of virtqueues.
    pub queues: u16,
    /// Ring size.
    pub queue_size: u16,
    /// Where its configuration space comes from.
    pub config: DeviceConfig,
    /// The socket the backend listens on.
    pub socket: PathBuf,
}

/// Checks device `n`, which has this id.
///
/// # Errors
/// [`ConfigError`].
pub fn check(
    context: &Context<'_>,
    n: usize,
    id: DeviceId,
    device: DeviceFile,
) -> Result<ExternalDevice, ConfigError> {
    let at = |key: &str| format!("devices[{n}].{key}");
    // Modern virtio-pci has device ids 0x1040 to 0x107f (virtio 1.3 §4.1.2).
    let virtio_type = context.range(&at("virtio_type"), device.virtio_type, 1, 63)?;
    let queues = context.range(&at("queues"), device.queues, 1, MAX_QUEUES.into())?;
    let queue_size = context.range(&at("queue_size"), device.queue_size, 2, MAX_QUEUE_SIZE.into())?;
    if !queue_size.is_power_of_two() {
        let problem = format!("{queue_size} is no power of two: 128 or 256 would do");
        return Err(context.refuse(at("queue_size"), problem));
    }
    let pci_class = match device.pci_class {
        None => usual_class(virtio_type),
        Some(class) => match u32::try_from(class) {
            Ok(class) if class <= 0x00ff_ffff => class,
            _ => {
                return Err(
                    context.refuse(at("pci_class"), format!("{class} is out of range: 24 bits would do"))
                );
            }
        },
    };
    let config = match (device.config, device.config_size) {
        (Some(_), Some(_)) => {
            return Err(context.refuse(at("config_size"), "excludes config: give one of them"));
        }
        (Some(hex), None) => match from_hex(&hex) {
            Some(bytes) => DeviceConfig::Given(bytes),
            None => {
                let length = hex.len();
                let problem = format!(
                    "of {length} characters: up to {MAX_DEVICE_CONFIG} pairs of hexadecimal digits would do"
                );
                return Err(context.refuse(at("config"), problem));
            }
        },
        (None, size) => {
            let size = size.unwrap_or(usual_config(virtio_type));
            match context.range(&at("config_size"), size, 0, MAX_DEVICE_CONFIG as u64)? {
                0 => DeviceConfig::Given(Vec::new()),
                size => DeviceConfig::FromBackend(size),
            }
        }
    };
    let socket = context.path(&at("vhost_user_socket"), &device.vhost_user_socket)?;
    Ok(ExternalDevice { id, virtio_type, pci_class, queues, queue_size, config, socket })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let fits = text.len().is_multiple_of(2) && text.len() <= 2 * MAX_DEVICE_CONFIG;
    if !fits || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|n| u8::from_str_radix(&text[n..n + 2], 16).ok()).collect()
}
