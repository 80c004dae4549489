//! Where packets go, and with which source address.

use crate::support::{Lab, VIP, at, service, tcp, udp};
use serde_json::json;
use std::{collections::HashMap, io::ErrorKind, net::IpAddr, time::Instant};

#[tokio::test(flavor = "multi_thread")]
async fn cluster_ip_from_pod_and_node_is_spread_over_endpoints() {
    let mut lab = Lab::new().await;
    let client = lab.pod("one", "client").await;
    let (a, b, c) = (lab.pod("one", "a").await, lab.pod("one", "b").await, lab.pod("two", "c").await);
    lab.set(&service("s", json!({})), &[&a, &b, &c]);
    for (from, source) in [(&client.netns, client.ip), (&lab.one.netns, lab.one.ip)] {
        let mut served: HashMap<IpAddr, u32> = HashMap::new();
        for _ in 0..90 {
            let answer = tcp(from, at(VIP, 80)).unwrap();
            assert_eq!(answer.client, source, "the source address is kept");
            *served.entry(answer.server).or_default() += 1;
        }
        assert_eq!(served.len(), 3, "{served:?}");
        assert!(served.values().all(|n| *n >= 8), "{served:?}");
        let answer = udp(from, at(VIP, 80)).unwrap();
        assert_eq!(answer.client, source);
    }
    // Others on the machine must be able to list rules with what Debian has.
    let all = lab.nft("list ruleset");
    assert!(all.contains("map @endpoints") && all.contains("@dispatch"), "{all}");
    lab.nft("-j list ruleset");
}

#[tokio::test(flavor = "multi_thread")]
async fn node_port_from_everywhere() {
    let mut lab = Lab::new().await;
    let (a, c) = (lab.pod("one", "a").await, lab.pod("two", "c").await);
    let s = service("s", json!({}));
    let door = at(lab.one.ip, 30080);
    let outside = lab.segment.lan().clone();
    lab.set(&s, &[&a]);
    assert_eq!(tcp(&outside, door).unwrap().client, lab.segment.ip(), "a local endpoint sees the client");
    lab.set(&s, &[&c]);
    assert_eq!(tcp(&outside, door).unwrap().client, lab.one.ip, "a remote one answers by way of the node");
    assert_eq!(udp(&outside, door).unwrap().client, lab.one.ip);
    for from in [&lab.one.netns, &lab.two.netns, &a.netns, &c.netns] {
        assert_eq!(tcp(from, door).unwrap().server, c.ip, "{}", from.name());
        assert_eq!(udp(from, door).unwrap().server, c.ip, "{}", from.name());
    }
    assert_eq!(tcp(&outside, at(lab.one.ip, 30081)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reaches_itself_through_its_service() {
    let mut lab = Lab::new().await;
    let a = lab.pod("one", "a").await;
    lab.set(&service("s", json!({})), &[&a]);
    for answer in [tcp(&a.netns, at(VIP, 80)).unwrap(), udp(&a.netns, at(VIP, 80)).unwrap()] {
        assert_eq!(answer.server, a.ip);
        assert_eq!(answer.client, at("10.244.1.1", 0).ip(), "through the gateway");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_serves_is_refused_at_once_and_strangers_are_dropped() {
    let mut lab = Lab::new().await;
    let (client, a) = (lab.pod("one", "client").await, lab.pod("one", "a").await);
    lab.set(&service("s", json!({})), &[]);
    for from in [&client.netns, &lab.one.netns] {
        for (what, port) in [("no endpoint", 80), ("no such port", 81)] {
            let started = Instant::now();
            assert_eq!(tcp(from, at(VIP, port)).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{what}");
            // A process on the node learns it from the call itself.
            let refused = udp(from, at(VIP, port)).unwrap_err().kind();
            assert!(matches!(refused, ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied), "{what}: {refused}");
            assert!(started.elapsed() < crate::support::PATIENCE, "{what}");
        }
        let silence = tcp(from, at("10.96.0.99", 80)).unwrap_err().kind();
        assert!(matches!(silence, ErrorKind::TimedOut | ErrorKind::WouldBlock), "{silence:?}");
    }
    assert_eq!(tcp(lab.segment.lan(), at(lab.one.ip, 30080)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // It works as soon as there is one, also for a flow that was refused before.
    lab.set(&service("s", json!({})), &[&a]);
    assert_eq!(tcp(&client.netns, at(VIP, 80)).unwrap().server, a.ip);
    assert_eq!(udp(&client.netns, at(VIP, 80)).unwrap().server, a.ip);
}

#[tokio::test(flavor = "multi_thread")]
async fn local_policies_keep_traffic_on_the_node() {
    let mut lab = Lab::new().await;
    let (client, a, c) = (lab.pod("one", "client").await, lab.pod("one", "a").await, lab.pod("two", "c").await);
    let external = service("s", json!({"externalTrafficPolicy": "Local"}));
    let door = at(lab.one.ip, 30080);
    let outside = lab.segment.lan().clone();
    lab.set(&external, &[&a, &c]);
    for _ in 0..10 {
        let answer = tcp(&outside, door).unwrap();
        assert_eq!((answer.server, answer.client), (a.ip, lab.segment.ip()));
    }
    lab.set(&external, &[&c]);
    assert_ne!(tcp(&outside, door).unwrap_err().kind(), ErrorKind::ConnectionRefused, "dropped");
    assert_eq!(tcp(&client.netns, door).unwrap().server, c.ip, "pods and nodes may go anywhere");
    assert_eq!(tcp(&lab.one.netns, door).unwrap().server, c.ip);
    let internal = service("s", json!({"internalTrafficPolicy": "Local"}));
    lab.set(&internal, &[&a, &c]);
    for _ in 0..10 {
        assert_eq!(tcp(&client.netns, at(VIP, 80)).unwrap().server, a.ip);
    }
    lab.set(&internal, &[&c]);
    assert_ne!(tcp(&client.netns, at(VIP, 80)).unwrap_err().kind(), ErrorKind::ConnectionRefused, "dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_own_dns_behind_a_service_address() {
    let mut lab = Lab::new().await;
    let client = lab.pod("one", "client").await;
    // Listens on the node, as cluster DNS does.
    let server = lab.one.netns.bind_udp(at(lab.one.ip, 53)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, peer)) = server.recv_from(&mut buffer) {
            let _ = server.send_to(format!("{} 1.1.1.1", peer.ip()).as_bytes(), peer);
        }
    });
    let dns = service(
        "dns",
        json!({"internalTrafficPolicy": "Local", "ports": [{"name": "u", "port": 53, "protocol": "UDP"}]}),
    );
    let slice = serde_json::from_value(json!({"metadata": {"name": "kube-dns-one"}, "addressType": "IPv4",
        "endpoints": [{"addresses": [lab.one.ip], "nodeName": "one"}], "ports": [{"name": "u", "port": 53, "protocol": "UDP"}]}))
    .unwrap();
    let model = causeway_services::model::service(&dns, [&slice], &lab.node());
    let ranges = lab.ranges();
    lab.program.sync(vec![("dns".into(), Some(model))], &ranges, true).unwrap();
    assert_eq!(udp(&client.netns, at(VIP, 53)).unwrap().client, client.ip);
    assert_eq!(udp(&lab.one.netns, at(VIP, 53)).unwrap().client, lab.one.ip);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_affinity_keep_their_endpoint_while_it_lives() {
    let mut lab = Lab::new().await;
    let client = lab.pod("one", "client").await;
    let (a, b, c) = (lab.pod("one", "a").await, lab.pod("one", "b").await, lab.pod("two", "c").await);
    let config = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 100}}});
    let s = service("s", config);
    lab.set(&s, &[&a, &b]);
    let first = tcp(&client.netns, at(VIP, 80)).unwrap().server;
    let sticks = |expected: IpAddr| {
        for _ in 0..20 {
            assert_eq!(tcp(&client.netns, at(VIP, 80)).unwrap().server, expected);
        }
    };
    sticks(first);
    lab.set(&s, &[&a, &b, &c]);
    sticks(first);
    let rest: Vec<_> = [&a, &b, &c].into_iter().filter(|p| p.ip != first).collect();
    lab.set(&s, &rest);
    let second = tcp(&client.netns, at(VIP, 80)).unwrap().server;
    assert_ne!(second, first);
    sticks(second);
    lab.set(&s, &[&a, &b, &c]);
    sticks(second);
    lab.nft("list ruleset");
    lab.nft("-j list ruleset");
    // Without affinity again.
    lab.set(&service("s", json!({})), &[&a, &b, &c]);
    let all: std::collections::HashSet<_> = (0..60).map(|_| tcp(&client.netns, at(VIP, 80)).unwrap().server).collect();
    assert_eq!(all.len(), 3);
}
