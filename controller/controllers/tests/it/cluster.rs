//! Endpoints, accounts, nodes.

use crate::support::*;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams};
use serde_json::json;

async fn slices(c: &Cluster) -> Vec<EndpointSlice> {
    let select = ListParams::default().labels("kubernetes.io/service-name=web");
    c.api::<EndpointSlice>().list(&select).await.unwrap().items
}

fn ready(slices: &[EndpointSlice]) -> usize {
    slices
        .iter()
        .flat_map(|s| &s.endpoints)
        .filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn services_get_slices_and_endpoints() {
    let c = Cluster::start(1).await;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "labels": { "tier": "front" } },
        "spec": { "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] },
    });
    c.create::<Service>(service).await;
    let empty = eventually("an empty slice", || async { Some(slices(&c).await).filter(|s| s.len() == 1) }).await;
    assert!(empty[0].endpoints.is_empty());
    c.create::<Deployment>(deployment("web", 3, "a")).await;
    let full = eventually("three endpoints", || async { Some(slices(&c).await).filter(|s| ready(s) == 3) }).await;
    assert_eq!(full.len(), 1);
    assert_eq!(full[0].name_any(), empty[0].name_any(), "the empty slice was filled");
    assert_eq!(full[0].labels()["tier"], "front");
    assert_eq!(full[0].labels()["endpointslice.kubernetes.io/managed-by"], "endpointslice-controller.k8s.io");
    let port = &full[0].ports.as_ref().unwrap()[0];
    assert_eq!((port.name.as_deref(), port.port), (Some("http"), Some(8080)));
    let endpoints = eventually("Endpoints", || async {
        let e = c.api::<Endpoints>().get_opt("web").await.unwrap()?;
        let n = e.subsets.iter().flatten().flat_map(|s| s.addresses.iter().flatten()).count();
        (n == 3).then_some(e)
    })
    .await;
    assert_eq!(endpoints.subsets.unwrap()[0].ports.as_ref().unwrap()[0].port, 8080);

    c.api::<Deployment>()
        .patch("web", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 1}})))
        .await
        .unwrap();
    eventually("one endpoint", || async {
        let s = slices(&c).await;
        (s.len() == 1 && s[0].endpoints.len() == 1).then_some(())
    })
    .await;
    // Somebody removes it: it comes back.
    c.api::<EndpointSlice>().delete(&full[0].name_any(), &DeleteParams::default()).await.unwrap();
    eventually("repaired", || async { (ready(&slices(&c).await) == 1).then_some(()) }).await;
    c.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
    eventually("nothing left", || async {
        let e = c.api::<Endpoints>().get_opt("web").await.unwrap();
        (slices(&c).await.is_empty() && e.is_none()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_namespace_has_its_account_and_the_ca() {
    let c = Cluster::start(0).await;
    let maps = c.api::<ConfigMap>();
    eventually("both", || async {
        let account = c.api::<ServiceAccount>().get_opt("default").await.unwrap();
        let map = maps.get_opt("kube-root-ca.crt").await.unwrap()?;
        (account.is_some() && map.data.unwrap()["ca.crt"] == CA).then_some(())
    })
    .await;
    maps.delete("kube-root-ca.crt", &DeleteParams::default()).await.unwrap();
    eventually("again", || async { maps.get_opt("kube-root-ca.crt").await.unwrap() }).await;
    let class = c.all::<k8s_openapi::api::storage::v1::StorageClass>();
    eventually("the default class", || async { class.get_opt("local-path").await.unwrap() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_get_addresses_and_silent_ones_lose_their_pods() {
    let c = Cluster::start(3).await;
    let nodes = c.all::<Node>();
    let ranges = eventually("ranges", || async {
        let all = nodes.list(&ListParams::default()).await.unwrap().items;
        let mut ranges: Vec<_> = all.iter().filter_map(|n| n.spec.as_ref()?.pod_cidr.clone()).collect();
        ranges.sort();
        (ranges.len() == 3).then_some(ranges)
    })
    .await;
    assert_eq!(ranges, ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"]);

    let mut web = deployment("web", 2, "a");
    web["spec"]["template"]["spec"]["tolerations"] = json!([
        { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1 },
    ]);
    c.create::<Deployment>(web).await;
    eventually("two", || async { (c.ready("web").await == 2).then_some(()) }).await;
    let old: Vec<_> = c.pods("web").await.iter().map(ResourceExt::name_any).collect();
    let images = json!({"status": {"images": [{"names": ["shop:1"], "sizeBytes": 7}]}});
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(&images)).await.unwrap();
    let patch = json!({"metadata": {"labels": {"silent": ""}}});
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    eventually("unknown and tainted", || async {
        let n = nodes.get("n1").await.unwrap();
        // Controllers do not know of the images, and must not take them away.
        assert_eq!(n.status.as_ref()?.images.as_ref().map(Vec::len), Some(1));
        let ready = n.status?.conditions?.into_iter().find(|c| c.type_ == "Ready")?;
        let taints: Vec<_> = n.spec?.taints?.into_iter().map(|t| format!("{}:{}", t.key, t.effect)).collect();
        (ready.status == "Unknown" && taints.contains(&"node.kubernetes.io/unreachable:NoExecute".to_owned()))
            .then_some(())
    })
    .await;
    eventually("evicted", || async {
        let pods = c.pods("web").await;
        let leaving = pods.iter().filter(|p| old.contains(&p.name_any()) && p.metadata.deletion_timestamp.is_some());
        (leaving.count() == 2).then_some(())
    })
    .await;
    // The node comes back to life: taints go, and so do the pods.
    let patch = json!({"metadata": {"labels": {"silent": null}}});
    nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    eventually("healed", || async {
        let n = nodes.get("n1").await.unwrap();
        n.spec?.taints.unwrap_or_default().is_empty().then_some(())
    })
    .await;
    let pods = c.api::<Pod>();
    eventually("replaced", || async {
        let all = pods.list(&ListParams::default()).await.unwrap().items;
        (all.len() == 2 && all.iter().all(causeway_api::pod::is_ready)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_let_pods_go_one_after_the_other() {
    let c = Cluster::start(1).await;
    c.create::<PodDisruptionBudget>(json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": "web" },
        "spec": { "maxUnavailable": "34%", "selector": { "matchLabels": { "app": "web" } } },
    }))
    .await;
    c.create::<Deployment>(deployment("web", 2, "a")).await;
    let budgets = c.api::<PodDisruptionBudget>();
    let allowed = async || {
        let b = budgets.get("web").await.unwrap();
        let status = b.status?;
        (status.observed_generation == b.metadata.generation && status.disruptions_allowed == 1).then_some(status)
    };
    let status = eventually("one may go", allowed).await;
    assert_eq!((status.expected_pods, status.desired_healthy, status.current_healthy), (2, 1, 2));
    assert_eq!(status.conditions.unwrap()[0].reason, "SufficientPods");
    // As `kubectl drain` does: each pod, again and again until it may go.
    let pods = c.api::<Pod>();
    let old: Vec<_> = c.pods("web").await.iter().map(ResourceExt::name_any).collect();
    pods.evict(&old[0], &EvictParams::default()).await.unwrap();
    let refused = pods.evict(&old[1], &EvictParams::default()).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(s) if s.code == 429), "{refused}");
    eventually("the other may go", || async { pods.evict(&old[1], &EvictParams::default()).await.ok() }).await;
    eventually("both are replaced", || async {
        let now = c.pods("web").await;
        (now.len() == 2 && now.iter().all(|p| !old.contains(&p.name_any()))).then_some(())
    })
    .await;
    eventually("one may go again", allowed).await;
    // Where all must stay, none may go.
    let patch = Patch::Merge(json!({ "spec": { "maxUnavailable": 0 } }));
    budgets.patch("web", &PatchParams::default(), &patch).await.unwrap();
    eventually("none may go", || async {
        let b = budgets.get("web").await.unwrap();
        let s = b.status?;
        (s.observed_generation == b.metadata.generation && s.disruptions_allowed == 0 && s.desired_healthy == 2)
            .then_some(())
    })
    .await;
}
