//! Load balancers, external addresses, source ranges, hints, terminating endpoints, time-outs: with real packets, over
//! every renderer and both families.

use crate::support::{
    FAMILIES, Lab, Mode, Pod, at, each_mode, ip, is_silence, node_one, outside, service, slices, tcp, udp, vip,
};
use causeway_services::family::Family;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::IpAddr,
    time::{Duration, Instant},
};

const EXTERNAL: [&str; 2] = ["198.51.100.7", "2001:db8::7"];
const BALANCED: [&str; 2] = ["198.51.100.1", "2001:db8::1"];

fn of(family: Family, both: [&str; 2]) -> IpAddr {
    both[usize::from(family == Family::V6)].parse().unwrap()
}

/// A service with a load balancer's address and an external one, of both families.
fn balanced(more: Value) -> Service {
    let mut spec = json!({"type": "LoadBalancer", "externalIPs": EXTERNAL});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut service = service("s", spec);
    let ingress = BALANCED.map(|ip| json!({"ip": ip}));
    service.status = Some(serde_json::from_value(json!({"loadBalancer": {"ingress": ingress}})).unwrap());
    service
}

/// Ways from everywhere to those addresses: from outside by node one; on the node by a link of its own that leads nowhere,
/// so that nobody is told of a shorter way.
fn ways(lab: &Lab) {
    let (lan, one) = (lab.segment.lan().name(), lab.one.netns.name());
    ip(&format!("-n {lan} route add 198.51.100.0/24 via 10.90.0.11"));
    ip(&format!("-n {lan} route add 2001:db8::/64 via fd10:90::11"));
    ip(&format!("-n {one} link add way0 type veth peer name way1"));
    ip(&format!("-n {one} link set way0 up"));
    ip(&format!("-n {one} link set way1 up"));
    ip(&format!("-n {one} route add 198.51.100.0/24 dev way0 src 10.90.0.11"));
    ip(&format!("-n {one} route add 2001:db8::/64 dev way0 src fd10:90::11"));
}

#[tokio::test(flavor = "multi_thread")]
async fn external_and_balanced_addresses_are_served_to_all() {
    each_mode(async |mut lab| {
        ways(&lab);
        let (a, c) = (lab.pod("one", "a").await, lab.pod("two", "c").await);
        lab.set(&balanced(json!({})), &[&c]);
        for family in FAMILIES {
            for front in [of(family, EXTERNAL), of(family, BALANCED)].map(|ip| at(ip, 80)) {
                for from in [lab.segment.lan(), &lab.one.netns, &a.netns] {
                    assert_eq!(tcp(from, front).unwrap().server, c.of(family), "{front} from {}", from.name());
                    assert_eq!(udp(from, front).unwrap().server, c.of(family), "{front} from {}", from.name());
                }
                let client = tcp(lab.segment.lan(), front).unwrap().client;
                assert_eq!(client, node_one(family), "it must answer by way of the node");
            }
        }
        // Gone with the service: nobody has the address.
        lab.set(&service("s", json!({})), &[&c]);
        for family in FAMILIES {
            assert!(tcp(lab.segment.lan(), at(of(family, BALANCED), 80)).is_err());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_ranges_limit_the_balancers_addresses_alone() {
    each_mode(async |mut lab| {
        ways(&lab);
        let (client, a) = (lab.pod("one", "client").await, lab.pod("one", "a").await);
        let ranges = |ranges: &[&str]| balanced(json!({"loadBalancerSourceRanges": ranges}));
        let (lan, one) = (lab.segment.lan().clone(), lab.one.netns.clone());
        lab.set(&ranges(&["10.90.0.0/30", "10.1.0.0/16", "fd10:90::/124"]), &[&a]);
        for family in FAMILIES {
            let front = at(of(family, BALANCED), 80);
            assert_eq!(tcp(&lan, front).unwrap().server, a.of(family));
            assert!(is_silence(tcp(&client.netns, front)), "pods are no exception");
            assert!(udp(&client.netns, front).is_err());
            assert!(is_silence(tcp(&one, front)), "nor is the node");
            for free in [at(of(family, EXTERNAL), 80), at(vip(family), 80), at(node_one(family), 30080)] {
                assert_eq!(tcp(&client.netns, free).unwrap().server, a.of(family), "{free} is not limited");
            }
        }
        if lab.mode == Mode::Nftables {
            lab.nft("list ruleset");
            lab.nft("-j list ruleset");
        }
        // Other ranges, of which some meet.
        lab.set(&ranges(&["10.244.0.0/17", "10.244.128.0/17", "fd10:244::/64", "fd10:244:0:1::/64"]), &[&a]);
        for family in FAMILIES {
            let front = at(of(family, BALANCED), 80);
            assert_eq!(tcp(&client.netns, front).unwrap().server, a.of(family));
            assert!(is_silence(tcp(&lan, front)));
        }
        // Those of one family say nothing of the other.
        lab.set(&ranges(&["10.1.0.0/16"]), &[&a]);
        assert!(is_silence(tcp(&lan, at(BALANCED[0], 80))));
        assert_eq!(tcp(&lan, at(BALANCED[1], 80)).unwrap().server, a.ip6);
        // Should the balancer's address be the node's, the node comes from there.
        ip(&format!("-n {} addr add {}/32 dev lo", one.name(), BALANCED[0]));
        lab.set(&ranges(&["10.90.0.11/32"]), &[&a]);
        assert_eq!(tcp(&one, at(BALANCED[0], 80)).unwrap().server, a.ip);
        lab.set(&ranges(&[]), &[&a]);
        assert_eq!(tcp(&lan, at(BALANCED[0], 80)).unwrap().server, a.ip);
        // Without an endpoint, those who may come are refused, and others hear nothing.
        lab.set(&ranges(&["10.90.0.0/30"]), &[]);
        assert_eq!(tcp(&lan, at(BALANCED[0], 80)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(is_silence(tcp(&client.netns, at(BALANCED[0], 80))));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_policy_of_a_balancer_keeps_the_source_and_lets_pods_go_anywhere() {
    each_mode(async |mut lab| {
        ways(&lab);
        let (client, a, c) = (lab.pod("one", "client").await, lab.pod("one", "a").await, lab.pod("two", "c").await);
        let local = balanced(json!({"externalTrafficPolicy": "Local"}));
        let lan = lab.segment.lan().clone();
        lab.set(&local, &[&a, &c]);
        for family in FAMILIES {
            for front in [of(family, EXTERNAL), of(family, BALANCED)].map(|ip| at(ip, 80)) {
                let answer = tcp(&lan, front).unwrap();
                assert_eq!((answer.server, answer.client), (a.of(family), outside(family)));
            }
        }
        lab.set(&local, &[&c]);
        for family in FAMILIES {
            let front = at(of(family, BALANCED), 80);
            assert!(is_silence(tcp(&lan, front)));
            assert_eq!(tcp(&client.netns, front).unwrap().server, c.of(family));
            assert_eq!(tcp(&lab.one.netns, front).unwrap().server, c.of(family));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terminating_endpoints_serve_when_no_other_does() {
    each_mode(async |mut lab| {
        let (client, a, b, c) = (
            lab.pod("one", "client").await,
            lab.pod("one", "a").await,
            lab.pod("one", "b").await,
            lab.pod("two", "c").await,
        );
        let leaving = || json!({"conditions": {"ready": false, "serving": true, "terminating": true}});
        let sick = || json!({"conditions": {"ready": false, "serving": false, "terminating": true}});
        let s = service("s", json!({"externalTrafficPolicy": "Local"}));
        let lan = lab.segment.lan().clone();
        lab.set_slices(&s, &slices(&[(&a, leaving()), (&b, sick()), (&c, json!({}))]));
        for family in FAMILIES {
            for _ in 0..10 {
                assert_eq!(tcp(&client.netns, at(vip(family), 80)).unwrap().server, c.of(family), "the ready one");
                let answer = tcp(&lan, at(node_one(family), 30080)).unwrap();
                assert_eq!(answer.server, a.of(family), "of the local ones, none else serves");
            }
        }
        lab.set_slices(&s, &slices(&[(&a, leaving()), (&b, sick()), (&c, leaving())]));
        for family in FAMILIES {
            let served: BTreeSet<_> =
                (0..40).map(|_| tcp(&client.netns, at(vip(family), 80)).unwrap().server).collect();
            assert_eq!(served, [a.of(family), c.of(family)].into());
        }
        lab.set_slices(&s, &slices(&[(&b, sick())]));
        let refused = tcp(&client.netns, at(vip(Family::V4), 80)).unwrap_err().kind();
        assert_eq!(refused, ErrorKind::ConnectionRefused);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_keep_traffic_near() {
    each_mode(async |mut lab| {
        lab.zone = Some("z1".to_owned());
        let (client, a, b, c) = (
            lab.pod("one", "client").await,
            lab.pod("one", "a").await,
            lab.pod("two", "b").await,
            lab.pod("two", "c").await,
        );
        let hint =
            |node: &str, zone: &str| json!({"hints": {"forNodes": [{"name": node}], "forZones": [{"name": zone}]}});
        let zone = |zone: &str| json!({"hints": {"forZones": [{"name": zone}]}});
        let s = service("s", json!({}));
        let mut goes_to = |ends: &[(&Pod, Value)], expected: &[&Pod]| {
            lab.set_slices(&s, &slices(ends));
            for family in FAMILIES {
                let ask = |_| tcp(&client.netns, at(vip(family), 80)).unwrap().server;
                let served: BTreeSet<_> = (0..40).map(ask).collect();
                assert_eq!(served, expected.iter().map(|p| p.of(family)).collect());
            }
        };
        goes_to(&[(&a, hint("one", "z1")), (&b, hint("two", "z1")), (&c, hint("two", "z2"))], &[&a]);
        goes_to(&[(&b, hint("two", "z1")), (&c, hint("two", "z2"))], &[&b]);
        goes_to(&[(&a, zone("z1")), (&b, zone("z1")), (&c, zone("z2"))], &[&a, &b]);
        goes_to(&[(&a, zone("z2")), (&c, zone("z2"))], &[&a, &c]);
        goes_to(&[(&a, zone("z1")), (&c, json!({}))], &[&a, &c]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn affinity_ends_with_its_time_out_and_not_before() {
    each_mode(async |mut lab| {
        let client = lab.pod("one", "client").await;
        let mut pods = Vec::new();
        for name in ["a", "b", "c", "d"] {
            pods.push(lab.pod("one", name).await);
        }
        let all: Vec<&Pod> = pods.iter().collect();
        let affine = |seconds: u32| {
            let config = json!({"clientIP": {"timeoutSeconds": seconds}});
            service("s", json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}))
        };
        lab.set(&affine(1000), &all);
        for family in FAMILIES {
            let ask = || tcp(&client.netns, at(vip(family), 80)).unwrap().server;
            // A time-out that nobody had before disturbs neither rules nor clients.
            lab.set(&affine(1000), &all);
            let first = ask();
            let done = lab.set(&affine(1 + u32::from(family == Family::V6)), &all);
            assert!(!done.rebuilt, "{done:?}");
            assert_eq!(ask(), first);
            // Every look renews it; only a pause lets the client go. One in four stays where it was by chance.
            let begun = Instant::now();
            let left = (0..30).any(|_| {
                std::thread::sleep(Duration::from_millis(2200));
                ask() != first
            });
            assert!(left, "still at {first} after {:?}", begun.elapsed());
            let now = ask();
            (0..10).for_each(|_| assert_eq!(ask(), now));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_ports_on_chosen_addresses() {
    each_mode(async |mut lab| {
        let a = lab.pod("one", "a").await;
        let (lan, one) = (lab.segment.lan().clone(), lab.one.netns.clone());
        ip(&format!("-n {} addr add 10.91.0.11/32 dev lo", one.name()));
        ip(&format!("-n {} route add 10.91.0.0/24 via 10.90.0.11", lan.name()));
        let second = at("10.91.0.11", 30080);
        lab.set(&service("s", json!({})), &[&a]);
        assert_eq!(tcp(&lan, second).unwrap_err().kind(), ErrorKind::ConnectionRefused, "not one of the chosen");
        lab.more_node_port_ips = vec![second.ip()];
        lab.set(&service("s", json!({})), &[&a]);
        for from in [&lan, &one, &a.netns] {
            assert_eq!(tcp(from, second).unwrap().server, a.ip);
        }
    })
    .await;
}
