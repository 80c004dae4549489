//! What NetworkPolicies say, straight from the API's objects and word by word, to compare the planned rules with: for
//! tests. Shares no code with the model.

use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod},
        networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use std::{collections::BTreeMap, net::IpAddr};

/// A cluster.
#[derive(Debug, Clone, Default)]
pub struct World {
    pub pods: Vec<Pod>,
    pub namespaces: Vec<Namespace>,
    pub policies: Vec<NetworkPolicy>,
}

fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let none = BTreeMap::new();
    let labels = labels.unwrap_or(&none);
    let exact = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    exact
        && selector.match_expressions.iter().flatten().all(|e| {
            let value = labels.get(&e.key);
            let listed = value.is_some_and(|v| e.values.iter().flatten().any(|w| w == v));
            match e.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("{other}"),
            }
        })
}

impl World {
    /// The pod that has an address, if policies know it.
    pub fn pod(&self, ip: IpAddr) -> Option<&Pod> {
        self.pods.iter().find(|p| {
            let ips = p.status.as_ref().unwrap().pod_ips.iter().flatten();
            !p.spec.as_ref().unwrap().host_network.unwrap_or(false)
                && !matches!(p.status.as_ref().unwrap().phase.as_deref(), Some("Succeeded" | "Failed"))
                && ips.into_iter().any(|i| i.ip.parse::<IpAddr>().unwrap() == ip)
        })
    }

    /// Whether policies let a connection through on a node, which asks for its own pods only.
    pub fn allows(&self, node: &str, from: IpAddr, to: IpAddr, protocol: &str, port: u16) -> bool {
        let here = |p: &&Pod| p.spec.as_ref().unwrap().node_name.as_deref() == Some(node);
        let (source, destination) = (self.pod(from), self.pod(to));
        if from == to && source.is_some() {
            return true;
        }
        let mut allowed = true;
        for (subject, ingress) in [(source.filter(here), false), (destination.filter(here), true)] {
            let Some(subject) = subject else { continue };
            let namespace = &subject.metadata.namespace;
            let (mut isolated, mut any) = (false, false);
            for policy in self.policies.iter().filter(|p| p.metadata.namespace == *namespace) {
                let spec = policy.spec.as_ref().unwrap();
                if !selects(spec.pod_selector.as_ref().unwrap(), subject.metadata.labels.as_ref()) {
                    continue;
                }
                let has_egress = spec.egress.as_ref().is_some_and(|e| !e.is_empty());
                let types = spec.policy_types.clone().unwrap_or_else(|| {
                    let both = ["Ingress", "Egress"].map(str::to_owned).to_vec();
                    if has_egress { both } else { both[..1].to_vec() }
                });
                if !types.iter().any(|t| t == if ingress { "Ingress" } else { "Egress" }) {
                    continue;
                }
                isolated = true;
                let rules: Vec<_> = if ingress {
                    spec.ingress.iter().flatten().map(|r| (r.from.clone(), r.ports.clone())).collect()
                } else {
                    spec.egress.iter().flatten().map(|r| (r.to.clone(), r.ports.clone())).collect()
                };
                for (peers, ports) in rules {
                    let (peers, ports) = (peers.unwrap_or_default(), ports.unwrap_or_default());
                    let other = if ingress { from } else { to };
                    let peer = peers.is_empty() || peers.iter().any(|p| self.is_peer(p, policy, other));
                    let port = ports.is_empty() || ports.iter().any(|p| is_port(p, destination, protocol, port));
                    any |= peer && port;
                }
            }
            allowed &= !isolated || any;
        }
        allowed
    }

    fn is_peer(&self, peer: &NetworkPolicyPeer, policy: &NetworkPolicy, ip: IpAddr) -> bool {
        if let Some(block) = &peer.ip_block {
            let within = |net: &String| net.parse::<IpNet>().unwrap().contains(&ip);
            return within(&block.cidr) && !block.except.iter().flatten().any(within);
        }
        let Some(pod) = self.pod(ip) else { return false };
        let in_namespace = match &peer.namespace_selector {
            None => pod.metadata.namespace == policy.metadata.namespace,
            Some(selector) => self
                .namespaces
                .iter()
                .find(|n| n.metadata.name == pod.metadata.namespace)
                .is_some_and(|n| selects(selector, n.metadata.labels.as_ref())),
        };
        in_namespace && peer.pod_selector.as_ref().is_none_or(|s| selects(s, pod.metadata.labels.as_ref()))
    }
}

fn is_port(p: &NetworkPolicyPort, destination: Option<&Pod>, protocol: &str, number: u16) -> bool {
    let wanted = p.protocol.as_deref().unwrap_or("TCP");
    if wanted != protocol {
        return false;
    }
    match &p.port {
        None => true,
        Some(IntOrString::Int(first)) => (*first..=p.end_port.unwrap_or(*first)).contains(&i32::from(number)),
        Some(IntOrString::String(name)) => destination.is_some_and(|pod| {
            let ports = pod.spec.as_ref().unwrap().containers.iter().flat_map(|c| c.ports.iter().flatten());
            ports.into_iter().any(|c| {
                c.name.as_ref() == Some(name)
                    && c.protocol.as_deref().unwrap_or("TCP") == protocol
                    && c.container_port == i32::from(number)
            })
        }),
    }
}
