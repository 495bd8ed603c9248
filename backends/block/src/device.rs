//! A disk as a virtio block device: feature bits and configuration space (virtio 1.3 §5.2.3, §5.2.4).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vu_server::Device;

use crate::disk::Disk;

/// `VIRTIO_BLK_F_SEG_MAX`.
pub const F_SEG_MAX: u64 = 1 << 2;
/// `VIRTIO_BLK_F_RO`.
pub const F_RO: u64 = 1 << 5;
/// `VIRTIO_BLK_F_BLK_SIZE`.
pub const F_BLK_SIZE: u64 = 1 << 6;
/// `VIRTIO_BLK_F_FLUSH`.
pub const F_FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_F_MQ`.
pub const F_MQ: u64 = 1 << 12;

/// Data segments of one request: with header and status a chain of 128, which the rings of all drivers hold.
const SEG_MAX: u32 = 126;
/// Bytes of `struct virtio_blk_config` up to and with `num_queues`.
const CONFIG_LEN: usize = 36;

/// Whether writes may be acknowledged before they survive a power cut: that is so where the driver can flush.
///
/// `VIRTIO_BLK_F_CONFIG_WCE`, by which a driver could change it at any time, is not offered: a backend that is replaced
/// would not know of it.
#[derive(Debug, Default)]
pub struct Writeback(AtomicBool);

impl Writeback {
    /// True: a write is acknowledged when the host's cache has it. False: when the disk has it.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }
}

/// The device's side of a disk.
#[derive(Debug)]
pub struct BlockDevice {
    disk: Arc<Disk>,
    writeback: Arc<Writeback>,
    queues: u16,
}

impl BlockDevice {
    /// A device with this many queues, and the cache mode that its workers obey.
    pub fn new(disk: Arc<Disk>, queues: u16) -> (Self, Arc<Writeback>) {
        let writeback = Arc::<Writeback>::default();
        (Self { disk, writeback: writeback.clone(), queues }, writeback)
    }
}

impl Device for BlockDevice {
    fn features(&self) -> u64 {
        let read_only = if self.disk.bounds().read_only { F_RO } else { 0 };
        let many = if self.queues > 1 { F_MQ } else { 0 };
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | read_only | many
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; CONFIG_LEN];
        config[0..8].copy_from_slice(&self.disk.bounds().sectors.to_le_bytes());
        config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        config[20..24].copy_from_slice(&self.disk.block_size().to_le_bytes());
        config[34..36].copy_from_slice(&self.queues.to_le_bytes());
        config
    }

    /// Every request comes back: it can be done again by the process that replaces this one.
    fn inflight(&self) -> bool {
        true
    }

    /// A driver that cannot flush gets writes that need none (virtio 1.3 §5.2.6.2).
    fn set_features(&mut self, features: u64) {
        self.writeback.set(features & F_FLUSH != 0);
    }

    fn reset(&mut self) {
        self.writeback.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn device() -> (BlockDevice, Arc<Writeback>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0; 4096]).unwrap();
        BlockDevice::new(Arc::new(Disk::new(file, "", false).unwrap()), 3)
    }

    #[test]
    fn the_configuration_space_says_sectors_block_size_and_queues() {
        let config = device().0.config();
        assert_eq!((config[0], config[12], config[21], config[34], config.len()), (8, 126, 2, 3, 36));
    }

    #[test]
    fn without_flush_every_write_must_be_durable() {
        let (mut device, writeback) = device();
        device.set_features(F_FLUSH);
        assert!(writeback.get());
        device.set_features(F_SEG_MAX);
        assert!(!writeback.get());
        assert!(!device.write_config(32, &[1]));
    }
}
