//! The checksum of the Internet (RFC 1071).

/// A sum of 16-bit words in the order in which they are in memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even place of what is summed up: at most 2^32 in all.
    #[inline]
    pub fn add(mut self, bytes: &[u8]) -> Self {
        // The sum of 32-bit words is that of their halves, once it is folded.
        let (words, rest) = bytes.as_chunks::<4>();
        self.0 += words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum::<u64>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        self.0 += u64::from(u32::from_ne_bytes(last));
        self
    }

    /// Adds a number as it stands in a header.
    #[inline]
    pub fn add_word(self, word: u16) -> Self {
        Self(self.0 + u64::from(u16::from_ne_bytes(word.to_be_bytes())))
    }

    /// What goes into the header. Never zero, which UDP has for "no checksum"; to others it is the same.
    #[inline]
    pub fn checksum(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        match !(sum as u16) {
            0 => [0xff; 2],
            checksum => checksum.to_ne_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_sum_is_that_of_big_endian_words(bytes in prop::collection::vec(any::<u8>(), 0..3000), word: u16) {
            let mut expected = u64::from(word);
            for pair in bytes.chunks(2) {
                expected += u64::from(pair[0]) * 256 + u64::from(*pair.get(1).unwrap_or(&0));
            }
            let expected = match expected % 0xffff {
                0 => 0xffff,
                rest => 0xffff - rest,
            };
            let got = u16::from_be_bytes(Sum::default().add(&bytes).add_word(word).checksum());
            prop_assert_eq!(u64::from(got), expected);
        }
    }
}
