//! The bytes of one file, as programs see them and as the device holds them.
//!
//! In: writes and changes of length, in order; syncs. Out: the bytes to read, and, after a power cut, one of the many
//! states that a disk with a volatile cache may be found in.

use crate::dice::Dice;

/// What a disk writes as a whole or not at all.
pub(crate) const SECTOR: usize = 512;

/// Bytes of a file: what reads see, what the device holds for certain, and what lies between.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contents {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

/// A change that no sync has covered yet.
#[derive(Debug, Clone)]
struct Change {
    /// Place among all changes of the device, so that a slow sync covers what came before it began.
    number: u64,
    /// The file's length afterwards.
    length: usize,
    step: Step,
}

#[derive(Debug, Clone)]
enum Step {
    /// Whole sectors from this offset on, as the page cache held them after the write: a sector is found with all that
    /// was written to it until then, or without.
    Sectors(usize, Vec<u8>),
    Resize,
}

impl Contents {
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// The bytes that a read sees.
    pub fn live(&self) -> &[u8] {
        &self.live
    }

    pub fn write(&mut self, number: u64, at: usize, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let end = at + data.len();
        if self.live.len() < end {
            self.live.resize(end, 0);
        }
        self.live[at..end].copy_from_slice(data);
        let first = at - at % SECTOR;
        let last = end.next_multiple_of(SECTOR);
        let mut sectors = self.live[first..last.min(self.live.len())].to_vec();
        sectors.resize(last - first, 0);
        self.pending.push(Change { number, length: self.live.len(), step: Step::Sectors(first, sectors) });
    }

    pub fn resize(&mut self, number: u64, length: usize) {
        if length != self.live.len() {
            self.live.resize(length, 0);
            self.pending.push(Change { number, length, step: Step::Resize });
        }
    }

    /// Makes every change up to this number durable.
    pub fn sync(&mut self, up_to: u64) {
        let covered = self.pending.partition_point(|c| c.number <= up_to);
        for change in self.pending.drain(..covered) {
            if let Step::Sectors(at, data) = &change.step {
                put(&mut self.durable, *at, data);
            }
            self.durable.resize(change.length, 0);
        }
    }

    /// A sync that failed: part of the changes is on the device, the rest never will be by itself, for the page cache
    /// holds it for written. Reads go on seeing it.
    pub fn fail_sync(&mut self, up_to: u64, dice: &mut Dice) {
        let covered = self.pending.partition_point(|c| c.number <= up_to);
        let later = self.pending.split_off(covered);
        self.durable = self.survivor(dice);
        self.pending = later;
    }

    /// How many changes no sync has covered.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The power goes: what is found afterwards is all there is.
    pub fn cut(&mut self, dice: &mut Dice) {
        self.live = self.survivor(dice);
        self.durable.clone_from(&self.live);
        self.pending.clear();
    }

    /// One of the states in which the device may hold this file now.
    fn survivor(&self, dice: &mut Dice) -> Vec<u8> {
        let mut found = self.durable.clone();
        if self.pending.is_empty() {
            return found;
        }
        let count = self.pending.len();
        // The extremes are as likely as what lies between: a test should meet them all within a few cuts. The file
        // system's journal has lengths in order, whatever the order of the data is: the first `sized` are known.
        let (keep, sized) = match dice.below(7) {
            0 => return found,
            1 => (1000, count),
            2 => {
                // In order, and torn in the last one.
                let whole = dice.below(count as u64) as usize;
                for change in &self.pending[..whole] {
                    keep_change(&mut found, change, 1000, true, dice);
                }
                keep_change(&mut found, &self.pending[whole], 500, true, dice);
                found.resize(self.pending[whole].length, 0);
                return found;
            }
            // The length has come and the data has not, or the other way round.
            3 => (0, count),
            4 => (100, dice.below(count as u64 + 1) as usize),
            5 => (500, dice.below(count as u64 + 1) as usize),
            _ => (900, dice.below(count as u64 + 1) as usize),
        };
        let length = sized.checked_sub(1).map_or(self.durable.len(), |last| self.pending[last].length);
        for (i, change) in self.pending.iter().enumerate() {
            keep_change(&mut found, change, keep, i < sized, dice);
        }
        found.resize(length, 0);
        found
    }
}

/// Applies each sector of a change with a probability, and a change of length when it is `sized`.
fn keep_change(found: &mut Vec<u8>, change: &Change, permille: u64, sized: bool, dice: &mut Dice) {
    match &change.step {
        Step::Sectors(at, data) => {
            for (i, sector) in data.chunks(SECTOR).enumerate() {
                if dice.chance(permille) {
                    put(found, at + i * SECTOR, sector);
                }
            }
        }
        // Growing adds zeros, which is what a sector that nobody wrote holds anyway.
        Step::Resize if sized => found.truncate(change.length),
        Step::Resize => {}
    }
}

fn put(into: &mut Vec<u8>, at: usize, data: &[u8]) {
    let end = at + data.len();
    if into.len() < end {
        into.resize(end, 0);
    }
    into[at..end].copy_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_synced_survives_every_cut() {
        for seed in 0..500 {
            let mut file = Contents::default();
            file.write(1, 0, &[1; 3000]);
            file.sync(1);
            file.write(2, 3000, &[2; 2000]);
            file.cut(&mut Dice::new(seed));
            assert_eq!(&file.live()[..3000], &[1; 3000], "seed {seed}");
            assert!(file.len() >= 3000 && file.live()[3000..].iter().all(|b| [0, 2].contains(b)), "seed {seed}");
        }
    }

    #[test]
    fn later_writes_may_survive_earlier_ones_and_sectors_are_whole() {
        let (mut reordered, mut holes, mut torn) = (false, false, false);
        for seed in 0..500 {
            let mut file = Contents::default();
            file.write(1, 0, &[1; 4096]);
            file.write(2, 4096, &[2; 4096]);
            file.write(3, 100, &[3; 100]);
            file.cut(&mut Dice::new(seed));
            for sector in file.live().chunks(SECTOR).skip(1) {
                assert!(sector.iter().all(|b| b == &sector[0]), "seed {seed}");
            }
            let first = file.live().iter().take(SECTOR).copied().collect::<Vec<_>>();
            let three = first.iter().filter(|b| **b == 3).count();
            assert!(first.len() < SECTOR || [0, 100].contains(&three), "seed {seed}");
            holes |= file.len() == 8192 && file.live().iter().all(|b| *b == 0);
            torn |= file.live().contains(&1) && file.live().iter().take(4096).any(|b| *b == 0);
            reordered |= file.live().contains(&2) && !file.live()[..4096].contains(&1);
        }
        assert!(reordered && holes && torn);
    }

    #[test]
    fn a_truncation_may_be_lost_and_never_uncovers_the_cut_bytes_elsewhere() {
        let (mut kept, mut lost) = (false, false);
        for seed in 0..200 {
            let mut file = Contents::default();
            file.write(1, 0, &[1; 4096]);
            file.sync(1);
            file.resize(2, 1000);
            file.resize(3, 2000);
            assert!(file.live()[1000..].iter().all(|b| *b == 0));
            file.cut(&mut Dice::new(seed));
            kept |= file.len() == 2000;
            lost |= file.len() == 4096;
            assert!(file.len() != 2000 || file.live()[1000..].iter().all(|b| *b == 0), "seed {seed}");
        }
        assert!(kept && lost);
    }

    #[test]
    fn after_a_failed_sync_the_next_one_promises_less_than_it_seems() {
        let (mut there, mut gone) = (false, false);
        for seed in 0..100 {
            let mut dice = Dice::new(seed);
            let mut file = Contents::default();
            file.write(1, 0, &[1; 512]);
            file.fail_sync(1, &mut dice);
            assert_eq!(file.live(), &[1; 512], "reads see the page cache");
            file.write(2, 512, &[2; 512]);
            file.sync(2);
            file.cut(&mut dice);
            assert_eq!(&file.live()[512..], &[2; 512]);
            there |= file.live()[..512] == [1; 512];
            gone |= file.live()[..512] == [0; 512];
        }
        assert!(there && gone);
    }
}
