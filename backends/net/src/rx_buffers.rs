//! Receive buffers that were popped and wait, in order, for frames. No I/O.

use std::collections::VecDeque;

use vu_server::Segment;

/// One chain of buffers to write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// The chain's head.
    pub head: u16,
    /// Its length in bytes.
    pub len: u64,
    /// How many segments it has.
    segments: usize,
}

/// Chains in the order in which they were popped, and all their segments in one piece.
#[derive(Debug, Default)]
pub struct RxBuffers {
    buffers: VecDeque<Buffer>,
    /// Those from `first` on belong to `buffers`.
    segments: Vec<Segment>,
    first: usize,
    bytes: u64,
}

impl RxBuffers {
    /// Appends a chain.
    pub fn push(&mut self, head: u16, segments: &[Segment]) {
        if self.first >= 512 || self.buffers.is_empty() {
            self.segments.drain(..self.first);
            self.first = 0;
        }
        let len = segments.iter().map(|segment| u64::from(segment.len)).sum();
        self.segments.extend_from_slice(segments);
        self.buffers.push_back(Buffer { head, len, segments: segments.len() });
        self.bytes += len;
    }

    /// Takes the first chain and its segments.
    pub fn pop(&mut self) -> Option<(Buffer, &[Segment])> {
        let buffer = self.buffers.pop_front()?;
        let segments = &self.segments[self.first..self.first + buffer.segments];
        self.first += buffer.segments;
        self.bytes -= buffer.len;
        Some((buffer, segments))
    }

    /// The first chain.
    pub fn front(&self) -> Option<Buffer> {
        self.buffers.front().copied()
    }

    /// How many of the first chains this many bytes take, or all.
    pub fn holding(&self, bytes: u64) -> usize {
        let mut room = 0;
        let before = |buffer: &&Buffer| {
            let needed = room < bytes;
            room += buffer.len;
            needed
        };
        self.buffers.iter().take_while(before).count()
    }

    /// All segments, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments[self.first..]
    }

    /// How many bytes fit.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many chains there are.
    pub fn len(&self) -> usize {
        self.buffers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Forgets all chains.
    pub fn clear(&mut self) {
        self.buffers.clear();
        self.segments.clear();
        self.first = 0;
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn buffers_come_out_in_order_with_their_own_segments(
            chains in proptest::collection::vec(proptest::collection::vec(1_u32..5000, 1..5), 1..400),
            pops in proptest::collection::vec(0_usize..4, 1..50),
        ) {
            let mut window = RxBuffers::default();
            let mut model: VecDeque<(u16, Vec<Segment>)> = VecDeque::new();
            let mut pops = pops.into_iter().cycle();
            for (head, lens) in (0_u16..).zip(chains) {
                let segments: Vec<_> = lens.into_iter().map(|len| Segment { addr: u64::from(head), len }).collect();
                window.push(head, &segments);
                model.push_back((head, segments));
                for _ in 0..pops.next().unwrap_or(0) {
                    let expected = model.pop_front();
                    prop_assert_eq!(window.front().map(|b| b.head), expected.as_ref().map(|e| e.0));
                    let got = window.pop().map(|(buffer, segments)| (buffer.head, segments.to_vec()));
                    prop_assert_eq!(got, expected);
                }
                prop_assert_eq!(window.len(), model.len());
                let all: Vec<_> = model.iter().flat_map(|(_, segments)| segments.clone()).collect();
                prop_assert_eq!(window.segments(), &all[..]);
                let first = model.front().map_or(0, |(_, segments)| segments.iter().map(|s| u64::from(s.len)).sum());
                prop_assert_eq!(window.holding(first), usize::from(!model.is_empty()));
                prop_assert_eq!(window.holding(first + 1), model.len().min(2));
                prop_assert_eq!(window.holding(u64::MAX), model.len());
                prop_assert_eq!(window.bytes(), all.iter().map(|s| u64::from(s.len)).sum::<u64>());
            }
        }
    }
}
