//! The encrypted store over a real one: what others see is as without it, and what is on the disk is not.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use causeway_encryption::{Configuration, EncryptedStore, parse};
use causeway_store::{
    KeyValue, ListRequest, MAX_ADDED, MAX_KEY, MAX_REQUEST, SledOptions, SledStore, Store, StoreError, WatchEvent,
    Write, offline,
};
use futures::StreamExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PREFIX: &str = "/registry/core/secrets/";
const A: &str = "{name: a, secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=}";
const B: &str = "{name: b, secret: AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=}";

fn key(name: &str) -> String {
    format!("{PREFIX}default/{name}")
}

fn configuration(resources: &str, keys: &[&str], identity: bool) -> Configuration {
    let aesgcm = if keys.is_empty() { String::new() } else { format!("{{aesgcm: {{keys: [{}]}}}},", keys.join(",")) };
    let identity = if identity { "{identity: {}}" } else { "" };
    parse(&format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
         resources: [{{resources: {resources}, providers: [{aesgcm}{identity}]}}]"
    ))
    .unwrap()
}

fn secrets(keys: &[&str], identity: bool) -> Configuration {
    configuration("[secrets]", keys, identity)
}

struct Lab {
    dir: tempfile::TempDir,
    inner: Arc<dyn Store>,
    store: EncryptedStore,
}

fn lab(configuration: &Configuration) -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let inner: Arc<dyn Store> = Arc::new(SledStore::open(&dir.path().join("store"), SledOptions::default()).unwrap());
    Lab { dir, store: EncryptedStore::new(inner.clone(), configuration), inner }
}

impl Lab {
    async fn stored(&self, key: &str) -> KeyValue {
        self.inner.get(key, None).await.unwrap().0.unwrap()
    }

    async fn label(&self, key: &str) -> String {
        EncryptedStore::label(&self.stored(key).await.value)
    }

    /// The folder of the closed store.
    fn close(self) -> tempfile::TempDir {
        drop(self.store);
        assert_eq!(Arc::strong_count(&self.inner), 1);
        drop(self.inner);
        self.dir
    }
}

async fn next(watch: &mut causeway_store::WatchStream) -> WatchEvent {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap().unwrap().unwrap();
        if !matches!(event, WatchEvent::Progress(_)) {
            return event;
        }
    }
}

fn list(prefix: &str) -> ListRequest {
    ListRequest { prefix: prefix.to_owned(), ..ListRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_answers_as_without_encryption() {
    let lab = lab(&secrets(&[A], false));
    let (s, a, b) = (&lab.store, key("a"), key("b"));
    let mut watch = s.watch("/registry/", 1).await.unwrap();
    let made = s.create(&a, "1".into()).await.unwrap();
    assert_eq!((&made.value[..], made.create_revision, made.mod_revision), (&b"1"[..], 2, 2));
    let plain = s.create("/registry/core/configmaps/default/a", "plain".into()).await.unwrap();
    assert_eq!(lab.stored(&plain.key).await, plain, "what no rule names is stored as it is");
    assert!(lab.stored(&a).await.value.starts_with(b"k8s:enc:aesgcm:v1:a:"));
    assert!(matches!(s.create(&a, "x".into()).await, Err(StoreError::AlreadyExists { .. })));
    let changed = s.update(&a, "2".into(), 2).await.unwrap();
    match s.update(&a, "3".into(), 2).await {
        Err(StoreError::Conflict { current, .. }) => assert_eq!(*current, changed),
        other => panic!("{other:?}"),
    }
    let two = s
        .write(vec![
            Write::Create { key: b.clone(), value: "b".into(), ttl: None },
            Write::Update { key: a.clone(), value: "4".into(), ttl: None, expected: changed.mod_revision },
        ])
        .await
        .unwrap();
    assert_eq!(two.iter().map(|(kv, _)| &kv.value[..]).collect::<Vec<_>>(), [b"b", b"4"]);
    assert_eq!(s.get(&a, None).await.unwrap().0.unwrap().value, "4");
    assert_eq!(s.get(&a, Some(2)).await.unwrap().0.unwrap(), made);
    let page = s.list(ListRequest { limit: 1, ..list(PREFIX) }).await.unwrap();
    assert_eq!((page.items[0].value.clone(), page.remaining), (Bytes::from("4"), 1));
    let old = s.list(ListRequest { at: Some(2), ..list(PREFIX) }).await.unwrap();
    assert_eq!(old.items, std::slice::from_ref(&made));
    assert_eq!(s.count(PREFIX).await.unwrap().0, 2);
    let streamed: Vec<_> = s.stream(PREFIX).await.unwrap().pages.collect().await;
    let streamed: Vec<KeyValue> = streamed.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(streamed.iter().map(|kv| &kv.value[..]).collect::<Vec<_>>(), [b"4", b"b"]);
    let (last, revision) = s.delete(&a, None).await.unwrap();
    assert_eq!(last.value, "4");
    assert_eq!(next(&mut watch).await, WatchEvent::Put { kv: made.clone(), prev: None });
    assert!(matches!(next(&mut watch).await, WatchEvent::Put { kv, .. } if kv == plain));
    assert_eq!(next(&mut watch).await, WatchEvent::Put { kv: changed.clone(), prev: Some(made) });
    assert!(matches!(next(&mut watch).await, WatchEvent::Put { kv, .. } if kv.value == "b"));
    assert!(matches!(next(&mut watch).await, WatchEvent::Put { prev, .. } if prev == Some(changed)));
    assert_eq!(next(&mut watch).await, WatchEvent::Delete { prev: last, revision });
    s.request_progress().await.unwrap();
    assert_eq!(s.revision().await.unwrap(), revision);
    s.compact(revision).await.unwrap();
    assert_eq!(s.compacted().await.unwrap(), revision);
    assert!(matches!(s.get(&b, Some(2)).await, Err(StoreError::Compacted { .. })));
    assert!(s.health().writes.is_ok() && !s.collectors().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_was_moved_or_changed_is_refused_by_name() {
    let lab = lab(&secrets(&[A], false));
    let s = &lab.store;
    for name in ["a", "b", "c"] {
        s.create(&key(name), format!("of {name}").into()).await.unwrap();
    }
    let mut watch = s.watch(PREFIX, s.revision().await.unwrap()).await.unwrap();
    // Who can write the store's files gives b the password of a.
    let (from, to) = (lab.stored(&key("a")).await, lab.stored(&key("b")).await);
    lab.inner.update(&key("b"), from.value, to.mod_revision).await.unwrap();
    let is_refused = |error: StoreError| {
        assert!(matches!(&error, StoreError::Undecryptable { key: k, .. } if *k == key("b")), "{error}");
        let text = error.to_string();
        assert!(text.starts_with("/registry/core/secrets/default/b cannot be decrypted"), "{text}");
    };
    is_refused(s.get(&key("b"), None).await.unwrap_err());
    is_refused(s.list(list(PREFIX)).await.unwrap_err());
    let pages: Vec<_> = s.stream(PREFIX).await.unwrap().pages.collect().await;
    is_refused(pages.into_iter().next_back().unwrap().unwrap_err());
    let event = loop {
        match watch.next().await.unwrap() {
            Ok(WatchEvent::Progress(_)) => {}
            other => break other,
        }
    };
    is_refused(event.unwrap_err());
    assert!(watch.next().await.is_none(), "nothing follows what is missing");
    // The others can be read, and b can be deleted: that it happened is not hidden.
    assert_eq!(s.get(&key("a"), None).await.unwrap().0.unwrap().value, "of a");
    assert_eq!(s.rewrite().await.unwrap().unreadable, 1);
    assert!(matches!(s.delete(&key("b"), None).await, Err(StoreError::OutcomeUnknown { .. })));
    assert_eq!(s.list(list(PREFIX)).await.unwrap().items.len(), 2);
    // A plain value is none, where identity is not configured.
    lab.inner.create(&key("d"), "plain".into()).await.unwrap();
    assert!(s.get(&key("d"), None).await.unwrap_err().to_string().contains("identity"));
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_and_history_go_on_over_a_rotation() {
    let lab = lab(&secrets(&[A], true));
    let s = &lab.store;
    lab.inner.create(&key("old"), "plain".into()).await.unwrap();
    s.create(&key("a"), "1".into()).await.unwrap();
    let mut watch = s.watch(PREFIX, 1).await.unwrap();
    let before = s.revision().await.unwrap();
    // Also when the old key is taken away at once: history needs it.
    s.set(&secrets(&[B], false)).await;
    let a = s.get(&key("a"), None).await.unwrap().0.unwrap();
    s.update(&key("a"), "2".into(), a.mod_revision).await.unwrap();
    assert_eq!(lab.label(&key("a")).await, "aesgcm:b");
    let values = |event| match event {
        WatchEvent::Put { kv, prev } => (kv.value, prev.map(|p| p.value)),
        other => panic!("{other:?}"),
    };
    assert_eq!(values(next(&mut watch).await), ("plain".into(), None));
    assert_eq!(values(next(&mut watch).await), ("1".into(), None));
    assert_eq!(values(next(&mut watch).await), ("2".into(), Some("1".into())));
    let (done, event) = tokio::join!(s.rewrite(), next(&mut watch));
    let done = done.unwrap();
    assert_eq!((done.rewritten, done.unreadable), (1, 0));
    assert_eq!(values(event), ("plain".into(), Some("plain".into())));
    assert_eq!(lab.label(&key("old")).await, "aesgcm:b");
    assert_eq!(s.usage().await.unwrap(), [("aesgcm:b".to_owned(), 2)].into());
    assert!(matches!(s.get(&key("a"), Some(before)).await, Err(StoreError::Compacted { .. })));
    let revision = s.revision().await.unwrap();
    assert_eq!(s.rewrite().await.unwrap(), causeway_encryption::Rewritten::default());
    assert_eq!(s.revision().await.unwrap(), revision, "the second time there is nothing to do");
    // And back to plain.
    s.set(&secrets(&[], true)).await;
    assert_eq!(s.rewrite().await.unwrap().rewritten, 2);
    assert_eq!(lab.stored(&key("old")).await.value, "plain");
}

/// What a folder holds of a text: in the bytes of its files, and in the versions that its log and snapshots hold. (The log's
/// bytes are mixed with a number from the file's head, which hides text from `grep` and from nobody else.)
fn found(store: &Path, text: &str) -> (usize, usize) {
    fn walk(dir: &Path, text: &[u8], count: &mut usize) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, text, count);
            } else if std::fs::read(&path).unwrap().windows(text.len()).any(|w| w == text) {
                *count += 1;
            }
        }
    }
    let (mut files, mut versions) = (0, 0);
    let is_in = |value: &[u8]| value.windows(text.len()).any(|w| w == text.as_bytes());
    let mut count = |_: &str, value: Option<&[u8]>| versions += usize::from(value.is_some_and(is_in));
    offline::check_with(store, &mut count).unwrap();
    walk(store, text.as_bytes(), &mut files);
    (files, versions)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_plain_is_left_in_any_file() {
    const PASSWORD: &str = "correct-horse-battery-staple";
    let plain = lab(&secrets(&[], true));
    for i in 0..100 {
        let value = format!("{{\"password\":\"{PASSWORD}-{i}\"}}");
        plain.store.create(&key(&format!("s{i}")), value.into()).await.unwrap();
    }
    plain.store.delete(&key("s0"), None).await.unwrap();
    let dir = plain.close();
    let store = dir.path().join("store");
    let (files, versions) = found(&store, PASSWORD);
    assert!(files > 0 && versions == 100, "{files} files, {versions} versions: the search finds what is there");
    let inner: Arc<dyn Store> = Arc::new(SledStore::open(&store, SledOptions::default()).unwrap());
    let encrypted = EncryptedStore::new(inner.clone(), &secrets(&[A], true));
    assert_eq!(encrypted.rewrite().await.unwrap().rewritten, 99);
    assert_eq!(
        encrypted.get(&key("s7"), None).await.unwrap().0.unwrap().value,
        format!("{{\"password\":\"{PASSWORD}-7\"}}")
    );
    encrypted.create(&key("new"), format!("{PASSWORD}-new").into()).await.unwrap();
    drop((encrypted, inner));
    assert_eq!(found(&store, PASSWORD), (0, 0));
    let inner: Arc<dyn Store> = Arc::new(SledStore::open(&store, SledOptions::default()).unwrap());
    let encrypted = EncryptedStore::new(inner, &secrets(&[A], false));
    assert_eq!(encrypted.list(list(PREFIX)).await.unwrap().items.len(), 100);
}

/// A process that was killed after the values and before the files.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_off_before_the_files_were_clean_is_finished() {
    let lab = lab(&secrets(&[A], true));
    lab.inner.create(&key("a"), "hunter2-hunter2".into()).await.unwrap();
    let rewriting = tokio::spawn({
        let store = lab.store.clone();
        async move { store.rewrite().await }
    });
    while lab.label(&key("a")).await != "aesgcm:a" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rewriting.abort();
    drop(rewriting.await);
    let dir = lab.close();
    let store = dir.path().join("store");
    assert!(found(&store, "hunter2-hunter2").1 > 0);
    let inner: Arc<dyn Store> = Arc::new(SledStore::open(&store, SledOptions::default()).unwrap());
    let again = EncryptedStore::new(inner, &secrets(&[A], true));
    assert_eq!(again.rewrite().await.unwrap().rewritten, 0);
    drop(again);
    assert_eq!(found(&store, "hunter2-hunter2"), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_lose_nothing_to_a_rotation_beside_them() {
    const COUNTERS: usize = 8;
    let lab = lab(&secrets(&[], true));
    for i in 0..COUNTERS {
        lab.store.create(&key(&format!("c{i}")), "0".into()).await.unwrap();
    }
    for i in 0..300 {
        lab.store.create(&key(&format!("still{i}")), "x".into()).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..COUNTERS * 2)
        .map(|i| {
            let (store, stop, key) = (lab.store.clone(), stop.clone(), key(&format!("c{}", i % COUNTERS)));
            tokio::spawn(async move {
                let mut counted = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let kv = store.get(&key, None).await.unwrap().0.unwrap();
                    let number: u64 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
                    match store.update(&key, (number + 1).to_string().into(), kv.mod_revision).await {
                        Ok(_) => counted += 1,
                        Err(StoreError::Conflict { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                counted
            })
        })
        .collect();
    for (keys, label) in [(&[A][..], "aesgcm:a"), (&[B, A], "aesgcm:b"), (&[A, B], "aesgcm:a")] {
        lab.store.set(&secrets(keys, true)).await;
        let done = lab.store.rewrite().await.unwrap();
        assert!(done.rewritten >= 300 && done.unreadable == 0, "{done:?}");
        assert_eq!(lab.store.usage().await.unwrap(), [(label.to_owned(), 300 + COUNTERS as u64)].into());
    }
    stop.store(true, Ordering::Relaxed);
    let mut counted = 0;
    for writer in writers {
        counted += writer.await.unwrap();
    }
    let mut sum = 0;
    for i in 0..COUNTERS {
        let kv = lab.store.get(&key(&format!("c{i}")), None).await.unwrap().0.unwrap();
        sum += std::str::from_utf8(&kv.value).unwrap().parse::<u64>().unwrap();
    }
    assert!(counted > 0);
    assert_eq!(sum, counted, "each increment is there once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_object_fits_with_what_encryption_adds() {
    let long = "{name: KKKK, secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=}".replace("KKKK", &"k".repeat(128));
    let lab = lab(&secrets(&[&long], false));
    let largest = Bytes::from(vec![b'x'; MAX_REQUEST - MAX_KEY - MAX_ADDED]);
    let key = format!("{PREFIX}{}", "n".repeat(MAX_KEY - PREFIX.len()));
    lab.store.create(&key, largest.clone()).await.unwrap();
    assert_eq!(lab.store.get(&key, None).await.unwrap().0.unwrap().value, largest);
    let larger = Bytes::from(vec![b'x'; MAX_REQUEST - key.len()]);
    assert!(matches!(lab.store.update(&key, larger, 2).await, Err(StoreError::TooLarge { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_encrypted_and_still_go_by_themselves() {
    let lab = lab(&configuration("['*.*']", &[A], true));
    let (old, new) = ("/registry/core/events/default/old", "/registry/core/events/default/new");
    let event = |key: &str| Write::Create { key: key.into(), value: "e".into(), ttl: Some(Duration::from_secs(3)) };
    lab.inner.write_one(event(old)).await.unwrap();
    lab.store.write_one(event(new)).await.unwrap();
    lab.inner.create("/registry/causeway/nodeports/30000", "internal".into()).await.unwrap();
    assert_eq!(lab.label(new).await, "aesgcm:a");
    let done = lab.store.rewrite().await.unwrap();
    assert_eq!((done.rewritten, done.expiring), (0, 1));
    assert_eq!(lab.stored("/registry/causeway/nodeports/30000").await.value, "internal");
    for _ in 0..100 {
        if lab.store.count("/registry/core/events/").await.unwrap().0 == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("they stay");
}
