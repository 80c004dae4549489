//! Which nodes may announce which address. Pure.
//!
//! In: Services, EndpointSlices, Nodes, the pools. Out: for every address its candidates, best first. The order is that
//! of rendezvous hashing: addresses spread over the nodes, and when a node goes only its own addresses move.

use causeway_api::balancer::{Pool, is_ours};
use causeway_api::endpoints;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Deref;

/// Nodes with this label take no load balancer's traffic.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// An address and who may have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Namespace and name of its Service.
    pub service: (String, String),
    /// Its uid, by which its events are found.
    pub uid: Option<String>,
    /// Names of nodes, best first.
    pub candidates: Vec<String>,
}

/// Every address that is to be announced.
pub fn wanted<S, E, N>(services: &[S], slices: &[E], nodes: &[N], pools: &[Pool]) -> BTreeMap<IpAddr, Wanted>
where
    S: Deref<Target = Service>,
    E: Deref<Target = EndpointSlice>,
    N: Deref<Target = Node>,
{
    let usable = usable_nodes(nodes);
    let mut of_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
    for slice in slices.iter().map(|s| &**s) {
        if let Some(name) = endpoints::service_name(slice) {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or("");
            of_service.entry((namespace, name)).or_default().push(slice);
        }
    }
    let mut wanted = BTreeMap::new();
    for service in services.iter().map(|s| &**s) {
        let going = service.metadata.deletion_timestamp.is_some();
        if going || !is_ours(service) {
            continue;
        }
        let names =
            (service.metadata.namespace.as_deref().unwrap_or(""), service.metadata.name.as_deref().unwrap_or(""));
        let local_only = service.spec.as_ref().is_some_and(|s| s.external_traffic_policy.as_deref() == Some("Local"));
        for ip in addresses(service).filter(|ip| pools.iter().any(|p| p.contains(*ip))) {
            let mut candidates: Vec<String> = usable.iter().map(|n| (*n).to_owned()).collect();
            if local_only {
                let slices = of_service.get(&names).map_or(&[][..], Vec::as_slice);
                let with = nodes_with_endpoints(slices, ip.is_ipv4());
                candidates.retain(|n| with.contains(n.as_str()));
            }
            candidates.sort_by_key(|node| std::cmp::Reverse(weight(ip, node)));
            wanted.insert(
                ip,
                Wanted {
                    service: (names.0.to_owned(), names.1.to_owned()),
                    uid: service.metadata.uid.clone(),
                    candidates,
                },
            );
        }
    }
    wanted
}

/// The addresses in a Service's status that want to arrive as they are.
fn addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = balancer.and_then(|b| b.ingress.as_ref()).into_iter().flatten();
    ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref()?.parse().ok())
}

/// Ready nodes. When none is ready, nobody knows better than yesterday: all.
fn usable_nodes<N: Deref<Target = Node>>(nodes: &[N]) -> BTreeSet<&str> {
    let excluded = |n: &&Node| n.metadata.labels.as_ref().is_some_and(|l| l.contains_key(EXCLUDED));
    let all: Vec<&Node> = nodes.iter().map(|n| &**n).filter(|n| !excluded(n)).collect();
    let ready: BTreeSet<&str> = all.iter().filter(|n| is_ready(n)).filter_map(|n| n.metadata.name.as_deref()).collect();
    if !ready.is_empty() {
        return ready;
    }
    all.into_iter().filter_map(|n| n.metadata.name.as_deref()).collect()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    let ready = conditions.filter(|c| c.type_ == "Ready").any(|c| c.status == "True");
    ready && node.metadata.deletion_timestamp.is_none()
}

/// Nodes that have a ready endpoint; when there is none anywhere, those whose endpoints still serve.
fn nodes_with_endpoints<'a>(slices: &[&'a EndpointSlice], v4: bool) -> BTreeSet<&'a str> {
    let family = if v4 { "IPv4" } else { "IPv6" };
    let all = || slices.iter().filter(|s| s.address_type == family).flat_map(|s| &s.endpoints);
    let is = |condition: Option<bool>, default: bool| condition.unwrap_or(default);
    let ready: BTreeSet<&str> = all()
        .filter(|e| e.conditions.as_ref().is_none_or(|c| is(c.ready, true)))
        .filter_map(|e| e.node_name.as_deref())
        .collect();
    if !ready.is_empty() {
        return ready;
    }
    let serves =
        |c: &k8s_openapi::api::discovery::v1::EndpointConditions| is(c.serving, false) && is(c.terminating, false);
    all().filter(|e| e.conditions.as_ref().is_some_and(serves)).filter_map(|e| e.node_name.as_deref()).collect()
}

/// A number by which nodes that might all do the same take turns.
pub fn lot(ip: IpAddr, node: &str) -> u8 {
    weight(ip, node)[0]
}

fn weight(ip: IpAddr, node: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(ip.to_string());
    hash.update([0]);
    hash.update(node);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(name: &str, ready: bool) -> Box<Node> {
        let status = if ready { "True" } else { "Unknown" };
        let conditions = json!([{ "type": "Ready", "status": status }]);
        from(json!({ "metadata": { "name": name }, "status": { "conditions": conditions } }))
    }

    fn service(name: &str, ip: &str, spec: Value) -> Box<Service> {
        let mut all = json!({ "type": "LoadBalancer" });
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        from(json!({ "metadata": { "namespace": "d", "name": name }, "spec": all,
            "status": { "loadBalancer": { "ingress": [{ "ip": ip, "ipMode": "VIP" }] } } }))
    }

    fn slice(service: &str, endpoints: Value) -> Box<EndpointSlice> {
        from(json!({ "metadata": { "namespace": "d", "labels": { "kubernetes.io/service-name": service } },
            "addressType": "IPv4", "endpoints": endpoints }))
    }

    fn from<T: serde::de::DeserializeOwned>(value: Value) -> Box<T> {
        Box::new(serde_json::from_value(value).unwrap())
    }

    fn pools() -> Vec<Pool> {
        serde_json::from_value(json!([{ "name": "p", "addresses": ["10.9.0.0/24"] }])).unwrap()
    }

    fn candidates(services: &[Box<Service>], slices: &[Box<EndpointSlice>], nodes: &[Box<Node>]) -> Vec<Vec<String>> {
        wanted(services, slices, nodes, &pools()).into_values().map(|w| w.candidates).collect()
    }

    #[test]
    fn addresses_spread_and_only_those_of_a_lost_node_move() {
        let services: Vec<_> = (1..=60).map(|i| service(&format!("s{i}"), &format!("10.9.0.{i}"), json!({}))).collect();
        let three: Vec<_> = ["a", "b", "c"].iter().map(|n| node(n, true)).collect();
        let all = candidates(&services, &[], &three);
        for n in ["a", "b", "c"] {
            assert!(all.iter().filter(|c| c[0] == n).count() > 8, "{n} has its share");
        }
        let two = [node("a", true), node("b", false), node("c", true)];
        for (before, after) in all.iter().zip(candidates(&services, &[], &two)) {
            let without: Vec<_> = before.iter().filter(|n| *n != "b").cloned().collect();
            assert_eq!(after, without);
        }
    }

    #[test]
    fn only_ours_only_of_the_pools_only_what_arrives_as_it_is() {
        let nodes = [node("a", true)];
        let mut proxied = service("x", "10.9.0.1", json!({}));
        proxied.status.as_mut().unwrap().load_balancer.as_mut().unwrap().ingress.as_mut().unwrap()[0].ip_mode =
            Some("Proxy".into());
        let services = [
            service("other", "10.9.0.2", json!({ "loadBalancerClass": "x.dev/y" })),
            service("outside", "10.8.0.2", json!({})),
            proxied,
        ];
        assert!(candidates(&services, &[], &nodes).is_empty());
    }

    #[test]
    fn local_policy_wants_a_ready_endpoint() {
        let nodes: Vec<_> = ["a", "b", "c"].iter().map(|n| node(n, true)).collect();
        let local = [service("s", "10.9.0.1", json!({ "externalTrafficPolicy": "Local" }))];
        let at = |node: &str, ready: bool| {
            json!({ "addresses": ["10.1.0.1"], "nodeName": node,
                "conditions": { "ready": ready, "serving": true, "terminating": !ready } })
        };
        let one = [slice("s", json!([at("b", true), at("c", false)]))];
        assert_eq!(candidates(&local, &one, &nodes), [["b"]]);
        let leaving = [slice("s", json!([at("c", false)]))];
        assert_eq!(candidates(&local, &leaving, &nodes), [["c"]], "who terminates still serves");
        assert_eq!(candidates(&local, &[], &nodes), [Vec::<String>::new()]);
    }

    #[test]
    fn nobody_ready_means_nobody_knows() {
        let services = [service("s", "10.9.0.1", json!({}))];
        let lost = [node("a", false), node("b", false)];
        assert_eq!(candidates(&services, &[], &lost)[0].len(), 2);
        let mut out = node("c", true);
        out.metadata.labels = Some([(EXCLUDED.to_owned(), String::new())].into());
        assert_eq!(candidates(&services, &[], &[node("a", true), out]), [["a"]]);
    }
}
