//! Whether a qcow2 image is as long as its own tables say: one that was cut off reads as zeros from there on.
//!
//! The header has been checked. Looked at: the refcount table and its blocks, the L1 table with the L2 tables and the
//! clusters they lead to, and the same of each snapshot inside. Of a data cluster only what lies within the disk must
//! be there. Nothing is compared with the reference counts: that is `qemu-img check`'s.

use std::collections::HashSet;
use std::io;

use imago::Storage;
use imago::storage::ext::StorageExt;

use super::header::{Facts, LEN, be32, be64};
use super::ring_file::RingFile;

/// What QEMU allows a snapshot's L1 table, as [`super::header`] allows the disk's.
const MAX_L1: u64 = 32 << 20;
/// Bits of a table's entry that are a host offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// What has happened, and what to do about it.
const CUT_OFF: &str = "it was cut off, fetch or restore it again";

/// What is not all there.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// Something goes on behind the end.
    #[error("{what} goes to byte {end}, and the image ends at byte {len}: {CUT_OFF}")]
    CutOff {
        /// What.
        what: &'static str,
        /// Where it ends.
        end: u64,
        /// Where the image does.
        len: u64,
    },
    /// The header itself does.
    #[error("the header has {wanted} bytes, and the image ends at byte {len}: {CUT_OFF}")]
    Header {
        /// What a header of this version has.
        wanted: u64,
        /// Where the image ends.
        len: u64,
    },
    /// No file is so long.
    #[error("{what} is said to be at byte {at}: restore the image, or run `qemu-img check` on it")]
    Beyond {
        /// What.
        what: &'static str,
        /// Where.
        at: u64,
    },
    /// A snapshot's.
    #[error("an L1 table of {0} bytes is more than {MAX_L1}, what an image may have")]
    L1(u64),
    /// Storage fails.
    #[error("cannot read {what} at byte {at}")]
    Read {
        /// What.
        what: &'static str,
        /// Where.
        at: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// An image, and how much of it is known to be there.
struct Tables<'a> {
    file: &'a RingFile,
    len: u64,
    cluster_bits: u32,
    /// L2 tables that have been looked at: snapshots share them.
    seen: HashSet<u64>,
    /// Bytes that may still be read.
    budget: u64,
}

/// Checks that a file that begins as a qcow2 image has a whole header. `head` are its first bytes, zeros behind its
/// end.
///
/// # Errors
/// [`TablesError::Header`].
pub fn check_header(head: &[u8], len: u64) -> Result<(), TablesError> {
    // Version 2 ends earlier.
    let wanted = if be32(head, 4) == 2 { 72 } else { LEN as u64 };
    match head.starts_with(b"QFI\xfb") && len < wanted {
        true => Err(TablesError::Header { wanted, len }),
        false => Ok(()),
    }
}

/// Checks the image, reading at most `most` bytes of tables: of more than that, the rest is believed.
///
/// # Errors
/// What is not all there, or cannot be read.
pub async fn check(file: &RingFile, facts: &Facts, most: u64) -> Result<(), TablesError> {
    let mut tables = Tables::new(file, facts, most);
    let refcounts = tables.refcounts(facts).await?;
    for block in entries(&refcounts).map(|entry| entry & OFFSET).filter(|at| *at != 0) {
        tables.there("a refcount block", block, facts.cluster.into())?;
    }
    tables.disk(facts.l1, Some(facts.bytes)).await?;
    let mut at = facts.snapshots_at;
    for _ in 0..facts.snapshots {
        let snapshot = tables.read("the list of snapshots", at, 40).await?;
        tables.disk((be64(&snapshot, 0), be32(&snapshot, 8)), None).await?;
        let named = u64::from(be32(&snapshot, 12) >> 16) + u64::from(be32(&snapshot, 12) & 0xffff);
        let len = 40 + u64::from(be32(&snapshot, 36)) + named;
        tables.there("the list of snapshots", at, len)?;
        at += len.next_multiple_of(8);
    }
    Ok(())
}

/// Checks an image that is to be served, and returns its refcount table. Reads little, however large the image is: all
/// of its tables, as [`check`] does, only if the last cluster that the reference counts have in use is not all there.
/// One whose process was killed can be so, too: what was taken last has not been written.
///
/// # Errors
/// As [`check`].
pub async fn screen(file: &RingFile, facts: &Facts, most: u64) -> Result<Vec<u8>, TablesError> {
    let mut tables = Tables::new(file, facts, u64::MAX);
    let refcounts = tables.refcounts(facts).await?;
    if !tables.has_last(facts, &refcounts).await? {
        check(file, facts, most).await?;
    }
    Ok(refcounts)
}

impl<'a> Tables<'a> {
    fn new(file: &'a RingFile, facts: &Facts, budget: u64) -> Self {
        Self { file, len: 0, cluster_bits: facts.cluster.trailing_zeros(), seen: HashSet::new(), budget }
    }

    async fn refcounts(&mut self, facts: &Facts) -> Result<Vec<u8>, TablesError> {
        let (at, len) = facts.refcount_table;
        self.read("refcount table", at, len).await
    }

    /// True if the last cluster in use by the reference counts is all there.
    async fn has_last(&mut self, facts: &Facts, refcounts: &[u8]) -> Result<bool, TablesError> {
        let cluster = u64::from(facts.cluster);
        let blocks = entries(refcounts).map(|entry| entry & OFFSET).enumerate();
        let Some((n, at)) = blocks.filter(|(_, at)| *at != 0).last() else { return Ok(true) };
        if self.there("a refcount block", at, cluster).is_err() {
            return Ok(false);
        }
        let block = self.read("a refcount block", at, cluster).await?;
        let Some(byte) = block.iter().rposition(|byte| *byte != 0) else { return Ok(true) };
        let bits = u64::from(facts.refcount_bits);
        // Of counts smaller than a byte: the last one that the byte may hold.
        let count = (byte as u64 * 8 + 7) / bits;
        let index = (n as u64).saturating_mul(cluster * 8 / bits).saturating_add(count);
        Ok(self.there("a cluster", index.saturating_mul(cluster), cluster).is_ok())
    }

    /// The clusters that an L1 table leads to. Of a snapshot, whose size is not looked up, each must begin in the file.
    async fn disk(&mut self, (l1, entries_of_l1): (u64, u32), size: Option<u64>) -> Result<(), TablesError> {
        let len = u64::from(entries_of_l1) * 8;
        if len > MAX_L1 {
            return Err(TablesError::L1(len));
        }
        let cluster = 1_u64 << self.cluster_bits;
        let l1 = self.read("an L1 table", l1, len).await?;
        for (n, table) in entries(&l1).map(|entry| entry & OFFSET).enumerate() {
            if table == 0 || !self.seen.insert(table) {
                continue;
            }
            if self.budget < cluster {
                return Ok(());
            }
            let l2 = self.read("an L2 table", table, cluster).await?;
            let first = n as u64 * (cluster / 8);
            for (guest, entry) in (first..).zip(entries(&l2)) {
                let within = match size {
                    Some(size) => size.saturating_sub(guest.saturating_mul(cluster)).min(cluster),
                    None => 1,
                };
                if within > 0 {
                    self.cluster(entry, within)?;
                }
            }
        }
        Ok(())
    }

    fn cluster(&mut self, entry: u64, within: u64) -> Result<(), TablesError> {
        if entry & COMPRESSED != 0 {
            // Counted in sectors, of which the last need not be whole.
            let sector_bits = self.cluster_bits - 8;
            let at = entry & ((1 << (62 - sector_bits)) - 1);
            let more = (entry & !(3 << 62)) >> (62 - sector_bits);
            let end = at.max((at & !511).saturating_add(more * 512));
            return self.there("a compressed cluster", end, 1);
        }
        match entry & OFFSET {
            0 => Ok(()),
            _ if entry & ZERO != 0 => Ok(()),
            at => self.there("a cluster of data", at, within),
        }
    }

    /// `len` is bounded by the header's check, or by [`MAX_L1`].
    async fn read(&mut self, what: &'static str, at: u64, len: u64) -> Result<Vec<u8>, TablesError> {
        self.there(what, at, len)?;
        self.budget = self.budget.saturating_sub(len);
        let mut bytes = vec![0; len as usize];
        let read = self.file.read(&mut bytes[..], at).await;
        read.map_err(|source| TablesError::Read { what, at, source })?;
        Ok(bytes)
    }

    /// A file that somebody writes to may have grown since it was looked at.
    fn there(&mut self, what: &'static str, at: u64, len: u64) -> Result<(), TablesError> {
        let end = at.checked_add(len).ok_or(TablesError::Beyond { what, at })?;
        if end > self.len {
            let length = self.file.size();
            self.len = length.map_err(|source| TablesError::Read { what: "its length", at: 0, source })?;
        }
        match end > self.len {
            true => Err(TablesError::CutOff { what, end, len: self.len }),
            false => Ok(()),
        }
    }
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry))
}
