//! Whom a pod may reach.

use crate::support::{By, Lab, Talk, connect, exchange, expect};
use causeway_nft::family::Family;
use causeway_policy::model;
use serde_json::json;
use std::{net::SocketAddr, time::Duration};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[tokio::test(flavor = "multi_thread")]
async fn isolation_holds_towards_pods_nodes_and_beyond() {
    let mut lab = Lab::new().await;
    let client = lab.pod(0, "a", "client", json!({"role": "client"})).await;
    let near = lab.pod(0, "a", "near", json!({})).await;
    let far = lab.pod(1, "b", "far", json!({})).await;
    let node = lab.nodes[0].clone();
    let listener = node.netns.bind_tcp(SocketAddr::new(node.ip, 8080)).unwrap();
    let beyond = lab.segment.lan().bind_tcp(SocketAddr::new(lab.segment.ip(), 8080)).unwrap();
    for listener in [listener, beyond] {
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
        });
    }
    let talks = |allowed: bool| {
        let mut all = Vec::new();
        for family in FAMILIES {
            for by in [By::Tcp, By::Udp, By::Ping] {
                all.push(Talk::new(&client.netns, near.of(family), 8080, by, allowed, "on this node"));
                all.push(Talk::new(&client.netns, far.of(family), 8080, by, allowed, "on another"));
                // Being asked is no egress, nor are answers.
                all.push(Talk::new(&far.netns, client.of(family), 8080, by, true, "asked from afar"));
                all.push(Talk::new(&node.netns, client.of(family), 8080, by, true, "asked by the node"));
            }
            all.push(Talk::new(&client.netns, client.of(family), 8080, By::Tcp, true, "itself"));
            all.push(Talk::new(&near.netns, far.of(family), 8080, By::Tcp, true, "one not selected"));
        }
        all.push(Talk::new(&client.netns, node.ip, 8080, By::Tcp, allowed, "the node itself"));
        all.push(Talk::new(&client.netns, node.ip, 0, By::Ping, allowed, "the node itself"));
        all.push(Talk::new(&client.netns, lab.segment.ip(), 8080, By::Tcp, allowed, "outside"));
        all
    };
    let (open, closed) = (talks(true), talks(false));
    expect(&open);
    let selector = json!({"matchLabels": {"role": "client"}});
    lab.policy("a", "deny", json!({"podSelector": selector, "policyTypes": ["Egress"]}));
    expect(&closed);
    lab.no_policies();
    expect(&open);
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_ports_and_names_of_the_destination() {
    let mut lab = Lab::new().await;
    let client = lab.pod(0, "a", "client", json!({})).await;
    let one = lab.pod_with_port(0, "b", "one", json!({"app": "x"}), 8080).await;
    let two = lab.pod_with_port(1, "b", "two", json!({"app": "y"}), 8081).await;
    type Wanted = fn(&str, u16) -> bool;
    let here = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "b"}},
        "podSelector": {"matchLabels": {"app": "x"}}});
    let cases: [(serde_json::Value, serde_json::Value, Wanted); 6] = [
        (json!([here]), json!([]), |pod, _| pod == "one"),
        (json!([here]), json!([{"port": 8081}]), |pod, port| pod == "one" && port == 8081),
        // What each destination calls so.
        (json!([]), json!([{"port": "http"}]), |pod, port| port == if pod == "one" { 8080 } else { 8081 }),
        (json!([here]), json!([{"port": "http"}]), |pod, port| pod == "one" && port == 8080),
        (
            json!([{"ipBlock": {"cidr": "10.244.2.0/24"}}, {"ipBlock": {"cidr": "fd10:244:0:2::/64"}}]),
            json!([{"port": "http"}, {"port": 8082}]),
            |pod, port| pod == "two" && port >= 8081,
        ),
        (json!([{"podSelector": {}}]), json!([]), |_, _| false),
    ];
    for (to, ports, wanted) in cases {
        let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": to, "ports": ports}]});
        lab.policy("a", "p", spec);
        let mut talks = Vec::new();
        for (pod, family) in [&one, &two].into_iter().flat_map(|p| FAMILIES.map(|f| (p, f))) {
            for port in crate::support::PORTS {
                let allowed = wanted(&pod.uid, port);
                talks.push(Talk::new(&client.netns, pod.of(family), port, By::Tcp, allowed, &format!("{to} {ports}")));
            }
        }
        expect(&talks);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_must_allow_it() {
    let mut lab = Lab::new().await;
    let client = lab.pod(0, "a", "client", json!({"role": "client"})).await;
    let web = lab.pod(0, "a", "web", json!({"app": "web"})).await;
    let (is_client, is_web) = (json!({"matchLabels": {"role": "client"}}), json!({"matchLabels": {"app": "web"}}));
    let talk = |allowed| [Talk::new(&client.netns, web.of(Family::V4), 8080, By::Tcp, allowed, "both")];
    lab.policy(
        "a",
        "out",
        json!({"podSelector": is_client, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": is_web}]}]}),
    );
    expect(&talk(true));
    lab.policy("a", "in", json!({"podSelector": is_web, "ingress": []}));
    expect(&talk(false));
    lab.policy("a", "in", json!({"podSelector": is_web, "ingress": [{"from": [{"podSelector": is_client}]}]}));
    expect(&talk(true));
    lab.policy("a", "out", json!({"podSelector": is_client, "policyTypes": ["Egress"]}));
    expect(&talk(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_dns_is_reached_by_the_label_that_everybody_uses() {
    let mut lab = Lab::new().await;
    let client = lab.pod(0, "a", "client", json!({})).await;
    let node = lab.nodes[0].clone();
    for port in [53, 54] {
        let udp = node.netns.bind_udp(SocketAddr::new(node.ip, port)).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 100];
            while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&buffer[..length], peer);
            }
        });
    }
    let slice = json!({"metadata": {"name": "kube-dns-one", "namespace": "kube-system"}, "addressType": "IPv4",
        "endpoints": [{"addresses": [node.ip]}], "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]});
    let dns = model::dns(&serde_json::from_value(slice).unwrap());
    for (_, planner) in &mut lab.programs {
        planner.set_pod("dns:kube-dns-one", Some(dns.clone()));
    }
    lab.namespace("kube-system", json!({"kubernetes.io/metadata.name": "kube-system"}));
    let talks = |dns: bool| {
        [53, 54].map(|port| Talk::new(&client.netns, node.ip, port, By::Udp, dns && port == 53, &port.to_string()))
    };
    lab.policy("a", "p", json!({"podSelector": {}, "policyTypes": ["Egress"]}));
    expect(&talks(false));
    let to = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}]);
    lab.policy("a", "p", json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": to}]}));
    expect(&talks(true));
    let spec =
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}]});
    lab.policy("a", "p", spec);
    expect(&talks(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_there_goes_on_and_a_new_one_does_not_come() {
    let mut lab = Lab::new().await;
    let client = lab.pod(0, "a", "client", json!({})).await;
    let web = lab.pod(1, "a", "web", json!({})).await;
    let to = SocketAddr::new(web.of(Family::V4), 8080);
    let mut open = connect(&client.netns, to, Duration::from_secs(10)).unwrap();
    exchange(&mut open).unwrap();
    lab.policy("a", "deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    exchange(&mut open).unwrap();
    expect(&[Talk::new(&client.netns, to.ip(), 8080, By::Tcp, false, "a new one")]);
    exchange(&mut open).unwrap();
}
