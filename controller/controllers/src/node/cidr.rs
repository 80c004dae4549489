//! A range of pod addresses for each node, never one twice. Pure.

use crate::error::{Error, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Node;
use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Prefix length of a node's range.
const V4_PREFIX: u8 = 24;
const V6_PREFIX: u8 = 64;

/// The ranges a node has.
pub fn of(node: &Node) -> Vec<IpNet> {
    let spec = node.spec.as_ref();
    let listed = spec.and_then(|s| s.pod_cidrs.as_ref()).into_iter().flatten();
    let single = spec.and_then(|s| s.pod_cidr.as_ref());
    listed.chain(single).filter_map(|c| c.parse().ok()).collect()
}

/// Hands out ranges of the cluster's.
pub struct Allocator {
    cluster: Vec<IpNet>,
    taken: HashMap<String, HashSet<IpNet>>,
}

impl Allocator {
    /// Over the cluster's ranges, one a family.
    pub fn new(cluster: &[IpNet]) -> Self {
        Self { cluster: cluster.to_vec(), taken: HashMap::new() }
    }

    /// A node has these.
    pub fn occupy(&mut self, node: &str, ranges: &[IpNet]) {
        if !ranges.is_empty() {
            self.taken.entry(node.to_owned()).or_default().extend(ranges);
        }
    }

    /// A node is gone.
    pub fn release(&mut self, node: &str) {
        self.taken.remove(node);
    }

    /// The node's ranges, one a family: what it was given before, or the first free ones.
    pub fn allocate(&mut self, node: &str) -> Result<Vec<String>> {
        let mut given = Vec::new();
        for cluster in self.cluster.clone() {
            let before = self.taken.get(node).into_iter().flatten().find(|r| cluster.contains(*r));
            let range = match before {
                Some(range) => *range,
                None => self.free(&cluster).ok_or_else(|| {
                    Error::Object(format!("all ranges of {cluster} are taken; node {node} gets none"))
                })?,
            };
            given.push(range);
        }
        self.occupy(node, &given);
        Ok(given.iter().map(ToString::to_string).collect())
    }

    fn free(&self, cluster: &IpNet) -> Option<IpNet> {
        let taken: Vec<&IpNet> = self.taken.values().flatten().collect();
        let overlaps = |r: &IpNet| taken.iter().any(|t| t.contains(r) || r.contains(*t));
        ranges(cluster).find(|r| !overlaps(r))
    }
}

/// All ranges of node size in `cluster`; `cluster` itself when it is no larger.
fn ranges(cluster: &IpNet) -> Box<dyn Iterator<Item = IpNet>> {
    match *cluster {
        IpNet::V4(net) => {
            let prefix = net.prefix_len().max(V4_PREFIX);
            let base = u32::from(net.network());
            let count = 1u64 << (prefix - net.prefix_len());
            let step = 1u64 << (32 - prefix);
            Box::new((0..count).filter_map(move |i| {
                let address = base.checked_add(u32::try_from(i * step).ok()?)?;
                Ipv4Net::new(Ipv4Addr::from(address), prefix).ok().map(IpNet::V4)
            }))
        }
        IpNet::V6(net) => {
            let prefix = net.prefix_len().max(V6_PREFIX);
            let base = u128::from(net.network());
            // More than any cluster has nodes, and no more than u64 counts.
            let count = 1u128 << u32::from(prefix - net.prefix_len()).min(32);
            let step = 1u128.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Box::new((0..count).filter_map(move |i| {
                let address = base.checked_add(i.checked_mul(step)?)?;
                Ipv6Net::new(Ipv6Addr::from(address), prefix).ok().map(IpNet::V6)
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator(ranges: &[&str]) -> Allocator {
        Allocator::new(&ranges.iter().map(|r| r.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn first_free_and_never_twice() {
        let mut a = allocator(&["10.244.0.0/16", "fd00::/56"]);
        a.occupy("n9", &["10.244.1.0/24".parse().unwrap()]);
        assert_eq!(a.allocate("n1").unwrap(), ["10.244.0.0/24", "fd00::/64"]);
        assert_eq!(a.allocate("n2").unwrap(), ["10.244.2.0/24", "fd00:0:0:1::/64"]);
        assert_eq!(a.allocate("n1").unwrap(), ["10.244.0.0/24", "fd00::/64"], "the same again");
        a.release("n1");
        assert_eq!(a.allocate("n3").unwrap()[0], "10.244.0.0/24");
    }

    #[test]
    fn a_full_cluster_says_so_and_overlaps_count() {
        let mut a = allocator(&["10.0.0.0/23"]);
        a.occupy("odd", &["10.0.0.128/25".parse().unwrap()]);
        assert_eq!(a.allocate("n1").unwrap(), ["10.0.1.0/24"]);
        assert!(a.allocate("n2").is_err());
    }
}
