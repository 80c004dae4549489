//! What a running store must not do while things go wrong around it: backups beside compactions, readers that do not
//! read, files that went missing, sled that fails.

use super::*;
use crate::offline;
use futures::StreamExt;
use std::fs;

fn options() -> SledOptions {
    SledOptions { reserve: 0, ..SledOptions::default() }
}

/// 300 keys of 20 KB, each written six times.
async fn history(s: &SledStore) {
    for round in 0..6u8 {
        for i in 0..300 {
            let (key, value) = (format!("/r/{i:04}"), Bytes::from(vec![round; 20_000]));
            match s.get(&key, None).await.unwrap().0 {
                None => drop(s.create(&key, value).await.unwrap()),
                Some(kv) => drop(s.update(&key, value, kv.mod_revision).await.unwrap()),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_whole_although_history_is_compacted_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let s = SledStore::open(dir.path(), options()).unwrap();
    history(&s).await;
    let mut snapshot = s.snapshot().await.unwrap();
    // The first piece is there: the copying is under way, and waits for its reader.
    let first = snapshot.bytes.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    s.compact(s.revision().await.unwrap()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut all = first.to_vec();
    let mut failed = None;
    while let Some(piece) = snapshot.bytes.next().await {
        match piece {
            Ok(p) => all.extend_from_slice(&p),
            Err(e) => failed = Some(e.to_string()),
        }
    }
    let anew = dir.path().join("values-2").exists();
    assert_eq!((failed, anew), (None, false), "(the backup's error, whether all values were made anew)");
    offline::verify(&mut &all[..]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_nobody_reads_ends() {
    let dir = tempfile::tempdir().unwrap();
    let s = SledStore::open(dir.path(), options()).unwrap();
    s.create("/r/a", Bytes::from(vec![0; 2_000_000 / 2])).await.unwrap();
    for i in 0..8 {
        s.create(&format!("/r/b{i}"), Bytes::from(vec![0; 1_000_000])).await.unwrap();
    }
    let held = s.snapshot().await.unwrap();
    let at = held.revision;
    let mut kv = s.create("/r/k", "x".into()).await.unwrap();
    for _ in 0..2000 {
        kv = s.update("/r/k", "x".into(), kv.mod_revision).await.unwrap();
    }
    s.compact(s.revision().await.unwrap()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(7)).await;
    let kept = s.shared.state.read().index.changes(0, u64::MAX, usize::MAX).len();
    let unread = s.shared.unread();
    assert!(
        kept < 100,
        "{kept} changes are kept, history is dropped up to {unread} (the snapshot is of {at}), compacted {}",
        s.shared.compacted()
    );
    drop(held);
}

#[test]
fn the_runtime_ends_while_a_snapshot_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let (tell, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (store, held) = runtime.block_on(async {
            let s = SledStore::open(&path, options()).unwrap();
            for i in 0..8 {
                s.create(&format!("/r/b{i}"), Bytes::from(vec![0; 1_000_000])).await.unwrap();
            }
            let held = s.snapshot().await.unwrap();
            (s, held)
        });
        drop(store);
        drop(runtime);
        drop(held);
        tell.send(()).unwrap();
    });
    assert!(ended.recv_timeout(Duration::from_secs(8)).is_ok(), "the runtime waits for a reader that does not read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_last_segment_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let s = SledStore::open(dir.path(), SledOptions { log: 4096, ..options() }).unwrap();
    for i in 0..40 {
        s.create(&format!("/r/{i}"), Bytes::from(vec![1; 500])).await.unwrap();
    }
    let revision = s.revision().await.unwrap();
    drop(s);
    // All of the log from the middle on is gone.
    let mut segments: Vec<_> = fs::read_dir(dir.path().join("log")).unwrap().map(|e| e.unwrap().path()).collect();
    segments.sort();
    for path in &segments[segments.len() / 2..] {
        fs::remove_file(path).unwrap();
    }
    let opened = SledStore::open(dir.path(), options());
    let now = match &opened {
        Ok(s) => s.revision().await.unwrap(),
        Err(_) => 0,
    };
    assert!(opened.is_err(), "closed in order at {revision}, opened without a word at {now}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let s = SledStore::open(dir.path(), options()).unwrap();
    for i in 0..40 {
        s.create(&format!("/r/{i}"), Bytes::from(vec![1; 500])).await.unwrap();
    }
    drop(s);
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    let opened = SledStore::open(dir.path(), options());
    let now = match &opened {
        Ok(s) => s.revision().await.unwrap(),
        Err(_) => 0,
    };
    assert!(opened.is_err(), "opened without a word at {now}");
}

#[test]
fn a_revision_that_no_store_has_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    let mut raw = Vec::new();
    let w = snapshot::Writer::new(&mut raw, u64::MAX - 10, 1).unwrap();
    w.finish().unwrap();
    match offline::restore(&to, &mut &raw[..], 1_000_000) {
        Err(error) => assert!(error.to_string().contains("revision"), "{error}"),
        Ok(_) => {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let s = SledStore::open(&to, options()).unwrap();
                s.create("/r/a", "x".into()).await.unwrap();
                drop(s);
                SledStore::open(&to, options()).map(drop).unwrap();
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_failed_can_be_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let s = SledStore::open(&from, options()).unwrap();
    s.create("/r/a", "x".into()).await.unwrap();
    drop(s);
    let mut good = Vec::new();
    offline::snapshot(&from, &mut good).unwrap();
    // A transfer that broke off.
    offline::restore(&to, &mut &good[..good.len() - 20], 0).unwrap_err();
    offline::restore(&to, &mut &good[..], 0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_well_again_after_a_making_that_failed() {
    let dir = tempfile::tempdir().unwrap();
    let s = SledStore::open(dir.path(), options()).unwrap();
    s.create("/r/a", "x".into()).await.unwrap();
    // In the way of the next making, for a moment (a full disk does it too).
    fs::write(dir.path().join("values-2"), "").unwrap();
    let shared = s.shared.clone();
    tokio::task::spawn_blocking(move || shared.heal(1).unwrap_err()).await.unwrap();
    fs::remove_file(dir.path().join("values-2")).unwrap();
    assert!(s.get("/r/a", None).await.unwrap().0.is_some());
    s.create("/r/b", "x".into()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(s.health().verdict(), Ok(()));
}

#[test]
fn small_values_in_memory_have_an_end() {
    let mut state = shared::State::default();
    let empty = Bytes::new();
    for revision in 2..500_000u64 {
        state.apply(
            "k",
            crate::disk::Version { revision, create_revision: 2, expires: 0, deleted: false },
            Some(&empty),
        );
    }
    while !state.index.compact(499_999, 1000).1 {}
    assert!(state.recent_len() < 100_000, "{} values in memory", state.recent_len());
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_made_anew_while_much_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let s = Arc::new(SledStore::open(dir.path(), SledOptions { log: 4 << 20, ..options() }).unwrap());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut tasks = Vec::new();
    for w in 0..8 {
        let (s, stop) = (s.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            let key = format!("/r/{w}");
            let mut kv = s.create(&key, Bytes::from(vec![1; 700_000])).await.unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                kv = s.update(&key, Bytes::from(vec![1; 700_000]), kv.mod_revision).await.unwrap();
            }
        }));
    }
    let shared = s.shared.clone();
    let errors = tokio::task::spawn_blocking(move || {
        let begin = Instant::now();
        let mut errors = Vec::new();
        while begin.elapsed() < Duration::from_secs(4) && errors.is_empty() {
            if let Err(e) = shared.heal(shared.generation()) {
                errors.push(e.to_string())
            }
        }
        errors
    })
    .await
    .unwrap();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for t in tasks {
        t.await.unwrap();
    }
    assert_eq!(errors, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_is_told_what_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let patience = Duration::from_millis(500);
    let s = Arc::new(SledStore::open(dir.path(), SledOptions { patience, ..options() }).unwrap());
    // A device that does not come back for a while.
    let (_, log) = s.parts();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (held, holds) = std::sync::mpsc::channel();
    let device = std::thread::spawn(move || {
        let _log = log.lock();
        held.send(()).unwrap();
        gone.recv().unwrap();
    });
    holds.recv().unwrap();
    let error = s.create("/r/a", "x".into()).await.unwrap_err();
    assert!(matches!(error, StoreError::OutcomeUnknown { .. }), "{error}");
    // More than wait in its queue wait for a place there, and are refused.
    let writes = (0..QUEUE + 50).map(|i| {
        let s = s.clone();
        tokio::spawn(async move { s.create(&format!("/r/{i}"), "x".into()).await })
    });
    let (mut unknown, mut refused) = (0, 0);
    for write in writes.collect::<Vec<_>>() {
        match write.await.unwrap().unwrap_err() {
            StoreError::OutcomeUnknown { .. } => unknown += 1,
            StoreError::Overloaded { .. } => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert!(unknown >= QUEUE && refused > 0, "{unknown} unknown, {refused} refused");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(s.health().verdict().unwrap_err().contains("waiting for the disk"));
    go.send(()).unwrap();
    device.join().unwrap();
    // What was not known has happened, and what was refused has not.
    let done = s.create("/r/after", "x".into()).await.unwrap();
    assert!(s.get("/r/a", None).await.unwrap().0.is_some());
    assert_eq!(done.mod_revision as usize, 1 + 1 + unknown + 1);
    assert_eq!(s.health().verdict(), Ok(()));
}
