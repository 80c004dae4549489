//! Every record kind, and the promise that a zone grown step by step is the zone made at once.

use super::*;
use crate::model::EndpointName;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn port(name: &str, number: u16) -> Port {
    Port { name: name.into(), protocol: "tcp".into(), port: number }
}

fn zone() -> Zone {
    let zone =
        Zone::new("cluster.local", vec!["10.96.0.0/12".parse().unwrap(), "10.244.0.0/16".parse().unwrap()]).unwrap();
    let cluster = Records::Cluster { ips: vec!["10.96.0.7".parse().unwrap()], ports: [port("http", 80)].into() };
    zone.set(&key("web", "shop"), Some(cluster));
    let endpoint = |ip: &str| EndpointName { ips: [ip.parse().unwrap()].into(), ports: [port("redis", 6379)].into() };
    let endpoints = BTreeMap::from([
        ("redis-0".to_owned(), endpoint("10.244.0.5")),
        ("10-244-0-6".to_owned(), endpoint("10.244.0.6")),
    ]);
    zone.set(&key("redis", "shop"), Some(Records::Headless { endpoints }));
    zone.set(
        &key("bare", "shop"),
        Some(Records::Cluster { ips: vec!["10.96.0.8".parse().unwrap()], ports: BTreeSet::new() }),
    );
    let far = EndpointName {
        ips: ["192.0.2.9".parse().unwrap()].into(),
        ports: [port("metrics", 9100), port("metrics", 9101), port("db", 5432)].into(),
    };
    zone.set(&key("far", "shop"), Some(Records::Headless { endpoints: BTreeMap::from([("db".to_owned(), far)]) }));
    zone.set(&key("empty", "shop"), Some(Records::Headless { endpoints: BTreeMap::new() }));
    zone.set(&key("out", "shop"), Some(Records::External { target: "example.com".into() }));
    zone
}

/// The answer in short: record data, sorted.
fn ask(zone: &Zone, name: &str, kind: RecordType) -> Result<Vec<String>, Answer> {
    let mut name = Name::from_str(name).unwrap();
    name.set_fqdn(true);
    match zone.lookup(&name, kind) {
        Answer::Found { answers, .. } => {
            assert!(answers.iter().all(|r| r.name == name && r.ttl == TTL));
            let mut data: Vec<String> = answers.iter().map(|r| r.data.to_string()).collect();
            data.sort();
            Ok(data)
        }
        Answer::Alias { target, .. } => Ok(vec![target.to_string()]),
        other => Err(other),
    }
}

#[test]
fn every_record_kind() {
    use RecordType as T;
    let z = zone();
    for (name, kind, want) in [
        ("web.shop.svc.cluster.local", T::A, Ok(vec!["10.96.0.7"])),
        ("WeB.shop.SVC.cluster.LOCAL", T::A, Ok(vec!["10.96.0.7"])),
        ("web.shop.svc.cluster.local", T::AAAA, Err(Answer::NoData)),
        ("web.shop.svc.cluster.local", T::SRV, Ok(vec!["0 100 80 web.shop.svc.cluster.local."])),
        ("_http._tcp.web.shop.svc.cluster.local", T::SRV, Ok(vec!["0 100 80 web.shop.svc.cluster.local."])),
        ("_http._tcp.web.shop.svc.cluster.local", T::A, Err(Answer::NoData)),
        ("_http._udp.web.shop.svc.cluster.local", T::SRV, Err(Answer::NoName)),
        ("_tcp.web.shop.svc.cluster.local", T::SRV, Err(Answer::NoData)),
        ("_udp.web.shop.svc.cluster.local", T::SRV, Err(Answer::NoName)),
        ("_tcp.redis.shop.svc.cluster.local", T::SRV, Err(Answer::NoData)),
        ("_tcp.empty.shop.svc.cluster.local", T::SRV, Err(Answer::NoName)),
        ("_tcp.out.shop.svc.cluster.local", T::SRV, Err(Answer::NoName)),
        ("_http._tcp.out.shop.svc.cluster.local", T::SRV, Err(Answer::NoName)),
        ("_._tcp.web.shop.svc.cluster.local", T::SRV, Err(Answer::NoName)),
        ("bare.shop.svc.cluster.local", T::A, Ok(vec!["10.96.0.8"])),
        ("bare.shop.svc.cluster.local", T::SRV, Err(Answer::NoData)),
        ("_tcp.bare.shop.svc.cluster.local", T::SRV, Err(Answer::NoName)),
        (
            "redis.shop.svc.cluster.local",
            T::SRV,
            Ok(vec![
                "0 100 6379 10-244-0-6.redis.shop.svc.cluster.local.",
                "0 100 6379 redis-0.redis.shop.svc.cluster.local.",
            ]),
        ),
        (
            "_metrics._tcp.far.shop.svc.cluster.local",
            T::SRV,
            Ok(vec!["0 100 9100 db.far.shop.svc.cluster.local.", "0 100 9101 db.far.shop.svc.cluster.local."]),
        ),
        ("redis.shop.svc.cluster.local", T::A, Ok(vec!["10.244.0.5", "10.244.0.6"])),
        ("redis-0.redis.shop.svc.cluster.local", T::A, Ok(vec!["10.244.0.5"])),
        ("10-244-0-6.redis.shop.svc.cluster.local", T::A, Ok(vec!["10.244.0.6"])),
        ("redis-1.redis.shop.svc.cluster.local", T::A, Err(Answer::NoName)),
        (
            "_redis._tcp.redis.shop.svc.cluster.local",
            T::SRV,
            Ok(vec![
                "0 100 6379 10-244-0-6.redis.shop.svc.cluster.local.",
                "0 100 6379 redis-0.redis.shop.svc.cluster.local.",
            ]),
        ),
        ("empty.shop.svc.cluster.local", T::A, Err(Answer::NoName)),
        ("out.shop.svc.cluster.local", T::A, Ok(vec!["example.com."])),
        ("none.shop.svc.cluster.local", T::A, Err(Answer::NoName)),
        ("web.none.svc.cluster.local", T::A, Err(Answer::NoName)),
        ("shop.svc.cluster.local", T::A, Err(Answer::NoData)),
        ("none.svc.cluster.local", T::A, Err(Answer::NoName)),
        ("svc.cluster.local", T::A, Err(Answer::NoData)),
        ("cluster.local", T::A, Err(Answer::NoData)),
        ("10-1-2-3.shop.pod.cluster.local", T::A, Ok(vec!["10.1.2.3"])),
        ("10-1-2-3.none.pod.cluster.local", T::A, Err(Answer::NoName)),
        ("nonsense.shop.pod.cluster.local", T::A, Err(Answer::NoName)),
        ("dns-version.cluster.local", T::TXT, Ok(vec!["1.1.0"])),
        ("7.0.96.10.in-addr.arpa", T::PTR, Ok(vec!["web.shop.svc.cluster.local."])),
        ("5.0.244.10.in-addr.arpa", T::PTR, Ok(vec!["redis-0.redis.shop.svc.cluster.local."])),
        ("9.0.96.10.in-addr.arpa", T::PTR, Err(Answer::NoName)),
        ("7.0.96.10.in-addr.arpa", T::A, Err(Answer::NoData)),
        ("1.2.3.4.in-addr.arpa", T::PTR, Err(Answer::NotOurs)),
        // An endpoint that is no pod of ours.
        ("9.2.0.192.in-addr.arpa", T::PTR, Ok(vec!["db.far.shop.svc.cluster.local."])),
        ("8.2.0.192.in-addr.arpa", T::PTR, Err(Answer::NotOurs)),
        // Above addresses nothing is, but it exists: "no such name" would deny all below.
        ("0.96.10.in-addr.arpa", T::PTR, Err(Answer::NoData)),
        ("96.10.in-addr.arpa", T::PTR, Err(Answer::NoData)),
        ("10.in-addr.arpa", T::PTR, Err(Answer::NotOurs)),
        ("example.com", T::A, Err(Answer::NotOurs)),
        ("xcluster.local", T::A, Err(Answer::NotOurs)),
    ] {
        let want = want.map(|w| w.into_iter().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(ask(&z, name, kind), want, "{name} {kind}");
    }
}

#[test]
fn negative_answers_name_the_zone_they_are_from() {
    let zone = Zone::new(
        "cluster.local",
        ["10.96.0.0/12", "10.244.0.0/16", "fd00:96::/108"].map(|r| r.parse().unwrap()).to_vec(),
    )
    .unwrap();
    for (name, owner) in [
        ("none.shop.svc.cluster.local.", "cluster.local."),
        ("None.Shop.svc.Cluster.Local.", "cluster.local."),
        ("9.0.96.10.in-addr.arpa.", "96.10.in-addr.arpa."),
        ("9.0.97.10.in-addr.arpa.", "97.10.in-addr.arpa."),
        ("9.0.244.10.in-addr.arpa.", "244.10.in-addr.arpa."),
        ("96.10.in-addr.arpa.", "96.10.in-addr.arpa."),
        (
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.",
            "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.",
        ),
    ] {
        let soa = zone.soa_of(&Name::from_str(name).unwrap());
        assert_eq!(soa.name.to_string(), owner, "{name}");
        assert_eq!(soa.ttl, TTL);
    }
}

#[test]
fn answers_take_turns() {
    let z = zone();
    let mut name = Name::from_str("redis.shop.svc.cluster.local").unwrap();
    name.set_fqdn(true);
    let first = |z: &Zone| match z.lookup(&name, RecordType::A) {
        Answer::Found { answers, .. } => answers[0].data.to_string(),
        other => panic!("{other:?}"),
    };
    let seen: BTreeSet<String> = (0..4).map(|_| first(&z)).collect();
    assert_eq!(seen.len(), 2);
}

proptest! {
    #[test]
    fn steps_and_all_at_once_agree(steps in prop::collection::vec((0u8..4, 0u8..3, 0u8..5), 1..60)) {
        let records = |what: u8, i: u8| match what {
            0 => None,
            1 => Some(Records::Cluster { ips: vec![IpAddr::from([10, 96, 0, i])], ports: BTreeSet::new() }),
            2 => Some(Records::External { target: format!("x{i}.example") }),
            _ => Some(Records::Headless { endpoints: BTreeMap::from([(format!("h{i}"), EndpointName {
                ips: [IpAddr::from([10, 244, 0, i])].into(), ports: BTreeSet::new() })]) }),
        };
        let (stepwise, mut last) = (zone(), BTreeMap::new());
        for (what, service, i) in steps {
            let k = key(&format!("s{service}"), &format!("n{}", service % 2));
            stepwise.set(&k, records(what, i));
            last.insert(k, records(what, i));
        }
        let fresh = zone();
        for (k, r) in last {
            fresh.set(&k, r);
        }
        let (a, b) = (stepwise.tables.read(), fresh.tables.read());
        prop_assert_eq!(&a.services, &b.services);
        prop_assert_eq!(&a.namespaces, &b.namespaces);
        prop_assert_eq!(&a.reverse, &b.reverse);
    }
}
