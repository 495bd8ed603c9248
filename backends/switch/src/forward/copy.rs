//! The one copy: from pieces of one guest's memory to pieces of another's.
#![expect(unsafe_code, reason = "memory that two guests change at will is reached through raw pointers only")]

use std::marker::PhantomData;

use libc::iovec;
use vu_server::memory::Unmapped;
use vu_server::{MemoryTable, Segment};

/// Room for addresses, kept so that no frame allocates. What it holds is of no meaning between two calls.
#[derive(Debug, Default)]
pub struct Places(Vec<iovec>);

impl Places {
    /// Whether all of `segments` is in this memory, in `most` pieces at most.
    pub fn can_hold(&mut self, memory: &MemoryTable, segments: &[Segment], most: usize) -> bool {
        self.0.clear();
        memory.iovecs(segments, 0, u64::MAX, &mut self.0).is_ok() && self.0.len() <= most
    }
}

/// A frame: bytes of our own, then bytes of a guest's memory, as long as both are borrowed.
#[derive(Debug)]
pub struct Source<'a> {
    pieces: &'a [iovec],
    len: u64,
    borrowed: PhantomData<(&'a MemoryTable, &'a [u8])>,
}

impl<'a> Source<'a> {
    /// The `rest` bytes that follow the first `skip` of `segments`.
    ///
    /// # Errors
    /// A part of them is outside the memory.
    pub fn new(
        memory: &'a MemoryTable,
        segments: &[Segment],
        skip: u64,
        rest: u64,
        places: &'a mut Places,
    ) -> Result<Self, Unmapped> {
        places.0.clear();
        memory.iovecs(segments, skip, rest, &mut places.0)?;
        let len = places.0.iter().map(|piece| piece.iov_len as u64).sum();
        Ok(Self { pieces: &places.0, len, borrowed: PhantomData })
    }

    /// Nothing.
    pub fn empty() -> Self {
        Self { pieces: &[], len: 0, borrowed: PhantomData }
    }

    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Copies `heads`, then itself, to the first bytes of `segments`. Returns how many bytes fitted.
    ///
    /// # Errors
    /// A part of `segments` is outside the memory; nothing has been written.
    pub fn copy(
        &self,
        heads: [&[u8]; 2],
        memory: &MemoryTable,
        segments: &[Segment],
        places: &mut Places,
    ) -> Result<u64, Unmapped> {
        let total = heads.iter().map(|head| head.len() as u64).sum::<u64>() + self.len;
        places.0.clear();
        memory.iovecs(segments, 0, total, &mut places.0)?;
        let own = heads.map(|head| (head.as_ptr(), head.len()));
        let theirs =
            self.pieces.iter().map(|piece| (piece.iov_base.cast::<u8>().cast_const(), piece.iov_len));
        let mut targets = places.0.iter().map(|piece| (piece.iov_base.cast::<u8>(), piece.iov_len));
        let (mut to, mut room) = targets.next().unwrap_or((std::ptr::null_mut(), 0));
        let mut copied = 0;
        for (mut from, mut left) in own.into_iter().chain(theirs) {
            while left > 0 {
                if room == 0 {
                    match targets.next() {
                        Some(next) => (to, room) = next,
                        None => return Ok(copied),
                    }
                    continue;
                }
                let now = left.min(room);
                // SAFETY: `from` has `left` bytes: it is a slice borrowed for this call, or a piece that
                // `MemoryTable::iovecs` gave for a table that `self` borrows. `to` has `room` bytes: `iovecs` gave it
                // for `memory`. `copy` allows both to overlap, and a guest's concurrent writes change bytes, not
                // addresses.
                unsafe { std::ptr::copy(from, to, now) };
                // At most the end of the piece, as `now` is at most `left` and `room`.
                (from, to) = (from.wrapping_add(now), to.wrapping_add(now));
                (left, room) = (left - now, room - now);
                copied += now as u64;
            }
        }
        Ok(copied)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 0x4000;

    fn memory() -> MemoryTable {
        let mut table = MemoryTable::default();
        for guest in [0, SIZE / 2] {
            let file = File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(SIZE / 2).unwrap();
            table.add(guest, guest, SIZE / 2, file, 0).unwrap();
        }
        table
    }

    fn segments() -> impl Strategy<Value = Vec<Segment>> {
        let segment = (0..SIZE - 900, 0..900_u32).prop_map(|(addr, len)| Segment { addr, len });
        prop::collection::vec(segment, 0..12)
    }

    proptest! {
        #[test]
        fn bytes_arrive_as_if_they_had_been_read_and_written(
            from in segments(),
            to in segments(),
            head in prop::collection::vec(any::<u8>(), 0..300),
            skip in 0..1000_u64,
            limit in 0..6000_u64,
        ) {
            let (a, b, expected) = (memory(), memory(), memory());
            let all = [Segment { addr: 0, len: SIZE as u32 }];
            let bytes: Vec<u8> = (0..SIZE).map(|n| (n * 7 + n / 256) as u8).collect();
            a.write(&all, 0, &bytes).unwrap();
            let mut rest = vec![0; limit as usize];
            let count = a.read(&from, skip, &mut rest).unwrap();
            rest.truncate(count);
            let whole = [&head[..], &rest].concat();
            let fitted = expected.write(&to, 0, &whole).unwrap();
            let (mut places, mut others) = (Places::default(), Places::default());
            let source = Source::new(&a, &from, skip, limit, &mut places).unwrap();
            prop_assert_eq!(source.len(), count as u64);
            let (one, two) = head.split_at(head.len() / 3);
            prop_assert_eq!(source.copy([one, two], &b, &to, &mut others), Ok(fitted as u64));
            let read = |table: &MemoryTable| {
                let mut bytes = vec![0; SIZE as usize];
                table.read(&all, 0, &mut bytes).unwrap();
                bytes
            };
            prop_assert!(read(&b) == read(&expected));
        }
    }

    #[test]
    fn outside_the_memory_nothing_is_read_or_written() {
        let (a, b) = (memory(), memory());
        let (mut places, mut others) = (Places::default(), Places::default());
        let outside = [Segment { addr: SIZE - 4, len: 8 }];
        assert!(Source::new(&a, &outside, 0, 8, &mut places).is_err());
        let source = Source::new(&a, &[Segment { addr: 0, len: 8 }], 0, 8, &mut places).unwrap();
        let to = [Segment { addr: 0, len: 4 }, outside[0]];
        assert!(source.copy([&[7; 4], &[]], &b, &to, &mut others).is_err());
        let mut first = [1; 4];
        b.read(&to, 0, &mut first).unwrap();
        assert_eq!(first, [0; 4]);
        assert!(!others.can_hold(&b, &outside, 9) && others.can_hold(&b, &to[..1], 1));
    }
}
