//! What a policy allows and what a pod is, in the words of a packet filter. Pure.
//!
//! In: NetworkPolicies, Pods, the EndpointSlices of cluster DNS. Out: for each policy which pods it isolates in which
//! direction and what it allows them, with all defaults resolved; for each pod what policies can tell it by.

use crate::names::{Labels, number};
use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{Pod, PodSpec},
        discovery::v1::EndpointSlice,
        networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// As seen from the pod that a policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Ingress: the peer is the source.
    In,
    /// Egress: the peer is the destination.
    Out,
}

/// A NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Which pods of its namespace it selects.
    pub pods: Labels,
    /// What it allows in; none when it says nothing about ingress.
    pub ingress: Option<Vec<Allow>>,
    /// What it allows out; none when it says nothing about egress.
    pub egress: Option<Vec<Allow>>,
}

/// One rule: these peers on these ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Allow {
    /// Who.
    pub peers: Peers,
    /// Which ports of the destination.
    pub ports: Ports,
}

/// Who may take part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Everybody.
    All,
    /// Pods and addresses. Both may be empty, which is nobody.
    Some {
        /// Pods that any of these selects.
        group: Group,
        /// Address ranges.
        blocks: BTreeSet<Block>,
    },
}

/// The pods that any of some selectors selects.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(pub BTreeSet<PeerSelector>);

impl Group {
    /// Its number, the same in every process: made of what it selects.
    pub fn id(&self) -> u64 {
        number("group", self)
    }

    /// Whether it has a pod.
    pub fn has(&self, pod: &PodInfo, namespace: Option<&BTreeMap<String, String>>) -> bool {
        let within = |s: &PeerSelector| match &s.namespaces {
            Namespaces::One(name) => *name == pod.namespace,
            // One that is not known yet has no labels to be selected by.
            Namespaces::Matching(labels) => namespace.is_some_and(|n| labels.matches(n)),
        };
        self.0.iter().any(|s| within(s) && s.pods.matches(&pod.labels))
    }
}

/// `podSelector` and `namespaceSelector` of one peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerSelector {
    /// Where.
    pub namespaces: Namespaces,
    /// Which there.
    pub pods: Labels,
}

/// Where a peer may be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// In the policy's own.
    One(String),
    /// In those with such labels.
    Matching(Labels),
}

/// `ipBlock`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// In it …
    pub cidr: IpNet,
    /// … but in none of these.
    pub except: BTreeSet<IpNet>,
}

/// Which ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// All, of every protocol.
    All,
    /// These.
    Some(BTreeSet<PortMatch>),
}

/// Ports of the destination. Protocols by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// All of a protocol.
    Protocol(u8),
    /// From the first to the last.
    Range(u8, u16, u16),
    /// The one that the destination's pod calls so.
    Named(u8, String),
}

/// What policies can tell a pod by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodInfo {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.nodeName`.
    pub node: String,
    /// `status.podIPs`; empty for pods of the node's network, for which no policy holds, and for finished ones, whose
    /// addresses may be another's by now.
    pub ips: BTreeSet<IpAddr>,
    /// Whether policies hold for it at all.
    pub counts: bool,
    /// Its containers' ports that have a name: name, protocol, number.
    pub ports: BTreeSet<(String, u8, u16)>,
    /// Only these ports are a pod: the addresses are a node's.
    pub only_ports: bool,
    /// Whether it is being deleted.
    pub leaving: bool,
    /// When it was made, in seconds since 1970.
    pub created: i64,
}

/// TCP, UDP or SCTP by its number; none for what the API does not know.
pub fn protocol(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

/// Reads a policy. What cannot be read allows nobody; the API server accepts no such thing.
pub fn policy(policy: &NetworkPolicy) -> Policy {
    let namespace = policy.metadata.namespace.as_deref().unwrap_or("");
    let spec = policy.spec.clone().unwrap_or_default();
    let types = spec.policy_types.unwrap_or_default();
    let says = |word: &str, default: bool| if types.is_empty() { default } else { types.iter().any(|t| t == word) };
    let egress = spec.egress.unwrap_or_default();
    let ingress = spec.ingress.unwrap_or_default();
    let isolates_out = says("Egress", !egress.is_empty());
    Policy {
        pods: labels(spec.pod_selector.as_ref()).unwrap_or_default(),
        ingress: says("Ingress", true)
            .then(|| ingress.iter().map(|r| allow(namespace, r.from.as_deref(), r.ports.as_deref())).collect()),
        egress: isolates_out
            .then(|| egress.iter().map(|r| allow(namespace, r.to.as_deref(), r.ports.as_deref())).collect()),
    }
}

fn labels(selector: Option<&LabelSelector>) -> Option<Labels> {
    let Some(selector) = selector else { return Some(Labels::default()) };
    Labels::read(selector).inspect_err(|error| tracing::warn!(error, "a selector of a NetworkPolicy")).ok()
}

fn allow(namespace: &str, peers: Option<&[NetworkPolicyPeer]>, ports: Option<&[NetworkPolicyPort]>) -> Allow {
    let peers = match peers.unwrap_or_default() {
        [] => Peers::All,
        list => Peers::Some {
            group: Group(list.iter().filter_map(|p| selected(namespace, p)).collect()),
            blocks: list.iter().filter_map(|p| block(p.ip_block.as_ref()?)).collect(),
        },
    };
    let ports = match ports.unwrap_or_default() {
        [] => Ports::All,
        list => Ports::Some(list.iter().filter_map(port).collect()),
    };
    Allow { peers, ports }
}

fn selected(namespace: &str, peer: &NetworkPolicyPeer) -> Option<PeerSelector> {
    if peer.ip_block.is_some() {
        return None;
    }
    let namespaces = match &peer.namespace_selector {
        Some(selector) => Namespaces::Matching(labels(Some(selector))?),
        // Neither of them: the API server refuses it.
        None if peer.pod_selector.is_none() => return None,
        None => Namespaces::One(namespace.to_owned()),
    };
    Some(PeerSelector { namespaces, pods: labels(peer.pod_selector.as_ref())? })
}

fn block(block: &IPBlock) -> Option<Block> {
    let net = |text: &String| text.parse::<IpNet>().ok().map(|n| n.trunc());
    let except: Option<BTreeSet<IpNet>> = block.except.iter().flatten().map(net).collect();
    Some(Block { cidr: net(&block.cidr)?, except: except? })
}

fn port(port: &NetworkPolicyPort) -> Option<PortMatch> {
    let protocol = protocol(port.protocol.as_deref())?;
    Some(match &port.port {
        None => PortMatch::Protocol(protocol),
        Some(IntOrString::String(name)) => PortMatch::Named(protocol, name.clone()),
        Some(IntOrString::Int(first)) => {
            let first = u16::try_from(*first).ok()?;
            let last = port.end_port.map_or(Some(first), |p| u16::try_from(p).ok())?;
            PortMatch::Range(protocol, first, last)
        }
    })
}

impl Policy {
    /// Whether it speaks of Pods that may be on other nodes: by labels, or by the names that destinations give to ports.
    pub fn names_peers(&self) -> bool {
        let selects = |allow: &Allow| matches!(&allow.peers, Peers::Some { group, .. } if !group.0.is_empty());
        let named = |port: &PortMatch| matches!(port, PortMatch::Named(..));
        let by_name = |allow: &Allow| matches!(&allow.ports, Ports::Some(ports) if ports.iter().any(named));
        let egress = self.egress.iter().flatten();
        self.ingress.iter().flatten().any(selects) || egress.clone().any(selects) || egress.clone().any(by_name)
    }
}

/// Reads a pod.
pub fn pod(pod: &Pod) -> PodInfo {
    let spec = pod.spec.as_ref();
    let counts = !spec.and_then(|s| s.host_network).unwrap_or_default() && !causeway_api::pod::is_finished(pod);
    let status = pod.status.as_ref();
    let ips = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|p| p.ip.as_str());
    let ips = ips.chain(status.and_then(|s| s.pod_ip.as_deref())).filter(|_| counts);
    PodInfo {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        ips: ips.filter_map(|ip| ip.parse().ok()).collect(),
        counts,
        ports: spec.map(named_ports).unwrap_or_default(),
        only_ports: false,
        leaving: causeway_api::pod::is_terminating(pod),
        created: pod.metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second()),
    }
}

fn named_ports(spec: &PodSpec) -> BTreeSet<(String, u8, u16)> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| Some((p.name.clone()?, protocol(p.protocol.as_deref())?, p.container_port.try_into().ok()?)))
        .collect()
}

/// Cluster DNS as the pod for which policies take it: in `kube-system`, with the label `k8s-app: kube-dns`.
///
/// Ours is no pod: every node serves on its own address. Manifests made for other clusters allow it by that namespace
/// and label, so its endpoints stand for such a pod, with their ports only: the node's other ports are not meant.
pub fn dns(slice: &EndpointSlice) -> PodInfo {
    let ports = slice.ports.iter().flatten();
    let ports = ports.filter_map(|p| {
        let number = u16::try_from(p.port?).ok()?;
        Some((p.name.clone().unwrap_or_default(), protocol(p.protocol.as_deref())?, number))
    });
    let ips = slice.endpoints.iter().flat_map(|e| &e.addresses).filter_map(|a| a.parse().ok());
    PodInfo {
        namespace: slice.metadata.namespace.clone().unwrap_or_default(),
        labels: BTreeMap::from([("k8s-app".to_owned(), "kube-dns".to_owned())]),
        ips: ips.collect(),
        ports: ports.collect(),
        only_ports: true,
        ..PodInfo::default()
    }
}
