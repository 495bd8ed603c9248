//! The properties that every disk has, whatever its data is in: size, shape, name, limits and error policy.
//!
//! One disk is shared by the threads of its queues, its vhost-user thread and the control thread. What changes while it
//! is served is atomic: its size ([`Disk::resize`]) and whether its driver can flush.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use shared_abi::control::Cache;

use crate::faults::Faults;
use crate::request::{Bounds, ID_LEN, SECTOR};
use crate::throttle::Gate;

/// Why there cannot be such a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Less than one block.
    #[error("an image of {bytes} bytes has no block: at least {block_size} are needed")]
    Empty {
        /// Its size.
        bytes: u64,
        /// Of a logical block.
        block_size: u32,
    },
    /// No driver expects it.
    #[error("logical blocks of {0} bytes: 512 to 4096, a power of two, can be served")]
    BlockSize(u32),
    /// Longer than what `VIRTIO_BLK_T_GET_ID` returns.
    #[error("serial \"{0}\" has more than {ID_LEN} bytes")]
    Serial(String),
}

/// What a guest is told of a disk besides its size; it stays the same while the disk is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of a logical block: 512 to 4096, a power of two.
    pub block_size: u32,
    /// Bytes of what the storage writes at once, a power of two from `block_size` on.
    pub physical_block: u32,
    /// Bytes of a request that the storage likes, a multiple of `block_size`; 0 if it does not say.
    pub optimal_io: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Discards are offered, unless it is read-only.
    pub discard: bool,
}

/// How a disk is served.
#[derive(Debug)]
pub struct Service {
    /// What `VIRTIO_BLK_T_GET_ID` returns, at most [`ID_LEN`] bytes.
    pub serial: String,
    /// What an acknowledged write is worth.
    pub cache: Cache,
    /// What it may do.
    pub gate: Gate,
    /// What becomes of errors.
    pub faults: Faults,
}

/// A disk to serve.
#[derive(Debug)]
pub struct Disk {
    bytes: AtomicU64,
    shape: Shape,
    id: [u8; ID_LEN],
    cache: Cache,
    /// The driver can flush, so that writes may be acknowledged before they survive a power cut.
    ///
    /// `VIRTIO_BLK_F_CONFIG_WCE`, by which a driver could change it at any time, is not offered: a backend that is
    /// replaced would not know of it.
    writeback: AtomicBool,
    gate: Gate,
    faults: Faults,
}

impl Disk {
    /// A disk of `bytes` bytes; those that make no whole block are left out.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn new(bytes: u64, shape: Shape, service: Service) -> Result<Self, DiskError> {
        let Shape { block_size, .. } = shape;
        if !block_size.is_power_of_two() || !(512..=4096).contains(&block_size) {
            return Err(DiskError::BlockSize(block_size));
        }
        if bytes < block_size.into() {
            return Err(DiskError::Empty { bytes, block_size });
        }
        let Service { serial, cache, gate, faults } = service;
        let mut id = [0; ID_LEN];
        match id.get_mut(..serial.len()) {
            Some(part) => part.copy_from_slice(serial.as_bytes()),
            None => return Err(DiskError::Serial(serial)),
        }
        let disk = Self {
            bytes: AtomicU64::new(0),
            shape,
            id,
            cache,
            writeback: AtomicBool::new(false),
            gate,
            faults,
        };
        disk.resize(bytes);
        Ok(disk)
    }

    /// Its size in bytes: whole blocks.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Gives it another size: requests taken from now on are checked against it. Returns the size in whole blocks.
    pub fn resize(&self, bytes: u64) -> u64 {
        let bytes = bytes - bytes % u64::from(self.shape.block_size);
        self.bytes.store(bytes, Ordering::Relaxed);
        bytes
    }

    /// It has turned out to have so many bytes.
    ///
    /// # Errors
    /// [`DiskError::Empty`].
    pub fn sized(&self, bytes: u64) -> Result<(), DiskError> {
        let block_size = self.shape.block_size;
        if self.resize(bytes) == 0 { Err(DiskError::Empty { bytes, block_size }) } else { Ok(()) }
    }

    /// What requests are checked against.
    #[inline]
    pub fn bounds(&self) -> Bounds {
        let Shape { block_size, read_only, discard, .. } = self.shape;
        Bounds { sectors: self.bytes() / SECTOR, block_size, read_only, discard }
    }

    /// What a guest is told.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// What `VIRTIO_BLK_T_GET_ID` returns: the serial, filled up with zeros.
    pub fn id(&self) -> &[u8; ID_LEN] {
        &self.id
    }

    /// The driver has said whether it can flush.
    pub fn set_writeback(&self, on: bool) {
        self.writeback.store(on, Ordering::Relaxed);
    }

    /// Whether a write must survive a power cut before it is acknowledged: so it is where the driver cannot flush
    /// (virtio 1.3 §5.2.6.2), unless nobody cares.
    #[inline]
    pub fn is_durable(&self) -> bool {
        self.cache != Cache::Unsafe && !self.writeback.load(Ordering::Relaxed)
    }

    /// Whether a flush does anything.
    pub fn flushes(&self) -> bool {
        self.cache != Cache::Unsafe
    }

    /// What its requests pass.
    #[inline]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What becomes of its errors.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use shared_abi::control::IoLimits;

    use crate::throttle;

    use super::*;

    /// A writable shape of 512-byte blocks.
    pub const SHAPE: Shape =
        Shape { block_size: 512, physical_block: 4096, optimal_io: 0, read_only: false, discard: true };

    /// A disk without limits whose errors are reported.
    pub fn disk(bytes: u64, shape: Shape, serial: &str) -> Result<Disk, DiskError> {
        let gate = Gate::new(IoLimits::default(), throttle::shared(IoLimits::default()));
        let service =
            Service { serial: serial.into(), cache: Cache::Writeback, gate, faults: Faults::reported() };
        Disk::new(bytes, shape, service)
    }

    #[test]
    fn a_disk_has_whole_blocks_and_a_serial_of_20_bytes() {
        let made = disk(10_000, Shape { block_size: 4096, ..SHAPE }, "abc").unwrap();
        assert_eq!((made.bytes(), made.bounds().sectors), (8192, 16));
        assert_eq!(made.id(), b"abc\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!((made.resize(4097), made.bytes()), (4096, 4096));
        assert!(matches!(disk(512, SHAPE, &"x".repeat(21)), Err(DiskError::Serial(_))));
        assert!(matches!(disk(511, SHAPE, ""), Err(DiskError::Empty { .. })));
        for block_size in [0, 256, 1000, 8192] {
            let shape = Shape { block_size, ..SHAPE };
            assert!(matches!(disk(1 << 20, shape, ""), Err(DiskError::BlockSize(_))));
        }
    }

    #[test]
    fn without_flush_every_write_must_be_durable() {
        let disk = disk(512, SHAPE, "").unwrap();
        assert!(disk.is_durable());
        disk.set_writeback(true);
        assert!(!disk.is_durable() && disk.flushes());
    }
}
