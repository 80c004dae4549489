//! sled alone under power cuts: what its `flush` is worth. An experiment, not a promise of ours: run it with
//! `cargo test -p causeway-test-disk -- --ignored --nocapture bare_sled`.

use super::bench::{Child, Ended, number, seed};
use causeway_test_disk::{Dice, Disk, Faults, NameLoss, own_mounts};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

const DIR: &str = "CAUSEWAY_SLED_DIR";
const START: &str = "CAUSEWAY_SLED_START";

/// Not a test by itself: opens sled, tells every key, then writes and flushes.
#[test]
fn sled_child() {
    let (Ok(dir), Ok(start)) = (std::env::var(DIR), std::env::var(START)) else { return };
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(60));
        std::process::exit(3);
    });
    println!();
    let start: u64 = start.parse().unwrap();
    let db = match sled::Config::new().path(Path::new(&dir)).flush_every_ms(None).open() {
        Ok(db) => db,
        Err(error) => return println!("failed open {error}"),
    };
    for item in db.iter() {
        match item {
            Ok((key, _)) => println!("key {}", String::from_utf8_lossy(&key)),
            Err(error) => return println!("failed read {error}"),
        }
    }
    println!("ready");
    let mut dice = Dice::new(start);
    for i in start.. {
        let value = vec![i as u8; dice.below(3000) as usize];
        if let Err(error) = db.insert(format!("{i:08}"), value) {
            return println!("failed insert {error}");
        }
        if i % 5 == 4 {
            match db.flush() {
                Ok(_) => println!("flushed {i}"),
                Err(error) => return println!("failed flush {error}"),
            }
        }
    }
}

/// What one opening after a cut was like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Sound,
    OpenFailed,
    ReadFailed,
    Panicked,
    LostFlushed,
}

/// How bad the disk is.
type Lie = fn(&mut Faults);

fn experiment(set: Lie, cuts: u64) -> BTreeMap<Verdict, u64> {
    own_mounts().unwrap();
    let mut dice = Dice::new(seed());
    let mut verdicts = BTreeMap::new();
    let mut disk = Disk::new(seed()).unwrap();
    // What was flushed since the disk was new, and the number of the next key.
    let (mut flushed, mut next) = (BTreeSet::new(), 1);
    let mut lives = 0;
    for _ in 0..cuts {
        disk.set(set);
        // Half of the cuts come at some operation, of the opening too.
        if dice.chance(500) {
            disk.cut_after(dice.below(300), dice.roll());
        }
        let cuts_before = disk.cuts();
        let environment = [(DIR, disk.path().join("sled").display().to_string()), (START, next.to_string())];
        let mut child = Child::start("it::bare_sled::sled_child", environment);
        let mut until = Instant::now() + Duration::from_secs(30);
        let (mut keys, mut ready, mut failed, mut quota) = (BTreeSet::new(), false, None, dice.below(60));
        loop {
            let line = match child.line(until) {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(Ended) => {
                    failed = failed.or(Some(Verdict::Panicked));
                    break;
                }
            };
            match line.split_once(' ') {
                Some(("key", key)) => drop(keys.insert(key.parse::<u64>().unwrap())),
                Some(("flushed", last)) => {
                    flushed.extend(next..=last.parse().unwrap());
                    quota = quota.saturating_sub(1);
                    if quota == 0 {
                        break;
                    }
                }
                Some(("failed", what)) => {
                    println!("{what}");
                    failed = Some(if what.starts_with("open") { Verdict::OpenFailed } else { Verdict::ReadFailed });
                }
                _ if line == "ready" => {
                    ready = true;
                    until = Instant::now() + Duration::from_secs(2);
                    let lost = flushed.difference(&keys).count();
                    if lost > 0 {
                        println!("{lost} of {} flushed keys are gone", flushed.len());
                        failed = Some(Verdict::LostFlushed);
                        break;
                    }
                }
                _ => {}
            }
        }
        if disk.cuts() > cuts_before && failed != Some(Verdict::LostFlushed) {
            // Without power it may say and do what it wants.
            failed = None;
            ready = true;
        }
        if failed == Some(Verdict::Panicked) {
            println!("panic: {}", child.errors().lines().take(3).collect::<Vec<_>>().join(" "));
        }
        let seed = dice.roll();
        if disk.cuts() == cuts_before {
            disk.cut(seed);
        }
        for line in child.kill() {
            if let Some(("flushed", last)) = line.split_once(' ') {
                flushed.extend(next..=last.parse().unwrap());
            }
        }
        // What was inserted and not flushed may be there; no number is used twice.
        next += 100_000;
        if lives > 0 {
            *verdicts.entry(failed.unwrap_or(Verdict::Sound)).or_default() += 1;
        }
        lives += 1;
        if failed.is_some() || !ready {
            disk = Disk::new(dice.roll()).unwrap();
            (flushed, next, lives) = (BTreeSet::new(), 1, 0);
        } else {
            disk.mount().unwrap();
        }
    }
    verdicts
}

#[test]
#[ignore = "an experiment about sled, which fails it"]
fn bare_sled_after_power_cuts() {
    let cuts = number("CAUSEWAY_CUTS", 200);
    let disks: [(&str, Lie); 3] = [
        ("that loses what was not synced", |_| {}),
        ("that keeps all names", |f| f.name_loss = NameLoss::None),
        ("that keeps everything", |f| (f.name_loss, f.write_loss) = (NameLoss::None, false)),
    ];
    for (words, set) in disks {
        let verdicts = experiment(set, cuts);
        println!("== openings after a cut, on a disk {words}: {verdicts:?}");
    }
}
