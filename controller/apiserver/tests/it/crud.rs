//! Objects come, change and go as Kubernetes' clients expect.

use crate::support::{eventually, start, start_on};
use causeway_api::identity::UserInfo;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    object(json!({ "metadata": { "name": name, "labels": { "app": name } }, "data": { "key": value } }))
}

fn code<T: std::fmt::Debug>(outcome: Result<T, kube::Error>) -> (u16, String, String) {
    match outcome {
        Err(kube::Error::Api(status)) => (status.code, status.reason.clone(), status.message.clone()),
        other => panic!("an API error was expected, not {other:?}"),
    }
}

async fn round_trip(client: Client) {
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let created = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    assert!(created.uid().is_some() && created.creation_timestamp().is_some());
    let (c, reason, message) = code(api.create(&PostParams::default(), &config_map("a", "1")).await);
    assert_eq!((c, reason.as_str(), message.as_str()), (409, "AlreadyExists", "configmaps \"a\" already exists"));

    let mut changed = created.clone();
    changed.data.as_mut().unwrap().insert("key".into(), "2".into());
    let replaced = api.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_ne!(replaced.resource_version(), created.resource_version());
    let (c, reason, message) = code(api.replace("a", &PostParams::default(), &changed).await);
    assert_eq!((c, reason.as_str()), (409, "Conflict"));
    assert!(message.ends_with("please apply your changes to the latest version and try again"), "{message}");

    let merge = Patch::Merge(json!({ "data": { "key": null, "other": "3" } }));
    let patched = api.patch("a", &PatchParams::default(), &merge).await.unwrap();
    assert_eq!(patched.data, Some(BTreeMap::from([("other".to_owned(), "3".to_owned())])));
    let same = api.patch("a", &PatchParams::default(), &merge).await.unwrap();
    assert_eq!(same.resource_version(), patched.resource_version(), "a patch without effect writes nothing");

    assert_eq!(api.get("a").await.unwrap(), patched);
    assert!(api.list(&ListParams::default().labels("app=a")).await.unwrap().items.len() == 1);
    assert!(api.list(&ListParams::default().labels("app!=a")).await.unwrap().items.is_empty());
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let (c, reason, message) = code(api.get("a").await);
    assert_eq!((c, reason.as_str(), message.as_str()), (404, "NotFound", "configmaps \"a\" not found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_round_trip_in_memory_and_over_tls() {
    let running = start().await;
    round_trip(running.admin()).await;
    round_trip(running.over_tls(&UserInfo::admin()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn system_objects_are_there() {
    let running = start().await;
    let namespaces: Api<Namespace> = Api::all(running.admin());
    let names: Vec<_> =
        namespaces.list(&ListParams::default()).await.unwrap().items.iter().map(|n| n.name_any()).collect();
    assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system"]);
    let services: Api<Service> = Api::all(running.admin());
    let all = services.list(&ListParams::default()).await.unwrap().items;
    let ip = |name: &str| all.iter().find(|s| s.name_any() == name).unwrap().spec.clone().unwrap().cluster_ip.unwrap();
    assert_eq!((ip("kubernetes"), ip("kube-dns")), ("10.96.0.1".to_owned(), "10.96.0.10".to_owned()));
    let (c, _, message) = code(namespaces.delete("default", &DeleteParams::default()).await.map(drop));
    assert_eq!((c, message.as_str()), (403, "namespaces \"default\" is forbidden: this namespace may not be deleted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_must_exist() {
    let running = start().await;
    let api: Api<ConfigMap> = Api::namespaced(running.admin(), "nowhere");
    let (c, _, message) = code(api.create(&PostParams::default(), &config_map("a", "1")).await);
    assert_eq!((c, message.as_str()), (404, "namespaces \"nowhere\" not found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_consistent() {
    let running = start().await;
    let api: Api<ConfigMap> = Api::namespaced(running.admin(), "default");
    for i in 0..7 {
        api.create(&PostParams::default(), &config_map(&format!("c{i}"), "x")).await.unwrap();
    }
    let first = api.list(&ListParams::default().limit(3)).await.unwrap();
    assert_eq!(first.metadata.remaining_item_count, Some(4));
    api.delete("c4", &DeleteParams::default()).await.unwrap();
    let mut names: Vec<String> = first.items.iter().map(|c| c.name_any()).collect();
    let mut token = first.metadata.continue_;
    while let Some(next) = token.filter(|t| !t.is_empty()) {
        let page = api.list(&ListParams::default().limit(3).continue_token(&next)).await.unwrap();
        assert_eq!(page.metadata.resource_version, first.metadata.resource_version);
        names.extend(page.items.iter().map(|c| c.name_any()));
        token = page.metadata.continue_;
    }
    assert_eq!(names, ["c0", "c1", "c2", "c3", "c4", "c5", "c6"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_follow_a_selection() {
    let running = start().await;
    let api: Api<ConfigMap> = Api::namespaced(running.admin(), "default");
    api.create(&PostParams::default(), &config_map("in", "1")).await.unwrap();
    let version = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let params = WatchParams::default().labels("app=in");
    let mut events = api.watch(&params, &version).await.unwrap().boxed();
    api.create(&PostParams::default(), &config_map("out", "1")).await.unwrap();
    let label = |value: &str| Patch::Merge(json!({ "metadata": { "labels": { "app": value } } }));
    api.patch("in", &PatchParams::default(), &Patch::Merge(json!({ "data": { "key": "2" } }))).await.unwrap();
    api.patch("out", &PatchParams::default(), &label("in")).await.unwrap();
    api.patch("in", &PatchParams::default(), &label("no")).await.unwrap();
    api.delete("out", &DeleteParams::default()).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        match events.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(o) => seen.push(format!("+{}", o.name_any())),
            WatchEvent::Modified(o) => seen.push(format!("~{}", o.name_any())),
            WatchEvent::Deleted(o) => seen.push(format!("-{}", o.name_any())),
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(e) => panic!("{e:?}"),
        }
    }
    assert_eq!(seen, ["~in", "+out", "-in", "-out"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn streaming_lists_and_watchers_of_the_runtime() {
    use kube::runtime::watcher;
    let running = start().await;
    let api: Api<ConfigMap> = Api::namespaced(running.over_tls(&UserInfo::admin()).await, "default");
    api.create(&PostParams::default(), &config_map("one", "1")).await.unwrap();
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut stream = watcher::watcher(api.clone(), config).boxed();
        let mut seen = Vec::new();
        loop {
            match stream.try_next().await.unwrap().unwrap() {
                watcher::Event::InitApply(o) => seen.push(o.name_any()),
                watcher::Event::InitDone => break,
                _ => {}
            }
        }
        assert!(seen.contains(&"one".to_owned()), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_watch_is_told_to_list_again() {
    let first = start().await;
    let api: Api<ConfigMap> = Api::namespaced(first.admin(), "default");
    api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    // Another server on the same store does not know what was before it.
    let second = start_on(tempfile::tempdir().unwrap(), first.store.clone()).await;
    let api: Api<ConfigMap> = Api::namespaced(second.admin(), "default");
    let mut events = api.watch(&WatchParams::default(), "1").await.unwrap().boxed();
    let told = events.try_next().await.unwrap().unwrap();
    assert!(matches!(told, WatchEvent::Error(e) if e.code == 410 && e.reason == "Expired"));
    assert!(events.try_next().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_on_one_store_agree() {
    let first = start().await;
    let second = start_on(tempfile::tempdir().unwrap(), first.store.clone()).await;
    let writer: Api<ConfigMap> = Api::namespaced(first.admin(), "default");
    let reader: Api<ConfigMap> = Api::namespaced(second.admin(), "default");
    for i in 0..20 {
        let name = format!("m{i}");
        writer.create(&PostParams::default(), &config_map(&name, "1")).await.unwrap();
        assert!(reader.get_opt(&name).await.unwrap().is_some(), "a read sees every acknowledged write");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_and_grace_keep_objects() {
    let running = start().await;
    let maps: Api<ConfigMap> = Api::namespaced(running.admin(), "default");
    let mut held = config_map("held", "1");
    held.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    maps.create(&PostParams::default(), &held).await.unwrap();
    maps.delete("held", &DeleteParams::default()).await.unwrap();
    assert!(maps.get("held").await.unwrap().metadata.deletion_timestamp.is_some());
    let none = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    maps.patch("held", &PatchParams::default(), &none).await.unwrap();
    assert_eq!(code(maps.get("held").await).0, 404);

    let pods: Api<Pod> = Api::namespaced(running.admin(), "default");
    let pod = |name: &str, node: Option<&str>| -> Pod {
        object(json!({ "metadata": { "name": name }, "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 7, "containers": [{ "name": "c", "image": "i" }],
        } }))
    };
    pods.create(&PostParams::default(), &pod("free", None)).await.unwrap();
    pods.delete("free", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(pods.get("free").await).0, 404);
    pods.create(&PostParams::default(), &pod("placed", Some("n1"))).await.unwrap();
    pods.delete("placed", &DeleteParams::default()).await.unwrap();
    let going = pods.get("placed").await.unwrap();
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(7));
    pods.delete("placed", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await.unwrap();
    assert_eq!(code(pods.get("placed").await).0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_get_their_account_and_are_bound_once() {
    let running = start().await;
    let pods: Api<Pod> = Api::namespaced(running.admin(), "default");
    let pod: Pod = object(
        json!({ "metadata": { "generateName": "p-" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } }),
    );
    let created = pods.create(&PostParams::default(), &pod).await.unwrap();
    let name = created.name_any();
    assert!(name.starts_with("p-") && name.len() == 7);
    let spec = created.spec.unwrap();
    assert_eq!(spec.service_account_name.as_deref(), Some("default"));
    assert!(spec.volumes.unwrap().iter().any(|v| v.name.starts_with("kube-api-access-")));
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name },
        "target": { "apiVersion": "v1", "kind": "Node", "name": "n1" } });
    let bind =
        || async { pods.create_subresource::<Value, Value>("binding", &name, &PostParams::default(), &binding).await };
    bind().await.unwrap();
    let bound = pods.get(&name).await.unwrap();
    assert_eq!(bound.spec.unwrap().node_name.as_deref(), Some("n1"));
    let (c, _, message) = code(bind().await);
    assert_eq!(c, 409);
    assert!(message.contains("already assigned to node \"n1\""), "{message}");
    let on_node = pods.list(&ListParams::default().fields("spec.nodeName=n1")).await.unwrap();
    assert_eq!(on_node.items.len(), 1);
    let unknown = pods.list(&ListParams::default().fields("spec.nonsense=1")).await;
    assert!(code(unknown.map(drop)).2.contains("field label not supported"));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_scale_are_parts() {
    let running = start().await;
    let api: Api<Deployment> = Api::namespaced(running.admin(), "default");
    let deployment: Deployment = object(json!({ "metadata": { "name": "web" }, "spec": {
        "replicas": 2, "selector": { "matchLabels": { "app": "web" } },
        "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } },
    } }));
    let created = api.create(&PostParams::default(), &deployment).await.unwrap();
    assert_eq!(created.metadata.generation, Some(1));
    let scale = api.get_scale("web").await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(2));
    assert_eq!(scale.status.unwrap().selector.as_deref(), Some("app=web"));
    let patch = Patch::Merge(json!({ "spec": { "replicas": 5 } }));
    api.patch_scale("web", &PatchParams::default(), &patch).await.unwrap();
    let scaled = api.get("web").await.unwrap();
    assert_eq!((scaled.spec.unwrap().replicas, scaled.metadata.generation), (Some(5), Some(2)));
    let status = Patch::Merge(json!({ "spec": { "replicas": 9 }, "status": { "replicas": 5 } }));
    let reported = api.patch_status("web", &PatchParams::default(), &status).await.unwrap();
    assert_eq!(reported.status.unwrap().replicas, Some(5));
    assert_eq!((reported.spec.unwrap().replicas, reported.metadata.generation), (Some(5), Some(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn authorisation_is_asked() {
    let running = start().await;
    let proxy = UserInfo::component(causeway_api::identity::USER_PROXY, &[]);
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(running.over_tls(&proxy).await, "default");
    let (c, _, message) = code(secrets.list(&ListParams::default()).await.map(drop));
    assert_eq!(c, 403);
    let words = "secrets is forbidden: User \"system:kube-proxy\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\"";
    assert_eq!(message, words);
    let nodes: Api<Node> = Api::all(running.api.client(UserInfo::node("n1")));
    let node: Node = object(json!({ "metadata": { "name": "n1" } }));
    nodes.create(&PostParams::default(), &node).await.unwrap();
    eventually("the node is listed", || async { nodes.get_opt("n1").await.unwrap() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_update_is_lost() {
    let running = start().await;
    let api: Api<ConfigMap> = Api::namespaced(running.admin(), "default");
    api.create(&PostParams::default(), &config_map("n", "0")).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let api = api.clone();
        tasks.spawn(async move {
            let mut done = 0;
            while done < 10 {
                let mut now = api.get("n").await.unwrap();
                let value = now.data.as_mut().unwrap().get_mut("key").unwrap();
                *value = (value.parse::<u32>().unwrap() + 1).to_string();
                match api.replace("n", &PostParams::default(), &now).await {
                    Ok(_) => done += 1,
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    Err(other) => panic!("{other}"),
                }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(api.get("n").await.unwrap().data.unwrap()["key"], "80");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_is_sent_away() {
    let running = start().await;
    let api: Api<ConfigMap> = Api::namespaced(running.admin(), "default");
    let created = api.create(&PostParams::default(), &config_map("busy", "0")).await.unwrap();
    let version = created.resource_version().unwrap();
    let mut slow = api.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..24 {
        let api = api.clone();
        tasks.spawn(async move {
            let name = format!("b{i}");
            api.create(&PostParams::default(), &config_map(&name, "0")).await.unwrap();
            for n in 0..90 {
                let patch = Patch::Merge(json!({ "data": { "key": n.to_string() } }));
                api.patch(&name, &PatchParams::default(), &patch).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let mut seen = 0;
    loop {
        match slow.try_next().await.unwrap().unwrap() {
            WatchEvent::Error(e) => break assert_eq!(e.code, 410),
            _ => seen += 1,
        }
    }
    assert!(seen < 1000, "only what was already under way: {seen}");
}
