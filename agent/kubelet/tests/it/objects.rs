//! What the kubelet asks the API for: each object that pods name once, then nothing until it changes.

use crate::house::{House, eventually, object, uid};
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The sum of a metric of the API server over all lines that have these labels.
async fn metric(house: &House, name: &str, labels: &[&str]) -> u64 {
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = house.client.request_text(request).await.unwrap();
    let lines = text.lines().filter(|l| l.starts_with(&format!("{name}{{")) && labels.iter().all(|w| l.contains(w)));
    lines.map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Requests of all verbs for ConfigMaps, Secrets and tokens until now.
async fn requests(house: &House) -> u64 {
    let mut all = 0;
    for resource in ["configmaps", "secrets", "serviceaccounts"] {
        all += metric(house, "apiserver_request_total", &[&format!("resource=\"{resource}\"")]).await;
    }
    all
}

/// Watches of ConfigMaps and of Secrets that are open.
async fn watches(house: &House) -> (u64, u64) {
    let open = async |resource: &str| {
        metric(house, "apiserver_longrunning_requests", &[&format!("resource=\"{resource}\"")]).await
    };
    (open("configmaps").await, open("secrets").await)
}

async fn until_watches(house: &House, wanted: (u64, u64)) {
    let what = format!("{wanted:?} ConfigMaps and Secrets are watched");
    eventually(&what, async || (watches(house).await == wanted).then_some(())).await;
}

fn spec() -> Value {
    json!({
        "automountServiceAccountToken": false,
        "volumes": [
            {"name": "m", "configMap": {"name": "m"}},
            {"name": "s", "secret": {"secretName": "s"}},
            {"name": "f", "configMap": {"name": "fixed"}},
            {"name": "o", "configMap": {"name": "later", "optional": true}},
            {"name": "d", "downwardAPI": {"items": [{"path": "note", "fieldRef": {"fieldPath": "metadata.annotations['note']"}}]}},
            {"name": "t", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
                {"configMap": {"name": "m", "items": [{"key": "k", "path": "k"}]}}]}}],
        "containers": [{"command": ["/bin/sleep", "1000"]}]})
}

fn file(house: &House, uid: &str, path: &str) -> PathBuf {
    house.dir.path().join("kubelet/pods").join(uid).join("volumes").join(path)
}

async fn until_file(house: &House, uid: &str, path: &str, words: &str) {
    let file = file(house, uid, path);
    eventually(&format!("{} has {words:?}", file.display()), async || {
        std::fs::read_to_string(&file).ok().filter(|t| t == words)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_followed_and_not_asked_for_again() {
    let house = House::new().await;
    let maps: Api<ConfigMap> = Api::namespaced(house.client.clone(), "default");
    let secrets: Api<Secret> = Api::namespaced(house.client.clone(), "default");
    let (post, merge) = (PostParams::default(), PatchParams::default());
    let fixed =
        |k: &str| -> ConfigMap { object(json!({"metadata": {"name": "fixed"}, "immutable": true, "data": {"k": k}})) };
    maps.create(&post, &object(json!({"metadata": {"name": "m"}, "data": {"k": "one"}}))).await.unwrap();
    maps.create(&post, &fixed("old")).await.unwrap();
    secrets.create(&post, &object(json!({"metadata": {"name": "s"}, "stringData": {"k": "word"}}))).await.unwrap();
    until_watches(&house, (0, 0)).await;
    let first = uid(&house.create("a", spec()).await);
    house.until_ready("a").await;
    // One a name, also for what is not there yet; none for what is immutable.
    until_watches(&house, (2, 1)).await;
    let second = uid(&house.create("b", spec()).await);
    house.until_ready("b").await;
    assert_eq!(watches(&house).await, (2, 1));

    // Volumes are looked at again and again: nobody is asked.
    let before = requests(&house).await;
    for note in ["x", "y", "z"] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let note_of = json!({"metadata": {"annotations": {"note": note}}});
        house.pods().patch("a", &merge, &Patch::Merge(&note_of)).await.unwrap();
        until_file(&house, &first, "kubernetes.io~downward-api/d/note", note).await;
    }
    assert_eq!(requests(&house).await, before, "a quiet pod asks for nothing");

    // A change comes to all pods at once, in every volume that shows it.
    let changed = Instant::now();
    maps.patch("m", &merge, &Patch::Merge(&json!({"data": {"k": "two"}}))).await.unwrap();
    secrets.patch("s", &merge, &Patch::Merge(&json!({"stringData": {"k": "other"}}))).await.unwrap();
    maps.create(&post, &object(json!({"metadata": {"name": "later"}, "data": {"k": "came"}}))).await.unwrap();
    for pod in [&first, &second] {
        until_file(&house, pod, "kubernetes.io~configmap/m/k", "two").await;
        until_file(&house, pod, "kubernetes.io~projected/t/k", "two").await;
        until_file(&house, pod, "kubernetes.io~secret/s/k", "other").await;
        until_file(&house, pod, "kubernetes.io~configmap/o/k", "came").await;
    }
    // A second, usually; machines that run tests are busy. Volumes are looked at by themselves only after a minute.
    assert!(changed.elapsed() < Duration::from_secs(10), "{:?}", changed.elapsed());

    // An immutable one that was made again is what a pod sees that comes after it.
    maps.delete("fixed", &DeleteParams::default()).await.unwrap();
    maps.create(&post, &fixed("new")).await.unwrap();
    let third = uid(&house.create("c", spec()).await);
    house.until_ready("c").await;
    until_file(&house, &third, "kubernetes.io~configmap/f/k", "new").await;
    assert_eq!(watches(&house).await, (2, 1));

    for name in ["a", "b"] {
        house.delete(name).await;
    }
    assert_eq!(watches(&house).await, (2, 1));
    house.delete("c").await;
    until_watches(&house, (0, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_pod_follows_nothing() {
    let house = House::new().await;
    let maps: Api<ConfigMap> = Api::namespaced(house.client.clone(), "default");
    maps.create(&PostParams::default(), &object(json!({"metadata": {"name": "m"}}))).await.unwrap();
    let spec = json!({"restartPolicy": "Never", "automountServiceAccountToken": false,
        "volumes": [{"name": "m", "configMap": {"name": "m"}}],
        "containers": [{"command": ["/bin/sleep", "2"]}]});
    house.create("job", spec).await;
    until_watches(&house, (1, 0)).await;
    house.until("job", "succeeds", |s| s["phase"] == "Succeeded").await;
    until_watches(&house, (0, 0)).await;
}

/// All of a node comes on one connection: hundreds of watches must leave room for its lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_finds_room_beside_the_watches_of_a_full_node() {
    let house = House::new().await;
    let node = house.node_over_tls();
    let maps: Api<ConfigMap> = Api::namespaced(node.clone(), "default");
    let open = (0..1500).map(|n| {
        let config = watcher::Config::default().fields(&format!("metadata.name=m{n}"));
        causeway_api::watch::watch(maps.clone(), config)
    });
    let mut all = futures::stream::select_all(open);
    tokio::spawn(async move { while all.next().await.is_some() {} });
    until_watches(&house, (1500, 0)).await;
    let leases: Api<Lease> = Api::namespaced(node, "kube-node-lease");
    let asked = tokio::time::timeout(Duration::from_secs(5), leases.list(&ListParams::default())).await;
    asked.expect("the lease does not wait for a watch to end").unwrap();
}
