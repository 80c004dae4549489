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
use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use std::{net::IpAddr, time::Duration};
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
pub async fn run(client: kube::Client, config: NodeRoutesConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    let routes = NodeRoutes::open(config)?;
    let (nodes, writer) = reflector::store::<Node>();
    let stream = causeway_api::watch::watch(kube::Api::<Node>::all(client), watcher::Config::default()).reflect(writer);
    let mut stream = std::pin::pin!(stream);
    // Also without news: somebody else may have changed the table.
    let mut again = tokio::time::interval(Duration::from_secs(60));
    let mut complete = false;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            event = stream.next() => match event {
                Some(Ok(watcher::Event::InitDone)) => complete = true,
                Some(Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_))) => {}
                Some(Ok(_)) => continue,
                Some(Err(error)) => {
                    tracing::warn!(%error, "watching nodes; routes stay as they are");
                    continue;
                }
                None => anyhow::bail!("the watch of nodes ended for good"),
            },
            _ = again.tick() => {}
        }
        if !complete {
            continue;
        }
        let all = nodes.state();
        match routes.sync(all.iter().map(AsRef::as_ref)).await {
            Ok(0) => {}
            Ok(changed) => tracing::info!(changed, nodes = all.len(), "routes to nodes' pods"),
            Err(error) => {
                tracing::error!(%error, "routes to nodes' pods; trying again");
                again.reset_after(Duration::from_secs(1));
            }
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
}
