//! Random decisions from a seed. In: a seed. Out: always the same sequence of numbers, on every machine and with every
//! version of every crate, so that a seed in a failure's message is worth something.

/// A small generator (SplitMix64): good enough to choose, and never for secrets.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Starts the sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `n` - 1; 0 when `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        // The remainder is uneven by less than n / 2^64.
        self.roll().checked_rem(n).unwrap_or(0)
    }

    /// True in `permille` of 1000 cases.
    pub fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// A generator of its own, which does not depend on how often this one is asked afterwards.
    pub fn fork(&mut self) -> Self {
        Self(self.roll())
    }
}
