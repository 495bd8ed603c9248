//! A guest's memory, as its driver has it mapped and its frontend gives it to a backend.
//!
//! Guest-physical address 0 is the file's first byte. Anything can be put anywhere, aligned or not, while a backend
//! reads it. An address outside the memory is a mistake of whoever uses this, and panics.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use anyhow::{Context, Result};
use domus_startup::memfd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{AtomicInteger, ByteValued, Bytes, FileOffset, MmapRegion, VolatileMemory};

const INSIDE: &str = "the address is in the guest's memory";

/// A guest's memory. A clone is the same memory.
#[derive(Clone, Debug)]
pub struct Memory {
    file: Arc<File>,
    map: Arc<MmapRegion>,
}

impl Memory {
    /// `bytes` zeros in a file whose size nobody can change.
    ///
    /// # Errors
    /// No memory, or no descriptor.
    pub fn sealed(bytes: u64) -> Result<Self> {
        Self::of(memfd::sealed("guest", bytes)?)
    }

    /// `bytes` zeros in a file that its frontend could make shorter under a backend.
    ///
    /// # Errors
    /// No memory, or no descriptor.
    pub fn unsealed(bytes: u64) -> Result<Self> {
        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(bytes)?;
        Self::of(file)
    }

    fn of(file: File) -> Result<Self> {
        let (bytes, file) = (file.metadata()?.len(), Arc::new(file));
        let map = MmapRegion::from_file(FileOffset::from_arc(file.clone(), 0), bytes as usize);
        Ok(Self { file, map: Arc::new(map.context("cannot map a guest's memory")?) })
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// Stores a value at this address.
    pub fn write<T: ByteValued>(&self, value: T, at: u64) {
        self.map.as_volatile_slice().write_obj(value, at as usize).expect(INSIDE);
    }

    /// The value at this address.
    pub fn read<T: ByteValued>(&self, at: u64) -> T {
        self.map.as_volatile_slice().read_obj(at as usize).expect(INSIDE)
    }

    /// Stores bytes at this address.
    pub fn write_bytes(&self, bytes: &[u8], at: u64) {
        self.map.as_volatile_slice().write_slice(bytes, at as usize).expect(INSIDE);
    }

    /// `len` bytes from this address on.
    pub fn read_bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.map.as_volatile_slice().read_slice(&mut bytes, at as usize).expect(INSIDE);
        bytes
    }

    /// A number that both sides use at once. The address must be a multiple of its size.
    pub fn atomic<T: AtomicInteger>(&self, at: u64) -> &T {
        self.map.get_atomic_ref(at as usize).expect(INSIDE)
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
