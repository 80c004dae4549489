//! For which names and addresses a kubelet gets a certificate as a server: those that the cluster knows to be its own, never
//! those that the node says.
//!
//! In: what a request asks for, the address it came from as the API server saw it, what is known of the cluster. Out: the
//! addresses to be written down, or why a person has to decide.
//!
//! An address is the node's own when its request came from there (the API server writes that into the request, see
//! [`PEER_ANNOTATION`]), or when it is written down for the node already: by an earlier approval, or by an administrator
//! who has annotated the Node. A node with several addresses, or behind a translation of addresses, needs the latter, or
//! `kubectl certificate approve`.

use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The annotation of a CertificateSigningRequest: the address of the TCP peer that created it. The API server writes it,
/// whatever the client says, and never changes it; where there is no peer (a client in the same process) it is absent.
pub const PEER_ANNOTATION: &str = "causeway.dev/peer-address";

/// Addresses in one request: a node has few.
const MOST: usize = 16;

/// What a request asks for and where it came from.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The node that asks, by its credential.
    pub node: &'a str,
    /// Names in the certificate.
    pub dns_names: &'a [String],
    /// Addresses in the certificate.
    pub ips: &'a [IpAddr],
    /// [`PEER_ANNOTATION`].
    pub peer: Option<IpAddr>,
}

/// What is known of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Cluster<'a> {
    /// Ranges of service addresses, those of ServiceCIDR objects among them.
    pub services: &'a [IpNet],
    /// Ranges of pods.
    pub pods: &'a [IpNet],
    /// DNS domain (`cluster.local`).
    pub domain: &'a str,
    /// Where the API is reached: its own addresses, and those of what stands before it.
    pub api: &'a [IpAddr],
    /// And the names by which it is reached.
    pub api_names: &'a [String],
    /// Addresses that are written down for this node.
    pub own: &'a [IpAddr],
    /// And for other nodes.
    pub others: &'a BTreeSet<IpAddr>,
}

/// Decides. Out: the addresses of the certificate, sorted, to be written down for the node.
pub fn decide(request: &Request<'_>, cluster: &Cluster<'_>) -> Result<Vec<IpAddr>, String> {
    let node = request.node;
    if let Some(name) = request.dns_names.iter().find(|name| *name != node) {
        return Err(format!("{name:?} is not the name of node {node}"));
    }
    if !request.dns_names.is_empty() {
        check_name(node, cluster)?;
    }
    if request.ips.len() > MOST {
        return Err(format!("{} addresses are more than a node has", request.ips.len()));
    }
    let addresses: BTreeSet<IpAddr> = request.ips.iter().map(IpAddr::to_canonical).collect();
    let peer = request.peer.map(|ip| ip.to_canonical());
    for ip in &addresses {
        check_address(*ip, cluster)?;
        if peer != Some(*ip) && !cluster.own.iter().any(|own| own.to_canonical() == *ip) {
            let from = peer.map_or("from nowhere that is known".to_owned(), |peer| format!("from {peer}"));
            return Err(format!(
                "{ip} is not known to be an address of node {node}: its request came {from}, and no address is written \
                 down for it"
            ));
        }
    }
    Ok(addresses.into_iter().collect())
}

/// Refuses names that mean something else to clients.
fn check_name(node: &str, cluster: &Cluster<'_>) -> Result<(), String> {
    let within = |of: &str| node == of || node.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
    let first = node.split('.').next().unwrap_or("");
    if first == "kubernetes" || node == "localhost" || within("svc") || within("localhost") || within(cluster.domain) {
        return Err(format!("the name of node {node} is one of the cluster's own names"));
    }
    // `NAME.NAMESPACE.svc` is found by a pod's search path whatever the domain is.
    if node.contains(".svc.") {
        return Err(format!("the name of node {node} looks like a Service's"));
    }
    if cluster.api_names.iter().any(|name| name.eq_ignore_ascii_case(node)) {
        return Err(format!("the name of node {node} is one of the API's"));
    }
    if node.parse::<IpAddr>().is_ok() {
        return Err(format!("the name of node {node} is an address"));
    }
    Ok(())
}

/// Refuses addresses that are no node's, or not this one's.
fn check_address(ip: IpAddr, cluster: &Cluster<'_>) -> Result<(), String> {
    let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&ip));
    let local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let what = if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || local {
        "no address that others reach a node by"
    } else if within(cluster.services) {
        "in a range of service addresses"
    } else if within(cluster.pods) {
        "in a range of pods"
    } else if cluster.api.iter().any(|api| api.to_canonical() == ip) {
        "an address of the API"
    } else if cluster.others.contains(&ip) {
        "written down for another node"
    } else {
        return Ok(());
    };
    Err(format!("{ip} is {what}"))
}

/// Reads a list of addresses as an annotation of a Node has it. What is no address is passed over.
pub fn read(annotation: &str) -> Vec<IpAddr> {
    let all = annotation.split(',').filter_map(|text| text.trim().parse::<IpAddr>().ok());
    all.map(|ip| ip.to_canonical()).take(MOST).collect()
}

/// Writes one.
pub fn write(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
