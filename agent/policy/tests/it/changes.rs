//! What happens around policies: pods that start, restarts, other people's hands in our table, many pods.

use crate::support::{By, Lab, Talk, expect, ip};
use causeway_nft::family::Family;
use causeway_policy::{model, program::Done};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_closed_until_its_pod_is_known() {
    let mut lab = Lab::new().await;
    let old = lab.pod(0, "a", "old", json!({})).await;
    let new = lab.unknown_pod(0, "new").await;
    let talks = |allowed: bool| {
        let mut all = vec![Talk::new(&new.netns, lab.nodes[0].ip, 0, By::Ping, allowed, "to the node")];
        for family in [Family::V4, Family::V6] {
            all.push(Talk::new(&new.netns, old.of(family), 8080, By::Tcp, allowed, "out"));
            all.push(Talk::new(&old.netns, new.of(family), 8080, By::Tcp, allowed, "in"));
            all.push(Talk::new(&lab.nodes[0].netns, new.of(family), 8080, By::Tcp, true, "the node"));
        }
        all
    };
    let (closed, open) = (talks(false), talks(true));
    expect(&closed);
    lab.know(0, "a", &new, json!({}), 8080);
    expect(&open);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_cannot_go_past_the_nodes_ip_layer() {
    let mut lab = Lab::new().await;
    let web = lab.pod(0, "a", "web", json!({})).await;
    let sly = lab.pod(0, "b", "sly", json!({})).await;
    lab.policy("a", "deny", json!({"podSelector": {}, "ingress": []}));
    // As if the other were a neighbour on the link, whose hardware address it knows.
    let mac = web.netns.run(|| {
        let out = std::process::Command::new("ip").args(["-o", "link", "show", "eth0"]).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        text.split_whitespace().skip_while(|w| *w != "link/ether").nth(1).unwrap().to_owned()
    });
    for family in [Family::V4, Family::V6] {
        ip(&format!("-n {} route add {} dev eth0", sly.netns.name(), web.of(family)));
        let neighbour = format!("{} lladdr {} dev eth0", web.of(family), mac.as_ref().unwrap());
        ip(&format!("-n {} neigh replace {neighbour}", sly.netns.name()));
    }
    let isolated = |word: &str| {
        let links = lab.nodes[0].netns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        for link in
            links.lines().filter_map(|l| l.split_once(':')).map(|(l, _)| l.trim()).filter(|l| l.starts_with("cwp"))
        {
            ip(&format!("-n {} link set dev {link} type bridge_slave isolated {word}", lab.nodes[0].netns.name()));
        }
    };
    let talk = |family, allowed| Talk::new(&sly.netns, web.of(family), 8080, By::Udp, allowed, "by the bridge");
    expect(&[talk(Family::V4, false), talk(Family::V6, false)]);
    // That this is what holds them.
    isolated("off");
    expect(&[talk(Family::V4, true), talk(Family::V6, true)]);
    isolated("on");
    expect(&[talk(Family::V4, false), talk(Family::V6, false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_adopts_and_meddling_is_mended() {
    let mut lab = Lab::new().await;
    let web = lab.pod(0, "a", "web", json!({"app": "web"})).await;
    let client = lab.pod(0, "b", "client", json!({})).await;
    let block = json!({"ipBlock": {"cidr": "10.90.0.0/16", "except": ["10.90.0.1/32"]}});
    let ports = json!([{"port": "http"}, {"port": 8081, "endPort": 8082}, {"protocol": "UDP"}]);
    lab.policy(
        "a",
        "p",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}, block], "ports": ports}],
        "egress": [{"to": [{"podSelector": {}}, block], "ports": ports}]}),
    );
    let denied = [Talk::new(&client.netns, web.of(Family::V4), 8080, By::Tcp, false, "denied")];
    expect(&denied);
    let nothing = Done::default();
    assert_eq!(lab.sync(), [nothing; 2]);
    // `nft`, by which people look, can print all of it.
    for family in ["ip", "ip6"] {
        let text = lab.nft(0, &format!("list table {family} causeway-policy"));
        assert!(text.contains("chain in-forward") && text.contains("@members"), "{text}");
        assert!(text.contains("version 1, 0"), "{text}");
    }
    let before = lab.nft(0, "list table ip causeway-policy");
    assert_eq!(lab.restart(), [nothing; 2], "what the process before left is as wanted");
    // Another program's own table is none of our concern.
    lab.nft(0, "add table ip theirs");
    assert_eq!(lab.sync()[0], nothing);

    // Elements that went or came are put right one by one.
    lab.nft(0, &format!("delete element ip causeway-policy isolated-in {{ {} }}", web.of(Family::V4)));
    lab.nft(0, "add element ip causeway-policy pods { 10.244.1.200 . 10.244.1.200 }");
    expect(&[Talk::new(&client.netns, web.of(Family::V4), 8080, By::Tcp, true, "meddled with")]);
    assert_eq!(lab.sync()[0], Done { changes: 2, rebuilt: false });
    expect(&denied);
    // Rules are not: their table is made anew, at once.
    for meddling in [
        "insert rule ip causeway-policy in-forward accept",
        "add chain ip causeway-policy another",
        "flush chain ip causeway-policy leaving",
        "add rule ip causeway-policy in-forward drop",
        "flush ruleset",
    ] {
        lab.nft(0, meddling);
        assert!(lab.sync()[0].rebuilt, "{meddling}");
        assert_eq!(lab.nft(0, "list table ip causeway-policy"), before, "{meddling}");
        assert_eq!(lab.sync()[0], nothing, "{meddling}");
    }
    expect(&denied);
    // A policy that goes takes its chains with it.
    lab.no_policies();
    let text = lab.nft(0, "list table ip causeway-policy");
    for kind in ["chain in-0", "chain ports-", "chain block-", "chain out-0"] {
        assert!(!text.contains(kind), "{text}");
    }
    assert!(!text.contains("isolated-in {\n\t\ttype ipv4_addr : verdict\n\t\telements"), "{text}");
    expect(&[Talk::new(&client.netns, web.of(Family::V4), 8080, By::Tcp, true, "free again")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_pods_are_members_and_one_more_is_a_few_elements() {
    let mut lab = Lab::new().await;
    let web = lab.pod(0, "a", "web", json!({"app": "web"})).await;
    let client = lab.pod(1, "b", "client", json!({"role": "client"})).await;
    let peers = json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "client"}}}]);
    let spec = json!({"podSelector": {}, "ingress": [{"from": peers, "ports": [{"port": 8080}]}]});
    let pod = |i: u32| {
        let ip = format!("10.245.{}.{}", i / 250, i % 250 + 1);
        let object = json!({"metadata": {"name": format!("m{i}"), "namespace": "b", "labels": {"role": "client"}},
            "spec": {"nodeName": "elsewhere", "containers": []}, "status": {"podIPs": [{"ip": ip}]}});
        model::pod(&serde_json::from_value(object).unwrap())
    };
    for i in 0..10_000 {
        lab.programs[0].1.set_pod(&format!("m{i}"), Some(pod(i)));
    }
    lab.policy("a", "p", spec);
    expect(&[Talk::new(&client.netns, web.of(Family::V4), 8080, By::Tcp, true, "one of many")]);
    lab.programs[0].1.set_pod("m10000", Some(pod(10_000)));
    assert_eq!(lab.sync()[0], Done { changes: 1, rebuilt: false });
    lab.programs[0].1.set_pod("m10000", None);
    lab.programs[0].1.set_pod("m9999", None);
    assert_eq!(lab.sync()[0], Done { changes: 2, rebuilt: false });
    assert!(!lab.restart()[0].rebuilt);
}
