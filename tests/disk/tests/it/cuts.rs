//! Power cuts under the store, many over the same store, and what it must hold after each.

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
        let until = Instant::now() + Duration::from_millis(50 + bench.dice.below(600));
        let quota = bench.dice.below(250);
        let mut seen = 0;
        bench.follow(&mut child, until, |news| {
            seen += u64::from(*news == News::Acknowledged);
            seen > quota
        })?;
    }
    bench.cut(child, cuts)
}

/// What became of one store.
struct Outcome {
    cuts: u64,
    acknowledged: u64,
    result: Result<(), String>,
}

fn lives(seed: u64, count: u64) -> Outcome {
    let mut bench = Bench::new(seed);
    let result = (0..count).try_for_each(|_| life(&mut bench)).and_then(|()| bench.judge());
    Outcome { cuts: bench.disk.cuts(), acknowledged: bench.model.acknowledged(), result }
}

#[test]
fn nothing_acknowledged_is_lost_to_power_cuts() {
    let each = number("CAUSEWAY_CUTS", 300).div_ceil(STORES);
    let first = seed();
    let begin = Instant::now();
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let threads: Vec<_> = (first..first + STORES).map(|seed| scope.spawn(move || lives(seed, each))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let cuts: u64 = outcomes.iter().map(|o| o.cuts).sum();
    let acknowledged: u64 = outcomes.iter().map(|o| o.acknowledged).sum();
    println!("{cuts} cuts, {acknowledged} acknowledged writes, {:?}", begin.elapsed());
    let failures: Vec<String> = outcomes.into_iter().filter_map(|o| o.result.err()).collect();
    assert!(
        failures.is_empty(),
        "{} of {STORES} stores failed in {cuts} cuts (CAUSEWAY_SEED={first}):\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(acknowledged > cuts, "only {acknowledged} writes were acknowledged in {cuts} cuts");
}
