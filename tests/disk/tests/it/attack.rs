//! Attacks of a reviewer.
use super::bench::{Bench, Child, News, rounds, seed};
use super::child::Plan;
use bytes::Bytes;
use causeway_store::{SledOptions, SledStore, Store};
use causeway_test_disk::{Disk, SyncFailure, own_mounts};
use std::time::{Duration, Instant};

fn writing(bench: &mut Bench, acknowledged: u64) -> Result<Child, String> {
    let plan = Plan { writers: 4, heavy: false, compacts: false, ..bench.plan() };
    let mut child = bench.start(&plan);
    bench.open(&mut child)?;
    let mut heard = 0;
    bench.follow(&mut child, Instant::now() + Duration::from_secs(20), |news| {
        heard += u64::from(*news == News::Acknowledged);
        heard >= acknowledged
    })?;
    Ok(child)
}

fn pass(bench: &mut Bench, child: &mut Child, time: u64) -> Result<(), String> {
    bench.follow(child, Instant::now() + Duration::from_millis(time), |_| false).map(drop)
}

/// Syncs fail, the process dies (the power stays), it is started again on a device that is well, and then the power goes.
#[test]
fn attack_a_batch_read_from_the_page_cache_that_never_reached_the_device() {
    let mut failures = Vec::new();
    for round in 0..rounds(20) {
        let mut bench = Bench::new(seed() + round);
        let mut one = || -> Result<(), String> {
            let mut child = writing(&mut bench, 40)?;
            bench.disk.set(|f| f.sync_failure = SyncFailure::Always);
            pass(&mut bench, &mut child, 50)?;
            bench.kill(child)?;
            bench.disk.set(|f| f.sync_failure = SyncFailure::Never);
            let child = writing(&mut bench, 40)?;
            bench.cut(child)?;
            bench.judge()
        };
        if let Err(e) = one() { failures.push(e) }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// A sync fails once while segments are rotated all the time (CAUSEWAY_LOG=2048), and the power goes soon after.
#[test]
fn attack_a_failed_rotation_and_a_cut() {
    let mut failures = Vec::new();
    for round in 0..rounds(60) {
        let mut bench = Bench::new(seed() + round);
        let mut one = || -> Result<(), String> {
            let mut child = writing(&mut bench, 20)?;
            let (cut, after) = (bench.dice.roll(), bench.dice.below(16));
            bench.disk.set(|f| f.sync_failure = SyncFailure::Once);
            bench.disk.cut_after(after, cut);
            pass(&mut bench, &mut child, 200)?;
            bench.cut(child)?;
            bench.disk.set(|f| f.sync_failure = SyncFailure::Never);
            bench.judge()
        };
        if let Err(e) = one() { failures.push(e) }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// The store's own snapshot fills the disk.
#[test]
fn attack_a_snapshot_that_does_not_fit_stops_all_writes() {
    own_mounts().unwrap();
    let disk = Disk::new(1).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let options = SledOptions { log: 8 << 20, reserve: 4 << 20, history: Duration::from_secs(3600), ..SledOptions::default() };
    runtime.block_on(async {
        let s = SledStore::open(&disk.path().join("store"), options).unwrap();
        let value = |n: usize| Bytes::from((0..500_000u32).map(|i| (i.wrapping_mul(2654435761) >> (n % 13)) as u8).collect::<Vec<_>>());
        // Less than makes a snapshot due, then the room becomes scarce.
        let mut n = 0;
        while n < 18 { s.create(&format!("/r/{n}"), value(n)).await.unwrap(); n += 1; }
        let used = disk.used();
        disk.set(|f| f.capacity = used + (4 << 20) + (10 << 20));
        let mut refused = None;
        while n < 60 && refused.is_none() {
            match s.create(&format!("/r/{n}"), value(n)).await { Ok(_) => n += 1, Err(e) => refused = Some((n, e.to_string(), disk.used(), used + (14 << 20))) }
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        println!("refused: {refused:?}");
        tokio::time::sleep(Duration::from_secs(3)).await;
        let files: Vec<_> = disk.files().into_iter().filter(|(p, _)| !p.to_string_lossy().contains("values")).collect();
        println!("{files:?} used {}", disk.used());
        let tmp = files.iter().find(|(p, _)| p.ends_with("snapshot.tmp"));
        assert!(tmp.is_none(), "{tmp:?} stays, writes: {:?}", s.health().writes);
    });
}

/// sled meets a full disk (it writes later than `statvfs` is asked); then there is room again.
#[test]
fn attack_after_a_full_disk_the_store_goes_on_and_closes() {
    own_mounts().unwrap();
    let disk = Disk::new(1).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let options = SledOptions { log: 8 << 20, reserve: 4 << 20, history: Duration::from_secs(3600), ..SledOptions::default() };
    std::thread::spawn(|| { std::thread::sleep(Duration::from_secs(75)); println!("HANGS"); std::process::abort() });
    runtime.block_on(async {
        let s = SledStore::open(&disk.path().join("store"), options).unwrap();
        let value = |n: usize| Bytes::from((0..500_000u32).map(|i| (i.wrapping_mul(2654435761) >> (n % 13)) as u8).collect::<Vec<_>>());
        let mut n = 0;
        while n < 18 { s.create(&format!("/r/{n}"), value(n)).await.unwrap(); n += 1; }
        let used = disk.used();
        disk.set(|f| f.capacity = used + (4 << 20) + (10 << 20));
        let mut refused = None;
        while n < 60 && refused.is_none() {
            match s.create(&format!("/r/{n}"), value(n)).await { Ok(_) => n += 1, Err(e) => refused = Some((n, e.to_string())) }
        }
        println!("refused: {refused:?} {:?}", s.health());
        disk.set(|f| f.capacity = 1 << 30);
        let begin = Instant::now();
        let mut last = None;
        while begin.elapsed() < Duration::from_secs(30) {
            match s.create(&format!("/r/{n}"), value(n)).await { Ok(_) => { last = None; break } Err(e) => last = Some(e.to_string()) }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        println!("with room again, after {:?}: {last:?} {:?}", begin.elapsed(), s.health());
        assert!(last.is_none());
        let begin = Instant::now();
        drop(s);
        println!("closed in {:?}", begin.elapsed());
    });
}

/// A snapshot does not fit (the default reserve).
#[test]
fn attack_a_big_snapshot_that_does_not_fit() {
    own_mounts().unwrap();
    let disk = Disk::new(1).unwrap();
    disk.set(|f| f.capacity = 4 << 30);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let options = SledOptions { log: 4 << 20, history: Duration::from_secs(3600), ..SledOptions::default() };
    std::thread::spawn(|| { std::thread::sleep(Duration::from_secs(100)); println!("HANGS"); std::process::abort() });
    runtime.block_on(async {
        let s = SledStore::open(&disk.path().join("store"), options).unwrap();
        let value = |n: usize| Bytes::from((0..1_000_000u32).map(|i| (i.wrapping_mul(2654435761) >> (n % 13)) as u8).collect::<Vec<_>>());
        let (mut n, mut limited, mut refused) = (0, false, None);
        while n < 250 && refused.is_none() {
            match s.create(&format!("/r/{n}"), value(n)).await { Ok(_) => n += 1, Err(e) => refused = Some((n, e.to_string())) }
            tokio::time::sleep(Duration::from_millis(30)).await;
            let newest = disk.files().iter().filter(|(p, _)| p.to_string_lossy().contains("snapshot-")).map(|(_, n)| *n).max().unwrap_or(0);
            if !limited && newest > 50_000_000 {
                // Room for the log and sled until the next snapshot is due, and the reserve; not for the snapshot.
                limited = true;
                let used = disk.used();
                println!("a snapshot of {newest}, {n} values, {used} used");
                disk.set(|f| f.capacity = used + (64 << 20) + 2 * newest + (20 << 20));
            }
        }
        println!("refused: {refused:?}");
        tokio::time::sleep(Duration::from_secs(5)).await;
        let files: Vec<_> = disk.files().into_iter().filter(|(p, _)| p.to_string_lossy().contains("snapshot")).collect();
        println!("{files:?} used {} health {:?}", disk.used(), s.health());
        let tmp = files.iter().find(|(p, _)| p.ends_with("snapshot.tmp"));
        println!("RESULT {tmp:?}");
        assert!(tmp.is_none(), "{tmp:?} stays, writes: {:?}", s.health().writes);
        std::process::exit(if tmp.is_none() { 0 } else { 1 });
    });
}
