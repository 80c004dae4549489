//! Who may reach a pod.

use crate::support::{By, Lab, Talk, expect};
use causeway_nft::family::Family;
use serde_json::json;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[tokio::test(flavor = "multi_thread")]
async fn isolation_holds_for_the_selected_and_from_everywhere_but_the_node_and_itself() {
    let mut lab = Lab::new().await;
    let web = lab.pod(0, "a", "web", json!({"app": "web"})).await;
    let free = lab.pod(0, "a", "free", json!({})).await;
    let near = lab.pod(0, "a", "near", json!({})).await;
    let far = lab.pod(1, "b", "far", json!({})).await;
    let talks = |allowed: bool| {
        let mut all = Vec::new();
        for family in FAMILIES {
            let outside = if family == Family::V4 { lab.segment.lan() } else { &far.netns };
            for (from, who) in [(&near.netns, "near"), (&far.netns, "far"), (outside, "outside")] {
                for by in [By::Tcp, By::Udp, By::Ping] {
                    all.push(Talk::new(from, web.of(family), 8080, by, allowed, &format!("{who} to the selected")));
                }
                all.push(Talk::new(from, free.of(family), 8080, By::Tcp, true, &format!("{who} to one not selected")));
            }
            // Probes, itself, its own connections and their answers.
            all.push(Talk::new(&lab.nodes[0].netns, web.of(family), 8080, By::Tcp, true, "its own node"));
            all.push(Talk::new(&web.netns, web.of(family), 8080, By::Tcp, true, "to itself"));
            for by in [By::Tcp, By::Udp, By::Ping] {
                all.push(Talk::new(&web.netns, far.of(family), 8081, by, true, "answers come back"));
            }
        }
        // Another node is nothing special.
        all.push(Talk::new(&lab.nodes[1].netns, web.of(Family::V4), 8080, By::Tcp, allowed, "another node"));
        all
    };
    expect(&talks(true));
    let talks = (talks(false), talks(true));
    lab.policy("a", "deny", json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": []}));
    expect(&talks.0);
    // A policy of another namespace allows nothing here.
    lab.policy("b", "allow", json!({"podSelector": {}, "ingress": [{}]}));
    expect(&talks.0[..6]);
    // Policies add up.
    lab.policy("a", "allow", json!({"podSelector": {}, "ingress": [{}]}));
    expect(&talks.1);
    lab.no_policies();
    expect(&talks.1[..6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_by_pod_and_namespace_on_the_same_node_and_another() {
    let mut lab = Lab::new().await;
    lab.namespace("b", json!({"team": "blue"}));
    let web = lab.pod(0, "a", "web", json!({"app": "web"})).await;
    let mut clients = Vec::new();
    for (namespace, role) in [("a", "client"), ("a", "other"), ("b", "client"), ("b", "other")] {
        for node in 0..2 {
            let pod = lab.pod(node, namespace, &format!("{namespace}-{role}-{node}"), json!({"role": role})).await;
            clients.push((pod, namespace, role));
        }
    }
    let role = json!({"matchLabels": {"role": "client"}});
    let blue = json!({"matchExpressions": [{"key": "team", "operator": "In", "values": ["blue", "green"]}]});
    type Wanted = fn(&str, &str) -> bool;
    let cases: [(serde_json::Value, Wanted); 5] = [
        (json!([{"podSelector": role}]), |ns, role| ns == "a" && role == "client"),
        (json!([{"namespaceSelector": blue}]), |ns, _| ns == "b"),
        (json!([{"namespaceSelector": blue, "podSelector": role}]), |ns, role| ns == "b" && role == "client"),
        (json!([{"namespaceSelector": blue}, {"podSelector": role}]), |ns, role| ns == "b" || role == "client"),
        (json!([{"namespaceSelector": {}}]), |_, _| true),
    ];
    for (from, wanted) in cases {
        lab.policy("a", "p", json!({"podSelector": {}, "ingress": [{"from": from}]}));
        let mut talks = Vec::new();
        for (pod, ns, role) in &clients {
            for family in FAMILIES {
                let why = format!("{ns} {role} by {from}");
                talks.push(Talk::new(&pod.netns, web.of(family), 8080, By::Tcp, wanted(ns, role), &why));
            }
        }
        talks.push(Talk::new(lab.segment.lan(), web.of(Family::V4), 8080, By::Tcp, false, "an address is no pod"));
        expect(&talks);
    }
    // The labels of a namespace that change count from then on.
    lab.policy("a", "p", json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": blue}]}]}));
    lab.namespace("b", json!({"team": "red"}));
    lab.namespace("a", json!({"team": "green"}));
    let talk = |(pod, ns, _): &(crate::support::Pod, &str, &str)| {
        Talk::new(&pod.netns, web.of(Family::V4), 8080, By::Tcp, *ns == "a", ns)
    };
    expect(&clients.iter().map(talk).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_by_number_name_range_and_protocol() {
    let mut lab = Lab::new().await;
    let one = lab.pod_with_port(0, "a", "one", json!({}), 8080).await;
    let two = lab.pod_with_port(1, "a", "two", json!({}), 8081).await;
    let client = lab.pod(0, "b", "client", json!({})).await;
    type Wanted = fn(&str, By, u16) -> bool;
    let cases: [(serde_json::Value, Wanted); 7] = [
        (json!([{"port": 8080}]), |_, by, port| by == By::Tcp && port == 8080),
        (json!([{"port": 8081, "protocol": "UDP"}]), |_, by, port| by == By::Udp && port == 8081),
        (json!([{"protocol": "UDP"}]), |_, by, _| by == By::Udp),
        (json!([{"port": 8081, "endPort": 8082}]), |_, by, port| by == By::Tcp && port >= 8081),
        (json!([{"port": 8080, "endPort": 8081}, {"port": 8082, "protocol": "UDP"}]), |_, by, port| {
            if by == By::Tcp { port <= 8081 } else { by == By::Udp && port == 8082 }
        }),
        // The name is another number in each pod.
        (json!([{"port": "http"}]), |pod, by, port| by == By::Tcp && port == if pod == "one" { 8080 } else { 8081 }),
        (json!([{"port": "nobody-has-it"}]), |_, _, _| false),
    ];
    for (ports, wanted) in cases {
        lab.policy("a", "p", json!({"podSelector": {}, "ingress": [{"ports": ports}]}));
        let mut talks = Vec::new();
        for pod in [&one, &two] {
            for (family, by) in FAMILIES.into_iter().flat_map(|f| [By::Tcp, By::Udp].map(|by| (f, by))) {
                for port in crate::support::PORTS {
                    let allowed = wanted(&pod.uid, by, port);
                    talks.push(Talk::new(&client.netns, pod.of(family), port, by, allowed, &format!("{ports}")));
                }
            }
            // Who lists ports allows nothing that has none.
            talks.push(Talk::new(&client.netns, pod.of(Family::V4), 0, By::Ping, false, "ping"));
        }
        expect(&talks);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn address_blocks_with_exceptions() {
    let mut lab = Lab::new().await;
    let web = lab.pod(0, "a", "web", json!({})).await;
    let near = lab.pod(0, "b", "near", json!({})).await;
    let far = lab.pod(1, "b", "far", json!({})).await;
    let lan = lab.segment.lan().clone();
    let other_node = lab.nodes[1].netns.clone();
    let hosts = |ip: std::net::IpAddr| if ip.is_ipv4() { format!("{ip}/32") } else { format!("{ip}/128") };
    let (near4, near6) = (hosts(near.of(Family::V4)), hosts(near.of(Family::V6)));
    // Allowed by IPv4: near, far, outside, the other node. By IPv6: near, far.
    let cases = [
        (json!([{"ipBlock": {"cidr": "10.90.0.0/24"}}]), [false, false, true, true], [false, false]),
        (
            json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.244.2.0/24", near4, "10.90.0.1/32"]}}]),
            [false, false, false, true],
            [false, false],
        ),
        (json!([{"ipBlock": {"cidr": "10.0.0.0/9"}}]), [false, false, true, true], [false, false]),
        (
            json!([{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.90.0.0/24"]}}]),
            [true, true, false, false],
            [false, false],
        ),
        (json!([{"ipBlock": {"cidr": "::/0", "except": [near6]}}]), [false; 4], [false, true]),
        // What one block leaves out another may allow.
        (
            json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.244.0.0/16"]}}, {"ipBlock": {"cidr": near4}},
            {"ipBlock": {"cidr": "fd10:244:0:2::/64"}}]),
            [true, false, true, true],
            [false, true],
        ),
    ];
    for (from, four, six) in cases {
        // The second with ports, which must hold as well.
        for (ports, port_allowed) in [(json!([]), true), (json!([{"port": 8080}, {"port": 8081}]), false)] {
            lab.policy("a", "p", json!({"podSelector": {}, "ingress": [{"from": from, "ports": ports}]}));
            let mut talks = Vec::new();
            for (source, allowed) in [&near.netns, &far.netns, &lan, &other_node].into_iter().zip(four) {
                let why = format!("{from} {ports}");
                talks.push(Talk::new(source, web.of(Family::V4), 8081, By::Tcp, allowed, &why));
                talks.push(Talk::new(source, web.of(Family::V4), 8082, By::Tcp, allowed && port_allowed, &why));
            }
            for (source, allowed) in [&near.netns, &far.netns].into_iter().zip(six) {
                let why = format!("{from} {ports}");
                talks.push(Talk::new(source, web.of(Family::V6), 8081, By::Tcp, allowed, &why));
                talks.push(Talk::new(source, web.of(Family::V6), 8082, By::Tcp, allowed && port_allowed, &why));
            }
            expect(&talks);
        }
    }
}
