//! etcd's promises, held to an engine: ordered, unique, atomic, reliable, resumable, bookmarkable; compare-and-swap;
//! reads at a revision; compaction.

use bytes::Bytes;
use causeway_store::{ListRequest, Revision, SledOptions, SledStore, Store, StoreError, WatchEvent};
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
async fn history_is_bounded_without_being_asked() {
    let dir = tempfile::tempdir().unwrap();
    let options = SledOptions { max_history: 500, ..SledOptions::default() };
    let s = SledStore::open(dir.path(), options).unwrap();
    let mut rev = s.create("/r/a", "0".into()).await.unwrap().mod_revision;
    for _ in 0..2000 {
        rev = s.update("/r/a", "x".into(), rev).await.unwrap().mod_revision;
    }
    for _ in 0..200 {
        if s.compacted().await.unwrap() + 600 > rev {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never compacted: {} of {rev}", s.compacted().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_is_told_to_list_again() {
    let (_dir, s) = open();
    let mut watch = s.watch("/r/", 1).await.unwrap();
    let mut rev = s.create("/r/a", "0".into()).await.unwrap().mod_revision;
    for _ in 0..6000 {
        rev = s.update("/r/a", "x".into(), rev).await.unwrap().mod_revision;
    }
    let mut seen = 0;
    loop {
        match watch.next().await.unwrap() {
            Ok(event) => seen = revision_of(&event).unwrap_or(seen),
            Err(StoreError::Compacted { .. }) => break,
            Err(other) => panic!("{other}"),
        }
        assert!(seen < rev, "the watcher saw everything: nothing was bounded");
    }
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
