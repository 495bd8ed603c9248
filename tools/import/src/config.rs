//! The config that is written: the keys of `dom0/schema/domain.schema.json` that other toolstacks know, too.

use std::collections::BTreeMap;

use serde::Serialize;

/// A domain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Its name.
    pub name: String,
    /// Which machine it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Number of vCPUs.
    pub vcpus: u64,
    /// Features of the CPU that the guest has or has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// It runs virtual machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nested: Option<bool>,
    /// It has performance counters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pmu: Option<bool>,
    /// RAM, such as `512MiB`.
    pub memory: String,
    /// What is started.
    pub boot: Boot,
    /// Disks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// NICs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<Net>,
    /// Policies, where they are no default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_poweroff: Option<String>,
    /// The same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_reboot: Option<String>,
    /// The same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_crash: Option<String>,
}

/// The host's CPU, but for these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// Features that it has in any case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub require: Vec<String>,
    /// Features that it has not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disable: Vec<String>,
}

/// What is started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Boot {
    /// The kernel.
    pub kernel: String,
    /// The initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// The command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
}

/// A disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Its id.
    pub id: String,
    /// Its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The image's format, if it is not raw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// What the image refers to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backing: Vec<Backing>,
    /// The guest cannot write to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Its serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Its virtqueues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<u64>,
    /// What an acknowledged write is worth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// Whether space is given back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard: Option<bool>,
    /// The logical block size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u64>,
    /// What becomes of a write that fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub werror: Option<String>,
    /// What becomes of a read that fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rerror: Option<String>,
    /// What it may do a second.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub limits: BTreeMap<&'static str, String>,
    /// A backend's socket, in place of an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost_user_socket: Option<String>,
}

/// An image behind an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Backing {
    /// Its path.
    pub path: String,
    /// `raw` or `qcow2`.
    pub format: String,
}

/// A NIC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Net {
    /// Its id.
    pub id: String,
    /// The bridge it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// A tap that exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The interface of its macvtap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macvtap: Option<String>,
    /// The network it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// A backend's socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost_user_socket: Option<String>,
    /// In user space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<bool>,
    /// It does not reach others that are isolated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolated: Option<bool>,
    /// Queue pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<u64>,
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// The addresses that its guest may use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// What it may do a second.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub limits: BTreeMap<&'static str, String>,
    /// `down`, if its cable is not plugged in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}
