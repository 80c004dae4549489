//! Where packets go, and with which source address: over every renderer and both families.

use crate::support::{FAMILIES, Mode, at, each_mode, ip, node_one, outside, service, tcp, udp, vip};
use causeway_services::family::Family;
use serde_json::json;
use std::{collections::HashMap, io::ErrorKind, net::IpAddr, time::Instant};

#[tokio::test(flavor = "multi_thread")]
async fn cluster_ip_from_pod_and_node_is_spread_over_endpoints() {
    each_mode(async |mut lab| {
        let client = lab.pod("one", "client").await;
        let (a, b, c) = (lab.pod("one", "a").await, lab.pod("one", "b").await, lab.pod("two", "c").await);
        lab.set(&service("s", json!({})), &[&a, &b, &c]);
        for family in FAMILIES {
            for (from, source) in [(&client.netns, client.of(family)), (&lab.one.netns, node_one(family))] {
                let mut served: HashMap<IpAddr, u32> = HashMap::new();
                for _ in 0..90 {
                    let answer = tcp(from, at(vip(family), 80)).unwrap();
                    assert_eq!(answer.client, source, "the source address is kept");
                    *served.entry(answer.server).or_default() += 1;
                }
                assert_eq!(served.len(), 3, "{served:?}");
                assert!(served.values().all(|n| *n >= 8), "{served:?}");
                assert_eq!(udp(from, at(vip(family), 80)).unwrap().client, source);
            }
        }
        if lab.mode == Mode::Nftables {
            // Others on the machine must be able to list rules with what Debian has.
            let all = lab.nft("list ruleset");
            assert!(all.contains("map @endpoints") && all.contains("@dispatch"), "{all}");
            lab.nft("-j list ruleset");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_port_from_everywhere() {
    each_mode(async |mut lab| {
        let (a, c) = (lab.pod("one", "a").await, lab.pod("two", "c").await);
        let s = service("s", json!({}));
        let lan = lab.segment.lan().clone();
        for family in FAMILIES {
            let door = at(node_one(family), 30080);
            lab.set(&s, &[&a]);
            assert_eq!(tcp(&lan, door).unwrap().client, outside(family), "a local endpoint sees the client");
            lab.set(&s, &[&c]);
            assert_eq!(tcp(&lan, door).unwrap().client, node_one(family), "a remote one answers by way of the node");
            assert_eq!(udp(&lan, door).unwrap().client, node_one(family));
            for from in [&lab.one.netns, &lab.two.netns, &a.netns, &c.netns] {
                assert_eq!(tcp(from, door).unwrap().server, c.of(family), "{}", from.name());
                assert_eq!(udp(from, door).unwrap().server, c.of(family), "{}", from.name());
            }
            assert_eq!(tcp(&lan, at(node_one(family), 30081)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reaches_itself_through_its_service() {
    each_mode(async |mut lab| {
        let a = lab.pod("one", "a").await;
        lab.set(&service("s", json!({})), &[&a]);
        for family in FAMILIES {
            let gateway = if family == Family::V4 { "10.244.1.1" } else { "fd10:244:0:1::1" };
            for answer in [tcp(&a.netns, at(vip(family), 80)).unwrap(), udp(&a.netns, at(vip(family), 80)).unwrap()] {
                assert_eq!(answer.server, a.of(family));
                assert_eq!(answer.client, at(gateway, 0).ip(), "through the gateway");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_serves_is_refused_at_once_and_strangers_are_dropped() {
    each_mode(async |mut lab| {
        let (client, a) = (lab.pod("one", "client").await, lab.pod("one", "a").await);
        lab.set(&service("s", json!({})), &[]);
        for family in FAMILIES {
            for from in [&client.netns, &lab.one.netns] {
                for (what, port) in [("no endpoint", 80), ("no such port", 81)] {
                    let started = Instant::now();
                    let to = at(vip(family), port);
                    assert_eq!(tcp(from, to).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{what}");
                    // A process on the node learns it from the call itself.
                    let refused = udp(from, to).unwrap_err().kind();
                    let known = [ErrorKind::ConnectionRefused, ErrorKind::PermissionDenied];
                    assert!(known.contains(&refused), "{what}: {refused}");
                    assert!(started.elapsed() < crate::support::PATIENCE, "{what}");
                }
                let stranger = if family == Family::V4 { "10.96.0.99" } else { "fd96::99" };
                let silence = tcp(from, at(stranger, 80)).unwrap_err().kind();
                assert!(matches!(silence, ErrorKind::TimedOut | ErrorKind::WouldBlock), "{silence:?}");
            }
            let door = at(node_one(family), 30080);
            assert_eq!(tcp(lab.segment.lan(), door).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        // It works as soon as there is one, also for a flow that was refused before.
        lab.set(&service("s", json!({})), &[&a]);
        for family in FAMILIES {
            assert_eq!(tcp(&client.netns, at(vip(family), 80)).unwrap().server, a.of(family));
            assert_eq!(udp(&client.netns, at(vip(family), 80)).unwrap().server, a.of(family));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_policies_keep_traffic_on_the_node() {
    each_mode(async |mut lab| {
        let (client, a, c) = (lab.pod("one", "client").await, lab.pod("one", "a").await, lab.pod("two", "c").await);
        let external = service("s", json!({"externalTrafficPolicy": "Local"}));
        let internal = service("s", json!({"internalTrafficPolicy": "Local"}));
        let lan = lab.segment.lan().clone();
        for family in FAMILIES {
            let door = at(node_one(family), 30080);
            let (near, far) = (a.of(family), c.of(family));
            lab.set(&external, &[&a, &c]);
            for _ in 0..10 {
                let answer = tcp(&lan, door).unwrap();
                assert_eq!((answer.server, answer.client), (near, outside(family)));
            }
            lab.set(&external, &[&c]);
            assert_ne!(tcp(&lan, door).unwrap_err().kind(), ErrorKind::ConnectionRefused, "dropped");
            assert_eq!(tcp(&client.netns, door).unwrap().server, far, "pods and nodes may go anywhere");
            assert_eq!(tcp(&lab.one.netns, door).unwrap().server, far);
            lab.set(&internal, &[&a, &c]);
            for _ in 0..10 {
                assert_eq!(tcp(&client.netns, at(vip(family), 80)).unwrap().server, near);
            }
            lab.set(&internal, &[&c]);
            let dropped = tcp(&client.netns, at(vip(family), 80)).unwrap_err().kind();
            assert_ne!(dropped, ErrorKind::ConnectionRefused, "dropped");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_own_dns_behind_a_service_address() {
    each_mode(async |mut lab| {
        let client = lab.pod("one", "client").await;
        let dns = service(
            "dns",
            json!({"internalTrafficPolicy": "Local", "ports": [{"name": "u", "port": 53, "protocol": "UDP"}]}),
        );
        let slice = |family: Family| {
            // Listens on the node, as cluster DNS does.
            let server = lab.one.netns.bind_udp(at(node_one(family), 53)).unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 100];
                while let Ok((_, peer)) = server.recv_from(&mut buffer) {
                    let _ = server.send_to(format!("{} 1.1.1.1", peer.ip()).as_bytes(), peer);
                }
            });
            let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
            serde_json::from_value(json!({"metadata": {"name": kind}, "addressType": kind,
                "endpoints": [{"addresses": [node_one(family)], "nodeName": "one"}],
                "ports": [{"name": "u", "port": 53, "protocol": "UDP"}]}))
            .unwrap()
        };
        let slices = FAMILIES.map(slice);
        lab.set_slices(&dns, &slices);
        for family in FAMILIES {
            assert_eq!(udp(&client.netns, at(vip(family), 53)).unwrap().client, client.of(family));
            assert_eq!(udp(&lab.one.netns, at(vip(family), 53)).unwrap().client, node_one(family));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_affinity_keep_their_endpoint_while_it_lives() {
    each_mode(async |mut lab| {
        let client = lab.pod("one", "client").await;
        let (a, b, c) = (lab.pod("one", "a").await, lab.pod("one", "b").await, lab.pod("two", "c").await);
        let config =
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 100}}});
        let s = service("s", config);
        for family in FAMILIES {
            let ask = || tcp(&client.netns, at(vip(family), 80)).unwrap().server;
            lab.set(&s, &[&a, &b]);
            let first = ask();
            let sticks = |expected: IpAddr| (0..20).for_each(|_| assert_eq!(ask(), expected));
            sticks(first);
            lab.set(&s, &[&a, &b, &c]);
            sticks(first);
            let rest: Vec<_> = [&a, &b, &c].into_iter().filter(|p| p.of(family) != first).collect();
            lab.set(&s, &rest);
            let second = ask();
            assert_ne!(second, first);
            sticks(second);
            lab.set(&s, &[&a, &b, &c]);
            sticks(second);
            if lab.mode == Mode::Nftables {
                lab.nft("list ruleset");
                lab.nft("-j list ruleset");
            }
            // Without affinity again.
            lab.set(&service("s", json!({})), &[&a, &b, &c]);
            let all: std::collections::HashSet<_> = (0..60).map(|_| ask()).collect();
            assert_eq!(all.len(), 3);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn affinity_is_for_a_service_port_by_whichever_address() {
    each_mode(async |mut lab| {
        let client = lab.pod("one", "client").await;
        let mut pods = Vec::new();
        for (node, name) in [("one", "a"), ("one", "b"), ("one", "c"), ("two", "d"), ("two", "e"), ("two", "f")] {
            pods.push(lab.pod(node, name).await);
        }
        let all: Vec<_> = pods.iter().collect();
        let lan = lab.segment.lan().clone();
        let balanced = ["192.0.2.9", "2001:db8::9"];
        for (family, external) in FAMILIES.into_iter().zip(balanced) {
            let fresh = service("s", json!({}));
            let affine = |policy: &str| {
                service(
                    "s",
                    json!({"sessionAffinity": "ClientIP", "externalIPs": balanced, "externalTrafficPolicy": policy}),
                )
            };
            lab.set(&affine("Cluster"), &all);
            let fronts = [at(vip(family), 80), at(external, 80), at(node_one(family), 30080)];
            let first = tcp(&client.netns, fronts[2]).unwrap().server;
            for front in fronts.iter().cycle().take(30) {
                assert_eq!(tcp(&client.netns, *front).unwrap().server, first, "by {front}");
            }
            // From outside of the cluster, with a policy that leaves only some of the endpoints.
            let via = node_one(family);
            ip(&format!("-n {} route add {} via {via}", lan.name(), vip(family)));
            lab.set(&affine("Local"), &all[4..]);
            assert_eq!(tcp(&lan, fronts[0]).unwrap().client, via, "at the other node");
            lab.set(&affine("Local"), &all);
            let second = tcp(&lan, fronts[2]).unwrap().server;
            assert!(all[..3].iter().any(|p| p.of(family) == second), "{second} is not of this node");
            (0..20).for_each(|_| assert_eq!(tcp(&lan, fronts[2]).unwrap().server, second));
            if lab.mode == Mode::Nftables {
                (0..20).for_each(|_| assert_eq!(tcp(&lan, fronts[0]).unwrap().server, second));
                let listed = lab.nft("list ruleset");
                assert!(listed.contains("@affinity"), "{listed}");
                lab.nft("-j list ruleset");
            }
            lab.set(&fresh, &all);
        }
    })
    .await;
}
