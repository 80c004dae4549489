//! What the server says of its store, while the disk under it is full and otherwise.

use crate::support::{eventually, start_on};
use crate::wire::{JSON, ask};
use causeway_store::{SledOptions, SledStore};
use http::Method;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

/// A small file system that is unmounted when dropped.
struct Tmpfs(PathBuf);

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> String {
    json!({ "metadata": { "name": name }, "data": { "k": "v" } }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_by_readiness_and_each_write_and_ends_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    std::fs::create_dir(&path).unwrap();
    mount(Some("causeway-test"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=64m")).expect("needs root");
    let tmpfs = Tmpfs(path.clone());
    let options = SledOptions { reserve: 16 << 20, ..SledOptions::default() };
    let running = start_on(dir, Arc::new(SledStore::open(&path.join("s"), options).unwrap())).await;
    let code = |path: &'static str| async { ask(&running, Method::GET, path, &[], String::new()).await.code };
    assert_eq!((code("/readyz").await, code("/livez").await), (200, 200));

    std::fs::write(path.join("ballast"), vec![0u8; 50 << 20]).unwrap();
    eventually("not ready", || async { (code("/readyz").await == 500).then_some(()) }).await;
    let told = ask(&running, Method::GET, "/readyz?verbose", &[], String::new()).await;
    assert!(told.text.contains("[-]etcd-readiness failed: the disk under the store is full"), "{}", told.text);
    // To start again would not help.
    assert_eq!(code("/livez").await, 200);
    let refused = ask(&running, Method::POST, MAPS, &[JSON], map("a")).await;
    assert_eq!(refused.code, 507);
    assert_eq!(ask(&running, Method::GET, MAPS, &[], String::new()).await.code, 200);

    std::fs::remove_file(path.join("ballast")).unwrap();
    eventually("ready again", || async { (code("/readyz").await == 200).then_some(()) }).await;
    assert_eq!(ask(&running, Method::POST, MAPS, &[JSON], map("a")).await.code, 201);
    let metrics = ask(&running, Method::GET, "/metrics", &[], String::new()).await;
    for name in ["etcd_disk_wal_fsync_duration_seconds_count", "etcd_debugging_mvcc_current_revision"] {
        assert!(metrics.text.contains(name), "{name} is missing");
    }
    running.shutdown.cancel();
    drop(tmpfs);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_does_not_take_is_refused_as_too_large() {
    let running = crate::support::start().await;
    let env = json!([{ "name": "LONG", "value": "x".repeat(1 << 20) }]);
    let container = |name: &str| json!({ "name": name, "image": "i", "env": env });
    let pod = json!({ "metadata": { "name": "a" }, "spec": { "containers": [container("a"), container("b")] } });
    let answer = ask(&running, Method::POST, "/api/v1/namespaces/default/pods", &[JSON], pod.to_string()).await;
    let status = answer.json();
    assert_eq!((answer.code, &status["reason"]), (413, &json!("RequestEntityTooLarge")), "{status}");
    assert!(status["message"].as_str().unwrap().contains("entity too large"), "{status}");
}
