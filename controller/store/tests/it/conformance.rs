//! etcd's promises, held to an engine: ordered, unique, atomic, reliable, resumable, bookmarkable; compare-and-swap;
//! reads at a revision; compaction.

use bytes::Bytes;
use causeway_store::{ListRequest, Revision, SledOptions, SledStore, Store, StoreError, WatchEvent, Write};
use futures::StreamExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

fn open() -> (tempfile::TempDir, Arc<dyn Store>) {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path(), SledOptions::default()).unwrap();
    (dir, Arc::new(store))
}

fn revision_of(event: &WatchEvent) -> Option<Revision> {
    match event {
        WatchEvent::Put { kv, .. } => Some(kv.mod_revision),
        WatchEvent::Delete { revision, .. } => Some(*revision),
        WatchEvent::Progress(_) => None,
    }
}

async fn next_change(watch: &mut causeway_store::WatchStream) -> WatchEvent {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap().unwrap().unwrap();
        if revision_of(&event).is_some() {
            return event;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compare_and_swap() {
    let (_dir, s) = open();
    assert_eq!(s.revision().await.unwrap(), 1);
    let a = s.create("/r/a", "1".into()).await.unwrap();
    assert_eq!((a.create_revision, a.mod_revision), (2, 2));
    assert!(matches!(s.create("/r/a", "x".into()).await, Err(StoreError::AlreadyExists { .. })));
    let b = s.update("/r/a", "2".into(), 2).await.unwrap();
    assert_eq!((b.create_revision, b.mod_revision), (2, 3));
    match s.update("/r/a", "3".into(), 2).await {
        Err(StoreError::Conflict { current, expected: 2, .. }) => assert_eq!(*current, b),
        other => panic!("{other:?}"),
    }
    assert!(matches!(s.update("/r/none", "3".into(), 2).await, Err(StoreError::NotFound { .. })));
    assert!(matches!(s.delete("/r/a", Some(2)).await, Err(StoreError::Conflict { .. })));
    assert_eq!(s.delete("/r/a", Some(3)).await.unwrap(), (b.clone(), 4));
    assert!(matches!(s.delete("/r/a", None).await, Err(StoreError::NotFound { .. })));
    // Failed writes took no revision; a key made anew starts over.
    let again = s.create("/r/a", "4".into()).await.unwrap();
    assert_eq!((again.create_revision, again.mod_revision), (5, 5));
    // The past is still there.
    assert_eq!(s.get("/r/a", Some(3)).await.unwrap().0, Some(b));
    assert_eq!(s.get("/r/a", Some(4)).await.unwrap().0, None);
    assert!(matches!(s.get("/r/a", Some(6)).await, Err(StoreError::FutureRevision { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_at_one_revision() {
    let (_dir, s) = open();
    for i in 0..25 {
        s.create(&format!("/r/k{i:02}"), Bytes::from(format!("{i}"))).await.unwrap();
    }
    s.create("/rz/other", "x".into()).await.unwrap();
    let first = s.list(ListRequest { prefix: "/r/".into(), limit: 10, ..Default::default() }).await.unwrap();
    assert_eq!((first.items.len(), first.remaining), (10, 15));
    // Changes between the pages are not seen by them.
    s.delete("/r/k15", None).await.unwrap();
    s.create("/r/k005", "new".into()).await.unwrap();
    let at = Some(first.revision);
    let mut all: Vec<String> = first.items.iter().map(|kv| kv.key.clone()).collect();
    let mut after = all.last().cloned();
    while all.len() < 25 {
        let page = ListRequest { prefix: "/r/".into(), limit: 10, start_after: after, at };
        let page = s.list(page).await.unwrap();
        all.extend(page.items.iter().map(|kv| kv.key.clone()));
        after = all.last().cloned();
    }
    let want: Vec<String> = (0..25).map(|i| format!("/r/k{i:02}")).collect();
    assert_eq!(all, want);
    let now = s.list(ListRequest { prefix: "/r/".into(), ..Default::default() }).await.unwrap();
    assert_eq!(now.items.len(), 25);
    assert!(now.items.iter().any(|kv| kv.key == "/r/k005"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_is_ordered_complete_and_resumable() {
    let (_dir, s) = open();
    let start = s.revision().await.unwrap();
    let writers: Vec<_> = (0..8)
        .map(|w| {
            let s = s.clone();
            tokio::spawn(async move {
                for i in 0..100 {
                    let key = format!("/{}/{w}-{}", if i % 4 == 0 { "b" } else { "a" }, i % 7);
                    match s.create(&key, "x".into()).await {
                        Ok(_) => {}
                        Err(StoreError::AlreadyExists { .. }) if i % 3 == 0 => drop(s.delete(&key, None).await),
                        Err(StoreError::AlreadyExists { .. }) => {
                            let (kv, _) = s.get(&key, None).await.unwrap();
                            let kv = kv.unwrap();
                            s.update(&key, Bytes::from(format!("{i}")), kv.mod_revision).await.unwrap();
                        }
                        Err(e) => panic!("{e}"),
                    }
                }
            })
        })
        .collect();
    let mut live = s.watch("/", start).await.unwrap();
    for w in writers {
        w.await.unwrap();
    }
    let end = s.revision().await.unwrap();
    assert_eq!(end, start + 800);
    // Every revision once, in order, whether watched live or read back later from anywhere.
    let mut events = Vec::new();
    for want in start + 1..=end {
        let event = next_change(&mut live).await;
        assert_eq!(revision_of(&event), Some(want));
        events.push(event);
    }
    let middle = start + 333;
    let mut resumed = s.watch("/", middle).await.unwrap();
    for want in &events[333..] {
        assert_eq!(&next_change(&mut resumed).await, want);
    }
    // A prefix sees exactly its own; replaying it gives what a list gives.
    let mut only_a = s.watch("/a/", start).await.unwrap();
    let mut model = BTreeMap::new();
    for want in events.iter().filter(|e| match e {
        WatchEvent::Put { kv, .. } => kv.key.starts_with("/a/"),
        WatchEvent::Delete { prev, .. } => prev.key.starts_with("/a/"),
        WatchEvent::Progress(_) => false,
    }) {
        let event = next_change(&mut only_a).await;
        assert_eq!(&event, want);
        match event {
            WatchEvent::Put { kv, prev } => assert_eq!(model.insert(kv.key.clone(), kv), prev),
            WatchEvent::Delete { prev, .. } => assert_eq!(model.remove(&prev.key), Some(prev)),
            WatchEvent::Progress(_) => {}
        }
    }
    let listed = s.list(ListRequest { prefix: "/a/".into(), ..Default::default() }).await.unwrap();
    assert_eq!(listed.items, model.into_values().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_watches_hear_of_progress() {
    let (_dir, s) = open();
    let mut watch = s.watch("/quiet/", 1).await.unwrap();
    let kv = s.create("/loud/x", "1".into()).await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(event, WatchEvent::Progress(kv.mod_revision));
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_forgets_the_past_and_keeps_the_present() {
    let (_dir, s) = open();
    s.create("/r/keep", "0".into()).await.unwrap();
    s.create("/r/gone", "0".into()).await.unwrap();
    s.delete("/r/gone", None).await.unwrap();
    let mut rev = s.create("/r/busy", "0".into()).await.unwrap().mod_revision;
    for i in 0..3000 {
        rev = s.update("/r/busy", Bytes::from(format!("{i}")), rev).await.unwrap().mod_revision;
    }
    s.compact(rev - 10).await.unwrap();
    assert_eq!(s.compacted().await.unwrap(), rev - 10);
    for old in [2, rev - 11] {
        assert!(matches!(s.get("/r/busy", Some(old)).await, Err(StoreError::Compacted { .. })));
        assert!(matches!(s.watch("/r/", old).await.err(), Some(StoreError::Compacted { .. })));
    }
    assert_eq!(s.get("/r/busy", Some(rev - 10)).await.unwrap().0.unwrap().mod_revision, rev - 10);
    let keys = s.list(ListRequest { prefix: "/r/".into(), ..Default::default() }).await.unwrap();
    assert_eq!(keys.items.iter().map(|kv| kv.key.as_str()).collect::<Vec<_>>(), ["/r/busy", "/r/keep"]);
    let mut watch = s.watch("/r/", rev - 10).await.unwrap();
    match next_change(&mut watch).await {
        WatchEvent::Put { kv, prev: Some(prev) } => {
            assert_eq!((kv.mod_revision, prev.mod_revision), (rev - 9, rev - 10));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_kept_by_time_and_bounded_by_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let options = SledOptions { max_history_bytes: 1 << 20, ..SledOptions::default() };
    let s = SledStore::open(dir.path(), options).unwrap();
    let mut rev = s.create("/r/a", "0".into()).await.unwrap().mod_revision;
    // Many changes are no reason to forget any.
    for _ in 0..30 {
        rev = s.update("/r/a", "x".into(), rev).await.unwrap().mod_revision;
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(s.compacted().await.unwrap(), 0);
    for _ in 0..200 {
        rev = s.update("/r/a", vec![b'x'; 16 << 10].into(), rev).await.unwrap().mod_revision;
    }
    for _ in 0..200 {
        if s.compacted().await.unwrap() > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never compacted: {} of {rev}", s.compacted().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn history_ends_after_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let options = SledOptions { history: Duration::from_secs(2), ..SledOptions::default() };
    let s = SledStore::open(dir.path(), options.clone()).unwrap();
    let first = s.create("/r/a", "0".into()).await.unwrap();
    let second = s.update("/r/a", "1".into(), first.mod_revision).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), async {
        while s.compacted().await.unwrap() < second.mod_revision {
            assert!(s.get("/r/a", Some(second.mod_revision)).await.unwrap().0.is_some());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    // What was forgotten stays so.
    drop(s);
    let s = SledStore::open(dir.path(), options).unwrap();
    assert_eq!(s.compacted().await.unwrap(), second.mod_revision);
    assert_eq!(s.get("/r/a", None).await.unwrap().0, Some(second));
    assert!(matches!(s.watch("/r/", first.mod_revision).await.err(), Some(StoreError::Compacted { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_misses_nothing_that_is_kept_and_is_told_when_it_is_not() {
    let (_dir, s) = open();
    let (mut slow, mut slower) = (s.watch("/r/", 1).await.unwrap(), s.watch("/r/", 1).await.unwrap());
    let mut rev = s.create("/r/a", "0".into()).await.unwrap().mod_revision;
    for _ in 0..6000 {
        rev = s.update("/r/a", "x".into(), rev).await.unwrap().mod_revision;
    }
    for want in 2..=rev {
        assert_eq!(revision_of(&next_change(&mut slow).await), Some(want));
    }
    s.compact(rev).await.unwrap();
    assert!(matches!(slower.next().await.unwrap(), Err(StoreError::Compacted { .. })));
    assert!(slower.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_all_or_nothing_and_seen_as_one() {
    let (_dir, s) = open();
    let a = s.create("/r/a", "1".into()).await.unwrap();
    let mut watch = s.watch("/r/", a.mod_revision).await.unwrap();
    let create = |key: &str| Write::Create { key: key.to_owned(), value: "new".into(), ttl: None };
    // One that is not as expected: nothing happens, no revision is taken.
    let stale = Write::Update { key: "/r/a".into(), value: "2".into(), ttl: None, expected: 99 };
    assert!(matches!(s.write(vec![create("/r/b"), stale]).await, Err(StoreError::Conflict { .. })));
    assert!(matches!(s.write(vec![create("/r/b"), create("/r/a")]).await, Err(StoreError::AlreadyExists { .. })));
    assert_eq!(s.revision().await.unwrap(), a.mod_revision);
    let twice = s.write(vec![create("/r/b"), create("/r/b")]).await;
    assert!(matches!(twice, Err(StoreError::InvalidTransaction(_))), "{twice:?}");
    assert!(matches!(s.write(Vec::new()).await, Err(StoreError::InvalidTransaction(_))));
    let done = s
        .write(vec![
            create("/r/b"),
            Write::Delete { key: "/r/a".into(), expected: Some(a.mod_revision) },
            create("/r/c"),
        ])
        .await
        .unwrap();
    assert_eq!(done.iter().map(|(kv, _)| kv.key.as_str()).collect::<Vec<_>>(), ["/r/b", "/r/a", "/r/c"]);
    assert_eq!(done[1].0, a);
    assert_eq!(s.revision().await.unwrap(), done[2].1);
    for (kv, revision) in &done {
        let event = next_change(&mut watch).await;
        assert_eq!(revision_of(&event), Some(*revision));
        match event {
            WatchEvent::Put { kv: seen, prev: None } => assert_eq!(&seen, kv),
            WatchEvent::Delete { prev, .. } => assert_eq!(prev, a),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_and_nothing_written() {
    let (_dir, s) = open();
    let value = vec![0u8; causeway_store::MAX_REQUEST];
    let error = s.create("/r/a", value.clone().into()).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    let key = format!("/r/{}", "k".repeat(causeway_store::MAX_KEY));
    assert!(matches!(s.create(&key, "x".into()).await, Err(StoreError::TooLarge { .. })));
    let largest = Bytes::from(value[..causeway_store::MAX_REQUEST - 4].to_vec());
    let kv = s.create("/r/a", largest.clone()).await.unwrap();
    assert_eq!(s.get("/r/a", None).await.unwrap().0.unwrap().value, largest);
    assert_eq!(kv.mod_revision, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_and_streams_at_one_revision() {
    let (_dir, s) = open();
    for i in 0..2500 {
        s.create(&format!("/r/k{i:04}"), Bytes::from(vec![b'x'; 2000])).await.unwrap();
    }
    s.create("/s/other", "x".into()).await.unwrap();
    assert_eq!(s.count("/r/").await.unwrap().0, 2500);
    let mut streamed = s.stream("/r/").await.unwrap();
    let revision = s.revision().await.unwrap();
    assert_eq!(streamed.revision, revision);
    // What happens meanwhile is not seen, and neither does a compaction take anything away.
    for i in 0..2500 {
        s.delete(&format!("/r/k{i:04}"), None).await.unwrap();
    }
    s.compact(s.revision().await.unwrap()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let mut keys = Vec::new();
    while let Some(page) = streamed.pages.next().await {
        let page = page.unwrap();
        assert!(page.iter().map(|kv| kv.value.len()).sum::<usize>() < 2 << 20);
        keys.extend(page.into_iter().map(|kv| kv.key));
    }
    assert_eq!(keys, (0..2500).map(|i| format!("/r/k{i:04}")).collect::<Vec<_>>());
    assert_eq!(s.count("/r/").await.unwrap().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_a_time_goes_by_itself_unless_it_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let s = SledStore::open(dir.path(), SledOptions::default()).unwrap();
    let ttl = Some(Duration::from_secs(2));
    let create = |key: &str| Write::Create { key: key.to_owned(), value: "x".into(), ttl };
    let (goes, _) = s.write_one(create("/r/goes")).await.unwrap();
    let (stays, _) = s.write_one(create("/r/stays")).await.unwrap();
    s.update("/r/stays", "for ever".into(), stays.mod_revision).await.unwrap();
    let mut watch = s.watch("/r/goes", goes.mod_revision).await.unwrap();
    match next_change(&mut watch).await {
        WatchEvent::Delete { prev, .. } => assert_eq!(prev, goes),
        other => panic!("{other:?}"),
    }
    // A restart forgets no time, in the log and in a snapshot.
    s.write_one(create("/r/logged")).await.unwrap();
    drop((watch, s));
    causeway_store::offline::defrag(dir.path()).unwrap();
    let s = SledStore::open(dir.path(), SledOptions::default()).unwrap();
    tokio::time::timeout(Duration::from_secs(10), async {
        while s.get("/r/logged", None).await.unwrap().0.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(s.count("/r/").await.unwrap().0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_comes_when_it_is_asked_for() {
    let (_dir, s) = open();
    let mut watch = s.watch("/quiet/", 1).await.unwrap();
    let kv = s.create("/loud/x", "1".into()).await.unwrap();
    s.request_progress().await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(2), watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(event, WatchEvent::Progress(kv.mod_revision));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_increments_are_linearizable() {
    let (_dir, s) = open();
    s.create("/r/n", "0".into()).await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let s = s.clone();
            tokio::spawn(async move {
                let mut wins = Vec::new();
                while wins.len() < 40 {
                    let (kv, _) = s.get("/r/n", None).await.unwrap();
                    let kv = kv.unwrap();
                    let n: u64 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
                    let next = Bytes::from((n + 1).to_string());
                    match s.update("/r/n", next, kv.mod_revision).await {
                        Ok(_) => wins.push(n + 1),
                        Err(StoreError::Conflict { .. }) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
                assert!(wins.is_sorted());
                wins
            })
        })
        .collect();
    let mut all = Vec::new();
    for t in tasks {
        all.extend(t.await.unwrap());
    }
    all.sort_unstable();
    assert_eq!(all, (1..=320).collect::<Vec<u64>>());
}
