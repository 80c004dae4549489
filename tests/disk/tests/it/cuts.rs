//! Power cuts under the store, many over the same store, and what it must hold after each.

use super::bench::{Bench, News, rounds, seed};
use causeway_test_disk::{Faults, NameLoss, SyncFailure, WriteFailure};
use std::time::{Duration, Instant};

/// How many stores share the cuts.
const STORES: u64 = 6;

/// Of these many lives one has another fault of the device too.
const FAULTS: u64 = 8;

/// One life of a store: open and judge, write, cut at a random moment.
fn life(bench: &mut Bench) -> Result<(), String> {
    if bench.dice.chance(100) {
        // What a store does at a proper end must not mislead it after an improper one.
        bench.judge()?;
    }
    let plan = bench.plan();
    // Some cuts at a moment, some at an operation of the device: while it opens, cuts off a log, or writes.
    if bench.dice.chance(400) {
        let seed = bench.dice.roll();
        let after = if bench.dice.chance(500) { bench.dice.below(60) } else { bench.dice.below(1500) };
        bench.disk.cut_after(after, seed);
    }
    let mut is_broken = false;
    let mut child = bench.start(&plan);
    if bench.open(&mut child)? {
        // Long enough for segments of a log to be closed, where values are large.
        let most = if plan.heavy { 3000 } else { 600 };
        let until = Instant::now() + Duration::from_millis(50 + bench.dice.below(most));
        let quota = bench.dice.below(250);
        let fault = bench.dice.below(quota * FAULTS);
        let mut seen = 0;
        let mut follow = |bench: &mut Bench, quota| {
            bench.follow(&mut child, until, |news| {
                seen += u64::from(matches!(news, News::Acknowledged | News::Failed(_)));
                seen > quota
            })
        };
        if fault < quota {
            follow(bench, fault)?;
            break_something(bench);
            is_broken = true;
        }
        follow(bench, quota)?;
    }
    // sled panics when it is closed on a device that does not sync, which is no harm to what is there.
    let result = if bench.dice.chance(100) && !is_broken && !bench.is_cut() {
        bench.close(child).and_then(|()| bench.cut_closed())
    } else {
        bench.cut(child)
    };
    bench.disk.set(|f| {
        (f.sync_failure, f.write_failure, f.sync_delay) = (SyncFailure::Never, None, Duration::ZERO);
    });
    result
}

fn break_something(bench: &mut Bench) {
    let (kind, part) = (bench.dice.below(5), bench.dice.below(2000) as usize);
    bench.disk.set(|f| match kind {
        0 => f.sync_failure = SyncFailure::Once,
        1 => f.sync_failure = SyncFailure::Always,
        2 => f.write_failure = Some(WriteFailure::Short(part)),
        3 => f.write_failure = Some(WriteFailure::Error(part)),
        _ => f.sync_delay = Duration::from_millis(10),
    });
}

/// What became of one store.
struct Outcome {
    cuts: u64,
    acknowledged: u64,
    result: Result<(), String>,
}

fn lives(bench: &mut Bench, count: u64) -> Outcome {
    let result = (0..count).try_for_each(|_| life(bench)).and_then(|()| bench.judge());
    Outcome { cuts: bench.disk.cuts(), acknowledged: bench.model.acknowledged(), result }
}

/// Cuts the power under several stores at a time, and tells of each that did not keep its promises.
fn all(stores: u64, cuts: u64, set: fn(&mut Faults)) {
    let first = seed();
    let begin = Instant::now();
    let one = |seed| {
        let mut bench = Bench::new(seed);
        bench.disk.set(set);
        lives(&mut bench, cuts.div_ceil(stores))
    };
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let threads: Vec<_> = (first..first + stores).map(|seed| scope.spawn(move || one(seed))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let cuts: u64 = outcomes.iter().map(|o| o.cuts).sum();
    let acknowledged: u64 = outcomes.iter().map(|o| o.acknowledged).sum();
    println!("{cuts} cuts, {acknowledged} acknowledged writes, {:?}", begin.elapsed());
    let failures: Vec<String> = outcomes.into_iter().filter_map(|o| o.result.err()).collect();
    assert!(
        failures.is_empty(),
        "{} of {stores} stores failed in {cuts} cuts (CAUSEWAY_SEED={first}):\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(acknowledged > cuts, "only {acknowledged} writes were acknowledged in {cuts} cuts");
}

#[test]
fn nothing_acknowledged_is_lost_to_power_cuts() {
    all(STORES, rounds(200), |_| {});
}

/// A disk with a journal for names: where only the test above fails, a sync of a folder is missing.
#[test]
fn nothing_acknowledged_is_lost_to_power_cuts_on_a_journal() {
    all(3, rounds(66), |f| f.name_loss = NameLoss::Ordered);
}

/// A disk that keeps everything: where this fails too, it is not the disk.
#[test]
fn nothing_acknowledged_is_lost_when_only_the_process_dies() {
    all(2, rounds(20), |f| (f.write_loss, f.name_loss) = (false, NameLoss::None));
}
