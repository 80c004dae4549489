//! Every record kind, and the promise that a zone grown step by step is the zone made at once.

use super::*;
use crate::model::{Endpoint, Ports};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const TTL: u32 = 5;

fn port(name: &str, port: u16) -> Port {
    Port { name: name.into(), protocol: Protocol::Tcp, port }
}

fn key(name: &str, namespace: &str) -> Key {
    Key { namespace: namespace.into(), name: name.into() }
}

fn cluster(ips: &[&str], ports: &[Port]) -> Option<Records> {
    let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    Some(Records::Cluster { ips, ports: ports.iter().cloned().collect::<Ports>() })
}

fn endpoint(label: &str, ip: &str, ports: &[Port]) -> Endpoint {
    let ips = [ip.parse().unwrap()].into();
    Endpoint { label: label.into(), ips, ports: ports.iter().cloned().collect() }
}

fn zone() -> Zone {
    let ranges = ["10.96.0.0/12", "10.244.0.0/16"].map(|r| r.parse().unwrap()).to_vec();
    let zone = Zone::new("cluster.local", ranges, Arc::default()).unwrap();
    zone.set(&key("web", "shop"), cluster(&["10.96.0.7"], &[port("http", 80)]));
    let redis = [port("redis", 6379)];
    let endpoints = [endpoint("redis-0", "10.244.0.5", &redis), endpoint("10-244-0-6", "10.244.0.6", &redis)];
    zone.set(&key("redis", "shop"), Some(Records::headless(endpoints)));
    zone.set(&key("bare", "shop"), cluster(&["10.96.0.8"], &[]));
    let far = [port("db", 5432), port("metrics", 9100), port("metrics", 9101)];
    zone.set(&key("far", "shop"), Some(Records::headless([endpoint("db", "192.0.2.9", &far)])));
    zone.set(&key("empty", "shop"), Some(Records::headless([])));
    zone.set(&key("out", "shop"), Some(Records::External { target: "example.com".into() }));
    zone.set_namespaces(["quiet".into()].into());
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
        ("quiet.svc.cluster.local", T::A, Err(Answer::NoData)),
        ("10-1-2-3.quiet.pod.cluster.local", T::A, Ok(vec!["10.1.2.3"])),
        ("web.shop.svc.cluster.local", T::ANY, Ok(vec!["RFC8482 "])),
        ("shop.svc.cluster.local", T::ANY, Ok(vec!["RFC8482 "])),
        ("none.shop.svc.cluster.local", T::ANY, Err(Answer::NoName)),
        ("ns.dns.cluster.local", T::A, Err(Answer::NoData)),
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
        Arc::default(),
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

#[test]
fn names_of_pods_as_settings_say() {
    let pods = Arc::new(Pods::default());
    let zone = Zone::new("cluster.local", vec![], pods.clone()).unwrap();
    zone.set_namespaces(["shop".into(), "other".into()].into());
    let (name, verified) =
        ("10-244-0-9.shop.pod.cluster.local", DnsSettings { pods: PodRecords::Verified, ..DnsSettings::default() });
    assert_eq!(ask(&zone, name, RecordType::A), Ok(vec!["10.244.0.9".to_owned()]));
    assert_eq!(ask(&zone, name, RecordType::AAAA), Err(Answer::NoData));
    zone.configure(&verified);
    assert_eq!(ask(&zone, name, RecordType::A), Err(Answer::NotKnown), "no pod has been seen");
    pods.retain(&HashSet::new());
    assert_eq!(ask(&zone, name, RecordType::A), Err(Answer::NoName));
    pods.set(crate::pods::PodPart { key: key("a", "shop"), ips: vec!["10.244.0.9".parse().unwrap()] });
    assert_eq!(ask(&zone, name, RecordType::A), Ok(vec!["10.244.0.9".to_owned()]));
    assert_eq!(ask(&zone, "10-244-0-9.other.pod.cluster.local", RecordType::A), Err(Answer::NoName));
    zone.configure(&DnsSettings { pods: PodRecords::Disabled, ..DnsSettings::default() });
    assert_eq!(ask(&zone, name, RecordType::A), Err(Answer::NoName));
}

#[test]
fn two_families_and_addresses_of_two_services() {
    let zone = zone();
    zone.set(&key("dual", "shop"), cluster(&["10.96.0.20", "fd00:96::20"], &[port("http", 80)]));
    assert_eq!(ask(&zone, "dual.shop.svc.cluster.local", RecordType::A), Ok(vec!["10.96.0.20".to_owned()]));
    assert_eq!(ask(&zone, "dual.shop.svc.cluster.local", RecordType::AAAA), Ok(vec!["fd00:96::20".to_owned()]));
    let reverse = Name::from(std::net::Ipv6Addr::from_str("fd00:96::20").unwrap()).to_string();
    assert_eq!(ask(&zone, &reverse, RecordType::PTR), Ok(vec!["dual.shop.svc.cluster.local.".to_owned()]));
    // A pod behind two headless services has two names; when one goes, the other stays.
    let again = Records::headless([endpoint("redis-0", "10.244.0.5", &[])]);
    zone.set(&key("again", "shop"), Some(again));
    let both = ["redis-0.again.shop.svc.cluster.local.", "redis-0.redis.shop.svc.cluster.local."].map(str::to_owned);
    assert_eq!(ask(&zone, "5.0.244.10.in-addr.arpa", RecordType::PTR), Ok(both.to_vec()));
    zone.set(&key("redis", "shop"), None);
    assert_eq!(ask(&zone, "5.0.244.10.in-addr.arpa", RecordType::PTR), Ok(both[..1].to_vec()));
}

#[test]
fn a_stamp_holds_until_what_it_is_of_changes() {
    let zone = zone();
    let name = |n: &str| Name::from_str(n).unwrap();
    let web = zone.stamp(&name("web.shop.svc.cluster.local."), true);
    let none = zone.stamp(&name("none.shop.svc.cluster.local."), false);
    let port = zone.stamp(&name("_http._tcp.WEB.shop.svc.cluster.local."), true);
    assert!(zone.is_current(web) && zone.is_current(none) && web == port);
    zone.set(&key("other", "far"), cluster(&["10.96.0.30"], &[]));
    assert!(zone.is_current(web), "another service's change");
    assert!(!zone.is_current(none), "any service may be the one that was not there");
    assert!(!zone.set(&key("web", "shop"), cluster(&["10.96.0.7"], &[super::tests::port("http", 80)])), "no news");
    assert!(zone.is_current(web));
    zone.set(&key("web", "shop"), None);
    assert!(!zone.is_current(web));
    let other = zone.stamp(&name("other.far.svc.cluster.local."), true);
    zone.configure(&DnsSettings::default());
    assert!(!zone.is_current(other));
}

proptest! {
    #[test]
    fn steps_and_all_at_once_agree(steps in prop::collection::vec((0u8..4, 0u8..3, 0u8..5), 1..60)) {
        let records = |what: u8, i: u8| match what {
            0 => None,
            1 => cluster(&[&format!("10.96.0.{i}")], &[]),
            2 => Some(Records::External { target: format!("x{i}.example").into() }),
            _ => Some(Records::headless([0, i].map(|n| endpoint(&format!("h{n}"), &format!("10.244.0.{n}"), &[])))),
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
        let owners = |t: &Tables| -> BTreeMap<IpAddr, BTreeSet<Key>> {
            t.reverse.iter().map(|(ip, owners)| (*ip, owners.iter().map(|k| (**k).clone()).collect())).collect()
        };
        prop_assert_eq!(owners(&a), owners(&b));
        for (ip, owners) in &a.reverse {
            prop_assert_eq!(owners.iter().count(), owners.iter().collect::<BTreeSet<_>>().len(), "{}", ip);
        }
    }
}
