//! Tunnels to the pods of nodes that are no neighbours: nodes → model → plan → apply.
//!
//! In: all nodes. Out: one VXLAN device and, for every other node, a forwarding entry (its hardware address is behind
//! its address), a neighbour and a route for each of its pod ranges, by the gateway of that range. Hardware addresses
//! follow from the nodes' addresses, so nothing has to be told. Nothing is learnt from packets or flooded.
//!
//! The device has the gateways' addresses of the node's own ranges once more: what the node itself sends to other
//! nodes' pods comes from an address that their answers find.

use crate::{
    Result,
    journal::hash,
    netlink::{Link, Mac, Netlink, Route, Vxlan},
    node_routes,
    pool::Pool,
    routes::NODE_ROUTES,
};
use causeway_api::config::{PodNetworkConfig, PodNetworkMode};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// The device's name.
pub const DEVICE: &str = "cwvx0";
/// What Ethernet allows where a node's link is not found.
const ETHERNET: u32 = 1500;

/// What the device does, or is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    /// Its own addresses: the gateways of this node's ranges.
    pub addresses: BTreeSet<IpAddr>,
    /// Hardware addresses of other nodes, and the nodes' addresses.
    pub forwarding: BTreeSet<(Mac, IpAddr)>,
    /// Gateways of other nodes' ranges, and their nodes' hardware addresses.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Other nodes' ranges, and their gateways.
    pub routes: BTreeMap<IpNet, IpAddr>,
}

/// A step from one to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Address(IpAddr),
    Forward(Mac, IpAddr),
    Neighbour(IpAddr, Mac),
    NoNeighbour(IpAddr),
    NoForward(Mac, IpAddr),
    NoAddress(IpAddr),
}

/// How many bytes a tunnel adds to a packet: Ethernet, VXLAN, UDP and the outer IP header.
pub fn overhead(between: IpAddr) -> u32 {
    if between.is_ipv4() { 50 } else { 70 }
}

/// The largest packet of a node's pods: what the configuration says, or what the link that holds the node's address
/// leaves room for. Asked in the calling thread's namespace; must be called on a tokio runtime.
pub async fn pod_mtu(config: &PodNetworkConfig, node_ip: IpAddr) -> Result<u32> {
    mtu_on(&Netlink::here()?, config, node_ip).await
}

async fn mtu_on(netlink: &Netlink, config: &PodNetworkConfig, node_ip: IpAddr) -> Result<u32> {
    if let Some(mtu) = config.mtu {
        return Ok(mtu);
    }
    let link = netlink.link_with(node_ip).await?;
    // A loopback's 64 KiB say nothing about the way to other nodes.
    let mtu = link.filter(|l| l.name != "lo").map_or(ETHERNET, |l| l.mtu);
    Ok(match config.mode {
        PodNetworkMode::Routed => mtu,
        PodNetworkMode::Vxlan => mtu.saturating_sub(overhead(node_ip)),
    })
}

/// The hardware address of a node's tunnel end: follows from the node's address.
fn mac(node: IpAddr) -> Mac {
    let [a, b, c, d] = match node {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => ((hash(&ip.to_string()) >> 32) as u32).to_be_bytes(),
    };
    // Locally administered, unicast, and not the ones of bridges.
    [0x0a, 0xc5, a, b, c, d]
}

/// The gateway of a pod range: its first address.
fn gateway(range: &IpNet) -> IpAddr {
    Pool::new(*range).gateway().addr()
}

/// What the device of the node `own`, whose tunnels end at `local`, is to do. Pure.
pub(crate) fn model<'a>(nodes: impl IntoIterator<Item = &'a Node>, own: &str, local: IpAddr) -> Entries {
    let mut wanted = Entries::default();
    let mut others = Vec::new();
    for node in nodes {
        let ranges = node_routes::ranges(node);
        if node.metadata.name.as_deref() == Some(own) {
            wanted.addresses.extend(ranges.iter().map(gateway));
        } else if let Some(ip) = node_routes::addresses(node).into_iter().find(|ip| ip.is_ipv4() == local.is_ipv4()) {
            others.extend(ranges.into_iter().map(|range| (range, ip)));
        }
    }
    others.sort();
    for (range, node) in others {
        // Two nodes must not claim one range; while they do, the first keeps it. Nor may one claim ours.
        if wanted.routes.contains_key(&range) || wanted.addresses.contains(&gateway(&range)) || node == local {
            continue;
        }
        wanted.routes.insert(range, gateway(&range));
        wanted.neighbours.insert(gateway(&range), mac(node));
        wanted.forwarding.insert((mac(node), node));
    }
    wanted
}

/// The steps around the routes' change: those before it, which routes need, and those after it, which none needs any
/// more. Pure.
pub(crate) fn plan(present: &Entries, wanted: &Entries) -> (Vec<Change>, Vec<Change>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    before.extend(wanted.addresses.difference(&present.addresses).map(|ip| Change::Address(*ip)));
    before.extend(wanted.forwarding.difference(&present.forwarding).map(|(mac, ip)| Change::Forward(*mac, *ip)));
    let new = wanted.neighbours.iter().filter(|(ip, mac)| present.neighbours.get(ip) != Some(mac));
    before.extend(new.map(|(ip, mac)| Change::Neighbour(*ip, *mac)));
    let old = present.neighbours.keys().filter(|ip| !wanted.neighbours.contains_key(ip));
    after.extend(old.map(|ip| Change::NoNeighbour(*ip)));
    // What a hardware address was behind before is replaced by the step that says where it is now.
    let kept: BTreeSet<Mac> = wanted.forwarding.iter().map(|(mac, _)| *mac).collect();
    let old = present.forwarding.iter().filter(|(mac, _)| !kept.contains(mac));
    after.extend(old.map(|(mac, ip)| Change::NoForward(*mac, *ip)));
    after.extend(present.addresses.difference(&wanted.addresses).map(|ip| Change::NoAddress(*ip)));
    (before, after)
}

/// The device of one namespace.
#[derive(Debug)]
pub(crate) struct Tunnels {
    netlink: Netlink,
}

impl Tunnels {
    pub fn new(netlink: Netlink) -> Self {
        Self { netlink }
    }

    /// Brings device, entries and routes to what is wanted; returns how many entries changed.
    pub async fn sync(&self, config: &PodNetworkConfig, local: IpAddr, wanted: &Entries) -> Result<usize> {
        let device = Vxlan { id: config.vxlan_id, port: config.vxlan_port, local, mac: mac(local) };
        let mtu = mtu_on(&self.netlink, config, local).await?;
        let link = self.netlink.ensure_vxlan(DEVICE, &device, mtu).await?;
        let (before, after) = plan(&self.present(&link).await?, wanted);
        for change in &before {
            self.apply(&link, change).await?;
        }
        let routes = wanted.routes.iter().map(|(range, gateway)| Route {
            gateway: Some(*gateway),
            link: Some(link.index),
            ..Route::new(*range, NODE_ROUTES)
        });
        let changed = crate::routes::sync_protocol(&self.netlink, NODE_ROUTES, routes.collect()).await?;
        for change in &after {
            self.apply(&link, change).await?;
        }
        Ok(before.len() + changed + after.len())
    }

    /// Removes the device and all that is on it.
    pub async fn remove(&self) -> Result<()> {
        self.netlink.delete_link(DEVICE).await
    }

    async fn present(&self, link: &Link) -> Result<Entries> {
        let addresses = self.netlink.addresses(link).await?;
        // Routes are compared by themselves, and link-local addresses are the kernel's.
        let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        Ok(Entries {
            addresses: addresses.into_iter().filter(|ip| !link_local(ip)).collect(),
            forwarding: self.netlink.forwarding(link).await?.into_iter().collect(),
            neighbours: self.netlink.neighbours(link).await?.into_iter().collect(),
            routes: BTreeMap::new(),
        })
    }

    async fn apply(&self, link: &Link, change: &Change) -> Result<()> {
        match change {
            Change::Address(ip) => self.netlink.ensure_address(link, IpNet::from(*ip)).await,
            Change::NoAddress(ip) => self.netlink.delete_address(link, IpNet::from(*ip)).await,
            Change::Forward(mac, ip) => self.netlink.put_forwarding(link, *mac, *ip).await,
            Change::NoForward(mac, ip) => self.netlink.delete_forwarding(link, *mac, *ip).await,
            Change::Neighbour(ip, mac) => self.netlink.put_neighbour(link, *ip, *mac).await,
            Change::NoNeighbour(ip) => self.netlink.delete_neighbour(link, *ip).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(name: &str, ranges: &[&str], ips: &[&str]) -> Node {
        let addresses: Vec<_> = ips.iter().map(|ip| serde_json::json!({"type": "InternalIP", "address": ip})).collect();
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name}, "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges},
            "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    #[test]
    fn every_other_node_is_reached_by_its_gateways() {
        let nodes = [
            node("a", &["10.244.0.0/24", "fd12::/64"], &["10.90.0.11", "fd90::b"]),
            node("b", &["10.244.1.0/24", "fd12:0:0:1::/64"], &["10.90.0.12", "fd90::c"]),
            node("no-range", &[], &["10.90.0.13"]),
            node("no-address", &["10.244.3.0/24"], &[]),
            node("thief", &["10.244.0.0/24", "10.244.1.0/24"], &["10.90.0.99"]),
        ];
        let wanted = model(&nodes, "a", "10.90.0.11".parse().unwrap());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(wanted.addresses, [ip("10.244.0.1"), ip("fd12::1")].into());
        let b = [0x0a, 0xc5, 10, 90, 0, 12];
        assert_eq!(wanted.forwarding, [(b, ip("10.90.0.12"))].into());
        assert_eq!(wanted.neighbours, [(ip("10.244.1.1"), b), (ip("fd12:0:0:1::1"), b)].into());
        assert_eq!(wanted.routes.len(), 2);
        // Over IPv6, the other address is the end of the tunnel.
        let wanted = model(&nodes, "a", ip("fd90::b"));
        assert_eq!(wanted.forwarding.iter().map(|(_, ip)| *ip).collect::<Vec<_>>(), [ip("fd90::c")]);
    }

    #[test]
    fn ends_have_hardware_addresses_of_their_own() {
        let macs: BTreeSet<Mac> = (1..200u8)
            .flat_map(|i| [IpAddr::from([10, 90, 0, i]), format!("fd90::{i:x}").parse().unwrap()])
            .map(mac)
            .collect();
        assert_eq!(macs.len(), 398);
        assert!(macs.iter().all(|m| m[0] & 3 == 2), "local and unicast");
    }

    fn follow(mut state: Entries, changes: &[Change]) -> Entries {
        for change in changes {
            match change {
                Change::Address(ip) => drop(state.addresses.insert(*ip)),
                Change::NoAddress(ip) => drop(state.addresses.remove(ip)),
                Change::Forward(mac, ip) => {
                    state.forwarding.retain(|(m, _)| m != mac);
                    state.forwarding.insert((*mac, *ip));
                }
                Change::NoForward(mac, ip) => drop(state.forwarding.remove(&(*mac, *ip))),
                Change::Neighbour(ip, mac) => drop(state.neighbours.insert(*ip, *mac)),
                Change::NoNeighbour(ip) => drop(state.neighbours.remove(ip)),
            }
        }
        state
    }

    /// Some nodes, with addresses and ranges that move.
    fn entries() -> impl Strategy<Value = Entries> {
        prop::collection::vec((0..6u8, 0..4u8, 0..6u8), 0..8).prop_map(|all| {
            let nodes: Vec<Node> = all
                .iter()
                .map(|(name, ip, range)| {
                    node(&format!("n{name}"), &[&format!("10.244.{range}.0/24")], &[&format!("10.90.0.{}", ip + 10)])
                })
                .collect();
            Entries { routes: BTreeMap::new(), ..model(&nodes, "n0", "10.90.0.10".parse().unwrap()) }
        })
    }

    proptest! {
        #[test]
        fn any_state_becomes_what_is_wanted(present in entries(), wanted in entries()) {
            let (before, after) = plan(&present, &wanted);
            prop_assert_eq!(follow(follow(present, &before), &after), wanted.clone());
            prop_assert_eq!(plan(&wanted, &wanted), (vec![], vec![]));
        }
    }
}
