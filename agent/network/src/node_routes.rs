//! Keeps a namespace's way to the pods of all nodes: watch (Nodes) → model (pod ranges and address of each) → apply.
//!
//! Nodes that are neighbours on one segment get routes by one another's addresses, others tunnels ([`crate::vxlan`]);
//! what the other mode has left is removed. All stays when the API is gone, and nothing is removed before the first
//! complete list of nodes is known.

use crate::{
    NetNs, Result,
    masquerade::{Masquerade, Ranges},
    netlink::Netlink,
    routes::Routes,
    vxlan::{self, Tunnels},
};
use causeway_api::config::{ClusterConfig, PodNetworkMode};
use causeway_informers::Informers;
use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::Event;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Where to put routes, and which node needs none.
#[derive(Debug, Clone, Default)]
pub struct NodeRoutesConfig {
    /// The node whose routes these are; its own range is on its bridge. `None` where all nodes are others, as in the
    /// LAN namespace of a local cluster.
    pub node_name: Option<String>,
    /// The node's addresses, the primary first: its tunnels end there.
    pub node_ips: Vec<IpAddr>,
    /// The namespace; `None` for the caller's.
    pub netns: Option<NetNs>,
    /// Ranges of the cluster; routes or tunnels.
    pub cluster: ClusterConfig,
}

/// The namespace's routes and tunnels.
#[derive(Debug)]
pub struct NodeRoutes {
    config: NodeRoutesConfig,
    routes: Routes,
    tunnels: Tunnels,
    masquerade: Masquerade,
}

impl NodeRoutes {
    /// Opens the namespace. Must be called on a tokio runtime.
    pub fn open(config: NodeRoutesConfig) -> Result<Self> {
        let netlink = || config.netns.as_ref().map_or_else(Netlink::here, Netlink::inside);
        let (routes, tunnels) = (Routes::on(netlink()?), Tunnels::new(netlink()?));
        let masquerade = Masquerade::open(config.netns.as_ref())?;
        Ok(Self { routes, tunnels, masquerade, config })
    }

    /// Brings the namespace to what these nodes, all there are, ask for; returns how much was changed.
    pub async fn sync<'a>(&self, nodes: impl IntoIterator<Item = &'a Node>) -> Result<usize> {
        let nodes: Vec<&Node> = nodes.into_iter().collect();
        let (own, mode) = (self.config.node_name.as_deref(), &self.config.cluster.pod_network);
        let this = nodes.iter().find(|n| own.is_some() && n.metadata.name.as_deref() == own);
        let mut translated = Ranges::default();
        if let Some(node) = this.filter(|_| mode.masquerades()) {
            translated = Ranges { own: ranges(node), cluster: self.config.cluster.pod_cidrs.clone() };
        }
        let translated = self.masquerade.sync(translated).await?;
        if mode.mode == PodNetworkMode::Routed {
            let changed = self.routes.sync(&model(nodes, own)).await?;
            self.tunnels.remove().await?;
            return Ok(changed + translated);
        }
        let changed = match (own, self.config.node_ips.first()) {
            (Some(own), Some(local)) => self.tunnels.sync(mode, *local, &vxlan::model(nodes, own, *local)).await?,
            // What lies between the nodes knows no pods.
            _ => self.routes.sync(&[]).await?,
        };
        Ok(changed + translated)
    }
}

/// Runs until shutdown.
pub async fn run(informers: Informers, config: NodeRoutesConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    let routes = NodeRoutes::open(config)?;
    let mut events = informers.nodes().subscribe();
    let mut nodes = Known::default();
    // Also without news: somebody else may have changed the table.
    let mut again = tokio::time::interval(Duration::from_secs(60));
    loop {
        let look = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            event = events.next() => match event {
                Some(event) => nodes.take(event),
                None => anyhow::bail!("the watch of nodes ended for good"),
            },
            _ = again.tick() => true,
        };
        if !look || !nodes.complete {
            continue;
        }
        match routes.sync(nodes.objects.values().map(AsRef::as_ref)).await {
            Ok(0) => {}
            Ok(changed) => tracing::info!(changed, nodes = nodes.objects.len(), "routes to nodes' pods"),
            Err(error) => {
                tracing::error!(%error, "routes to nodes' pods; trying again");
                again.reset_after(Duration::from_secs(1));
            }
        }
    }
}

/// All nodes, by name.
#[derive(Default)]
struct Known {
    objects: BTreeMap<String, Arc<Node>>,
    listing: BTreeMap<String, Arc<Node>>,
    complete: bool,
}

impl Known {
    /// Takes an event over; returns whether routes may have to be others now. Most of what nodes say is that they are alive.
    fn take(&mut self, event: Event<Arc<Node>>) -> bool {
        let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
        match event {
            Event::Init => {
                self.listing.clear();
                false
            }
            Event::InitApply(node) => {
                self.listing.insert(name(&node), node);
                false
            }
            Event::InitDone => {
                self.objects = std::mem::take(&mut self.listing);
                self.complete = true;
                true
            }
            Event::Apply(node) => {
                let old = self.objects.insert(name(&node), node.clone());
                old.is_none_or(|old| ranges(&old) != ranges(&node) || addresses(&old) != addresses(&node))
            }
            Event::Delete(node) => self.objects.remove(&name(&node)).is_some(),
        }
    }
}

/// The pod ranges of the other nodes and the address each is behind. Pure.
pub fn model<'a>(nodes: impl IntoIterator<Item = &'a Node>, own: Option<&str>) -> Vec<(IpNet, IpAddr)> {
    let mut wanted = Vec::new();
    for node in nodes.into_iter().filter(|n| n.metadata.name.as_deref() != own || own.is_none()) {
        let addresses = addresses(node);
        for range in ranges(node) {
            let via = addresses.iter().find(|ip| ip.is_ipv4() == range.addr().is_ipv4());
            wanted.extend(via.map(|via| (range, *via)));
        }
    }
    wanted.sort();
    // Two nodes must not claim one range; while they do, the first keeps it and the table does not flap.
    wanted.dedup_by_key(|(range, _)| *range);
    wanted
}

/// The pod ranges of a node.
pub(crate) fn ranges(node: &Node) -> Vec<IpNet> {
    let spec = node.spec.as_ref();
    let ranges = spec.and_then(|s| s.pod_cidrs.as_ref()).into_iter().flatten();
    let ranges = ranges.chain(spec.and_then(|s| s.pod_cidr.as_ref()));
    let mut ranges: Vec<IpNet> = ranges.filter_map(|r| r.parse::<IpNet>().ok()).map(|r| r.trunc()).collect();
    ranges.sort();
    ranges.dedup();
    ranges
}

/// The internal addresses of a node, the primary first.
pub(crate) fn addresses(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.as_ref().and_then(|s| s.addresses.as_ref()).into_iter().flatten();
    addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, cidr: Option<&str>, ip: Option<&str>) -> Node {
        let mut addresses = vec![serde_json::json!({"type": "Hostname", "address": name})];
        addresses.extend(ip.map(|ip| serde_json::json!({"type": "InternalIP", "address": ip})));
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name}, "spec": {"podCIDR": cidr, "podCIDRs": cidr.map(|c| vec![c])},
            "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    #[test]
    fn others_with_range_and_address_count() {
        let nodes = [
            node("a", Some("10.244.0.0/24"), Some("10.90.0.11")),
            node("b", Some("10.244.1.0/24"), Some("10.90.0.12")),
            node("no-range", None, Some("10.90.0.13")),
            node("no-address", Some("10.244.3.0/24"), None),
            node("other-family", Some("10.244.4.0/24"), Some("fd12::1")),
            node("same-range", Some("10.244.1.0/24"), Some("10.90.0.99")),
        ];
        let b = ("10.244.1.0/24".parse().unwrap(), "10.90.0.12".parse().unwrap());
        assert_eq!(model(&nodes, Some("a")), [b]);
        assert_eq!(model(&nodes, None).len(), 2);
    }

    #[test]
    fn a_node_that_says_that_it_is_alive_changes_no_route() {
        let of = |cidr: &str, ip: &str| Arc::new(node("b", Some(cidr), Some(ip)));
        let mut known = Known::default();
        assert!(!known.take(Event::Init) && !known.take(Event::InitApply(of("10.244.1.0/24", "10.90.0.12"))));
        assert!(!known.complete, "the list is not at its end");
        assert!(known.take(Event::InitDone));
        assert!(known.complete);
        let mut beat = (*of("10.244.1.0/24", "10.90.0.12")).clone();
        beat.metadata.resource_version = Some("7".to_owned());
        assert!(!known.take(Event::Apply(Arc::new(beat))));
        assert!(known.take(Event::Apply(of("10.244.1.0/24", "10.90.0.13"))));
        assert!(known.take(Event::Apply(of("10.244.2.0/24", "10.90.0.13"))));
        assert!(known.take(Event::Delete(of("10.244.2.0/24", "10.90.0.13"))));
        assert!(!known.take(Event::Delete(of("10.244.2.0/24", "10.90.0.13"))), "gone already");
    }
}
