//! Ranges of cluster IPs and addresses of load balancers, against a real API server.

use crate::support::Cluster;
use causeway_api::config::ClusterConfig;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn with_pool(addresses: &[&str]) -> ClusterConfig {
    let pools = json!([{ "name": "main", "addresses": addresses }, { "name": "spare", "addresses": ["10.90.1.1"], "autoAssign": false }]);
    ClusterConfig { load_balancer_pools: Some(serde_json::from_value(pools).unwrap()), ..ClusterConfig::default() }
}

/// Waits until something is true.
async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    crate::support::eventually(what, || {
        let now = check();
        async { now.await.then_some(()) }
    })
    .await;
}

async fn balancer(cluster: &Cluster, name: &str, spec: Value, annotations: Value) {
    let mut whole = json!({ "type": "LoadBalancer", "ports": [{ "port": 80 }] });
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let _: Service =
        cluster.create(json!({ "metadata": { "name": name, "annotations": annotations }, "spec": whole })).await;
}

fn ips(service: &Service) -> Vec<String> {
    let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = balancer.and_then(|b| b.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|i| i.ip.clone()).collect()
}

async fn has(cluster: &Cluster, name: &str, want: &[&str]) {
    let api = cluster.api::<Service>();
    eventually(&format!("{name} has {want:?}"), || async { ips(&api.get(name).await.unwrap()) == want }).await;
}

async fn claims(cluster: &Cluster) -> BTreeSet<String> {
    let ours = ListParams::default().labels("ipaddress.kubernetes.io/managed-by=load-balancer.causeway.dev");
    let all = cluster.all::<IPAddress>().list(&ours).await.unwrap().items;
    all.into_iter().filter_map(|a| a.metadata.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn load_balancers_get_keep_and_release_addresses() {
    let cluster = Cluster::start_with(0, with_pool(&["10.90.0.200-10.90.0.201"])).await;
    let api = cluster.api::<Service>();
    balancer(&cluster, "a", json!({}), json!({})).await;
    has(&cluster, "a", &["10.90.0.200"]).await;
    let a = api.get("a").await.unwrap();
    assert_eq!(a.metadata.finalizers.unwrap(), ["service.kubernetes.io/load-balancer-cleanup"]);
    let mode = a.status.unwrap().load_balancer.unwrap().ingress.unwrap()[0].ip_mode.clone();
    assert_eq!(mode.as_deref(), Some("VIP"));
    balancer(&cluster, "wish", json!({ "loadBalancerIP": "10.90.0.201" }), json!({})).await;
    has(&cluster, "wish", &["10.90.0.201"]).await;
    balancer(&cluster, "other", json!({ "loadBalancerClass": "x.dev/y" }), json!({})).await;
    balancer(&cluster, "late", json!({}), json!({})).await;
    eventually("the one that got nothing is told why", || async {
        let messages = cluster.event_messages("SyncLoadBalancerFailed").await;
        messages.iter().any(|m| m.contains("no free IPv4 address in the pools"))
    })
    .await;
    assert!(ips(&api.get("late").await.unwrap()).is_empty());
    // A claim in use cannot be taken away behind its Service's back.
    let refused =
        cluster.all::<IPAddress>().delete("10.90.0.200", &DeleteParams::default()).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("in use by the Service default/a"), "{refused}");

    // Another type: the address goes to who waits for it.
    let patch = Patch::Merge(json!({ "spec": { "type": "ClusterIP" } }));
    api.patch("a", &PatchParams::default(), &patch).await.unwrap();
    has(&cluster, "late", &["10.90.0.200"]).await;
    eventually("nothing holds the former one", || async {
        api.get("a").await.unwrap().metadata.finalizers.is_none_or(|f| f.is_empty())
    })
    .await;
    // Deleted: gone, and free for the next.
    api.delete("wish", &DeleteParams::default()).await.unwrap();
    eventually("it is gone", || async { api.get_opt("wish").await.unwrap().is_none() }).await;
    balancer(&cluster, "next", json!({}), json!({})).await;
    has(&cluster, "next", &["10.90.0.201"]).await;
    // By a named pool, and a change of mind.
    balancer(&cluster, "spare", json!({}), json!({ "causeway.dev/load-balancer-pool": "spare" })).await;
    has(&cluster, "spare", &["10.90.1.1"]).await;
    api.delete("next", &DeleteParams::default()).await.unwrap();
    let patch = Patch::Merge(json!({ "metadata": { "annotations": {
        "causeway.dev/load-balancer-pool": null, "causeway.dev/load-balancer-ips": "10.90.0.201" } } }));
    api.patch("spare", &PatchParams::default(), &patch).await.unwrap();
    has(&cluster, "spare", &["10.90.0.201"]).await;
    eventually("the former address is free", || async {
        claims(&cluster).await == BTreeSet::from(["10.90.0.200".to_owned(), "10.90.0.201".to_owned()])
    })
    .await;
    assert!(ips(&api.get("other").await.unwrap()).is_empty());
    let other = api.get("other").await.unwrap();
    assert!(other.metadata.finalizers.is_none(), "another class is another's");
    assert!(cluster.event_messages("EnsuredLoadBalancer").await.len() >= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_load_balancer_address_is_given_twice_by_two_controllers() {
    let pool = with_pool(&["10.90.0.200-10.90.0.211"]);
    let cluster = Cluster::start_with(0, pool.clone()).await;
    cluster.another(pool).await;
    let api = cluster.api::<Service>();
    let names: Vec<String> = (0..12).map(|i| format!("s{i}")).collect();
    let create = |name: String| {
        let cluster = &cluster;
        async move { balancer(cluster, &name, json!({}), json!({})).await }
    };
    futures::future::join_all(names.iter().cloned().map(create)).await;
    let given = || async {
        let all = api.list(&ListParams::default()).await.unwrap().items;
        all.iter().flat_map(ips).collect::<Vec<_>>()
    };
    eventually("everyone has one of its own", || async {
        let all = given().await;
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "twice: {all:?}");
        all.len() == names.len()
    })
    .await;
    for name in &names[..6] {
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }
    futures::future::join_all((20..26).map(|i| create(format!("s{i}")))).await;
    eventually("the freed ones have found others", || async {
        let all = given().await;
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "twice: {all:?}");
        all.len() == 12 && claims(&cluster).await == all.into_iter().collect()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_stays_as_long_as_an_address_needs_it() {
    let cluster = Cluster::start(0).await;
    let ranges: Api<ServiceCIDR> = cluster.all();
    let ready = |name: &'static str| {
        let ranges = ranges.clone();
        async move {
            let range = ranges.get_opt(name).await.unwrap()?;
            let condition = range.status?.conditions?.into_iter().find(|c| c.type_ == "Ready")?;
            Some((condition.status, condition.reason, condition.message))
        }
    };
    let make = |name: &str, cidr: &str| {
        let range = json!({ "metadata": { "name": name }, "spec": { "cidrs": [cidr] } });
        let (ranges, range) = (ranges.clone(), serde_json::from_value::<ServiceCIDR>(range).unwrap());
        async move { ranges.create(&PostParams::default(), &range).await.unwrap() }
    };
    make("more", "10.60.0.0/24").await;
    eventually("it is ready, and held", || async {
        let held = ranges.get("more").await.unwrap().metadata.finalizers.unwrap_or_default();
        held == ["networking.k8s.io/service-cidr-finalizer"] && ready("more").await.is_some_and(|c| c.0 == "True")
    })
    .await;
    let _: Service = cluster
        .create(
            json!({ "metadata": { "name": "in-it" }, "spec": { "clusterIP": "10.60.0.9", "ports": [{ "port": 80 }] } }),
        )
        .await;
    ranges.delete("more", &DeleteParams::default()).await.unwrap();
    eventually("it says what holds it", || async {
        ready("more").await.is_some_and(|(status, reason, message)| {
            status == "False"
                && reason == "Terminating"
                && message.starts_with("There are still IPAddresses referencing")
        })
    })
    .await;
    // A wider range takes the address over: now the first may go.
    make("wider", "10.60.0.0/16").await;
    eventually("it goes", || async { ranges.get_opt("more").await.unwrap().is_none() }).await;
    let service = cluster.api::<Service>().get("in-it").await.unwrap();
    assert_eq!(service.spec.unwrap().cluster_ip.as_deref(), Some("10.60.0.9"));
    ranges.delete("wider", &DeleteParams::default()).await.unwrap();
    eventually("and the wider one is held", || async { ready("wider").await.is_some_and(|c| c.0 == "False") }).await;
    cluster.api::<Service>().delete("in-it", &DeleteParams::default()).await.unwrap();
    eventually("until the address is free", || async { ranges.get_opt("wider").await.unwrap().is_none() }).await;
}

/// One that has an address and wishes another one is served when that becomes free, not when it is looked at again.
#[tokio::test(flavor = "multi_thread")]
async fn a_wish_is_met_when_its_address_becomes_free() {
    let cluster = Cluster::start_with(0, with_pool(&["10.90.0.200-10.90.0.201"])).await;
    let api = cluster.api::<Service>();
    balancer(&cluster, "holder", json!({ "loadBalancerIP": "10.90.0.201" }), json!({})).await;
    has(&cluster, "holder", &["10.90.0.201"]).await;
    balancer(&cluster, "wisher", json!({}), json!({})).await;
    has(&cluster, "wisher", &["10.90.0.200"]).await;
    let patch =
        Patch::Merge(json!({ "metadata": { "annotations": { "causeway.dev/load-balancer-ips": "10.90.0.201" } } }));
    api.patch("wisher", &PatchParams::default(), &patch).await.unwrap();
    eventually("it is told why it does not get it", || async {
        cluster.event_messages("SyncLoadBalancerFailed").await.iter().any(|m| m.contains("10.90.0.201"))
    })
    .await;
    has(&cluster, "wisher", &["10.90.0.200"]).await;
    api.delete("holder", &DeleteParams::default()).await.unwrap();
    has(&cluster, "wisher", &["10.90.0.201"]).await;
}
