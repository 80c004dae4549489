//! Power cuts under the store, hundreds over the same store, and what it must hold after each.

use super::bench::{Bench, News, number, seed};
use std::time::{Duration, Instant};

/// How many stores share the cuts.
const STORES: u64 = 6;

/// One life of a store: open and judge, write, cut at a random moment.
fn life(bench: &mut Bench) -> Result<(), String> {
    let (plan, cuts) = (bench.plan(), bench.disk.cuts());
    // Some cuts at a moment, some at an operation of the device: while it opens, cuts off a log, or writes.
    if bench.dice.chance(400) {
        let seed = bench.dice.roll();
        let after = if bench.dice.chance(500) { bench.dice.below(60) } else { bench.dice.below(1500) };
        bench.disk.cut_after(after, seed);
    }
    let mut child = bench.start(&plan);
    if bench.open(&mut child)? {
        let until = Instant::now() + Duration::from_millis(50 + bench.dice.below(1000));
        let quota = bench.dice.below(250);
        let mut seen = 0;
        bench.follow(&mut child, until, |news| {
            seen += u64::from(*news == News::Acknowledged);
            seen > quota
        })?;
    }
    bench.cut(child, cuts)
}

#[test]
fn nothing_acknowledged_is_lost_to_power_cuts() {
    let cuts = number("CAUSEWAY_CUTS", 240);
    let first = seed();
    let mut failures = Vec::new();
    let (mut done, mut acknowledged) = (0, 0);
    let begin = Instant::now();
    for store in 0..STORES {
        let mut bench = Bench::new(first + store);
        let mut result = Ok(());
        for _ in 0..cuts.div_ceil(STORES) {
            result = life(&mut bench);
            if result.is_err() {
                break;
            }
        }
        result = result.and_then(|()| bench.judge());
        done += bench.disk.cuts();
        acknowledged += bench.model.acknowledged();
        failures.extend(result.err());
    }
    println!("{done} cuts, {acknowledged} acknowledged writes, {:?}", begin.elapsed());
    assert!(
        failures.is_empty(),
        "{} of {STORES} stores failed in {done} cuts (CAUSEWAY_SEED={first}):\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(acknowledged > done, "only {acknowledged} writes were acknowledged in {done} cuts");
}
