//! What a Service asks of this node, in the words of a packet filter. Pure.
//!
//! In: a Service, its EndpointSlices, the node. Out: a [`ServiceModel`]: for every address, protocol and port what is to
//! become of a new connection.

use causeway_api::endpoints::{self, Endpoint};
use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Service, ServicePort},
    discovery::v1::EndpointSlice,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Services that another proxy cares for carry this label.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// `sessionAffinityConfig.clientIP.timeoutSeconds` when absent.
const AFFINITY_SECONDS: u32 = 10_800;

/// Where connections arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Front {
    /// A service's, or the node's, address.
    pub ip: IpAddr,
    /// The IP protocol number: 6, 17 or 132.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

/// Where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// A pod's address.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
}

/// What becomes of a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// There is no endpoint anywhere: refused at once.
    Refuse,
    /// There are endpoints, but none that the traffic policy allows here.
    Drop,
    /// One of these, each as likely as the others. Not empty.
    Spread(BTreeSet<Target>),
}

/// All about one front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// For pods and the node itself; for all when `external` is none.
    pub choice: Choice,
    /// For sources outside of the cluster, where that differs (`externalTrafficPolicy: Local`).
    pub external: Option<Choice>,
    /// A client keeps its endpoint for so many seconds after its last connection.
    pub affinity: Option<u32>,
}

/// All about one Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceModel {
    /// By front.
    pub fronts: BTreeMap<Front, Wanted>,
    /// Addresses whose other ports are refused.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Endpoints on this node: a connection of one to itself needs another source address.
    pub local: BTreeSet<IpAddr>,
}

/// What must be known about the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeView {
    /// `metadata.name`.
    pub name: String,
    /// Addresses on which node ports are served.
    pub ips: Vec<IpAddr>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
}

impl NodeView {
    fn has(&self, endpoint: &Endpoint) -> bool {
        match &endpoint.node {
            Some(node) => *node == self.name,
            // Slices made by hand may leave the node out.
            None => self.pod_cidrs.iter().any(|c| c.contains(&endpoint.ip)),
        }
    }
}

/// Reads a Service. One without a cluster IP, and one that another proxy serves, asks nothing.
pub fn service<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &NodeView,
) -> ServiceModel {
    let mut model = ServiceModel::default();
    let Some(spec) = &service.spec else { return model };
    let other = service.metadata.labels.as_ref().is_some_and(|l| l.contains_key(OTHER_PROXY));
    if other || spec.type_.as_deref() == Some("ExternalName") || service.metadata.deletion_timestamp.is_some() {
        return model;
    }
    model.cluster_ips = cluster_ips(spec.cluster_ip.as_ref(), spec.cluster_ips.as_ref());
    if model.cluster_ips.is_empty() {
        return model;
    }
    let external = external_ips(service);
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let seconds = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
        seconds.and_then(|s| u32::try_from(s).ok()).unwrap_or(AFFINITY_SECONDS)
    });
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let slices: Vec<&EndpointSlice> = slices.into_iter().collect();
    for port in spec.ports.iter().flatten() {
        let Some((protocol, number)) = numbers(port) else { continue };
        let all = endpoints::of_port(slices.iter().copied(), port.name.as_deref().unwrap_or(""));
        model.local.extend(all.iter().filter(|e| node.has(e)).map(|e| e.ip));
        for ip in &model.cluster_ips {
            let choice = choose(&all, ip, node, internal_local);
            model.fronts.insert(Front { ip: *ip, protocol, port: number }, Wanted { choice, external: None, affinity });
        }
        let node_port = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
        let node_fronts = node.ips.iter().filter_map(|ip| node_port.map(|port| Front { ip: *ip, protocol, port }));
        let others = external.iter().map(|ip| Front { ip: *ip, protocol, port: number });
        for front in node_fronts.chain(others) {
            let choice = choose(&all, &front.ip, node, false);
            let external = external_local.then(|| choose(&all, &front.ip, node, true));
            model.fronts.insert(front, Wanted { choice, external, affinity });
        }
    }
    model
}

fn cluster_ips(one: Option<&String>, all: Option<&Vec<String>>) -> BTreeSet<IpAddr> {
    // "None" and "" do not parse.
    all.into_iter().flatten().chain(one).filter_map(|ip| ip.parse().ok()).collect()
}

/// External addresses, and those of a load balancer that leaves the destination address alone.
fn external_ips(service: &Service) -> BTreeSet<IpAddr> {
    let Some(spec) = &service.spec else { return BTreeSet::new() };
    let mut ips: BTreeSet<IpAddr> = spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
    // An address whose sources are limited is better not served than served to all.
    if spec.load_balancer_source_ranges.as_ref().is_none_or(Vec::is_empty) {
        let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        let ingress = status.and_then(|l| l.ingress.as_ref()).into_iter().flatten();
        let whole = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
        ips.extend(whole.filter_map(|i| i.ip.as_ref()?.parse::<IpAddr>().ok()));
    }
    ips
}

fn numbers(port: &ServicePort) -> Option<(u8, u16)> {
    let protocol = match port.protocol.as_deref().unwrap_or("TCP") {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        _ => return None,
    };
    Some((protocol, u16::try_from(port.port).ok()?))
}

fn choose(all: &[Endpoint], front: &IpAddr, node: &NodeView, only_local: bool) -> Choice {
    let all: Vec<Endpoint> = all.iter().filter(|e| e.ip.is_ipv4() == front.is_ipv4()).cloned().collect();
    let anywhere = endpoints::usable(&all);
    if anywhere.is_empty() {
        return Choice::Refuse;
    }
    let spread = |chosen: Vec<&Endpoint>| {
        let targets: BTreeSet<_> = chosen.iter().map(|e| Target { ip: e.ip, port: e.port }).collect();
        if targets.is_empty() { Choice::Drop } else { Choice::Spread(targets) }
    };
    if only_local {
        let local: Vec<Endpoint> = all.iter().filter(|e| node.has(e)).cloned().collect();
        return spread(endpoints::usable(&local));
    }
    spread(near(anywhere, node))
}

/// Topology hints (KEP-2433, KEP-4444): heeded when every endpoint has one and one is for here.
fn near<'a>(usable: Vec<&'a Endpoint>, node: &NodeView) -> Vec<&'a Endpoint> {
    if usable.iter().all(|e| !e.node_hints.is_empty()) {
        let same: Vec<_> = usable.iter().copied().filter(|e| e.node_hints.contains(&node.name)).collect();
        if !same.is_empty() {
            return same;
        }
    }
    if let Some(zone) = &node.zone
        && usable.iter().all(|e| !e.zone_hints.is_empty())
    {
        let same: Vec<_> = usable.iter().copied().filter(|e| e.zone_hints.contains(zone)).collect();
        if !same.is_empty() {
            return same;
        }
    }
    usable
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node() -> NodeView {
        NodeView {
            name: "one".into(),
            ips: vec!["10.90.0.11".parse().unwrap()],
            zone: Some("z1".into()),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        }
    }

    fn svc(spec: serde_json::Value) -> Service {
        let mut base = json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]});
        base.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "d"}, "spec": base})).unwrap()
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
        Front { ip: ip.parse().unwrap(), protocol: 6, port }
    }

    fn to(ips: &[&str]) -> Choice {
        Choice::Spread(ips.iter().map(|ip| Target { ip: ip.parse().unwrap(), port: 8080 }).collect())
    }

    #[test]
    fn cluster_ip_and_node_port_go_to_the_ready_ones() {
        let slice = slice(&[
            ("10.244.1.2", "one", true, false),
            ("10.244.2.2", "two", true, false),
            ("10.244.2.3", "two", false, false),
        ]);
        let m = service(&svc(json!({})), [&slice], &node());
        assert_eq!(m.fronts.len(), 2);
        for f in [front("10.96.0.5", 80), front("10.90.0.11", 30080)] {
            assert_eq!(m.fronts[&f].choice, to(&["10.244.1.2", "10.244.2.2"]));
            assert_eq!(m.fronts[&f].external, None);
        }
        assert_eq!(m.local, ["10.244.1.2".parse().unwrap()].into());
    }

    #[test]
    fn none_refuses_and_terminating_ones_serve_as_long_as_they_can() {
        let at = front("10.96.0.5", 80);
        assert_eq!(service(&svc(json!({})), [], &node()).fronts[&at].choice, Choice::Refuse);
        let leaving = slice(&[("10.244.1.2", "one", false, true), ("10.244.1.3", "one", false, false)]);
        assert_eq!(service(&svc(json!({})), [&leaving], &node()).fronts[&at].choice, to(&["10.244.1.2"]));
    }

    #[test]
    fn local_policies() {
        let far = slice(&[("10.244.2.2", "two", true, false)]);
        let both = slice(&[("10.244.1.2", "one", false, true), ("10.244.2.2", "two", true, false)]);
        let internal = svc(json!({"internalTrafficPolicy": "Local"}));
        let at = front("10.96.0.5", 80);
        assert_eq!(service(&internal, [&far], &node()).fronts[&at].choice, Choice::Drop);
        assert_eq!(service(&internal, [], &node()).fronts[&at].choice, Choice::Refuse);
        // The fall-back to terminating endpoints is decided among the local ones.
        assert_eq!(service(&internal, [&both], &node()).fronts[&at].choice, to(&["10.244.1.2"]));
        let external = svc(json!({"externalTrafficPolicy": "Local", "type": "NodePort"}));
        let m = service(&external, [&far], &node());
        let np = &m.fronts[&front("10.90.0.11", 30080)];
        assert_eq!((np.choice.clone(), np.external.clone()), (to(&["10.244.2.2"]), Some(Choice::Drop)));
        assert_eq!(m.fronts[&at].external, None);
    }

    #[test]
    fn hints_count_only_when_complete_and_met() {
        let hinted = |zones: [Option<&str>; 2]| {
            let mut s = slice(&[("10.244.1.2", "one", true, false), ("10.244.2.2", "two", true, false)]);
            for (e, z) in s.endpoints.iter_mut().zip(zones) {
                e.hints = z.map(|z| serde_json::from_value(json!({"forZones": [{"name": z}]})).unwrap());
            }
            service(&svc(json!({})), [&s], &node()).fronts[&front("10.96.0.5", 80)].choice.clone()
        };
        let all = to(&["10.244.1.2", "10.244.2.2"]);
        assert_eq!(hinted([Some("z1"), Some("z2")]), to(&["10.244.1.2"]));
        assert_eq!(hinted([Some("z2"), Some("z3")]), all);
        assert_eq!(hinted([Some("z1"), None]), all);
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
}
