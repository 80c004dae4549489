//! What Services ask, one feature a test.

use super::*;
use serde_json::{Value, json};

fn node() -> NodeView {
    NodeView {
        name: "one".into(),
        ips: vec!["10.90.0.11".parse().unwrap(), "fd10:90::11".parse().unwrap()],
        node_port_ips: vec!["10.90.0.11".parse().unwrap(), "fd10:90::11".parse().unwrap()],
        zone: Some("z1".into()),
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
    }
}

fn svc(spec: Value) -> Service {
    let mut base = json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]});
    base.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "d"}, "spec": base})).unwrap()
}

fn balanced(spec: Value, ingress: Value) -> Service {
    let mut service = svc(spec);
    service.status = Some(serde_json::from_value(json!({"loadBalancer": {"ingress": ingress}})).unwrap());
    service
}

/// (address, node, ready, serving and terminating)
fn slice(endpoints: &[(&str, &str, bool, bool)]) -> EndpointSlice {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(ip, node, ready, leaving)| {
            json!({"addresses": [ip], "nodeName": node,
                "conditions": {"ready": ready, "serving": ready | leaving, "terminating": leaving}})
        })
        .collect();
    serde_json::from_value(json!({"metadata": {"name": "s-1"}, "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}))
    .unwrap()
}

fn front(ip: &str, port: u16) -> Front {
    Front { ip: ip.parse().unwrap(), protocol: TCP, port }
}

fn to(ips: &[&str]) -> Choice {
    Choice::Spread(ips.iter().map(|ip| Target { ip: ip.parse().unwrap(), port: 8080 }).collect())
}

const AT: (&str, u16) = ("10.96.0.5", 80);

fn at(model: &ServiceModel) -> &Wanted {
    &model.fronts[&front(AT.0, AT.1)]
}

#[test]
fn cluster_ip_and_node_port_go_to_the_ready_ones() {
    let slice = slice(&[
        ("10.244.1.2", "one", true, false),
        ("10.244.2.2", "two", true, false),
        ("10.244.2.3", "two", false, false),
    ]);
    let m = service(&svc(json!({})), [&slice], &node());
    assert_eq!(m.fronts.len(), 2, "no node port of a family without a cluster IP");
    for (f, kind) in [(front("10.96.0.5", 80), Kind::ClusterIp), (front("10.90.0.11", 30080), Kind::NodePort)] {
        let wanted = &m.fronts[&f];
        assert_eq!(wanted.choice, to(&["10.244.1.2", "10.244.2.2"]));
        assert_eq!((wanted.kind, wanted.external.as_ref(), &*wanted.port), (kind, None, "d/s:http"));
    }
    assert_eq!(m.local, ["10.244.1.2".parse().unwrap()].into());
    assert_eq!(m.health, None);
}

#[test]
fn none_refuses_and_terminating_ones_serve_as_long_as_they_can() {
    assert_eq!(at(&service(&svc(json!({})), [], &node())).choice, Choice::Refuse);
    let leaving = slice(&[("10.244.1.2", "one", false, true), ("10.244.1.3", "one", false, false)]);
    assert_eq!(at(&service(&svc(json!({})), [&leaving], &node())).choice, to(&["10.244.1.2"]));
    // Published although it is not ready: the controller says ready, and that is all that counts.
    let mut published = slice(&[("10.244.1.2", "one", true, false)]);
    published.endpoints[0].conditions.as_mut().unwrap().serving = Some(false);
    assert_eq!(at(&service(&svc(json!({})), [&published], &node())).choice, to(&["10.244.1.2"]));
}

#[test]
fn local_policies() {
    let far = slice(&[("10.244.2.2", "two", true, false)]);
    let both = slice(&[("10.244.1.2", "one", false, true), ("10.244.2.2", "two", true, false)]);
    let internal = svc(json!({"internalTrafficPolicy": "Local"}));
    assert_eq!(at(&service(&internal, [&far], &node())).choice, Choice::Drop);
    assert_eq!(at(&service(&internal, [], &node())).choice, Choice::Refuse);
    // The fall-back to terminating endpoints is decided among the local ones.
    assert_eq!(at(&service(&internal, [&both], &node())).choice, to(&["10.244.1.2"]));
    let external = svc(json!({"externalTrafficPolicy": "Local", "type": "NodePort"}));
    let m = service(&external, [&far], &node());
    let np = &m.fronts[&front("10.90.0.11", 30080)];
    assert_eq!((np.choice.clone(), np.external.clone()), (to(&["10.244.2.2"]), Some(Choice::Drop)));
    assert_eq!(at(&m).external, None);
    assert_eq!((m.without_local(), service(&internal, [&far], &node()).without_local()), ([0, 1], [1, 0]));
    // Terminating ones are chosen apart for Cluster and for Local.
    let m = service(&external, [&both], &node());
    let np = &m.fronts[&front("10.90.0.11", 30080)];
    assert_eq!((np.choice.clone(), np.external.clone()), (to(&["10.244.2.2"]), Some(to(&["10.244.1.2"]))));
}

#[test]
fn hints_count_only_when_complete_and_met() {
    let hinted = |hints: [Value; 2], ready: bool| {
        let mut s = slice(&[("10.244.1.2", "one", ready, !ready), ("10.244.2.2", "two", ready, !ready)]);
        for (e, hint) in s.endpoints.iter_mut().zip(hints) {
            e.hints = (!hint.is_null()).then(|| serde_json::from_value(hint).unwrap());
        }
        at(&service(&svc(json!({})), [&s], &node())).choice.clone()
    };
    let zone = |name: &str| json!({"forZones": [{"name": name}]});
    let on = |node: &str, zone: &str| json!({"forZones": [{"name": zone}], "forNodes": [{"name": node}]});
    let (all, first, second) = (to(&["10.244.1.2", "10.244.2.2"]), to(&["10.244.1.2"]), to(&["10.244.2.2"]));
    assert_eq!(hinted([zone("z1"), zone("z2")], true), first);
    assert_eq!(hinted([zone("z2"), zone("z3")], true), all);
    assert_eq!(hinted([zone("z1"), json!(null)], true), all);
    assert_eq!(hinted([zone("z1"), zone("z2")], false), all, "terminating ones serve wherever they are");
    // The node's own first; without one, the zone's; and when not all say a node, the zone's too.
    assert_eq!(hinted([on("one", "z1"), on("two", "z1")], true), first);
    assert_eq!(hinted([on("three", "z2"), on("two", "z1")], true), second);
    assert_eq!(hinted([zone("z2"), on("one", "z1")], true), second);
    assert_eq!(hinted([zone("z2"), on("one", "z3")], true), all);
}

#[test]
fn hints_of_those_that_are_not_ready_do_not_count_and_local_needs_none() {
    let mut s = slice(&[
        ("10.244.1.2", "one", true, false),
        ("10.244.2.2", "two", true, false),
        ("10.244.2.3", "two", false, true),
    ]);
    for (e, zone) in s.endpoints.iter_mut().zip(["z2", "z1"]) {
        e.hints = Some(serde_json::from_value(json!({"forZones": [{"name": zone}]})).unwrap());
    }
    assert_eq!(at(&service(&svc(json!({})), [&s], &node())).choice, to(&["10.244.2.2"]));
    let local = svc(json!({"internalTrafficPolicy": "Local"}));
    assert_eq!(at(&service(&local, [&s], &node())).choice, to(&["10.244.1.2"]), "wherever its hint points");
    let unzoned = NodeView { zone: None, ..node() };
    assert_eq!(at(&service(&svc(json!({})), [&s], &unzoned)).choice, to(&["10.244.1.2", "10.244.2.2"]));
}

#[test]
fn external_addresses_and_balancers() {
    let ends = slice(&[("10.244.1.2", "one", true, false)]);
    let spec = json!({"type": "LoadBalancer", "externalIPs": ["198.51.100.7", "2001:db8::7"],
        "loadBalancerSourceRanges": [" 203.0.113.0/24 ", "2001:db8::/32"]});
    let ingress = json!([{"ip": "198.51.100.1"}, {"ip": "198.51.100.2", "ipMode": "Proxy"},
        {"ip": "198.51.100.3", "ipMode": "VIP"}, {"hostname": "x.example"}]);
    let m = service(&balanced(spec, ingress.clone()), [&ends], &node());
    let kinds: Vec<_> = m.fronts.iter().map(|(f, w)| (f.ip.to_string(), w.kind, w.sources.is_some())).collect();
    assert_eq!(
        kinds,
        [
            ("10.90.0.11".to_owned(), Kind::NodePort, false),
            ("10.96.0.5".to_owned(), Kind::ClusterIp, false),
            ("198.51.100.1".to_owned(), Kind::LoadBalancer, true),
            ("198.51.100.3".to_owned(), Kind::LoadBalancer, true),
            ("198.51.100.7".to_owned(), Kind::ExternalIp, false),
        ]
    );
    let sources = |ranges: &[&str]| {
        let spec = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges});
        let m = service(&balanced(spec, ingress.clone()), [&ends], &node());
        let all = m.fronts[&front("198.51.100.1", 80)].sources.clone();
        all.map(|all| all.iter().map(IpNet::to_string).collect::<Vec<_>>())
    };
    let told = |texts: &[&str]| Some(texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
    assert_eq!(sources(&["203.0.113.7/24"]), told(&["203.0.113.0/24"]));
    assert_eq!(sources(&["203.0.113.0/24", "0.0.0.0/0"]), None);
    assert_eq!(sources(&["2001:db8::/32"]), None, "nothing is said of IPv4");
    // The node may connect: then also from the balancer's addresses, should the node have them.
    assert_eq!(sources(&["10.90.0.0/24"]), told(&["10.90.0.0/24", "198.51.100.1/32", "198.51.100.3/32"]));
}

#[test]
fn both_families() {
    let dual = svc(json!({"clusterIPs": ["10.96.0.5", "fd96::5"]}));
    let mut six = slice(&[("fd10:1::2", "one", true, false)]);
    six.address_type = "IPv6".to_owned();
    let m = service(&dual, [&slice(&[("10.244.2.2", "two", true, false)]), &six], &node());
    for (ip, port, end) in [
        ("10.96.0.5", 80, "10.244.2.2"),
        ("10.90.0.11", 30080, "10.244.2.2"),
        ("fd96::5", 80, "fd10:1::2"),
        ("fd10:90::11", 30080, "fd10:1::2"),
    ] {
        assert_eq!(m.fronts[&front(ip, port)].choice, to(&[end]), "{ip}");
    }
    assert_eq!(m.fronts.len(), 4);
}

#[test]
fn protocols_are_kept_apart() {
    let ports = json!([{"name": "a", "port": 80, "protocol": "TCP"}, {"name": "b", "port": 80, "protocol": "SCTP"}]);
    let s: EndpointSlice = serde_json::from_value(json!({"metadata": {"name": "s-1"}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.1.2"]}], "ports": [{"name": "a", "port": 8080, "protocol": "UDP"},
            {"name": "b", "port": 8080, "protocol": "SCTP"}]}))
    .unwrap();
    let m = service(&svc(json!({"ports": ports})), [&s], &node());
    assert_eq!(at(&m).choice, Choice::Refuse);
    assert_eq!(m.fronts[&Front { protocol: SCTP, ..front(AT.0, AT.1) }].choice, to(&["10.244.1.2"]));
}

#[test]
fn health_checks_count_what_is_ready_here() {
    let ends = slice(&[
        ("10.244.1.2", "one", true, false),
        ("10.244.1.3", "one", true, false),
        ("10.244.1.4", "one", false, true),
        ("10.244.2.2", "two", true, false),
    ]);
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "other", "port": 81, "nodePort": 30081}]});
    let asked = |spec: &Value| service(&svc(spec.clone()), [&ends], &node()).health;
    assert_eq!(asked(&spec), Some(HealthCheck { port: 31000, local: 2 }));
    for (field, value) in [("type", json!("NodePort")), ("externalTrafficPolicy", json!("Cluster"))] {
        let mut other = spec.clone();
        other[field] = value;
        assert_eq!(asked(&other), None);
    }
}

#[test]
fn datagram_flows_go_on_while_their_endpoint_serves() {
    let udp = json!({"ports": [{"name": "http", "port": 80, "protocol": "UDP"}]});
    let mut s = slice(&[
        ("10.244.1.2", "one", true, false),
        ("10.244.1.3", "one", false, true),
        ("10.244.1.4", "one", false, false),
    ]);
    s.ports.as_mut().unwrap()[0].protocol = Some("UDP".to_owned());
    let m = service(&svc(udp), [&s], &node());
    let wanted = &m.fronts[&Front { protocol: UDP, ..front(AT.0, AT.1) }];
    assert_eq!(wanted.choice, to(&["10.244.1.2"]));
    assert_eq!(Choice::Spread(wanted.lingering.clone()), to(&["10.244.1.3"]));
    assert_eq!(Choice::Spread(wanted.serving()), to(&["10.244.1.2", "10.244.1.3"]));
}

#[test]
fn affinity_has_a_time_out() {
    let seconds = |more: Value| at(&service(&svc(more), [], &node())).affinity;
    assert_eq!(seconds(json!({})), None);
    assert_eq!(seconds(json!({"sessionAffinity": "None"})), None);
    assert_eq!(seconds(json!({"sessionAffinity": "ClientIP"})), Some(10_800));
    let config = json!({"clientIP": {"timeoutSeconds": 7}});
    assert_eq!(seconds(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config})), Some(7));
}

#[test]
fn headless_external_name_and_foreign_ask_nothing() {
    for spec in [json!({"clusterIP": "None", "clusterIPs": ["None"]}), json!({"type": "ExternalName"})] {
        assert_eq!(service(&svc(spec), [], &node()), ServiceModel::default());
    }
    let mut foreign = svc(json!({}));
    foreign.metadata.labels = Some([(OTHER_PROXY.to_owned(), "x".to_owned())].into());
    assert_eq!(service(&foreign, [], &node()), ServiceModel::default());
}
