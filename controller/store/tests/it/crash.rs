//! `kill -9` in the middle of writes: no acknowledged write may be lost, and the log stays gap-free.

use causeway_store::{ListRequest, SledOptions, SledStore, Store, WatchEvent};
use futures::StreamExt;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const CHILD: &str = "CAUSEWAY_STORE_CRASH_DIR";
const ROUNDS: usize = 50;

/// Not a test by itself: the writer that gets killed. It prints `<key> <revision>` once a write is acknowledged.
#[test]
fn crash_child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = SledStore::open(Path::new(&dir), SledOptions::default()).unwrap();
        let store = std::sync::Arc::new(store);
        println!("ready 0");
        let writers: Vec<_> = (0..6)
            .map(|w| {
                let store = store.clone();
                tokio::spawn(async move {
                    let tag = std::process::id();
                    for i in 0.. {
                        let key = format!("/crash/{tag}-{w}-{i}");
                        let kv = store.create(&key, format!("{i}").into()).await.unwrap();
                        println!("{key} {}", kv.mod_revision);
                        if i % 3 == 2 {
                            let kv = store.update(&key, "updated".into(), kv.mod_revision).await.unwrap();
                            println!("{key} {}", kv.mod_revision);
                        }
                    }
                })
            })
            .collect();
        for w in writers {
            w.await.unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_in_fifty_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: HashMap<String, u64> = HashMap::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["it::crash::crash_child", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Kill after a different number of acknowledgements each time.
        let quota = 5 + (round * 37) % 400;
        let mut seen = 0;
        while seen < quota {
            let line = lines.next().expect("the writer ended by itself").unwrap();
            seen += usize::from(note(&mut acknowledged, &line));
        }
        child.kill().unwrap();
        // Lines that were written before the kill were acknowledged too; the last may be cut.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        for line in rest.iter().take(rest.len().saturating_sub(1)) {
            note(&mut acknowledged, line);
        }
        child.wait().unwrap();
    }
    let store = SledStore::open(dir.path(), SledOptions::default()).unwrap();
    let listing = store.list(ListRequest { prefix: "/crash/".into(), ..Default::default() }).await.unwrap();
    let found: HashMap<&str, u64> = listing.items.iter().map(|kv| (kv.key.as_str(), kv.mod_revision)).collect();
    for (key, revision) in &acknowledged {
        let there = found.get(key.as_str()).copied().unwrap_or(0);
        assert!(there >= *revision, "{key}: acknowledged at {revision}, found at {there}");
    }
    assert!(acknowledged.len() > ROUNDS);
    let end = store.revision().await.unwrap();
    let start = store.compacted().await.unwrap().max(1);
    let mut watch = store.watch("/", start).await.unwrap();
    for want in start + 1..=end {
        let event = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap().unwrap().unwrap();
        let WatchEvent::Put { kv, .. } = event else { panic!("{event:?}") };
        assert_eq!(kv.mod_revision, want);
    }
}

fn note(acknowledged: &mut HashMap<String, u64>, line: &str) -> bool {
    let Some((key, revision)) = line.split_once(' ').filter(|(k, _)| k.starts_with("/crash/")) else { return false };
    let Ok(revision) = revision.parse() else { return false };
    acknowledged.insert(key.to_owned(), revision);
    true
}
