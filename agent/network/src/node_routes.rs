//! Keeps a namespace's routes to the pods of all nodes: watch (Nodes) → model (pod range and address of each) → apply.
//!
//! For nodes that are neighbours on one segment. Routes stay when the API is gone, and nothing is removed before the
//! first complete list of nodes is known.

use crate::{NetNs, routes::Routes};
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
    /// The namespace; `None` for the caller's.
    pub netns: Option<NetNs>,
}

/// Runs until shutdown.
pub async fn run(client: kube::Client, config: NodeRoutesConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    let routes = match &config.netns {
        Some(netns) => Routes::inside(netns)?,
        None => Routes::here()?,
    };
    let (nodes, writer) = reflector::store::<Node>();
    let stream = watcher(kube::Api::<Node>::all(client), watcher::Config::default())
        .backoff(causeway_api::backoff::watch())
        .reflect(writer);
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
        let wanted = model(nodes.state().iter().map(AsRef::as_ref), config.node_name.as_deref());
        match routes.sync(&wanted).await {
            Ok(0) => {}
            Ok(changed) => tracing::info!(changed, nodes = wanted.len(), "routes to nodes' pods"),
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
        let spec = node.spec.as_ref();
        let ranges = spec.and_then(|s| s.pod_cidrs.as_ref()).into_iter().flatten();
        let ranges = ranges.chain(spec.and_then(|s| s.pod_cidr.as_ref()));
        let addresses = node.status.as_ref().and_then(|s| s.addresses.as_ref()).into_iter().flatten();
        let addresses: Vec<IpAddr> =
            addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok()).collect();
        for range in ranges.filter_map(|r| r.parse::<IpNet>().ok()) {
            let via = addresses.iter().find(|ip| ip.is_ipv4() == range.addr().is_ipv4());
            wanted.extend(via.map(|via| (range.trunc(), *via)));
        }
    }
    wanted.sort();
    // Two nodes must not claim one range; while they do, the first keeps it and the table does not flap.
    wanted.dedup_by_key(|(range, _)| *range);
    wanted
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
