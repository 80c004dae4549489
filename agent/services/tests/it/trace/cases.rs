//! Random services, endpoints and packets, small enough in number that they meet.

use super::{Node, Packet};
use causeway_services::{
    family::Family,
    iptables::{names::ChainId, planner::Planner as Iptables},
    kernel,
    model::{self, Front, NodeView, ServiceModel, Target},
    plan::{Planner as Nftables, Timeouts},
    renderer::Ranges,
    wire::Request,
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// A change of one service and its endpoints.
#[derive(Debug, Clone)]
pub enum Step {
    Set(u8, Box<Spec>),
    Delete(u8),
}

/// A service in a few numbers.
#[derive(Debug, Clone)]
pub struct Spec {
    load_balancer: bool,
    external_local: bool,
    internal_local: bool,
    /// Number of ranges of sources, if limited.
    sources: Option<u8>,
    external_ip: bool,
    affinity: Option<u32>,
    ports: u8,
    /// (number, is ready, is terminating)
    endpoints: Vec<(u16, bool, bool)>,
    hints: bool,
    other_ip: bool,
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let endpoint = (0_u16..10, prop::bool::weighted(0.8), prop::bool::weighted(0.3));
    let spec = (
        (any::<bool>(), any::<bool>(), prop::bool::weighted(0.3), prop::option::weighted(0.4, 0_u8..4)),
        (any::<bool>(), prop_oneof![2 => Just(None), 1 => Just(Some(10)), 1 => Just(Some(10_800))], 1_u8..4),
        (prop::collection::vec(endpoint, 0..6), prop::bool::weighted(0.2), prop::bool::weighted(0.2)),
    );
    let spec = spec.prop_map(|((load_balancer, external_local, internal_local, sources), b, c)| {
        let ((external_ip, affinity, ports), (endpoints, hints, other_ip)) = (b, c);
        Box::new(Spec {
            load_balancer,
            external_local,
            internal_local,
            sources,
            external_ip,
            affinity,
            ports,
            endpoints,
            hints,
            other_ip,
        })
    });
    let step = prop_oneof![
        5 => (0_u8..5, spec).prop_map(|(n, spec)| Step::Set(n, spec)),
        1 => (0_u8..5).prop_map(Step::Delete),
    ];
    prop::collection::vec(step, 1..10)
}

/// One service with that many endpoints.
pub fn wide(endpoints: u16) -> Step {
    let endpoints = (0..endpoints).map(|n| (n, true, false)).collect();
    let spec = Spec {
        load_balancer: false,
        external_local: false,
        internal_local: false,
        sources: None,
        external_ip: false,
        affinity: None,
        ports: 1,
        endpoints,
        hints: false,
        other_ip: false,
    };
    Step::Set(0, Box::new(spec))
}

/// A packet in a few numbers: (source, front or address, port, remembered endpoint, is invalid, is IPv6)
pub type Draft = (u8, u8, u8, u8, bool, bool);

pub fn packets() -> impl Strategy<Value = Vec<Draft>> {
    let one = (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), prop::bool::weighted(0.05), any::<bool>());
    prop::collection::vec(one, 40)
}

/// What was changed, and what each renderer made of it.
pub struct History {
    pub models: BTreeMap<String, ServiceModel>,
    pub iptables: Iptables,
    nftables: Nftables,
}

impl Default for History {
    fn default() -> Self {
        Self::branching_above(4)
    }
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn ip(text: impl AsRef<str>) -> IpAddr {
    text.as_ref().parse().unwrap()
}

fn endpoint(n: u16, v4: bool) -> String {
    // Even ones are on this node; every fifth stands in the node's own network.
    match (n % 5 == 4 && n < 10, v4) {
        (true, true) => format!("10.90.0.1{}", 1 + n % 2),
        (true, false) => format!("fd10:90::1{}", 1 + n % 2),
        (false, true) => format!("10.244.{}.{}", 1 + n % 2 + n / 250 * 2, 2 + n % 250),
        (false, false) => format!("fd10:244:0:{}::{}", 1 + n % 2, 2 + n),
    }
}

impl History {
    pub fn branching_above(narrow: usize) -> Self {
        let mut this = Self {
            models: BTreeMap::new(),
            iptables: Iptables::branching_above(FAMILIES.to_vec(), narrow),
            nftables: Nftables::new(Timeouts(vec![10, 10_800])),
        };
        let ranges = this.node().ranges;
        this.iptables.set_ranges(&ranges);
        let _ = this.nftables.set_ranges(&ranges.pods, &ranges.services, &ranges.local);
        this
    }

    pub fn view(&self) -> NodeView {
        NodeView {
            name: "one".into(),
            ips: vec![ip("10.90.0.11"), ip("fd10:90::11")],
            node_port_ips: vec![ip("10.90.0.11"), ip("fd10:90::11")],
            zone: Some("z1".into()),
            pod_cidrs: ["10.244.1.0/24", "fd10:244:0:1::/64"].map(|r| r.parse().unwrap()).into(),
        }
    }

    pub fn node(&self) -> Node {
        let view = self.view();
        let ranges = Ranges {
            pods: ["10.244.0.0/16", "fd10:244::/48"].map(|r| r.parse().unwrap()).into(),
            services: ["10.96.0.0/12", "fd96::/108"].map(|r| r.parse().unwrap()).into(),
            local: view.pod_cidrs.into_iter().chain(view.ips.iter().copied().map(Into::into)).collect(),
        };
        Node { ips: view.ips, ranges }
    }

    pub fn take(&mut self, step: &Step) {
        let (number, model) = match step {
            Step::Delete(n) => (*n, None),
            Step::Set(n, spec) => {
                let (service, slices) = objects(*n, spec);
                (*n, Some(model::service(&service, &slices, &self.view())))
            }
        };
        let name = format!("d/s{number}");
        self.iptables.set(&name, model.clone());
        let _ = self.nftables.set(&name, model.clone());
        match model {
            Some(model) => self.models.insert(name, model),
            None => self.models.remove(&name),
        };
    }

    pub fn iptables(&mut self) -> BTreeMap<ChainId, Vec<String>> {
        self.iptables.all()
    }

    pub fn nftables(&self) -> Vec<Request> {
        kernel::all(&FAMILIES, self.nftables.timeouts(), &self.nftables.elements())
    }

    /// A packet of a draft: most go to a front that is there.
    pub fn packet(&self, (source, to, port, before, invalid, six): &Draft) -> Packet {
        let v4 = !six;
        let of = |v4: bool, a: &str, b: &str| ip(if v4 { a } else { b });
        let fronts: Vec<Front> = self
            .models
            .values()
            .flat_map(|m| m.fronts.keys())
            .filter(|f| f.ip.is_ipv4() == v4)
            .copied()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let stranger = Front {
            ip: match to % 4 {
                0 => of(v4, "10.96.9.9", "fd96::909"),
                1 => of(v4, "10.90.0.11", "fd10:90::11"),
                2 => of(v4, "192.0.2.77", "2001:db8::77"),
                _ => of(v4, "10.244.2.3", "fd10:244:0:2::3"),
            },
            protocol: [6, 17, 132][usize::from(port % 3)],
            port: 81 + u16::from(*port),
        };
        let mut to = match fronts.len() {
            0 => stranger,
            n if to % 4 > 0 => fronts[usize::from(to / 4) % n],
            _ => stranger,
        };
        if port % 8 == 7 {
            to.port = 9;
        }
        let targets: Vec<Target> =
            self.models.values().filter_map(|m| m.fronts.get(&to)).next().map_or_else(Vec::new, |w| {
                let mut all: Vec<Target> = w.choice.targets().copied().collect();
                all.push(Target { ip: of(v4, "10.244.1.99", "fd10:244:0:1::99"), port: 8080 });
                all
            });
        let before = targets.get(usize::from(before % 8)).copied();
        let (by_node, source) = match source % 6 {
            0 => (true, of(v4, "10.90.0.11", "fd10:90::11")),
            1 => (false, ip(endpoint(u16::from(source / 6) % 4 * 2 % 10, v4))),
            2 => (false, of(v4, "10.244.1.200", "fd10:244:0:1::200")),
            3 => (false, of(v4, "10.244.2.3", "fd10:244:0:2::3")),
            4 => (false, of(v4, "198.51.100.7", "2001:db8:1::7")),
            _ => (false, of(v4, "203.0.113.9", "2001:db8:2::9")),
        };
        // The node does not send from outside what it got itself.
        let by_node = by_node || source == of(v4, "10.90.0.11", "fd10:90::11");
        // Of others it is not ours to say what becomes of them.
        let invalid = *invalid && self.node().ranges.services.iter().any(|range| range.contains(&to.ip));
        Packet { by_node, source, to, before, invalid }
    }
}

fn objects(n: u8, spec: &Spec) -> (Service, Vec<EndpointSlice>) {
    // Two services may want the same external address, and for a moment the same cluster IP.
    let cluster_ips = match spec.other_ip {
        // As after a change of the ranges.
        true if n.is_multiple_of(2) => ["10.200.0.7".to_owned(), "fd97::7".to_owned()],
        true => ["10.96.0.7".to_owned(), "fd96::7".to_owned()],
        false => [format!("10.96.0.{}", 5 + n), format!("fd96::{}", 5 + n)],
    };
    let protocols = ["TCP", "UDP", "SCTP"];
    let ports: Vec<Value> = (0..spec.ports)
        .map(|i| {
            let protocol = protocols[usize::from(i % 3)];
            json!({"name": format!("p{i}"), "port": 80 + u16::from(i), "protocol": protocol,
                "nodePort": 30_000 + u16::from(n) * 100 + u16::from(i)})
        })
        .collect();
    let mut body = json!({"clusterIP": cluster_ips[0], "clusterIPs": cluster_ips, "ports": ports,
        "type": if spec.load_balancer { "LoadBalancer" } else { "NodePort" }});
    let mut status = json!({});
    if spec.external_local {
        body["externalTrafficPolicy"] = json!("Local");
    }
    if spec.internal_local {
        body["internalTrafficPolicy"] = json!("Local");
    }
    if spec.external_ip {
        body["externalIPs"] = json!(["192.0.2.10", "2001:db8::10"]);
    }
    if let Some(seconds) = spec.affinity {
        body["sessionAffinity"] = json!("ClientIP");
        body["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
    }
    if spec.load_balancer {
        let last = 20 + n;
        status = json!({"loadBalancer": {"ingress": [{"ip": format!("192.0.2.{last}")}, {"ip": format!("2001:db8::{last}")}]}});
        let ranges = [
            ["198.51.100.0/24", "2001:db8:1::/64"],
            ["10.244.1.0/24", "fd10:244:0:1::/64"],
            ["10.90.0.0/24", "fd10:90::/64"],
        ];
        if let Some(count) = spec.sources {
            let ranges: Vec<&str> = ranges.into_iter().take(usize::from(count)).flatten().collect();
            body["loadBalancerSourceRanges"] = json!(ranges);
        }
    }
    let service = json!({"metadata": {"name": format!("s{n}"), "namespace": "d"}, "spec": body, "status": status});
    let slice = |v4: bool| {
        let endpoints: Vec<Value> = spec
            .endpoints
            .iter()
            .map(|(e, ready, leaving)| {
                let mut one = json!({"addresses": [endpoint(*e, v4)], "nodeName": if e % 2 == 0 { "one" } else { "two" },
                    "conditions": {"ready": *ready && !leaving, "serving": ready, "terminating": leaving}});
                if spec.hints {
                    one["hints"] = json!({"forZones": [{"name": if e % 3 == 0 { "z1" } else { "z2" }}]});
                }
                one
            })
            .collect();
        let ports: Vec<Value> = (0..spec.ports)
            .map(|i| json!({"name": format!("p{i}"), "port": 8080, "protocol": protocols[usize::from(i % 3)]}))
            .collect();
        serde_json::from_value(json!({"metadata": {"name": format!("s{n}-{v4}"), "namespace": "d"},
            "addressType": if v4 { "IPv4" } else { "IPv6" }, "endpoints": endpoints, "ports": ports}))
        .unwrap()
    };
    (serde_json::from_value(service).unwrap(), vec![slice(true), slice(false)])
}
