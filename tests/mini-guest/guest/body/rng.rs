//! A small seeded generator, so that a hostile run can be repeated: xorshift64*.

/// The generator. Equal seeds give equal streams.
pub struct Rng(u64);

impl Rng {
    /// Starts a stream.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A 64-bit value that is likely to sit on an edge of somebody's arithmetic.
    pub fn edge(&mut self) -> u64 {
        let base = match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => 0xffff_ffff,
            4 => 0xc000_0000,
            5 => 0x1_0000_0000,
            6 => 0x40_0000,
            _ => return self.next(),
        };
        match self.below(4) {
            0 => base,
            1 => base.wrapping_sub(self.below(4096)),
            2 => base.wrapping_add(self.below(4096)),
            _ => base ^ self.below(16),
        }
    }
}
