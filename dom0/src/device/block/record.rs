//! What is written down of a machine's disks, for a dom0 that comes later.

use serde::{Deserialize, Serialize};
use shared_abi::control::{Cache, DeviceConfig, DeviceFeatures, DeviceSpec, IoLimits};

use crate::device::block::config::{Disk, DiskData};
use crate::device::slots::SlotMap;
use crate::device::spec::{BLOCK, BLOCK_CONFIG, QUEUE_SIZE, usual_class};
use crate::host::files::FileId;

/// What is written down of a machine's disks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRecord {
    /// What all of them together may do.
    pub limits: IoLimits,
    /// Each of them.
    pub disks: Vec<DiskRecord>,
}

impl BlockRecord {
    /// Of a machine that has not been built.
    pub fn first(disks: &[Disk], limits: IoLimits, slots: &mut SlotMap) -> Self {
        let disks = disks.iter().enumerate().map(|(n, disk)| DiskRecord::first(n, disk, slots));
        Self { limits, disks: disks.collect() }
    }
}

/// What is written down of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Its place in the config's list.
    pub n: usize,
    /// What the guest sees.
    pub spec: DeviceSpec,
    /// What the machine was built with.
    pub disk: Disk,
    /// Its image and what is behind it, as they were opened.
    pub files: Vec<FileId>,
    /// How its image is open.
    pub cache: Cache,
    /// What it may do.
    pub limits: IoLimits,
    /// Its size in bytes, where that must be known.
    pub bytes: Option<u64>,
    /// Its requests fail.
    pub lost: bool,
}

impl DiskRecord {
    /// `domus-block` serves it from an image of this host's.
    pub fn has_image(&self) -> bool {
        self.disk.own().is_some_and(|own| !matches!(own.data, DiskData::Nbd(_)))
    }

    /// Of disk `n` of a config, before it is opened.
    fn first(n: usize, disk: &Disk, slots: &mut SlotMap) -> Self {
        let own = disk.own();
        Self {
            n,
            spec: DeviceSpec {
                id: disk.id.clone(),
                slot: slots.take(),
                virtio_type: BLOCK,
                pci_class: usual_class(BLOCK),
                queues: disk.queues,
                queue_size: QUEUE_SIZE,
                config: DeviceConfig::FromBackend(BLOCK_CONFIG),
                features: DeviceFeatures::default(),
            },
            disk: disk.clone(),
            files: Vec::new(),
            cache: own.and_then(|own| own.cache).unwrap_or(Cache::Writeback),
            limits: own.map(|own| own.limits).unwrap_or_default(),
            bytes: None,
            lost: false,
        }
    }
}
