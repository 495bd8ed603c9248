//! Carries out one request as a future: pieces of a bounded buffer between the guest and the disk.

use std::cell::RefCell;
use std::io;

use imago::io_buffers::IoBuffer;

use super::guest::GuestBuffers;
use super::{AsyncDisk, buffer};
use crate::in_flight::Work;
use crate::request::Range;

/// Bytes of each piece, and of each buffer.
const PIECE: usize = 256 << 10;
/// Most buffers that are kept for the next requests.
const MAX_SPARE_BUFFERS: usize = 8;

/// Buffers that are not in use.
#[derive(Default)]
pub struct Pool(RefCell<Vec<IoBuffer>>);

impl Pool {
    fn take(&self) -> io::Result<IoBuffer> {
        let kept = self.0.borrow_mut().pop();
        kept.map_or_else(|| buffer(PIECE), Ok)
    }

    fn give(&self, buffer: IoBuffer) {
        let mut kept = self.0.borrow_mut();
        if kept.len() < MAX_SPARE_BUFFERS {
            kept.push(buffer);
        }
    }
}

/// A request, as it was in its slot.
#[derive(Debug)]
pub struct Carried {
    /// What it does.
    pub work: Work,
    /// It must survive a power cut.
    pub durable: bool,
    /// First byte in the disk.
    pub offset: u64,
    /// Bytes to read or write.
    pub len: u64,
    /// The guest's memory.
    pub guest: GuestBuffers,
    /// What a discard or write-zeroes is about.
    pub ranges: Vec<Range>,
}

impl Carried {
    /// What it changes: offset and length.
    pub fn changes(&self) -> impl Iterator<Item = (u64, u64)> {
        let written = (self.work == Work::Write).then_some((self.offset, self.len));
        written.into_iter().chain(self.ranges.iter().map(|range| (range.offset, range.len)))
    }
}

/// Carries a request out.
///
/// # Errors
/// The first error of the disk; what comes after it is not begun.
pub async fn carry(disk: &impl AsyncDisk, pool: &Pool, request: &Carried) -> io::Result<()> {
    match request.work {
        Work::Read | Work::Write => {
            let buffer = pool.take()?;
            let (buffer, moved) = transfer(disk, buffer, request).await;
            pool.give(buffer);
            moved?;
            // One piece was written so that it is durable, of several none.
            if request.durable && request.len > PIECE as u64 { disk.flush().await } else { Ok(()) }
        }
        Work::Flush => disk.flush().await,
        Work::Discard | Work::WriteZeroes => {
            for range in &request.ranges {
                match request.work {
                    Work::Discard => disk.discard(range.offset, range.len).await?,
                    _ => disk.write_zeroes(range.offset, range.len, range.unmap).await?,
                }
            }
            if request.durable { disk.flush().await } else { Ok(()) }
        }
    }
}

async fn transfer(
    disk: &impl AsyncDisk,
    mut buffer: IoBuffer,
    request: &Carried,
) -> (IoBuffer, io::Result<()>) {
    let Carried { work, offset, len, guest, .. } = request;
    let durable = request.durable && *len <= PIECE as u64;
    let mut done = 0;
    while done < *len {
        let now = (len - done).min(PIECE as u64) as usize;
        let moved;
        if *work == Work::Write {
            guest.read(done, buffer.as_mut_range(0..now).into_slice());
            (buffer, moved) = disk.write(buffer, now, offset + done, durable).await;
        } else {
            (buffer, moved) = disk.read(buffer, now, offset + done).await;
            if moved.is_ok() {
                guest.write(done, buffer.as_ref_range(0..now).into_slice());
            }
        }
        if moved.is_err() {
            return (buffer, moved);
        }
        done += now as u64;
    }
    (buffer, Ok(()))
}

/// Linux' number of an error. One that has none is said, since the guest and dom0 see the number only.
pub fn errno(error: &io::Error) -> i32 {
    if let Some(errno) = error.raw_os_error() {
        return errno;
    }
    vu_server::say::limited(format_args!("{error}"));
    match error.kind() {
        io::ErrorKind::StorageFull => libc::ENOSPC,
        _ => libc::EIO,
    }
}
