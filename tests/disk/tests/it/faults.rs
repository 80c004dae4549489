//! The store on a device that is slow, full, or fails a sync: what it answers meanwhile, and what is there afterwards.

use super::bench::{Bench, Child, News, rounds, seed};
use super::child::Plan;
use causeway_test_disk::{SyncFailure, WriteFailure};
use std::time::{Duration, Instant};

/// Opens a store with so many writers and follows it until so many writes are acknowledged.
fn writing(bench: &mut Bench, change: impl FnOnce(&mut Plan), acknowledged: u64) -> Child {
    let mut plan = Plan { writers: 6, heavy: false, compacts: false, ..bench.plan() };
    change(&mut plan);
    let mut child = bench.start(&plan);
    assert!(bench.open(&mut child).unwrap());
    wait(bench, &mut child, acknowledged, |news| *news == News::Acknowledged);
    child
}

/// Follows a child until something has been heard so many times.
fn wait(bench: &mut Bench, child: &mut Child, times: u64, mut what: impl FnMut(&News) -> bool) {
    let mut heard = 0;
    let enough = |news: &News| {
        heard += u64::from(what(news));
        heard >= times
    };
    let found = bench.follow(child, Instant::now() + Duration::from_secs(30), enough).unwrap();
    assert!(found.is_some() || times == 0, "{}", bench.words("waited 30 s in vain", child));
}

/// Follows a child for a while and counts what is heard.
fn count(bench: &mut Bench, child: &mut Child, time: Duration, what: impl Fn(&News) -> bool) -> u64 {
    let mut heard = 0;
    let counted = bench.follow(child, Instant::now() + time, |news| {
        heard += u64::from(what(news));
        false
    });
    counted.unwrap();
    heard
}

#[test]
fn on_a_slow_device_writers_share_syncs() {
    let mut bench = Bench::new(seed());
    let mut child = writing(&mut bench, |plan| plan.writers = 40, 100);
    bench.disk.set(|f| f.sync_delay = Duration::from_millis(100));
    let done = count(&mut bench, &mut child, Duration::from_secs(5), |news| *news == News::Acknowledged);
    // One after the other they would be 50 at most; 40 at a time are up to 2000.
    assert!(done > 300, "{done} writes in 5 s with syncs of 100 ms");
    bench.cut(child).unwrap();
    bench.disk.set(|f| f.sync_delay = Duration::ZERO);
    bench.judge().unwrap();
}

#[test]
fn a_full_device_refuses_writes_and_loses_none() {
    for round in 0..rounds(3) {
        let mut bench = Bench::new(seed() + round);
        let mut child = writing(&mut bench, |_| {}, 100);
        // Room for a few more writes before the store's reserve begins.
        let reserve = causeway_store::SledOptions::default().reserve;
        let room = bench.dice.below(200_000);
        let used = bench.disk.used();
        bench.disk.set(|f| f.capacity = used + reserve + room);
        wait(&mut bench, &mut child, 50, |news| *news == News::Full);
        if round % 2 == 0 {
            bench.cut(child).unwrap();
            // Full as it is, it opens and reads.
            bench.judge().unwrap();
            bench.disk.set(|f| f.capacity = 1 << 30);
            child = writing(&mut bench, |_| {}, 100);
        } else {
            bench.disk.set(|f| f.capacity = 1 << 30);
            wait(&mut bench, &mut child, 100, |news| *news == News::Acknowledged);
        }
        bench.cut(child).unwrap();
        bench.judge().unwrap();
    }
}

#[test]
fn a_device_that_is_full_without_having_said_so_loses_nothing() {
    // A thin volume, a quota, or a neighbour: `statvfs` tells of room, and the write meets none.
    for round in 0..rounds(4) {
        let mut bench = Bench::new(seed() + round);
        let mut child = writing(&mut bench, |plan| plan.reserve = Some(0), 100);
        let (room, used) = (bench.dice.below(400_000), bench.disk.used());
        bench.disk.set(|f| (f.capacity, f.told_capacity) = (used + room, Some(1 << 30)));
        let refused = |news: &News| matches!(news, News::Full | News::Failed(_));
        wait(&mut bench, &mut child, 20, refused);
        if round % 2 == 0 {
            // Whether it goes on at once or only after a restart, it must not go on wrongly.
            bench.disk.set(|f| f.capacity = 1 << 30);
            count(&mut bench, &mut child, Duration::from_millis(500), |_| false);
        }
        bench.cut(child).unwrap();
        bench.disk.set(|f| f.capacity = 1 << 30);
        let child = writing(&mut bench, |_| {}, 50);
        bench.cut(child).unwrap();
        bench.judge().unwrap();
    }
}

#[test]
fn a_failed_sync_acknowledges_nothing_and_loses_nothing() {
    for round in 0..rounds(6) {
        let mut bench = Bench::new(seed() + round);
        let mut child = writing(&mut bench, |_| {}, 60);
        bench.disk.set(|f| f.sync_failure = SyncFailure::Once);
        // It may be a batch's, which is refused, or that of a segment which is begun and is tried again.
        count(&mut bench, &mut child, Duration::from_millis(300), |_| false);
        let mut after = 0;
        if round % 3 > 0 {
            after = count(&mut bench, &mut child, Duration::from_millis(500), |news| *news == News::Acknowledged);
        }
        bench.cut(child).unwrap();
        bench.judge().unwrap_or_else(|e| panic!("after a failed sync and {after} more writes: {e}"));
        let child = writing(&mut bench, |_| {}, 30);
        bench.cut(child).unwrap();
        bench.judge().unwrap();
    }
}

#[test]
fn while_all_syncs_fail_nothing_is_acknowledged() {
    let mut bench = Bench::new(seed());
    let mut child = writing(&mut bench, |_| {}, 60);
    bench.disk.set(|f| f.sync_failure = SyncFailure::Always);
    wait(&mut bench, &mut child, 30, |news| matches!(news, News::Failed(_)));
    let done = count(&mut bench, &mut child, Duration::from_millis(500), |news| *news == News::Acknowledged);
    assert_eq!(done, 0, "acknowledged without a sync");
    bench.cut(child).unwrap();
    bench.disk.set(|f| f.sync_failure = SyncFailure::Never);
    bench.judge().unwrap();
}

#[test]
fn a_write_that_goes_wrong_harms_no_other() {
    for round in 0..rounds(6) {
        let mut bench = Bench::new(seed() + round);
        let mut child = writing(&mut bench, |_| {}, 60);
        for _ in 0..5 {
            let part = bench.dice.below(600) as usize;
            let failure = if bench.dice.chance(500) { WriteFailure::Short(part) } else { WriteFailure::Error(part) };
            bench.disk.set(|f| f.write_failure = Some(failure));
            count(&mut bench, &mut child, Duration::from_millis(50), |_| false);
        }
        bench.cut(child).unwrap();
        bench.disk.set(|f| f.write_failure = None);
        bench.judge().unwrap();
    }
}

#[test]
fn what_a_failed_sync_left_in_the_page_cache_is_not_taken_for_written() {
    for round in 0..rounds(10) {
        let mut bench = Bench::new(seed() + round);
        let mut child = writing(&mut bench, |plan| plan.compacts = false, 40);
        bench.disk.set(|f| f.sync_failure = SyncFailure::Always);
        count(&mut bench, &mut child, Duration::from_millis(50), |_| false);
        // The process dies and the power stays: the next one reads what never got to the device.
        bench.kill(child).unwrap();
        bench.disk.set(|f| f.sync_failure = SyncFailure::Never);
        let child = writing(&mut bench, |plan| plan.compacts = false, 40);
        bench.cut(child).unwrap();
        bench.judge().unwrap();
    }
}

#[test]
fn a_sync_that_fails_while_a_segment_is_begun_loses_nothing() {
    for round in 0..rounds(20) {
        let mut bench = Bench::new(seed() + round);
        // The shortest log: a segment for each batch.
        let mut child = writing(&mut bench, |plan| plan.seed -= plan.seed % 4, 20);
        let (cut, after) = (bench.dice.roll(), bench.dice.below(16));
        bench.disk.set(|f| f.sync_failure = SyncFailure::Once);
        bench.disk.cut_after(after, cut);
        count(&mut bench, &mut child, Duration::from_millis(200), |_| false);
        bench.cut(child).unwrap();
        bench.disk.set(|f| f.sync_failure = SyncFailure::Never);
        bench.judge().unwrap();
    }
}
