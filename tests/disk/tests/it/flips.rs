//! Bits that the device reads wrongly: the store says in which file, or holds everything all the same.

use super::bench::{Bench, News, number, seed};
use super::child::Plan;
use std::time::{Duration, Instant};

#[test]
fn a_flipped_bit_is_named_or_harmless() {
    let mut bench = Bench::new(seed());
    // Several lives, so that there are files of all kinds.
    for writes in [150, 150, 80] {
        let plan = Plan { writers: 5, compacts: true, heavy: false, ..bench.plan() };
        let mut child = bench.start(&plan);
        assert!(bench.open(&mut child).unwrap());
        let mut done = 0;
        let until = Instant::now() + Duration::from_secs(30);
        let enough = |news: &News| {
            done += u64::from(*news == News::Acknowledged);
            done >= writes
        };
        bench.follow(&mut child, until, enough).unwrap();
        bench.close(child).unwrap();
    }
    // What was in flight at the end is settled on a copy: the flips meet the disk as the last writer left it.
    let before = bench.disk.snapshot();
    bench.judge().unwrap();
    let flips = number("CAUSEWAY_FLIPS", 100);
    let model = bench.model.clone();
    let (mut named, mut harmless, mut failures) = (0, 0, Vec::new());
    for flip in 0..flips {
        bench.disk.restore(&before).unwrap();
        bench.model = model.clone();
        let files = bench.disk.files();
        let files: Vec<_> = files.iter().filter(|(path, length)| *length > 0 && !path.ends_with("lock")).collect();
        // Where there are many files of sled's, the others are met as often all the same.
        let others: Vec<_> = files.iter().filter(|(path, _)| !path.starts_with("store/sled")).copied().collect();
        let files = if others.is_empty() || flip % 2 == 0 { files } else { others };
        let (path, length) = files[bench.dice.below(files.len() as u64) as usize];
        let (byte, bit) = (bench.dice.below(*length), bench.dice.below(8));
        assert!(bench.disk.flip(path, byte, 1 << bit));
        // A person must know what to remove or to restore: the file, or all of sled's folder below the store's.
        let name = format!("/{}", path.file_name().unwrap().to_string_lossy());
        let folder = if path.starts_with("store/sled") { "/store/sled" } else { &name };
        match bench.judge() {
            Ok(()) => harmless += 1,
            Err(words) => {
                // The child's own words; below them is what we add.
                let said = words.lines().next().unwrap_or_default();
                let is_refusal = said.contains("open-failed") || said.contains("read-failed");
                if is_refusal && (said.contains(&name) || said.contains(folder)) {
                    named += 1;
                } else {
                    let at = format!("bit {bit} of byte {byte} of {length} of {}", path.display());
                    failures.push(format!("flip {flip}: {at}: {words}"));
                }
            }
        }
    }
    println!("{flips} flips: {harmless} harmless, {named} named, {} neither", failures.len());
    assert!(
        failures.is_empty(),
        "{} of {flips} flips were neither harmless nor named (CAUSEWAY_SEED={}):\n{}",
        failures.len(),
        seed(),
        failures.join("\n")
    );
}
