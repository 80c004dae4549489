//! What a Service asks of this node, in the words of a packet filter. Pure.
//!
//! In: a Service, its EndpointSlices, the node. Out: a [`ServiceModel`]: for every address, protocol and port what is to
//! become of a new connection. Both renderers, nftables and iptables, draw the same model.

mod choose;
mod node;
#[cfg(test)]
mod tests;

use causeway_api::endpoints;
use choose::Endpoints;
use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Service, ServicePort, ServiceSpec},
    discovery::v1::EndpointSlice,
};
pub use node::{NodeView, node_port_ips};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// Services that another proxy cares for carry this label.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// `sessionAffinityConfig.clientIP.timeoutSeconds` when absent.
const AFFINITY_SECONDS: u32 = 10_800;
/// TCP's number.
pub const TCP: u8 = 6;
/// UDP's number.
pub const UDP: u8 = 17;
/// SCTP's number.
pub const SCTP: u8 = 132;

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

impl Choice {
    /// The endpoints; none when it refuses or drops.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        let all = if let Self::Spread(targets) = self { Some(targets) } else { None };
        all.into_iter().flatten()
    }
}

/// By which of its addresses a Service is met at a front.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress`, unless its `ipMode` is `Proxy`.
    LoadBalancer,
    /// An address of the node, with `nodePort`.
    NodePort,
}

/// All about one front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The Service's port, as kube-proxy writes it: `namespace/name:port`, or `namespace/name` when it has no name. All
    /// fronts of a port share it; so do they share what is remembered of a client with affinity.
    pub port: Arc<str>,
    /// What kind of address this is.
    pub kind: Kind,
    /// For pods and the node itself; for all when `external` is none.
    pub choice: Choice,
    /// For sources outside of the cluster, where that differs (`externalTrafficPolicy: Local`): local endpoints alone,
    /// which see the client's address.
    pub external: Option<Choice>,
    /// A client keeps its endpoint for so many seconds after its last connection.
    pub affinity: Option<u32>,
    /// Who may connect at all, pods and the node included; others are dropped. None is everybody.
    pub sources: Option<BTreeSet<IpNet>>,
    /// Endpoints that get no new connections but still serve those they have (terminating ones, ones too far away).
    /// Known for datagram protocols alone, where nothing but a deleted flow would make a client look for another.
    pub lingering: BTreeSet<Target>,
}

impl Wanted {
    /// The endpoints whose datagram flows go on.
    pub fn serving(&self) -> BTreeSet<Target> {
        let chosen = self.choice.targets().chain(self.external.iter().flat_map(Choice::targets));
        chosen.chain(&self.lingering).copied().collect()
    }
}

/// What a load balancer's health check is told (`spec.healthCheckNodePort`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// Where it asks, on the node's addresses.
    pub port: u16,
    /// Ready endpoints on this node.
    pub local: usize,
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
    /// For `type: LoadBalancer` with `externalTrafficPolicy: Local`.
    pub health: Option<HealthCheck>,
}

impl ServiceModel {
    /// How many of its ports drop, for want of a local endpoint, what comes by the internal and the external policy.
    pub fn without_local(&self) -> [i64; 2] {
        let count = |drops: fn(&Wanted) -> bool| {
            let ports: BTreeSet<&str> = self.fronts.values().filter(|w| drops(w)).map(|w| &*w.port).collect();
            ports.len() as i64
        };
        [count(|w| w.choice == Choice::Drop), count(|w| w.external == Some(Choice::Drop))]
    }
}

/// Reads a Service. One without a cluster IP, and one that another proxy serves, asks nothing. Of a family in which it
/// has no cluster IP it serves no address at all.
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
    model.cluster_ips = cluster_ips(spec);
    // Of a family that the node has no address of, it can serve nothing.
    model.cluster_ips.retain(|ip| node.ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4()));
    if model.cluster_ips.is_empty() {
        return model;
    }
    let addresses = addresses(service, &model.cluster_ips, node);
    let affinity = affinity(spec);
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let slices: Vec<&EndpointSlice> = slices.into_iter().collect();
    let mut ready_here = BTreeSet::new();
    for port in spec.ports.iter().flatten() {
        let Some((protocol, number)) = numbers(port) else { continue };
        let name = port.name.as_deref().unwrap_or("");
        let all = endpoints::of_protocol(slices.iter().copied(), name, port.protocol.as_deref().unwrap_or("TCP"));
        let here = all.iter().filter(|e| node.has(e));
        model.local.extend(here.clone().map(|e| e.ip));
        ready_here.extend(here.filter(|e| e.ready).map(|e| e.ip));
        let by_family = [true, false].map(|v4| Endpoints::new(&all, v4, node));
        let label = label(service, name);
        let node_port = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
        for address in &addresses {
            let at = if address.kind == Kind::NodePort { node_port } else { Some(number) };
            let Some(at) = at else { continue };
            let ends = &by_family[usize::from(!address.ip.is_ipv4())];
            let is_internal = address.kind == Kind::ClusterIp;
            let choice = if is_internal && internal_local { ends.local() } else { ends.cluster() };
            let external = (!is_internal && external_local).then(|| ends.local());
            let mut wanted = Wanted {
                port: label.clone(),
                kind: address.kind,
                choice,
                external,
                affinity,
                sources: address.sources.clone(),
                lingering: BTreeSet::new(),
            };
            if protocol != TCP {
                wanted.lingering = &ends.serving() - &wanted.serving();
            }
            model.fronts.insert(Front { ip: address.ip, protocol, port: at }, wanted);
        }
    }
    let checked = spec.type_.as_deref() == Some("LoadBalancer") && external_local;
    let port = spec.health_check_node_port.filter(|_| checked).and_then(|p| u16::try_from(p).ok());
    // One pod may have an address of each family; it is one endpoint.
    let local = [true, false].map(|v4| ready_here.iter().filter(|ip| ip.is_ipv4() == v4).count());
    model.health = port.filter(|p| *p > 0).map(|port| HealthCheck { port, local: local[0].max(local[1]) });
    model
}

/// An address of a Service, without its ports.
struct Address {
    ip: IpAddr,
    kind: Kind,
    sources: Option<BTreeSet<IpNet>>,
}

/// All addresses; should two kinds have the same one, the later is served.
fn addresses(service: &Service, cluster_ips: &BTreeSet<IpAddr>, node: &NodeView) -> Vec<Address> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let is_served = |ip: &IpAddr| cluster_ips.iter().any(|c| c.is_ipv4() == ip.is_ipv4());
    let open = |kind| move |ip: IpAddr| Address { ip, kind, sources: None };
    let mut all: Vec<Address> = cluster_ips.iter().copied().map(open(Kind::ClusterIp)).collect();
    all.extend(node.node_port_ips.iter().copied().filter(is_served).map(open(Kind::NodePort)));
    let external = spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).filter(is_served);
    all.extend(external.map(open(Kind::ExternalIp)));
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let ingress = status.and_then(|l| l.ingress.as_ref()).into_iter().flatten();
    // What a proxying balancer sends has another destination already.
    let whole = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
    let balanced: BTreeSet<IpAddr> =
        whole.filter_map(|i| i.ip.as_ref()?.parse().ok()).filter(|ip| is_served(ip)).collect();
    all.extend(balanced.iter().map(|ip| Address {
        ip: *ip,
        kind: Kind::LoadBalancer,
        sources: sources(spec, ip.is_ipv4(), &balanced, node),
    }));
    all
}

/// `loadBalancerSourceRanges` of a family. When they let the node in, they let in the balancer's own addresses too: a
/// connection of the node to one of them, should it be an address of the node, comes from that address.
fn sources(spec: &ServiceSpec, v4: bool, balanced: &BTreeSet<IpAddr>, node: &NodeView) -> Option<BTreeSet<IpNet>> {
    let ranges = spec.load_balancer_source_ranges.iter().flatten().filter_map(|r| r.trim().parse::<IpNet>().ok());
    let mut ranges: BTreeSet<IpNet> = ranges.filter(|r| r.addr().is_ipv4() == v4).map(|r| r.trunc()).collect();
    if ranges.is_empty() || ranges.iter().any(|r| r.prefix_len() == 0) {
        return None;
    }
    if ranges.iter().any(|r| node.ips.iter().any(|ip| r.contains(ip))) {
        ranges.extend(balanced.iter().filter(|ip| ip.is_ipv4() == v4).map(|ip| IpNet::from(*ip)));
    }
    Some(ranges)
}

fn cluster_ips(spec: &ServiceSpec) -> BTreeSet<IpAddr> {
    // "None" and "" do not parse.
    spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).filter_map(|ip| ip.parse().ok()).collect()
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let seconds = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
        seconds.and_then(|s| u32::try_from(s).ok()).filter(|s| *s > 0).unwrap_or(AFFINITY_SECONDS)
    })
}

fn label(service: &Service, port: &str) -> Arc<str> {
    let meta = &service.metadata;
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
    if port.is_empty() { format!("{namespace}/{name}").into() } else { format!("{namespace}/{name}:{port}").into() }
}

fn numbers(port: &ServicePort) -> Option<(u8, u16)> {
    let protocol = match port.protocol.as_deref().unwrap_or("TCP") {
        "TCP" => TCP,
        "UDP" => UDP,
        "SCTP" => SCTP,
        _ => return None,
    };
    Some((protocol, u16::try_from(port.port).ok()?))
}
