//! Frames on a stream socket: each follows its length in four bytes, most significant first (QEMU's `-netdev stream`,
//! passt). Pure.
//!
//! ```text
//!   room ─▶ (receive) ─▶ received ─▶ frame, frame, … until there is no whole one ─▶ room …
//! ```
//!
//! Refused is a length that no frame has: what comes after it has no meaning any more, so the stream is over. Promised:
//! however the bytes are cut into pieces, the frames are the same; memory does not grow; a byte is moved once at most
//! within the buffer.

use crate::header::MAX_FRAME;

/// Bytes before a frame.
pub const PREFIX: usize = 4;

/// A frame and what is before it, at most.
const LONGEST: usize = PREFIX + MAX_FRAME as usize;

/// With so much room there is always enough behind a piece of a frame for its rest.
const CAPACITY: usize = 2 * LONGEST;

/// What goes before a frame of `len` bytes, at most [`MAX_FRAME`].
#[inline]
pub fn prefix(len: u64) -> [u8; PREFIX] {
    debug_assert!((1..=MAX_FRAME).contains(&len));
    (len as u32).to_be_bytes()
}

/// A stream that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other side announces a frame of {0} bytes: 1 to {MAX_FRAME} can be one")]
pub struct LengthError(pub u32);

/// Makes frames of what is received.
#[derive(Debug)]
pub struct Decoder {
    buffer: Box<[u8]>,
    /// What was received and not given out is between these.
    start: usize,
    end: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { buffer: vec![0; CAPACITY].into_boxed_slice(), start: 0, end: 0 }
    }
}

impl Decoder {
    /// Where the next bytes are to be received. Never empty after [`frame`](Self::frame) has found no whole frame.
    pub fn room(&mut self) -> &mut [u8] {
        // An empty one begins anew, where its memory is warm.
        if self.start == self.end || CAPACITY - self.end < LONGEST {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes have been received in [`room`](Self::room), which is as long at least.
    pub fn received(&mut self, count: usize) {
        self.end = (self.end + count).min(CAPACITY);
    }

    /// Takes the next whole frame, if there is one.
    ///
    /// # Errors
    /// [`LengthError`], again and again: the stream is over.
    pub fn frame(&mut self) -> Result<Option<&[u8]>, LengthError> {
        let waiting = &self.buffer[self.start..self.end];
        let Some((&prefix, rest)) = waiting.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let announced = u32::from_be_bytes(prefix);
        if announced == 0 || u64::from(announced) > MAX_FRAME {
            return Err(LengthError(announced));
        }
        let len = announced as usize;
        if rest.len() < len {
            return Ok(None);
        }
        let at = self.start + PREFIX;
        self.start = at + len;
        Ok(Some(&self.buffer[at..at + len]))
    }

    /// Forgets what has been received: another stream begins.
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Decodes `bytes` that come in pieces of these sizes, again and again.
    fn decode(bytes: &[u8], pieces: &[usize]) -> (Vec<Vec<u8>>, Option<LengthError>) {
        let mut decoder = Decoder::default();
        let (mut frames, mut left, mut sizes) = (Vec::new(), bytes, pieces.iter().cycle());
        loop {
            loop {
                match decoder.frame() {
                    Ok(Some(frame)) => frames.push(frame.to_vec()),
                    Ok(None) => break,
                    Err(error) => return (frames, Some(error)),
                }
            }
            if left.is_empty() {
                return (frames, None);
            }
            let room = decoder.room();
            let count = sizes.next().copied().unwrap_or(1).min(room.len()).min(left.len());
            assert!(count > 0, "no room for the rest of a frame");
            let (now, later) = left.split_at(count);
            room[..count].copy_from_slice(now);
            decoder.received(count);
            left = later;
        }
    }

    fn encode<'a>(frames: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<u8> {
        let encode = |frame: &'a Vec<u8>| [&prefix(frame.len() as u64)[..], frame].concat();
        frames.into_iter().flat_map(encode).collect()
    }

    #[test]
    fn the_longest_frames_fit_one_after_the_other_whatever_is_before_them() {
        let frame = |seed: u8, len: u64| vec![seed; len as usize];
        let frames =
            [frame(1, MAX_FRAME), frame(2, 1), frame(3, MAX_FRAME), frame(4, 60), frame(5, MAX_FRAME)];
        for piece in [1, 3, 4096, 65_537, usize::MAX] {
            let (got, error) = decode(&encode(&frames), &[piece]);
            assert!(got == frames && error.is_none(), "in pieces of {piece}");
        }
    }

    #[test]
    fn a_length_that_no_frame_has_ends_the_stream_after_the_frames_before_it() {
        for bad in [0, MAX_FRAME as u32 + 1, u32::MAX] {
            let bytes = [&encode(&[vec![7; 60]])[..], &bad.to_be_bytes(), &[0; 100]].concat();
            assert_eq!(decode(&bytes, &[11]), (vec![vec![7; 60]], Some(LengthError(bad))));
        }
    }

    #[test]
    fn a_new_stream_begins_with_nothing_of_the_old_one() {
        let mut decoder = Decoder::default();
        decoder.room()[..6].copy_from_slice(&[0, 0, 0, 9, 1, 2]);
        decoder.received(6);
        assert_eq!(decoder.frame(), Ok(None));
        decoder.clear();
        decoder.room()[..5].copy_from_slice(&[0, 0, 0, 1, 3]);
        decoder.received(5);
        assert_eq!(decoder.frame(), Ok(Some(&[3][..])));
    }

    proptest! {
        #[test]
        fn bytes_in_pieces_are_the_same_frames_as_in_one(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..3000), 0..20),
            rubbish in prop::collection::vec(any::<u8>(), 0..40),
            pieces in prop::collection::vec(1_usize..5000, 1..20),
        ) {
            let bytes = [encode(&frames), rubbish].concat();
            let whole = decode(&bytes, &[usize::MAX]);
            prop_assert!(whole.0.starts_with(&frames));
            prop_assert_eq!(decode(&bytes, &pieces), whole);
        }
    }
}
