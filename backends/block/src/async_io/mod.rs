//! The common part of disks that need asynchronous code: images with metadata (qcow2) and exports of a server (NBD).
//!
//! One thread serves all queues of such a disk with one io_uring. Each request is a future. A future submits operations
//! to the ring ([`reactor`]), and the completion of an operation wakes its future.
//!
//! ```text
//!   queues ─▶ chains ─▶ futures over a bounded buffer ─▶ AsyncDisk ─▶ ring ─▶ wake ─▶ status byte ─▶ used ring
//! ```
//!
//! Data is copied between guest memory and private buffers. The guest may change its memory at any time, so imago and a
//! server's socket never get addresses in it.
//!
//! | module | does |
//! |---|---|
//! | [`reactor`] | the ring as the place where futures wait |
//! | [`carry`], [`guest`] | one request as a future, and the guest's buffers |
//! | [`worker`] | the thread of a disk |

pub mod carry;
pub mod guest;
pub mod reactor;
pub mod worker;

use std::convert::Infallible;
use std::future::Future;
use std::io;

use imago::io_buffers::IoBuffer;

use crate::worker_command::Offer;

/// A source of bytes whose work is asynchronous. It knows nothing of virtio.
///
/// The caller has checked every range: it lies within the disk's size and consists of whole sectors. A buffer is a
/// private copy and comes back with the result. Several calls may run at once. Calls that overlap in time have no
/// order, except that a flush covers everything that was done before the flush began.
pub trait AsyncDisk: 'static {
    /// Fills the first `len` bytes of `buffer` from `offset`.
    fn read(
        &self,
        buffer: IoBuffer,
        len: usize,
        offset: u64,
    ) -> impl Future<Output = (IoBuffer, io::Result<()>)>;

    /// Stores the first `len` bytes of `buffer` at `offset`; `durable` makes them survive a power cut.
    fn write(
        &self,
        buffer: IoBuffer,
        len: usize,
        offset: u64,
        durable: bool,
    ) -> impl Future<Output = (IoBuffer, io::Result<()>)>;

    /// Makes everything that is done survive a power cut.
    fn flush(&self) -> impl Future<Output = io::Result<()>>;

    /// Lets go of what is in a range. It reads as anything afterwards.
    fn discard(&self, offset: u64, len: u64) -> impl Future<Output = io::Result<()>>;

    /// Makes a range read as zeros; `unmap` lets it give space back.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> impl Future<Output = io::Result<()>>;

    /// Gives the disk another size, or looks what size it has by itself; resolves to it.
    fn resize(&self, bytes: Option<u64>) -> impl Future<Output = io::Result<u64>>;

    /// A process before this one was about to change these bytes, too; the same change has been done again.
    fn doubt(&self, _offset: u64, _len: u64) {}

    /// A new connection to the disk's server.
    fn offer(&self, offer: Offer) {
        let _ = offer.answer.send(Err("the disk is not at an NBD server".into()));
    }

    /// What has to go on all the time for the others to get on.
    fn drive(&self) -> impl Future<Output = Infallible> {
        std::future::pending()
    }
}

/// Bytes of zeros written at once.
const ZEROS: u64 = 256 << 10;

/// Writes zeros as data, where a disk has no other way.
///
/// # Errors
/// The disk's.
pub async fn write_zeros(disk: &impl AsyncDisk, offset: u64, len: u64) -> io::Result<()> {
    let mut zeros = IoBuffer::new(len.min(ZEROS) as usize, 1)?;
    zeros.as_mut().into_slice().fill(0);
    let mut done = 0;
    while done < len {
        let now = (len - done).min(ZEROS);
        let (buffer, written) = disk.write(zeros, now as usize, offset + done, false).await;
        written?;
        zeros = buffer;
        done += now;
    }
    Ok(())
}

/// A buffer for requests of up to `len` bytes, aligned for any disk.
///
/// # Errors
/// There is no memory.
pub fn buffer(len: usize) -> io::Result<IoBuffer> {
    IoBuffer::new(len, 4096)
}
