//! What must be known about the node, and on which of its addresses node ports are served. Pure.

use causeway_api::{config::NodePortAddress, endpoints::Endpoint};
use ipnet::IpNet;
use std::net::IpAddr;

/// What must be known about the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeView {
    /// `metadata.name`.
    pub name: String,
    /// Its primary addresses, one a family.
    pub ips: Vec<IpAddr>,
    /// Addresses on which node ports are served: see [`node_port_ips`].
    pub node_port_ips: Vec<IpAddr>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
}

impl NodeView {
    /// Whether an endpoint is on this node.
    pub(super) fn has(&self, endpoint: &Endpoint) -> bool {
        match &endpoint.node {
            Some(node) => *node == self.name,
            // Slices made by hand may leave the node out.
            None => self.pod_cidrs.iter().any(|c| c.contains(&endpoint.ip)),
        }
    }
}

/// The addresses that `nodePortAddresses` chooses out of all that the node has: the primary ones, or those in ranges. A
/// family of which it says nothing is served on all addresses, as kube-proxy does. Loopback and link-local addresses
/// never are.
pub fn node_port_ips(chosen: &[NodePortAddress], primary: &[IpAddr], all: &[IpAddr]) -> Vec<IpAddr> {
    let ranges = |v4: bool| {
        let of_family = move |r: &&NodePortAddress| match r {
            NodePortAddress::Primary => true,
            NodePortAddress::Range(range) => range.addr().is_ipv4() == v4,
        };
        chosen.iter().filter(of_family)
    };
    let is_chosen = |ip: &IpAddr| {
        ranges(ip.is_ipv4()).next().is_none()
            || ranges(ip.is_ipv4()).any(|r| match r {
                NodePortAddress::Primary => primary.contains(ip),
                NodePortAddress::Range(range) => range.contains(ip),
            })
    };
    let is_link_local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let mut ips: Vec<IpAddr> = primary.iter().chain(all).copied().collect();
    ips.retain(|ip| is_chosen(ip) && !ip.is_loopback() && !ip.is_multicast() && !is_link_local(ip));
    ips.sort();
    ips.dedup();
    ips
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_port_addresses_by_family() {
        let ips = |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        let primary = ips(&["10.0.0.1", "fd10::1"]);
        let all = ips(&["127.0.0.1", "10.0.0.1", "10.1.0.1", "::1", "fe80::1", "fd10::1", "fd11::1"]);
        let chosen = |texts: &[&str]| {
            let parsed: Vec<NodePortAddress> = texts.iter().map(|t| t.parse().unwrap()).collect();
            node_port_ips(&parsed, &primary, &all)
        };
        assert_eq!(chosen(&["primary"]), primary);
        assert_eq!(chosen(&["10.1.0.0/16", "fd11::/64"]), ips(&["10.1.0.1", "fd11::1"]));
        assert_eq!(chosen(&["0.0.0.0/0", "::/0"]), ips(&["10.0.0.1", "10.1.0.1", "fd10::1", "fd11::1"]));
        assert_eq!(chosen(&[]), chosen(&["0.0.0.0/0", "::/0"]));
        assert_eq!(chosen(&["10.1.0.0/16"]), ips(&["10.1.0.1", "fd10::1", "fd11::1"]), "of IPv6 nothing is said");
        assert_eq!(chosen(&["primary", "10.1.0.0/16"]), ips(&["10.0.0.1", "10.1.0.1", "fd10::1"]));
        assert_eq!(chosen(&["192.168.0.0/16", "fd12::/64"]), ips(&[]));
    }
}
