//! Which endpoint of a Service may be sent traffic: the one definition that kube-proxy, DNS, ingress and mesh share.
//!
//! In: the EndpointSlices of a Service (discovery.k8s.io/v1). Out: [`Endpoint`]s with their conditions resolved, and
//! [`usable`], which applies the terminating fallback of KEP-1669.

use k8s_openapi::api::discovery::v1::{EndpointPort, EndpointSlice};
use std::net::IpAddr;

/// The label that ties a slice to its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// The label of a Node that says in which zone it is.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// One endpoint address for one port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The pod's address.
    pub ip: IpAddr,
    /// The pod's port.
    pub port: u16,
    /// `conditions.ready` (absent means ready).
    pub ready: bool,
    /// `conditions.serving` (absent means as `ready`).
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// The node the endpoint is on, when known.
    pub node: Option<String>,
    /// The zone, when known.
    pub zone: Option<String>,
    /// `hints.forZones`.
    pub zone_hints: Vec<String>,
    /// `hints.forNodes`.
    pub node_hints: Vec<String>,
    /// `hostname` of a headless service's endpoint.
    pub hostname: Option<String>,
}

/// The name of a slice's Service.
pub fn service_name(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL).map(String::as_str)
}

/// All endpoints of a Service port, by the port's name (`""` for an unnamed one), without doubles, sorted.
/// Slices are those of one Service; addresses that do not parse and ports without a number are passed over.
pub fn of_port<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>, port_name: &str) -> Vec<Endpoint> {
    matching(slices, |p| p.name.as_deref().unwrap_or("") == port_name)
}

/// As [`of_port`], and of that protocol alone: `TCP`, `UDP` or `SCTP`.
pub fn of_protocol<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    port_name: &str,
    protocol: &str,
) -> Vec<Endpoint> {
    let is = |p: &EndpointPort| {
        p.name.as_deref().unwrap_or("") == port_name && p.protocol.as_deref().unwrap_or("TCP") == protocol
    };
    matching(slices, is)
}

fn matching<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    is: impl Fn(&EndpointPort) -> bool,
) -> Vec<Endpoint> {
    let mut all: Vec<Endpoint> = Vec::new();
    for slice in slices {
        let numbers = slice.ports.iter().flatten();
        for number in numbers.filter(|p| is(p)).filter_map(|p| p.port) {
            let Ok(port) = u16::try_from(number) else { continue };
            all.extend(slice.endpoints.iter().flat_map(|e| resolve(e, port)));
        }
    }
    all.sort();
    // An endpoint may stand in two slices while it moves between them; the ready one counts.
    all.dedup_by(|b, a| {
        let same = a.ip == b.ip && a.port == b.port;
        if same && b.ready {
            std::mem::swap(a, b);
        }
        same
    });
    all
}

/// The endpoints new connections go to: the ready ones; when there is none, those that still serve while they
/// terminate (KEP-1669).
pub fn usable(all: &[Endpoint]) -> Vec<&Endpoint> {
    let ready: Vec<_> = all.iter().filter(|e| e.ready).collect();
    if !ready.is_empty() {
        return ready;
    }
    all.iter().filter(|e| e.serving && e.terminating).collect()
}

/// As [`usable`], near ones first, as seen from a node in a zone: hints (KEP-2433, KEP-3015, KEP-4444) are heeded when
/// every ready endpoint has one and one of them is for here, the node's first, then the zone's. Among terminating ones
/// they do not count.
pub fn near<'a>(all: &'a [Endpoint], node: &str, zone: Option<&str>) -> Vec<&'a Endpoint> {
    let found = usable(all);
    if !found.iter().all(|e| e.ready) {
        return found;
    }
    let hinted = |hints: fn(&Endpoint) -> &Vec<String>, place: &str| {
        let complete = found.iter().all(|e| !hints(e).is_empty());
        let same: Vec<&Endpoint> = found.iter().copied().filter(|e| hints(e).iter().any(|h| h == place)).collect();
        (complete && !same.is_empty()).then_some(same)
    };
    let on_node = hinted(|e| &e.node_hints, node);
    on_node.or_else(|| hinted(|e| &e.zone_hints, zone?)).unwrap_or(found)
}

fn resolve(e: &k8s_openapi::api::discovery::v1::Endpoint, port: u16) -> impl Iterator<Item = Endpoint> + use<'_> {
    let c = e.conditions.as_ref();
    let ready = c.and_then(|c| c.ready).unwrap_or(true);
    let hints = e.hints.as_ref();
    e.addresses.iter().filter_map(move |address| {
        Some(Endpoint {
            ip: address.parse().ok()?,
            port,
            ready,
            serving: c.and_then(|c| c.serving).unwrap_or(ready),
            terminating: c.and_then(|c| c.terminating).unwrap_or(false),
            node: e.node_name.clone(),
            zone: e.zone.clone(),
            zone_hints: hints
                .and_then(|h| h.for_zones.as_ref())
                .into_iter()
                .flatten()
                .map(|z| z.name.clone())
                .collect(),
            node_hints: hints
                .and_then(|h| h.for_nodes.as_ref())
                .into_iter()
                .flatten()
                .map(|n| n.name.clone())
                .collect(),
            hostname: e.hostname.clone(),
        })
    })
}
