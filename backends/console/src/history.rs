//! The last bytes a guest printed, in a ring, and every byte's place in the whole stream.
//!
//! Each reader keeps a position of its own and reads from this one ring, so a reader costs no buffer, and
//! one that is too slow shows as a position that lies before [`History::start`].

/// A ring of output. Positions count bytes since the console began and never wrap in practice (64 bits).
#[derive(Debug)]
pub struct History {
    ring: Box<[u8]>,
    end: u64,
}

impl History {
    /// An empty ring of `capacity` bytes, at least one. Pages are taken as they fill.
    pub fn new(capacity: usize) -> Self {
        Self { ring: vec![0; capacity.max(1)].into_boxed_slice(), end: 0 }
    }

    /// The position of the oldest byte kept.
    pub fn start(&self) -> u64 {
        self.end.saturating_sub(self.ring.len() as u64)
    }

    /// The position after the newest byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Appends `bytes`; the oldest give way.
    pub fn push(&mut self, bytes: &[u8]) {
        let capacity = self.ring.len();
        let skipped = bytes.len().saturating_sub(capacity);
        self.end += skipped as u64;
        let kept = &bytes[skipped..];
        let at = self.offset(self.end);
        let (first, second) = kept.split_at(kept.len().min(capacity - at));
        self.ring[at..at + first.len()].copy_from_slice(first);
        self.ring[..second.len()].copy_from_slice(second);
        self.end += kept.len() as u64;
    }

    /// Bytes from `position` on, as many as lie together in the ring: none only at the end. A position before
    /// [`History::start`] or after [`History::end`] gives none.
    pub fn read(&self, position: u64) -> &[u8] {
        if position < self.start() || position >= self.end {
            return &[];
        }
        let at = self.offset(position);
        // At most the ring's length, so it fits.
        let length = (self.end - position) as usize;
        &self.ring[at..(at + length).min(self.ring.len())]
    }

    fn offset(&self, position: u64) -> usize {
        (position % self.ring.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_ring_holds_exactly_the_newest_bytes(
            capacity in 1_usize..40,
            pushes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..12),
        ) {
            let mut history = History::new(capacity);
            let mut whole = Vec::new();
            for push in &pushes {
                history.push(push);
                whole.extend_from_slice(push);
                prop_assert_eq!(history.end(), whole.len() as u64);
                prop_assert_eq!(history.start(), whole.len().saturating_sub(capacity) as u64);
                let (mut position, mut read) = (history.start(), Vec::new());
                while position < history.end() {
                    let part = history.read(position);
                    prop_assert!(!part.is_empty());
                    read.extend_from_slice(part);
                    position += part.len() as u64;
                }
                prop_assert_eq!(&read[..], &whole[history.start() as usize..]);
                prop_assert!(history.read(history.end()).is_empty());
                prop_assert!(history.read(history.start().wrapping_sub(1)).is_empty());
            }
        }
    }
}
