//! An image as a disk.
//!
//! ```text
//!   write ─▶ allocated already? ── no ──▶ data, new mapping (cached) ─┐
//!               │ yes: data only                                      ▼
//!               └──────────────────────▶ cached changes? ─ yes ─▶ write back, one for all that wait ─▶ acknowledge
//! ```
//!
//! imago caches mappings and reference counts until a flush. The guest outlives this process and relies on every write
//! that was acknowledged. So a write is acknowledged only after its metadata is in the file, with or without a flush by
//! the guest. Once all clusters are allocated, nothing is cached and nothing is written back.

use std::cell::Cell;
use std::io;

use imago::format::PreallocateMode;
use imago::io_buffers::IoBuffer;
use imago::{FormatAccess, Mapping};
use tokio::sync::Mutex;

use super::Image;
use super::ring_file::RingFile;
use crate::async_io::{AsyncDisk, write_zeros};

/// What is in imago's cache and not in the file.
#[derive(Debug, Default)]
pub struct WriteBack {
    /// Counts the beginnings and the ends of what changes metadata.
    changes: Cell<u64>,
    /// Up to which of these everything is in the file.
    written: Cell<u64>,
    turn: Mutex<()>,
}

/// Metadata is being changed as long as this lives.
struct Change<'a>(&'a Cell<u64>);

impl WriteBack {
    fn change(&self) -> Change<'_> {
        self.changes.set(self.changes.get() + 1);
        Change(&self.changes)
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

/// Whether a range can be written without a change of metadata.
async fn is_allocated(access: &FormatAccess<RingFile>, offset: u64, len: u64) -> io::Result<bool> {
    let (mut at, end) = (offset, offset.saturating_add(len));
    while at < end {
        match access.get_mapping(at, end - at).await? {
            (Mapping::Raw { writable: true, .. }, found) if found > 0 => at += found,
            _ => return Ok(false),
        }
    }
    Ok(true)
}

impl AsyncDisk for Image {
    async fn read(&self, mut buffer: IoBuffer, len: usize, offset: u64) -> (IoBuffer, io::Result<()>) {
        let read = self.access.read().await.read(buffer.as_mut_range(0..len).into_slice(), offset).await;
        (buffer, read)
    }

    async fn write(
        &self,
        buffer: IoBuffer,
        len: usize,
        offset: u64,
        durable: bool,
    ) -> (IoBuffer, io::Result<()>) {
        let written = async {
            let access = self.access.read().await;
            let bytes = buffer.as_ref_range(0..len).into_slice();
            if is_allocated(&access, offset, len as u64).await? {
                access.write(bytes, offset).await?;
            } else {
                let _change = self.write_back.change();
                access.write(bytes, offset).await?;
            }
            drop(access);
            if durable { self.flush().await } else { self.settle().await }
        };
        let written = written.await;
        (buffer, written)
    }

    async fn flush(&self) -> io::Result<()> {
        let access = self.access.read().await;
        access.flush().await?;
        if self.sync { access.sync().await } else { Ok(()) }
    }

    async fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if unmap && self.give_back(offset, len, true).await? {
            return Ok(());
        }
        let change = self.write_back.change();
        let zeroed = self.access.read().await.write_zeroes(offset, len).await;
        drop(change);
        match zeroed {
            Ok(()) => self.settle().await,
            // Version 2 has no way to say it.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeros(self, offset, len).await,
            Err(error) => Err(error),
        }
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.give_back(offset, len, false).await.map(drop)
    }

    async fn resize(&self, bytes: Option<u64>) -> io::Result<u64> {
        let access = self.access.write().await;
        let bytes = bytes.unwrap_or(access.size());
        if bytes < access.size() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a qcow2 disk in use is not made smaller",
            ));
        }
        let before = access.size();
        access.resize_grow(bytes, PreallocateMode::None).await?;
        let shown = self.behind.min(bytes);
        if shown > before {
            access.write_zeroes(before, shown - before).await?;
        }
        access.flush().await?;
        access.sync().await?;
        Ok(access.size())
    }
}

impl Image {
    /// Waits until the metadata that leads to what was done up to now is in the file.
    async fn settle(&self) -> io::Result<()> {
        let changes = self.write_back.changes.get();
        if self.write_back.written.get() >= changes {
            return Ok(());
        }
        // One writes back for all that wait here meanwhile.
        let _turn = self.write_back.turn.lock().await;
        if self.write_back.written.get() >= changes {
            return Ok(());
        }
        let begun = self.write_back.changes.get();
        self.access.read().await.flush().await?;
        self.write_back.written.set(begun);
        Ok(())
    }

    /// Gives a range back: to the image, and to the host's file system where clusters are the guest's alone. What is
    /// there reads as zeros if `zero`, as anything otherwise. False if the image's version cannot say it.
    async fn give_back(&self, offset: u64, len: u64, zero: bool) -> io::Result<bool> {
        let mut access = self.access.write().await;
        // Data first, mapping second: a crash in between leaves zeros, which is what was asked for.
        let (mut at, end) = (offset, offset.saturating_add(len));
        while at < end {
            let (mapping, found) = access.get_mapping(at, end - at).await?;
            if found == 0 {
                break;
            }
            if let Mapping::Raw { storage, offset, writable: true, .. } = mapping {
                storage.punch(offset, found).await?;
            }
            at += found;
        }
        let done = match zero {
            true => access.discard_to_zero(offset, len).await,
            false => access.discard_to_any(offset, len).await,
        };
        match done {
            // Nobody else is at it: what is written back is what was changed.
            Ok(()) => access.flush().await.map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
            Err(error) => Err(error),
        }
    }
}
