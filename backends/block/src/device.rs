//! A disk as a virtio block device: feature bits and configuration space (virtio 1.3 §5.2.3, §5.2.4).

use std::sync::Arc;

use vu_server::Device;

use crate::disk::{Disk, Shape};
use crate::request::{MAX_SEGMENT_SECTORS, MAX_SEGMENTS, SECTOR};
use crate::worker_command::BlockCommand;

/// `VIRTIO_BLK_F_SEG_MAX`.
pub const F_SEG_MAX: u64 = 1 << 2;
/// `VIRTIO_BLK_F_RO`.
pub const F_RO: u64 = 1 << 5;
/// `VIRTIO_BLK_F_BLK_SIZE`.
pub const F_BLK_SIZE: u64 = 1 << 6;
/// `VIRTIO_BLK_F_FLUSH`.
pub const F_FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_F_TOPOLOGY`.
pub const F_TOPOLOGY: u64 = 1 << 10;
/// `VIRTIO_BLK_F_MQ`.
pub const F_MQ: u64 = 1 << 12;
/// `VIRTIO_BLK_F_DISCARD`.
pub const F_DISCARD: u64 = 1 << 13;
/// `VIRTIO_BLK_F_WRITE_ZEROES`.
pub const F_WRITE_ZEROES: u64 = 1 << 14;

/// Data segments of one request: with header and status a chain of 128, which the rings of all drivers hold.
const SEG_MAX: u32 = 126;
/// Bytes of `struct virtio_blk_config` up to and with the limits of write-zeroes.
const CONFIG_LEN: usize = 60;

/// The device's side of a disk.
#[derive(Debug)]
pub struct BlockDevice {
    disk: Arc<Disk>,
    queues: u16,
}

impl BlockDevice {
    /// A device with this many queues.
    pub fn new(disk: Arc<Disk>, queues: u16) -> Self {
        Self { disk, queues }
    }
}

impl Device for BlockDevice {
    type Command = BlockCommand;

    fn features(&self) -> u64 {
        let shape = self.disk.shape();
        let kind = match (shape.read_only, shape.discard) {
            (true, _) => F_RO,
            (false, true) => F_WRITE_ZEROES | F_DISCARD,
            (false, false) => F_WRITE_ZEROES,
        };
        let many = if self.queues > 1 { F_MQ } else { 0 };
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | kind | many
    }

    fn config(&self) -> Vec<u8> {
        let shape = self.disk.shape();
        let mut config = vec![0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.disk.bytes() / SECTOR).to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &shape.block_size.to_le_bytes());
        put(24, &topology(shape));
        put(34, &self.queues.to_le_bytes());
        if !shape.read_only {
            let physical = shape.physical_block.max(shape.block_size) / SECTOR as u32;
            if shape.discard {
                put(36, &MAX_SEGMENT_SECTORS.to_le_bytes());
                put(40, &(MAX_SEGMENTS as u32).to_le_bytes());
                put(44, &physical.to_le_bytes());
            }
            put(48, &MAX_SEGMENT_SECTORS.to_le_bytes());
            put(52, &(MAX_SEGMENTS as u32).to_le_bytes());
            put(56, &[shape.discard.into()]);
        }
        config
    }

    /// Every request comes back: it can be done again by the process that replaces this one.
    fn inflight(&self) -> bool {
        true
    }

    /// A driver that cannot flush gets writes that need none.
    fn set_features(&mut self, features: u64) {
        self.disk.set_writeback(features & F_FLUSH != 0);
    }

    fn reset(&mut self) {
        self.disk.set_writeback(false);
    }
}

/// `struct virtio_blk_topology`: logical blocks in a physical one as a power of two, where the first physical block
/// starts, the least and the best size of a request in logical blocks.
fn topology(shape: Shape) -> [u8; 8] {
    let blocks = |bytes: u32| bytes / shape.block_size;
    let in_physical = blocks(shape.physical_block).max(1);
    let least = u16::try_from(in_physical).unwrap_or(u16::MAX).to_le_bytes();
    let best = blocks(shape.optimal_io).to_le_bytes();
    [in_physical.ilog2() as u8, 0, least[0], least[1], best[0], best[1], best[2], best[3]]
}

#[cfg(test)]
mod tests {
    use crate::disk::tests::{SHAPE, disk};

    use super::*;

    fn device(shape: Shape) -> BlockDevice {
        BlockDevice::new(Arc::new(disk(1 << 20, shape, "").unwrap()), 3)
    }

    fn word(config: &[u8], at: usize) -> u32 {
        u32::from_le_bytes([config[at], config[at + 1], config[at + 2], config[at + 3]])
    }

    #[test]
    fn the_configuration_space_says_size_topology_queues_and_limits() {
        let shape = Shape { optimal_io: 1 << 16, ..SHAPE };
        let config = device(shape).config();
        assert_eq!(
            (word(&config, 0), word(&config, 4), word(&config, 12), word(&config, 20)),
            (2048, 0, 126, 512)
        );
        assert_eq!(config[24..32], [3, 0, 8, 0, 128, 0, 0, 0]);
        assert_eq!(config[34..36], [3, 0]);
        assert_eq!((word(&config, 36), word(&config, 40), word(&config, 44)), (1 << 21, 16, 8));
        assert_eq!((word(&config, 48), word(&config, 52), config[56]), (1 << 21, 16, 1));
        let blocks = device(Shape { block_size: 4096, ..SHAPE }).config();
        assert_eq!((word(&blocks, 0), word(&blocks, 20)), (2048, 4096));
        assert_eq!(blocks[24..32], [0, 0, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn what_is_not_offered_has_no_limits() {
        let read_only = device(Shape { read_only: true, ..SHAPE });
        assert_eq!(read_only.features() & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_RO);
        assert!(read_only.config()[36..].iter().all(|&byte| byte == 0));
        let kept = device(Shape { discard: false, ..SHAPE });
        assert_eq!(kept.features() & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_WRITE_ZEROES);
        assert_eq!((word(&kept.config(), 36), kept.config()[56]), (0, 0));
    }

    #[test]
    fn a_resize_is_seen_in_the_configuration_space() {
        let device = device(SHAPE);
        device.disk.resize(3 << 20);
        assert_eq!(word(&device.config(), 0), 6144);
    }

    #[test]
    fn a_driver_that_can_flush_has_its_writes_cached() {
        let mut device = device(SHAPE);
        device.set_features(F_FLUSH);
        assert!(!device.disk.is_durable());
        device.set_features(F_SEG_MAX);
        assert!(device.disk.is_durable());
        assert!(!device.write_config(32, &[1]));
    }
}
