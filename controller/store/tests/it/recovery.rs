//! What is on disk after an end that was not orderly, or is damaged: brought back whole, or refused by name. And what an
//! operator does about it.

use bytes::Bytes;
use causeway_store::{ListRequest, SledOptions, SledStore, Store, StoreError, offline};
use futures::StreamExt;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn open(dir: &Path) -> SledStore {
    SledStore::open(dir, SledOptions::default()).unwrap()
}

type State = BTreeMap<String, (u64, u64, Bytes)>;

async fn state(s: &dyn Store) -> State {
    let all = s.list(ListRequest { prefix: "/".into(), ..Default::default() }).await.unwrap();
    all.items.into_iter().map(|kv| (kv.key, (kv.create_revision, kv.mod_revision, kv.value))).collect()
}

/// Some keys, with updates and deletions.
async fn filled(dir: &Path, rounds: usize) -> State {
    let s = open(dir);
    for i in 0..rounds {
        let key = format!("/r/{:03}", i % 40);
        match s.get(&key, None).await.unwrap().0 {
            None => drop(s.create(&key, Bytes::from(vec![i as u8; 500])).await.unwrap()),
            Some(_) if i % 3 == 0 => drop(s.delete(&key, None).await.unwrap()),
            Some(kv) => drop(s.update(&key, Bytes::from(vec![i as u8; 700]), kv.mod_revision).await.unwrap()),
        }
    }
    state(&s).await
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(dir.join("log")).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

fn flip(path: &Path, offset: usize) {
    let mut raw = fs::read(path).unwrap();
    raw[offset] ^= 16;
    fs::write(path, raw).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_made_anew_whatever_is_left_of_sled() {
    let dir = tempfile::tempdir().unwrap();
    let want = filled(dir.path(), 200).await;
    // Orderly: sled is used as it is.
    assert!(dir.path().join("clean").exists());
    let s = open(dir.path());
    assert!(!dir.path().join("clean").exists() && dir.path().join("values-1").exists());
    assert_eq!(state(&s).await, want);
    drop(s);
    // Without its note, with torn files, or without any, it is not.
    fs::remove_file(dir.path().join("clean")).unwrap();
    drop(open(dir.path()));
    assert!(dir.path().join("values-2").exists() && !dir.path().join("values-1").exists());
    fs::write(dir.path().join("values-2/db"), vec![7u8; 4000]).unwrap();
    assert_eq!(state(&open(dir.path())).await, want);
    for entry in fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        if entry.file_name().to_string_lossy().starts_with("values-") {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    assert_eq!(state(&open(dir.path())).await, want);
}

#[tokio::test(flavor = "multi_thread")]
async fn sled_that_has_lost_values_is_made_anew_while_the_store_runs() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 100).await);
    let want = state(&open(dir.path())).await;
    // An orderly end, and then somebody takes the values away: sled opens, and has none.
    fs::remove_dir_all(dir.path().join("values-1")).unwrap();
    let s = open(dir.path());
    let created = s.create("/r/new", "there".into()).await.unwrap();
    let mut now = state(&s).await;
    assert_eq!(now.remove("/r/new"), Some((created.create_revision, created.mod_revision, "there".into())));
    assert_eq!(now, want);
    assert_eq!(s.health().verdict(), Ok(()));
    // History too.
    let mut watch = s.watch("/", 1).await.unwrap();
    for want in 2..=created.mod_revision {
        let event = watch.next().await.unwrap().unwrap();
        let revision = match event {
            causeway_store::WatchEvent::Put { kv, .. } => kv.mod_revision,
            causeway_store::WatchEvent::Delete { revision, .. } => revision,
            causeway_store::WatchEvent::Progress(_) => continue,
        };
        assert_eq!(revision, want);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_refused_by_name_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let want = filled(dir.path(), 120).await;
    let segment = segments(dir.path()).pop().unwrap();
    let whole = fs::read(&segment).unwrap();
    // Not only in the middle: the last acknowledged write too.
    for offset in [100, 3000, whole.len() / 2, whole.len() - 30] {
        flip(&segment, offset);
        let error = SledStore::open(dir.path(), SledOptions::default()).err().unwrap();
        let StoreError::Damaged(damage) = &error else { panic!("{error}") };
        assert_eq!(damage.file, segment);
        assert!(damage.offset as usize <= offset, "{error}");
        assert!(error.to_string().contains("causeway store"), "{error}");
        let report = offline::check(dir.path()).unwrap();
        assert_eq!(report.damage, [(**damage).clone()]);
        fs::write(&segment, &whole).unwrap();
    }
    assert_eq!(state(&open(dir.path())).await, want);
    assert!(offline::check(dir.path()).unwrap().damage.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn salvage_goes_on_with_what_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path());
    let first = s.create("/r/first", "1".into()).await.unwrap();
    let middle = fs::metadata(&segments(dir.path())[0]).unwrap().len();
    s.create("/r/second", "2".into()).await.unwrap();
    drop(s);
    assert!(offline::salvage(dir.path(), 1000).unwrap().is_none());
    flip(&segments(dir.path())[0], middle as usize + 10);
    let salvaged = offline::salvage(dir.path(), 1000).unwrap().unwrap();
    assert_eq!((salvaged.whole, salvaged.revision), (first.mod_revision, first.mod_revision + 1000));
    assert!(salvaged.set_aside.join("log").is_dir());
    let s = open(dir.path());
    assert_eq!(state(&s).await.into_keys().collect::<Vec<_>>(), ["/r/first"]);
    // Nobody goes on from where the lost write was.
    assert!(matches!(s.watch("/r/", first.mod_revision + 1).await.err(), Some(StoreError::Compacted { .. })));
    assert_eq!(s.create("/r/third", "3".into()).await.unwrap().mod_revision, salvaged.revision + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_running_store_makes_the_same_store() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let want = filled(dir.path(), 300).await;
    let s = open(dir.path());
    let revision = s.revision().await.unwrap();
    let mut snapshot = s.snapshot().await.unwrap();
    s.create("/r/later", "not in it".into()).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = snapshot.bytes.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(snapshot.revision, revision);
    assert_eq!(offline::verify(&mut bytes.as_slice()).unwrap().revision, revision);
    let restored = offline::restore(&other.path().join("store"), &mut bytes.as_slice(), 1_000_000).unwrap();
    assert_eq!((restored.revision, restored.keys), (revision + 1_000_000, want.len() as u64));
    let r = open(&other.path().join("store"));
    assert_eq!(state(&r).await, want);
    assert!(matches!(r.watch("/r/", revision).await.err(), Some(StoreError::Compacted { .. })));
    // Cut off, changed or not empty: no store.
    for (i, cut) in [0, 100, bytes.len() / 2, bytes.len() - 1].into_iter().enumerate() {
        let target = other.path().join(format!("cut-{i}"));
        assert!(offline::restore(&target, &mut &bytes[..cut], 0).is_err());
        assert!(fs::read_dir(&target).unwrap().all(|e| e.unwrap().file_name() == "lock"));
    }
    for at in [5, 700, bytes.len() - 20] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(offline::verify(&mut changed.as_slice()).is_err());
    }
    assert!(offline::restore(&other.path().join("store"), &mut bytes.as_slice(), 0).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn defrag_leaves_one_snapshot_and_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let want = filled(dir.path(), 400).await;
    let revision = open(dir.path()).revision().await.unwrap();
    offline::defrag(dir.path()).unwrap();
    assert_eq!(segments(dir.path()).len(), 1);
    assert!(fs::metadata(&segments(dir.path())[0]).unwrap().len() <= 512);
    let report = offline::check(dir.path()).unwrap();
    assert_eq!((report.revision, report.keys), (revision, want.len() as u64));
    let s = open(dir.path());
    assert_eq!(state(&s).await, want);
    assert!(matches!(offline::check(dir.path()), Err(StoreError::Locked { .. })));
}

/// Values before the last: none of it is left.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_replaced_or_deleted_is_in_no_file_after_a_scrub_or_defrag() {
    async fn held(dir: &Path) -> usize {
        let mut held = 0;
        let mut count =
            |_: &str, value: Option<&[u8]>| held += usize::from(value.is_some_and(|v| v.starts_with(b"old")));
        offline::check_with(dir, &mut count).unwrap();
        held
    }
    for how in ["scrub", "defrag"] {
        let dir = tempfile::tempdir().unwrap();
        let s = open(dir.path());
        for i in 0..50 {
            let key = format!("/r/{i}");
            let kv = s.create(&key, format!("old-{i}").into()).await.unwrap();
            match i % 2 {
                0 => drop(s.update(&key, "new".into(), kv.mod_revision).await.unwrap()),
                _ => drop(s.delete(&key, None).await.unwrap()),
            }
        }
        let revision = s.revision().await.unwrap();
        if how == "scrub" {
            // Others write meanwhile.
            let (scrubbed, written) = tokio::join!(s.scrub(revision), s.create("/r/later", "later".into()));
            scrubbed.unwrap();
            written.unwrap();
            assert_eq!(s.count("/r/").await.unwrap().0, 26);
        }
        drop(s);
        if how == "defrag" {
            assert_eq!(held(dir.path()).await, 50);
            offline::defrag(dir.path()).unwrap();
        }
        assert_eq!(held(dir.path()).await, 0, "{how}");
        for entry in fs::read_dir(dir.path()).unwrap().flatten().filter(|e| e.file_name() != "log") {
            let files = match entry.path().is_dir() {
                true => fs::read_dir(entry.path()).unwrap().flatten().map(|e| e.path()).collect(),
                false => vec![entry.path()],
            };
            for file in files.iter().filter(|f| f.is_file()) {
                assert!(!fs::read(file).unwrap().windows(4).any(|w| w == b"old-"), "{how}: {}", file.display());
            }
        }
        assert!(open(dir.path()).get("/r/0", None).await.unwrap().0.is_some_and(|kv| kv.value == "new"), "{how}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_can_read_a_store() {
    use std::os::unix::fs::PermissionsExt;
    fn open_to_others(dir: &Path) -> Vec<std::path::PathBuf> {
        let mut all = vec![dir.to_owned()];
        for entry in fs::read_dir(dir).unwrap().flatten() {
            match entry.path().is_dir() {
                true => all.extend(open_to_others(&entry.path())),
                false => all.push(entry.path()),
            }
        }
        // What sled makes is as the umask is, in a folder that nobody else enters.
        let sleds = |p: &Path| p.parent().is_some_and(|d| d.to_string_lossy().contains("/values-"));
        all.retain(|p| fs::metadata(p).unwrap().permissions().mode() & 0o077 != 0 && !sleds(p));
        all
    }
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("store");
    filled(&dir, 50).await;
    offline::defrag(&dir).unwrap();
    assert_eq!(open_to_others(&dir), Vec::<std::path::PathBuf>::new());
    // One of a version that did not care.
    for path in [dir.clone(), dir.join("log"), dir.join("lock"), segments(&dir).pop().unwrap()] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    drop(open(&dir));
    assert_eq!(open_to_others(&dir), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_cut_by_snapshots_and_nothing_lost() {
    let dir = tempfile::tempdir().unwrap();
    let options = SledOptions { log: 4 << 20, ..SledOptions::default() };
    let s = std::sync::Arc::new(SledStore::open(dir.path(), options).unwrap());
    // 20 MB, of which little is live.
    let writers = (0..8).map(|w| {
        let s = s.clone();
        tokio::spawn(async move {
            let key = format!("/r/{w}");
            let mut kv = s.create(&key, "0".into()).await.unwrap();
            for i in 0..50u8 {
                kv = s.update(&key, vec![i; 50 << 10].into(), kv.mod_revision).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    s.compact(s.revision().await.unwrap()).await.unwrap();
    let first = dir.path().join("log/000000000001");
    let begin = std::time::Instant::now();
    while first.exists() || s.log_bytes() > 24 << 20 {
        assert!(begin.elapsed().as_secs() < 60, "{} bytes of log", s.log_bytes());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let want = state(&*s).await;
    drop(s);
    fs::remove_file(dir.path().join("clean")).unwrap();
    let s = open(dir.path());
    assert_eq!(state(&s).await, want);
    assert!(
        fs::read_dir(dir.path()).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().starts_with("snapshot-"))
    );
}
