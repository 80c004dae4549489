//! Changes under traffic, restarts, and others who meddle with our tables.

use crate::support::{
    FAMILIES, Lab, Mode, VIP, at, each_mode, exchange, node_one, service, slices, tcp, udp_socket, vip,
};
use causeway_services::{model::ServiceModel, renderer::Done};
use serde_json::json;
use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Instant,
};

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_come_and_go_without_a_refused_connection() {
    let mut lab = Lab::new(Mode::Nftables).await;
    let client = lab.pod("one", "client").await;
    let mut pods = Vec::new();
    for i in 0..6 {
        pods.push(lab.pod(if i % 2 == 0 { "one" } else { "two" }, &format!("p{i}")).await);
    }
    let s = service("s", json!({}));
    lab.set(&s, &pods.iter().collect::<Vec<_>>());
    let (stop, connects) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if let Err(e) = tcp(&client.netns, at(VIP, 80)) {
                        stop.store(true, Ordering::Relaxed);
                        panic!("after {} connections: {e}", connects.load(Ordering::Relaxed));
                    }
                    connects.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Any subset but the empty one, in a fixed disorder.
        for i in 1_u32..400 {
            let bits = i.wrapping_mul(2_654_435_761) >> 26;
            let some: Vec<_> = pods.iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1).map(|(_, p)| p).collect();
            if !some.is_empty() && !stop.load(Ordering::Relaxed) {
                lab.set(&s, &some);
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(connects.load(Ordering::Relaxed) > 50, "{connects:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn datagram_flows_follow_their_service() {
    each_mode(async |mut lab| {
        let (client, a, b) = (lab.pod("one", "client").await, lab.pod("one", "a").await, lab.pod("two", "b").await);
        let s = service("s", json!({}));
        for family in FAMILIES {
            let (near, far) = (a.of(family), b.of(family));
            lab.set(&s, &[&a]);
            let socket = udp_socket(&client.netns, at(vip(family), 80));
            assert_eq!(exchange(&socket).unwrap().server, near);
            lab.set(&s, &[&a, &b]);
            assert_eq!(exchange(&socket).unwrap().server, near, "a flow stays where it is");
            let leaving = json!({"conditions": {"ready": false, "serving": true, "terminating": true}});
            lab.set_slices(&s, &slices(&[(&a, leaving), (&b, json!({}))]));
            assert_eq!(exchange(&socket).unwrap().server, near, "also while the endpoint terminates");
            assert_eq!(lab.set(&s, &[&b]).flows, 1, "{family:?}");
            assert_eq!(exchange(&socket).unwrap().server, far);
            // Without an endpoint it hears so, and with the first one it goes on.
            lab.set(&s, &[]);
            assert!(exchange(&socket).is_err());
            lab.set(&s, &[&a]);
            assert_eq!(exchange(&socket).unwrap().server, near);
            assert_eq!(lab.remove(&s).flows, 1, "a deleted Service takes its flows along");
            assert!(exchange(&socket).is_err());

            // A flow to the node's own port, that nobody served, becomes the Service's.
            let socket = udp_socket(lab.segment.lan(), at(node_one(family), 30080));
            assert!(exchange(&socket).is_err());
            lab.set(&s, &[&a]);
            assert_eq!(exchange(&socket).unwrap().server, near);
            lab.remove(&s);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_adopts_and_meddling_is_mended() {
    let mut lab = Lab::new(Mode::Nftables).await;
    let (client, a, b) = (lab.pod("one", "client").await, lab.pod("one", "a").await, lab.pod("two", "b").await);
    let affine = service("s", json!({"sessionAffinity": "ClientIP"}));
    assert!(lab.set(&affine, &[&a, &b]).rebuilt);
    let first = tcp(&client.netns, at(VIP, 80)).unwrap().server;
    let list = |lab: &Lab| {
        let sets = ["services", "endpoints", "affinity"].map(|m| lab.nft(&format!("list map ip causeway {m}")));
        sets.concat() + &lab.nft("-a list chain ip causeway services")
    };
    let before = list(&lab);

    lab.restart();
    assert!(lab.program.adopted());
    assert_eq!(lab.set(&affine, &[&a, &b]), Done::default(), "nothing to do");
    let after = list(&lab);
    let still = |text: &str| text.lines().filter(|l| !l.contains("expires")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(still(&after), still(&before));
    assert_eq!(tcp(&client.netns, at(VIP, 80)).unwrap().server, first, "affinity outlives the process");

    // What another process left behind goes with the first complete list.
    lab.restart();
    let ranges = lab.ranges();
    lab.program.sync(Vec::new(), &ranges, true).unwrap();
    assert!(tcp(&client.netns, at(VIP, 80)).is_err());
    lab.set(&affine, &[&a, &b]);
    tcp(&client.netns, at(VIP, 80)).unwrap();

    // Others' tables do not concern us.
    lab.nft("add table ip other");
    assert_eq!(lab.check(), Done::default());
    lab.nft("flush map ip causeway services");
    assert!(tcp(&client.netns, at(VIP, 80)).is_err());
    let mended = lab.check();
    assert_eq!((mended.rebuilt, mended.elements), (false, 4), "{mended:?}");
    tcp(&client.netns, at(VIP, 80)).unwrap();
    for meddling in ["flush chain ip causeway services", "delete table ip causeway"] {
        lab.nft(meddling);
        assert!(lab.check().rebuilt, "{meddling}");
        tcp(&client.netns, at(VIP, 80)).unwrap();
        assert_eq!(lab.check(), Done::default());
    }
    // A change of ours that no longer fits does not get stuck.
    lab.nft("flush map ip causeway endpoints");
    lab.set(&affine, &[&b]);
    assert_eq!(tcp(&client.netns, at(VIP, 80)).unwrap().server, b.ip);
    assert!(lab.nft("list tables").contains("table ip other"));
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_services_load_at_once_and_one_changes_fast() {
    let mut lab = Lab::new(Mode::Nftables).await;
    let (client, a) = (lab.pod("one", "client").await, lab.pod("one", "a").await);
    let model = |n: u32, ends: u32| -> ServiceModel {
        let ip = std::net::Ipv4Addr::from(u32::from(std::net::Ipv4Addr::new(10, 97, 0, 0)) + n);
        let s = serde_json::from_value(json!({"metadata": {"name": n.to_string()}, "spec": {"clusterIP": ip,
            "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "TCP"}]}}))
        .unwrap();
        let ends: Vec<_> = (0..ends).map(|e| json!({"addresses": [format!("10.244.9.{}", e + 1)]})).collect();
        let slice = serde_json::from_value(json!({"metadata": {"name": "x"}, "addressType": "IPv4", "endpoints": ends,
            "ports": [{"port": 80, "protocol": "TCP"}]}))
        .unwrap();
        causeway_services::model::service(&s, [&slice], &lab.node())
    };
    let all: Vec<_> = (0..3000).map(|n| (n.to_string(), Some(model(n, 5)))).collect();
    let changes: Vec<_> = (0..50).map(|n| (n.to_string(), Some(model(n, 4)))).collect();
    let wide = model(7000, 200);
    let ranges = lab.ranges();
    let started = Instant::now();
    let done = lab.program.sync(all, &ranges, true).unwrap();
    println!("3000 services of 5 endpoints: {} elements in {:?}", done.elements, started.elapsed());
    for change in changes {
        let started = Instant::now();
        let done = lab.program.sync(vec![change], &ranges, false).unwrap();
        // Number of places, the last endpoint's place.
        assert_eq!(done.elements, 3, "only what changes");
        if started.elapsed().as_millis() > 5 {
            println!("a change took {:?}", started.elapsed());
        }
    }
    let started = Instant::now();
    let done = lab.program.sync(vec![("wide".into(), Some(wide))], &ranges, false).unwrap();
    println!("200 endpoints: {} elements in {:?}", done.elements, started.elapsed());
    lab.set(&service("s", json!({})), &[&a]);
    assert_eq!(tcp(&client.netns, at(VIP, 80)).unwrap().server, a.ip);
    let started = Instant::now();
    lab.restart();
    println!("adopting took {:?}", started.elapsed());
    assert!(lab.program.adopted());
}
