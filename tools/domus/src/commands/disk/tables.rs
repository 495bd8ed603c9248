//! Whether a qcow2 image is as long as its own tables say: one that was cut off reads as zeros from there on.
//!
//! Runs in the sandboxed child, on an image whose header has been checked. Looked at: the refcount table and its
//! blocks, the L1 table with the L2 tables and the clusters they lead to, and the same of each snapshot inside. Of a
//! data cluster only what lies within the disk must be there. Nothing is compared with the reference counts: that is
//! `qemu-img check`'s.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use anyhow::{Context, bail};
use domus_block::qcow2::header;

/// What QEMU allows a snapshot's L1 table, as `domus_block::qcow2::header` allows the disk's.
const MAX_L1: u64 = 32 << 20;
/// Bits of a table's entry that are a host offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// What has happened, and what to do about it.
const CUT_OFF: &str = "it was cut off, fetch or restore it again";

/// An image, and how much of it is known to be there.
struct Tables<'a> {
    file: &'a File,
    len: u64,
    cluster_bits: u32,
    /// L2 tables that have been looked at: snapshots share them.
    seen: HashSet<u64>,
}

/// Checks that a file that begins as a qcow2 image has a whole header.
///
/// # Errors
/// One line.
pub fn check_header(file: &File) -> anyhow::Result<()> {
    let mut head = [0; header::LEN];
    let read = file.read_at(&mut head, 0).context("cannot read the header")?;
    // Version 2 ends earlier.
    let len = if head[4..8] == [0, 0, 0, 2] { 72 } else { header::LEN };
    if head.starts_with(b"QFI\xfb") && read < len {
        bail!("the header has {len} bytes, and the image ends at byte {read}: {CUT_OFF}");
    }
    Ok(())
}

/// Checks the image.
///
/// # Errors
/// One line: what is not all there.
pub fn check(file: &File) -> anyhow::Result<()> {
    let mut head = [0; 72];
    file.read_exact_at(&mut head, 0).context("cannot read the header")?;
    let cluster_bits = be32(&head, 20);
    let mut tables = Tables { file, len: 0, cluster_bits, seen: HashSet::new() };
    let refcounts =
        tables.read("refcount table", be64(&head, 48), u64::from(be32(&head, 56)) << cluster_bits)?;
    for block in entries(&refcounts).map(|entry| entry & OFFSET).filter(|at| *at != 0) {
        tables.there("a refcount block", block, 1 << cluster_bits)?;
    }
    tables.disk(be64(&head, 40), be32(&head, 36), Some(be64(&head, 24)))?;
    let mut at = be64(&head, 64);
    for _ in 0..be32(&head, 60) {
        let snapshot = tables.read("the list of snapshots", at, 40)?;
        tables.disk(be64(&snapshot, 0), be32(&snapshot, 8), None)?;
        let named = u64::from(be32(&snapshot, 12) >> 16) + u64::from(be32(&snapshot, 12) & 0xffff);
        let len = 40 + u64::from(be32(&snapshot, 36)) + named;
        tables.there("the list of snapshots", at, len)?;
        at += len.next_multiple_of(8);
    }
    Ok(())
}

impl Tables<'_> {
    /// The clusters that an L1 table leads to. Of a snapshot, whose size is not looked up, each must begin in the file.
    fn disk(&mut self, l1: u64, l1_entries: u32, size: Option<u64>) -> anyhow::Result<()> {
        let len = u64::from(l1_entries) * 8;
        if len > MAX_L1 {
            bail!("an L1 table of {len} bytes is more than {MAX_L1}, what an image may have");
        }
        let cluster = 1_u64 << self.cluster_bits;
        let l1 = self.read("an L1 table", l1, len)?;
        for (n, table) in entries(&l1).map(|entry| entry & OFFSET).enumerate() {
            if table == 0 || !self.seen.insert(table) {
                continue;
            }
            let l2 = self.read("an L2 table", table, cluster)?;
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

    fn cluster(&mut self, entry: u64, within: u64) -> anyhow::Result<()> {
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

    fn read(&mut self, what: &str, at: u64, len: u64) -> anyhow::Result<Vec<u8>> {
        self.there(what, at, len)?;
        let mut bytes = vec![0; usize::try_from(len)?];
        self.file
            .read_exact_at(&mut bytes, at)
            .with_context(|| format!("cannot read {what} at byte {at}"))?;
        Ok(bytes)
    }

    /// A file that somebody writes to may have grown since it was looked at.
    fn there(&mut self, what: &str, at: u64, len: u64) -> anyhow::Result<()> {
        let end = at.checked_add(len).with_context(|| format!("{what} is said to be at byte {at}"))?;
        if end > self.len {
            self.len = length(self.file).context("cannot find out how long the image is")?;
        }
        if end > self.len {
            bail!("{what} goes to byte {end}, and the image ends at byte {}: {CUT_OFF}", self.len);
        }
        Ok(())
    }
}

fn length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
