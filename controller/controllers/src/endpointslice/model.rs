//! What the endpoints of a Service are: for each address family and each set of port numbers, the pods' addresses
//! with their conditions. Pure.

use crate::meta::{label, name, namespace};
use causeway_api::endpoints::ZONE_LABEL;
use causeway_api::pod;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// Endpoints that share family and ports.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// `IPv4` or `IPv6`.
    pub address_type: String,
    /// The same for all.
    pub ports: Vec<EndpointPort>,
    /// By address.
    pub endpoints: Vec<Endpoint>,
    /// When the newest of the pods changed its readiness.
    pub trigger: Option<Timestamp>,
}

/// A node's zone.
pub fn zone(node: &Node) -> Option<&str> {
    label(&node.metadata, ZONE_LABEL)
}

/// The groups of a Service, one at least for each of its families.
pub fn groups(service: &Service, pods: &[Arc<Pod>], nodes: &HashMap<String, Arc<Node>>) -> Vec<Group> {
    let mut all = Vec::new();
    for family in families(service, pods) {
        let mut by_ports: BTreeMap<String, Group> = BTreeMap::new();
        for pod in pods.iter().filter(|p| !pod::is_finished(p)) {
            let Some(address) = address(pod, &family) else { continue };
            let ports = ports(service, pod);
            let key = serde_json::to_string(&ports).unwrap_or_default();
            let group = by_ports.entry(key).or_insert_with(|| Group {
                address_type: family.clone(),
                ports,
                endpoints: Vec::new(),
                trigger: None,
            });
            group.endpoints.push(endpoint(service, pod, address, nodes));
            group.trigger = group.trigger.max(trigger(pod));
        }
        if by_ports.is_empty() {
            all.push(Group { address_type: family, ports: Vec::new(), endpoints: Vec::new(), trigger: None });
        } else {
            all.extend(by_ports.into_values());
        }
    }
    for group in &mut all {
        group.endpoints.sort_by(|a, b| (&a.addresses, uid_of(a)).cmp(&(&b.addresses, uid_of(b))));
    }
    all
}

/// The uid of an endpoint's pod.
pub fn uid_of(endpoint: &Endpoint) -> Option<&str> {
    endpoint.target_ref.as_ref()?.uid.as_deref()
}

/// The families the Service says, or those its pods have when it does not (headless ones of older clients).
fn families(service: &Service, pods: &[Arc<Pod>]) -> Vec<String> {
    let said = service.spec.as_ref().and_then(|s| s.ip_families.clone()).unwrap_or_default();
    if !said.is_empty() {
        return said;
    }
    let v6 = |p: &Arc<Pod>| address(p, "IPv4").is_none() && address(p, "IPv6").is_some();
    vec![if pods.iter().any(v6) { "IPv6" } else { "IPv4" }.to_owned()]
}

/// The pod's address of a family.
pub fn address(pod: &Pod, family: &str) -> Option<IpAddr> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut all = listed.chain(status.pod_ip.as_deref()).filter_map(|ip| ip.parse::<IpAddr>().ok());
    all.find(|ip| ip.is_ipv4() == (family == "IPv4"))
}

/// The numbers a pod serves the Service's ports on; a named port that it does not have is left out.
pub fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let all = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    all.filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(target(port, &protocol, pod)?),
            app_protocol: port.app_protocol.clone(),
            protocol: Some(protocol),
        })
    })
    .collect()
}

fn target(port: &ServicePort, protocol: &str, pod: &Pod) -> Option<i32> {
    match port.target_port.as_ref() {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(text)) if text.is_empty() => Some(port.port),
        Some(IntOrString::String(wanted)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars =
                spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let named = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            named
                .filter(|p| p.protocol.as_deref().unwrap_or("TCP") == protocol)
                .find(|p| p.name.as_deref() == Some(wanted))
                .map(|p| p.container_port)
                .or_else(|| wanted.parse().ok())
        }
    }
}

fn endpoint(service: &Service, pod: &Pod, address: IpAddr, nodes: &HashMap<String, Arc<Node>>) -> Endpoint {
    let spec = service.spec.as_ref();
    let serving = pod::is_ready(pod);
    let terminating = pod::is_terminating(pod);
    let publish = spec.and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let ready = publish || serving && !terminating;
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty());
    let zone = node.as_ref().and_then(|n| nodes.get(n)).and_then(|n| zone(n)).map(str::to_owned);
    let distribution = spec.and_then(|s| s.traffic_distribution.as_deref());
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        hints: hints(distribution, ready, node.as_deref(), zone.as_deref()),
        node_name: node,
        zone,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        deprecated_topology: None,
    }
}

/// A pod has a name of its own below a Service that it names as its subdomain.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let host = spec.hostname.clone().filter(|h| !h.is_empty())?;
    let same = spec.subdomain.as_deref() == Some(name(&service.metadata))
        && namespace(&pod.metadata) == namespace(&service.metadata);
    same.then_some(host)
}

/// KEP-4444 and KEP-3015: keep traffic in the zone, or on the node.
fn hints(distribution: Option<&str>, ready: bool, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    if !ready {
        return None;
    }
    let zones = || zone.map(|z| vec![ForZone { name: z.to_owned() }]);
    match distribution? {
        "PreferClose" | "PreferSameZone" => Some(EndpointHints { for_zones: Some(zones()?), for_nodes: None }),
        "PreferSameNode" => {
            let for_nodes = node.map(|n| vec![ForNode { name: n.to_owned() }])?;
            Some(EndpointHints { for_zones: zones(), for_nodes: Some(for_nodes) })
        }
        _ => None,
    }
}

fn trigger(pod: &Pod) -> Option<Timestamp> {
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(|t| t.0);
    let ready = pod::condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
    deleted.max(ready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{meta, node, pod as make};
    use k8s_openapi::api::core::v1::{ContainerPort, ServiceSpec};

    fn service(ports: Vec<ServicePort>) -> Service {
        Service {
            metadata: meta("web"),
            spec: Some(ServiceSpec {
                ports: Some(ports),
                ip_families: Some(vec!["IPv4".to_owned()]),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    fn port(target: IntOrString) -> ServicePort {
        ServicePort { port: 80, target_port: Some(target), ..ServicePort::default() }
    }

    fn with_ip(mut pod: Pod, ip: &str) -> Arc<Pod> {
        pod.status.as_mut().unwrap().pod_ip = Some(ip.to_owned());
        Arc::new(pod)
    }

    #[test]
    fn conditions() {
        let service = service(vec![port(IntOrString::Int(8080))]);
        let ready = with_ip(make("a", "n1", true), "10.0.0.1");
        let mut leaving = make("b", "n1", true);
        leaving.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        let leaving = with_ip(leaving, "10.0.0.2");
        let starting = with_ip(make("c", "n1", false), "10.0.0.3");
        let pods = [ready, leaving, starting, Arc::new(make("no-ip", "n1", true))];
        let all = groups(&service, &pods, &HashMap::new());
        assert_eq!(all.len(), 1);
        let got: Vec<_> = all[0]
            .endpoints
            .iter()
            .map(|e| {
                let c = e.conditions.clone().unwrap();
                (e.addresses[0].as_str(), c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
            })
            .collect();
        assert_eq!(
            got,
            [("10.0.0.1", true, true, false), ("10.0.0.2", false, true, true), ("10.0.0.3", false, false, false)]
        );
    }

    #[test]
    fn named_ports_may_differ_from_pod_to_pod() {
        let named = |name: &str, ip: &str, number: i32| {
            let mut p = make(name, "n1", true);
            p.spec.as_mut().unwrap().containers[0].ports = Some(vec![ContainerPort {
                name: Some("http".to_owned()),
                container_port: number,
                ..ContainerPort::default()
            }]);
            with_ip(p, ip)
        };
        let pods = [named("a", "10.0.0.1", 80), named("b", "10.0.0.2", 81), named("c", "10.0.0.3", 80)];
        let all = groups(&service(vec![port(IntOrString::String("http".to_owned()))]), &pods, &HashMap::new());
        let shape: Vec<_> = all.iter().map(|g| (g.ports[0].port.unwrap(), g.endpoints.len())).collect();
        assert_eq!(shape, [(80, 2), (81, 1)]);
    }

    #[test]
    fn hostname_zone_and_hints() {
        let mut service = service(vec![port(IntOrString::Int(80))]);
        service.spec.as_mut().unwrap().traffic_distribution = Some("PreferSameNode".to_owned());
        let mut p = make("web-0", "n1", true);
        let spec = p.spec.as_mut().unwrap();
        (spec.hostname, spec.subdomain) = (Some("web-0".to_owned()), Some("web".to_owned()));
        let mut n = node("n1");
        n.metadata.labels.as_mut().unwrap().insert(ZONE_LABEL.to_owned(), "z".to_owned());
        let nodes = HashMap::from([("n1".to_owned(), Arc::new(n))]);
        let all = groups(&service, &[with_ip(p, "10.0.0.1")], &nodes);
        let e = &all[0].endpoints[0];
        assert_eq!((e.hostname.as_deref(), e.zone.as_deref()), (Some("web-0"), Some("z")));
        let hints = e.hints.as_ref().unwrap();
        assert_eq!(hints.for_nodes.as_ref().unwrap()[0].name, "n1");
        assert_eq!(hints.for_zones.as_ref().unwrap()[0].name, "z");
    }
}
