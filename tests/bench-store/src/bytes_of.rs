//! Values that do not compress, and a random number generator that is the same in every run.
//!
//! In: a size. Out: bytes. Who compresses what it stores would otherwise be measured by how dull the values are.

use bytes::Bytes;

/// Xorshift.
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// One of the numbers below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Gives values that differ from each other.
#[derive(Clone)]
pub struct Values {
    pool: Bytes,
    size: usize,
}

impl Values {
    /// Of a size in bytes.
    pub fn of(size: usize) -> Self {
        let mut random = Random::new(7);
        let pool: Vec<u8> = (0..(1 << 20) / 8 + size).flat_map(|_| random.next().to_le_bytes()).collect();
        Self { pool: pool.into(), size }
    }

    /// The value of a number. A copy, as of a request that was read.
    pub fn get(&self, number: usize) -> Bytes {
        let at = number.wrapping_mul(7919) % (1 << 20);
        Bytes::copy_from_slice(&self.pool[at..at + self.size])
    }
}
