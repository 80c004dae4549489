//! Names of chains, as kube-proxy makes them.

use crate::{family::Family, model::Target};
use data_encoding::BASE32;
use sha2::{Digest, Sha256};
use std::net::SocketAddr;

/// Jumped to for every connection, in both tables.
pub const SERVICES: &str = "KUBE-SERVICES";
/// Connections to the node's own addresses; in `filter`, health checks of balancers.
pub const NODE_PORTS: &str = "KUBE-NODEPORTS";
/// Marks a connection that needs the node's source address.
pub const MARK_MASQ: &str = "KUBE-MARK-MASQ";
/// The same, unless the source is this node or one of its pods.
pub const MARK_REMOTE: &str = "KUBE-MARK-REMOTE";
/// Gives marked connections the node's source address.
pub const POSTROUTING: &str = "KUBE-POSTROUTING";
/// Lets what is ours through a forwarding policy of "drop".
pub const FORWARD: &str = "KUBE-FORWARD";
/// Drops what no rule has translated and goes to a service range.
pub const UNSERVED: &str = "KUBE-UNSERVED";
/// Refuses at addresses of the cluster's inside.
pub const CLUSTER_IPS: &str = "KUBE-CLUSTER-IPS";
/// Refuses at addresses known outside.
pub const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
/// Drops what `loadBalancerSourceRanges` does not let in.
pub const FIREWALL: &str = "KUBE-PROXY-FIREWALL";

/// Chains that a service has for itself start like this.
pub const OF_SERVICES: [&str; 5] = [CLUSTER, LOCAL, EXTERNAL, RANGES, ENDPOINT];
/// Endpoints in the whole cluster.
pub const CLUSTER: &str = "KUBE-SVC-";
/// Endpoints on this node.
pub const LOCAL: &str = "KUBE-SVL-";
/// How connections from outside are treated.
pub const EXTERNAL: &str = "KUBE-EXT-";
/// Which sources are let in.
pub const RANGES: &str = "KUBE-FW-";
/// One endpoint.
pub const ENDPOINT: &str = "KUBE-SEP-";

/// One of the tables we write to. In this order: as long as an address is not translated any more, it may not be
/// taken for one that nobody has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Translates.
    Nat,
    /// Refuses and drops.
    Filter,
}

impl Table {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nat, Self::Filter];

    /// As in restore files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// A chain of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId {
    /// `iptables` or `ip6tables`.
    pub family: Family,
    /// Its table.
    pub table: Table,
    /// Its name.
    pub name: String,
}

impl ChainId {
    /// A chain by its name.
    pub fn new(family: Family, table: Table, name: impl Into<String>) -> Self {
        Self { family, table, name: name.into() }
    }
}

/// The protocol as rules have it.
pub fn protocol(number: u8) -> Option<&'static str> {
    match number {
        6 => Some("tcp"),
        17 => Some("udp"),
        132 => Some("sctp"),
        _ => None,
    }
}

/// A chain of a service's port; `port` is `namespace/name:port`.
pub fn of_port(prefix: &str, port: &str, protocol: &str) -> String {
    hashed(prefix, &[port, protocol])
}

/// An endpoint's chain.
pub fn of_endpoint(port: &str, protocol: &str, target: &Target) -> String {
    hashed(ENDPOINT, &[port, protocol, &SocketAddr::new(target.ip, target.port).to_string()])
}

/// Whether a chain is ours: we may change it and take it away.
pub fn is_ours(table: Table, name: &str) -> bool {
    let is_branch = |base: &str| {
        let suffix = name.strip_prefix(base).and_then(|rest| rest.strip_prefix('-'));
        suffix.is_some_and(|s| {
            !s.is_empty()
                && s.len() <= 4
                && s.bytes().all(|b| b.is_ascii_hexdigit() || b == b'T' || b == b'U' || b == b'S')
        })
    };
    let fixed: &[&str] = match table {
        Table::Nat => &[SERVICES, NODE_PORTS, MARK_MASQ, MARK_REMOTE, POSTROUTING],
        Table::Filter => &[SERVICES, NODE_PORTS, FORWARD, UNSERVED, CLUSTER_IPS, EXTERNAL_SERVICES, FIREWALL],
    };
    let branching: &[&str] = match table {
        Table::Nat => &[SERVICES, NODE_PORTS],
        Table::Filter => &[CLUSTER_IPS, EXTERNAL_SERVICES, FIREWALL, NODE_PORTS],
    };
    let of_service = |prefix: &&str| name.strip_prefix(*prefix).is_some_and(|hash| hash.len() == 16);
    fixed.contains(&name)
        || branching.iter().any(|base| is_branch(base))
        || (table == Table::Nat && OF_SERVICES.iter().any(of_service))
}

fn hashed(prefix: &str, parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
    }
    let text = BASE32.encode(&hash.finalize());
    format!("{prefix}{}", &text[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_people_know() {
        // As kube-proxy names the chain of `default/kubernetes:https` on every cluster.
        assert_eq!(of_port(CLUSTER, "default/kubernetes:https", "tcp"), "KUBE-SVC-NPX46M4PTMTKRN6Y");
        assert_eq!(of_port(CLUSTER, "kube-system/kube-dns:dns", "udp"), "KUBE-SVC-TCOU7JCQXEZGVUNU");
        let v6 = Target { ip: "fd00::1".parse().unwrap(), port: 80 };
        assert_eq!(of_endpoint("d/s", "tcp", &v6).len(), 25);
    }

    #[test]
    fn others_chains_are_not_ours() {
        for name in ["KUBE-SERVICES", "KUBE-SERVICES-A0", "KUBE-NODEPORTS-T1d", "KUBE-SEP-NPX46M4PTMTKRN6Y"] {
            assert!(is_ours(Table::Nat, name), "{name}");
        }
        for name in ["KUBE-KUBELET-CANARY", "KUBE-FIREWALL", "KUBE-SERVICES-LOG", "KUBE-SVC-X", "DOCKER", "PREROUTING"]
        {
            assert!(!is_ours(Table::Nat, name) && !is_ours(Table::Filter, name), "{name}");
        }
    }
}
