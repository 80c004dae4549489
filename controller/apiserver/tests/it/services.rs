//! Cluster IPs and node ports: never twice, kept, and given back.

use crate::support::{Running, eventually, start};
use causeway_apiserver::services::repair::repair;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::IPAddress;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

fn service(name: &str, spec: Value) -> Service {
    serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec })).unwrap()
}

fn ports(node_port: Option<i32>) -> Value {
    json!([{ "port": 80, "nodePort": node_port }])
}

fn api(running: &Running) -> Api<Service> {
    Api::namespaced(running.admin(), "default")
}

fn ip(service: &Service) -> String {
    service.spec.as_ref().unwrap().cluster_ip.clone().unwrap_or_default()
}

fn node_port(service: &Service) -> Option<i32> {
    service.spec.as_ref().unwrap().ports.as_ref().unwrap()[0].node_port
}

fn message(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn allocated_in_the_response_and_recorded() {
    let running = start().await;
    let services = api(&running);
    let created =
        services.create(&PostParams::default(), &service("a", json!({ "ports": ports(None) }))).await.unwrap();
    let addresses: Api<IPAddress> = Api::all(running.admin());
    let record = addresses.get(&ip(&created)).await.unwrap();
    assert_eq!(record.spec.unwrap().parent_ref.name, "a");
    let refused = addresses.delete(&ip(&created), &DeleteParams::default()).await.map(drop).unwrap_err();
    assert!(message(refused).contains("in use by the Service default/a"));

    let spec = json!({ "clusterIP": "10.96.0.77", "type": "NodePort", "ports": ports(Some(30010)) });
    let explicit = services.create(&PostParams::default(), &service("b", spec.clone())).await.unwrap();
    assert_eq!((ip(&explicit).as_str(), node_port(&explicit)), ("10.96.0.77", Some(30010)));
    let twice = services.create(&PostParams::default(), &service("c", spec)).await.unwrap_err();
    let text = message(twice);
    assert!(text.contains("spec.clusterIPs: Invalid value: [\"10.96.0.77\"]: failed to allocate IP 10.96.0.77: provided IP is already allocated"), "{text}");
    let spec = json!({ "type": "NodePort", "ports": ports(Some(30010)) });
    let text = message(services.create(&PostParams::default(), &service("c", spec)).await.unwrap_err());
    assert!(
        text.ends_with("spec.ports[0].nodePort: Invalid value: 30010: provided port is already allocated"),
        "{text}"
    );
    let all = addresses.list(&ListParams::default()).await.unwrap();
    assert_eq!(
        all.items.len(),
        4,
        "a refused Service leaves nothing behind: {:?}",
        all.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_over_updates_and_given_back() {
    let running = start().await;
    let services = api(&running);
    let spec = json!({ "type": "NodePort", "ports": ports(None) });
    let created = services.create(&PostParams::default(), &service("a", spec)).await.unwrap();
    let port = node_port(&created).unwrap();
    assert!((30000..=32767).contains(&port));
    // A client that does not send back what was allocated keeps it.
    let mut plain = service("a", json!({ "type": "NodePort", "ports": ports(None), "selector": { "x": "y" } }));
    plain.metadata.resource_version = created.resource_version();
    let updated = services.replace("a", &PostParams::default(), &plain).await.unwrap();
    assert_eq!((ip(&updated), node_port(&updated)), (ip(&created), Some(port)));
    // Dropping the type frees the port, not the address.
    let patch = Patch::Merge(json!({ "spec": { "type": "ClusterIP" } }));
    let internal = services.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!((ip(&internal), node_port(&internal)), (ip(&created), None));
    let again = service("b", json!({ "type": "NodePort", "ports": ports(Some(port)), "clusterIP": "None" }));
    assert!(services.create(&PostParams::default(), &again).await.is_err(), "a headless Service has no node ports");
    let again = service("b", json!({ "type": "NodePort", "ports": ports(Some(port)) }));
    services.create(&PostParams::default(), &again).await.unwrap();
    services.delete("a", &DeleteParams::default()).await.unwrap();
    let reuse = service("c", json!({ "clusterIP": ip(&created), "ports": ports(None) }));
    services.create(&PostParams::default(), &reuse).await.unwrap();
    let external = service("d", json!({ "type": "ExternalName", "externalName": "example.com" }));
    let external = services.create(&PostParams::default(), &external).await.unwrap();
    assert_eq!(external.spec.unwrap().cluster_ip.unwrap_or_default(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn never_twice_under_concurrent_creates() {
    let running = start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..60 {
        let services = api(&running);
        tasks.spawn(async move {
            // Half of them fight for the same few explicit addresses and ports.
            let spec = if i % 2 == 0 {
                json!({ "type": "NodePort", "ports": ports(None) })
            } else {
                json!({ "type": "NodePort", "clusterIP": format!("10.96.0.{}", 100 + i % 5), "ports": ports(Some(30001 + i % 7)) })
            };
            services.create(&PostParams::default(), &service(&format!("s{i}"), spec)).await.ok()
        });
    }
    let made: Vec<Service> = tasks.join_all().await.into_iter().flatten().collect();
    assert!(made.len() >= 30);
    let ips: BTreeSet<String> = made.iter().map(ip).collect();
    let numbers: BTreeSet<Option<i32>> = made.iter().map(node_port).collect();
    assert_eq!((ips.len(), numbers.len()), (made.len(), made.len()));
    let addresses: Api<IPAddress> = Api::all(running.admin());
    let records = addresses.list(&ListParams::default()).await.unwrap().items.len();
    assert_eq!(records, made.len() + 2, "losers leave nothing behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn repair_mends_what_a_crash_left() {
    let running = start().await;
    let services = api(&running);
    let kept =
        services.create(&PostParams::default(), &service("kept", json!({ "ports": ports(None) }))).await.unwrap();
    let key = format!("/registry/networking.k8s.io/ipaddresses/{}", ip(&kept));
    // A crash after the address was taken and before the Service was written; and an address that got lost.
    let orphan = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": { "name": "10.96.3.3", "creationTimestamp": "2020-01-01T00:00:00Z",
            "labels": { "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io" } },
        "spec": { "parentRef": { "resource": "services", "namespace": "default", "name": "never" } } });
    let port = json!({ "namespace": "default", "name": "never", "since": "2020-01-01T00:00:00Z" });
    let bytes = |v: &Value| serde_json::to_vec(v).unwrap().into();
    running.store.create("/registry/networking.k8s.io/ipaddresses/10.96.3.3", bytes(&orphan)).await.unwrap();
    running.store.create("/registry/causeway/nodeports/31111", bytes(&port)).await.unwrap();
    running.store.delete(&key, None).await.unwrap();
    repair(running.api.engine(), None, Duration::from_secs(60)).await.unwrap();
    let addresses: Api<IPAddress> = Api::all(running.admin());
    assert!(addresses.get_opt(&ip(&kept)).await.unwrap().is_some());
    assert!(addresses.get_opt("10.96.3.3").await.unwrap().is_none());
    assert!(running.store.get("/registry/causeway/nodeports/31111", None).await.unwrap().0.is_none());
    // A young key is left alone: its Service may be on its way.
    let mut young = orphan.clone();
    young["metadata"]["creationTimestamp"] = json!(k8s_openapi::jiff::Timestamp::now().to_string());
    running.store.create("/registry/networking.k8s.io/ipaddresses/10.96.3.3", bytes(&young)).await.unwrap();
    repair(running.api.engine(), None, Duration::from_secs(60)).await.unwrap();
    eventually("the young one stays", || async { addresses.get_opt("10.96.3.3").await.unwrap() }).await;
}
