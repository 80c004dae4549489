//! Settings while it runs, from the ConfigMap; health, readiness and the end.

use super::api::{Running, api_server, clients, namespace, nobody};
use super::fake::{Fake, Manner};
use causeway_api::dns::DnsSettings;
use causeway_api::identity::UserInfo;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Service};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

async fn settings(admin: &Client, text: &str) {
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "causeway-dns" }, "data": { "settings.yaml": text } });
    let maps = Api::<ConfigMap>::namespaced(admin.clone(), "kube-system");
    maps.patch("causeway-dns", &PatchParams::apply("test").force(), &Patch::Apply(&map)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_config_map_is_followed_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = api_server(folder.path()).await;
    let admin = server.client(UserInfo::admin());
    namespace(&admin, "kube-system").await;
    namespace(&admin, "shop").await;
    let services = Api::<Service>::namespaced(admin.clone(), "shop");
    let web = json!({ "metadata": { "name": "web" }, "spec": { "ports": [{ "port": 80 }] } });
    services.create(&PostParams::default(), &object(web)).await.unwrap();
    let fake = Fake::start(Manner::Address(Ipv4Addr::new(192, 0, 2, 1), 60)).await;
    let state = folder.path().join("dns");
    let base = DnsSettings { ttl: 7, ..DnsSettings::default() };
    let dns = Running::start_with(clients(&server), &state, base.clone());
    dns.until("web.shop.svc.cluster.local A", &["web.shop.svc.cluster.local. 7\tIN\tA"]).await;
    dns.until("www.corp.example A", &["status: REFUSED"]).await;

    settings(&admin, &format!("ttl: 30\npods: disabled\nstubDomains:\n  corp.example: ['{}']\n", fake.addr)).await;
    dns.until("web.shop.svc.cluster.local A", &["web.shop.svc.cluster.local. 30\tIN\tA"]).await;
    dns.until("www.corp.example A", &["192.0.2.1"]).await;
    dns.until("10-1-2-3.shop.pod.cluster.local A", &["status: NXDOMAIN"]).await;

    // Each is wrong in its own way; the last good one stays in force, and it is told.
    for (bad, why) in
        [("ttl: [", "not a YAML mapping"), ("tll: 1", "unknown field"), ("upstreams: [dns.example]", "no address")]
    {
        settings(&admin, bad).await;
        let begin = Instant::now();
        let events = Api::<Event>::namespaced(admin.clone(), "kube-system");
        loop {
            let all = events.list(&ListParams::default()).await.unwrap().items;
            let told = |e: &Event| {
                e.reason.as_deref() == Some("InvalidSettings") && e.message.as_ref().is_some_and(|m| m.contains(why))
            };
            if all.iter().any(|e| told(e) && e.involved_object.name.as_deref() == Some("causeway-dns")) {
                break;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "no event says {why:?}: {all:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        dns.until("web.shop.svc.cluster.local A", &["web.shop.svc.cluster.local. 30\tIN\tA"]).await;
    }
    let metrics = dns.http("/metrics").await;
    assert!(metrics.contains("coredns_reload_failed_total 3"), "{metrics}");
    for name in [
        "coredns_build_info{",
        "coredns_panics_total 0",
        "coredns_dns_requests_total{family=\"1\",proto=\"udp\",server=\"dns://:53\",type=\"A\",view=\"\",zone=\"cluster.local.\"}",
    ] {
        assert!(metrics.contains(name), "{name} is not in {metrics}");
    }

    // The last good settings outlive a restart without the API.
    dns.stop().await;
    let dns = Running::start_with(nobody(), &state, base.clone());
    dns.until("web.shop.svc.cluster.local A", &["web.shop.svc.cluster.local. 30\tIN\tA"]).await;
    dns.until("www.corp.example A", &["192.0.2.1"]).await;
    dns.stop().await;

    // Without the ConfigMap the program's own are in force again.
    let dns = Running::start_with(clients(&server), &state, base);
    settings(&admin, "ttl: 31").await;
    dns.until("web.shop.svc.cluster.local A", &["web.shop.svc.cluster.local. 31\tIN\tA"]).await;
    let maps = Api::<ConfigMap>::namespaced(admin, "kube-system");
    maps.delete("causeway-dns", &DeleteParams::default()).await.unwrap();
    dns.until("web.shop.svc.cluster.local A", &["web.shop.svc.cluster.local. 7\tIN\tA"]).await;
    dns.until("www.corp.example A", &["status: REFUSED"]).await;
    dns.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_once_complete_and_lameduck_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let alone = Running::start(nobody(), &folder.path().join("alone"));
    alone.http_until("/health", "OK\n200").await;
    assert!(alone.http("/ready").await.ends_with("\n503"));
    assert!(alone.http("/other").await.ends_with("\n404"));
    alone.stop().await;

    let server = api_server(folder.path()).await;
    namespace(&server.client(UserInfo::admin()), "kube-system").await;
    let lame = DnsSettings { lameduck_seconds: 2, ..DnsSettings::default() };
    let dns = Running::start_with(clients(&server), &folder.path().join("dns"), lame);
    dns.http_until("/ready", "OK\n200").await;
    dns.http_until("/metrics", "coredns_health_request_duration_seconds_count 1").await;
    dns.end();
    dns.http_until("/health", "lameduck\n503").await;
    // Who has not heard yet is answered.
    dns.until("dns-version.cluster.local TXT", &["\"1.1.0\""]).await;
    dns.stop().await;
}
