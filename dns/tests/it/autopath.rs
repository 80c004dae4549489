//! Completing the search path of who asks: pods of the API, questions from their addresses.

use super::api::{Running, api_server, clients, namespace};
use super::fake::{Fake, Manner};
use super::support::{dig, key, plain, start_with, upstreams};
use causeway_api::dns::DnsSettings;
use causeway_api::identity::UserInfo;
use causeway_dns::pods::PodPart;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use std::net::Ipv4Addr;

#[tokio::test(flavor = "multi_thread")]
async fn one_question_instead_of_four() {
    let fake = Fake::start(Manner::Address(Ipv4Addr::new(192, 0, 2, 1), 60)).await;
    let settings = DnsSettings { autopath: true, ..upstreams(&[fake.addr]) };
    let dns = start_with("cluster.local", &settings, None).await;
    let first = "www.example.org.shop.svc.cluster.local A";
    // Who asks is nobody's pod: its path is not known.
    assert!(dig(&dns, first).await.contains("status: NXDOMAIN"));
    dns.pods.set(PodPart { key: key("shop", "client"), ips: vec![[127, 0, 0, 1].into()] });
    for _ in 0..2 {
        let answer = plain(&dns, first).await;
        assert!(answer.contains("status: NOERROR") && answer.contains("ANSWER: 2"), "{answer}");
        assert!(
            answer.contains("www.example.org.shop.svc.cluster.local.") && answer.contains("CNAME www.example.org."),
            "{answer}"
        );
        assert!(answer.contains("192.0.2.1"), "{answer}");
    }
    assert_eq!(dns.counted("coredns_autopath_success_total", ""), 2.0);
    // Names further along the path, of the cluster itself and whole ones.
    for (name, alias) in [
        ("web.shop.shop.svc.cluster.local", "web.shop.svc.cluster.local."),
        ("web.shop.svc.shop.svc.cluster.local", "web.shop.svc.cluster.local."),
        ("web.shop.svc.cluster.local.shop.svc.cluster.local", "web.shop.svc.cluster.local."),
    ] {
        let answer = plain(&dns, &format!("{name} A")).await;
        assert!(answer.contains(&format!("CNAME {alias}")) && answer.contains("10.96.0.7"), "{answer}");
    }
    let empty = dig(&dns, "web.shop.shop.svc.cluster.local AAAA").await;
    assert!(empty.contains("status: NOERROR") && empty.contains("ANSWER: 1") && empty.contains("SOA"), "{empty}");
    // What exists needs no path; other types, and paths of others, have none.
    let own = dig(&dns, "web.shop.svc.cluster.local A").await;
    assert!(own.contains("10.96.0.7") && !own.contains("CNAME"), "{own}");
    assert!(dig(&dns, "www.example.org.shop.svc.cluster.local TXT").await.contains("status: NXDOMAIN"));
    assert!(dig(&dns, "www.example.org.other.svc.cluster.local A").await.contains("status: NXDOMAIN"));
    // Where nobody knows the name, it does not exist; where nobody answers, the resolver goes its own way.
    fake.be(Manner::NoName(60));
    assert!(dig(&dns, "none.example.org.shop.svc.cluster.local A").await.contains("status: NXDOMAIN"));
    fake.be(Manner::Fails);
    assert!(dig(&dns, "fails.example.org.shop.svc.cluster.local A").await.contains("status: NXDOMAIN"));
    // The next may be somebody else.
    dns.pods.remove(&key("shop", "client"));
    assert!(dig(&dns, first).await.contains("status: NXDOMAIN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_the_node_are_who_asks() {
    let folder = tempfile::tempdir().unwrap();
    let server = api_server(folder.path()).await;
    let admin = server.client(UserInfo::admin());
    namespace(&admin, "kube-system").await;
    namespace(&admin, "shop").await;
    let fake = Fake::start(Manner::Address(Ipv4Addr::new(192, 0, 2, 1), 60)).await;
    let settings = DnsSettings { autopath: true, ..upstreams(&[fake.addr]) };
    let dns = Running::start_with(clients(&server), &folder.path().join("dns"), settings);
    let first = "www.example.org.shop.svc.cluster.local A";
    dns.until(first, &["status: NXDOMAIN"]).await;
    let pods = Api::<Pod>::namespaced(admin, "shop");
    for (name, node) in [("elsewhere", "node-2"), ("client", "node-1")] {
        let pod = json!({ "metadata": { "name": name }, "spec": { "nodeName": node, "automountServiceAccountToken": false,
            "containers": [{ "name": "main", "image": "none" }] } });
        let pod = serde_json::from_value(pod).unwrap();
        pods.create(&PostParams::default(), &pod).await.unwrap();
        let ip = if node == "node-1" { "127.0.0.1" } else { "127.0.0.3" };
        let status = json!({ "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] } });
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    }
    dns.until(first, &["CNAME www.example.org.", "192.0.2.1"]).await;
    // The other node's pods are not asked for, and their addresses say nothing here.
    dns.until(&format!("-b 127.0.0.3 {first}"), &["status: NXDOMAIN"]).await;
    pods.delete("client", &DeleteParams::default().grace_period(0)).await.unwrap();
    dns.until(first, &["status: NXDOMAIN"]).await;
    dns.stop().await;
}
