//! Routes that are kept exactly as wanted: to other nodes' pod ranges, and of the service range to the node itself.
//!
//! In: the whole of what is wanted. Out: the kernel's main table agrees, as far as routes with our protocol number go;
//! no other route is looked at. Calling again with the same is cheap and changes nothing.

use crate::{
    NetNs, Result,
    netlink::{Netlink, Route},
    netns::kernel,
};
use ipnet::IpNet;
use std::{collections::BTreeSet, net::IpAddr};

/// Protocol number (`ip route`'s `proto`) of routes to other nodes.
pub const NODE_ROUTES: u8 = 140;
/// Protocol number of routes that tie the service ranges to the node.
pub const SERVICE_ROUTES: u8 = 141;
/// The unreachable routes that everything else is more important than.
const LAST_RESORT: u32 = 1 << 30;
/// The kernel's number for "set by the administrator".
const STATIC: u8 = 4;

/// The routes of one namespace.
#[derive(Debug)]
pub struct Routes {
    netlink: Netlink,
}

impl Routes {
    /// Of the calling thread's namespace. Must be called on a tokio runtime.
    pub fn here() -> Result<Self> {
        Ok(Self { netlink: Netlink::here()? })
    }

    pub(crate) fn on(netlink: Netlink) -> Self {
        Self { netlink }
    }

    /// Of another namespace. Must be called on a tokio runtime.
    pub fn inside(netns: &NetNs) -> Result<Self> {
        Ok(Self { netlink: Netlink::inside(netns)? })
    }

    /// Makes the routes to other nodes' pods exactly these: (pod range, address of the node). Nodes must be neighbours
    /// on a common segment. Returns how many routes were changed.
    pub async fn sync(&self, wanted: &[(IpNet, IpAddr)]) -> Result<usize> {
        let mut routes = BTreeSet::new();
        for (net, via) in wanted {
            routes.insert(Route { gateway: Some(*via), ..Route::new(*net, NODE_ROUTES) });
        }
        sync_protocol(&self.netlink, NODE_ROUTES, routes).await
    }

    /// Ties the service ranges to the node: a process on the node may connect to a service address, and gets the
    /// node's address as its source, whether or not there is a default route. Packets that no rule translates end here
    /// instead of leaving by the default route.
    pub async fn sync_service_ranges(&self, ranges: &[IpNet], node_ips: &[IpAddr]) -> Result<usize> {
        self.sync_service_routes(ranges, node_ips, false).await
    }

    /// The same for those who need untranslated packets to come by the hook of forwarding. To the kernel, a route of IPv6
    /// to `lo` is no way for packets of others: it ends them before. So these go to the link with the node's address.
    pub async fn sync_forwarded_service_ranges(&self, ranges: &[IpNet], node_ips: &[IpAddr]) -> Result<usize> {
        self.sync_service_routes(ranges, node_ips, true).await
    }

    async fn sync_service_routes(&self, ranges: &[IpNet], node_ips: &[IpAddr], forwarded: bool) -> Result<usize> {
        /// What the kernel gives routes of IPv6. Named, so that a route which changes its link is replaced in one step.
        const METRIC_V6: u32 = 1024;
        let lo = self.netlink.link("lo").await?.ok_or_else(|| kernel("looking for the link lo", "there is none"))?;
        let mut wanted = BTreeSet::new();
        for range in ranges {
            let is_v4 = range.addr().is_ipv4();
            let Some(source) = node_ips.iter().find(|ip| ip.is_ipv4() == is_v4) else { continue };
            let link = if is_v4 || !forwarded { None } else { self.netlink.link_with(*source).await?.map(|l| l.index) };
            wanted.insert(Route {
                link: Some(link.unwrap_or(lo.index)),
                source: Some(*source),
                metric: (!is_v4).then_some(METRIC_V6),
                ..Route::new(*range, SERVICE_ROUTES)
            });
        }
        sync_protocol(&self.netlink, SERVICE_ROUTES, wanted).await
    }

    /// Takes all of ours away: to nodes, of services, and the unreachable ones.
    pub async fn release(&self) -> Result<()> {
        for protocol in [NODE_ROUTES, SERVICE_ROUTES] {
            sync_protocol(&self.netlink, protocol, BTreeSet::new()).await?;
        }
        let last = |r: &&Route| r.unreachable && r.metric == Some(LAST_RESORT);
        for route in self.netlink.routes_of(STATIC).await?.iter().filter(last) {
            self.netlink.delete_route(route).await?;
        }
        Ok(())
    }

    /// Refuses these ranges at once where no better route is known. Never removed by the other calls.
    pub async fn make_unreachable(&self, ranges: &[IpNet]) -> Result<()> {
        for range in ranges {
            let route = Route { unreachable: true, metric: Some(LAST_RESORT), ..Route::new(*range, STATIC) };
            self.netlink.put_route(&route).await?;
        }
        Ok(())
    }
}

/// Makes the routes with one protocol number exactly these; returns how many were changed.
pub(crate) async fn sync_protocol(netlink: &Netlink, protocol: u8, wanted: BTreeSet<Route>) -> Result<usize> {
    let present: Vec<Route> = netlink.routes_of(protocol).await?;
    let (add, remove) = difference(&present, &wanted);
    // Before adding: a destination may move to another gateway, and the kernel replaces by destination. What is
    // replaced must not be deleted after.
    for route in &remove {
        if !add.iter().any(|a| a.destination == route.destination && a.metric == route.metric) {
            netlink.delete_route(route).await?;
        }
    }
    for route in &add {
        netlink.put_route(route).await?;
    }
    Ok(add.len() + remove.len())
}

/// What to add and what to remove. Links of routes by gateway, and metrics, are the kernel's choice unless wanted.
fn difference(present: &[Route], wanted: &BTreeSet<Route>) -> (Vec<Route>, Vec<Route>) {
    let meets = |has: &Route, want: &Route| {
        has.destination == want.destination
            && has.gateway == want.gateway
            && has.unreachable == want.unreachable
            && (want.link.is_none() || has.link == want.link)
            && (want.source.is_none() || has.source == want.source)
            && (want.metric.is_none() || has.metric == want.metric)
    };
    let add = wanted.iter().filter(|w| !present.iter().any(|p| meets(p, w))).cloned().collect();
    let remove = present.iter().filter(|p| !wanted.iter().any(|w| meets(p, w))).cloned().collect();
    (add, remove)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(net: &str, via: &str) -> Route {
        Route { gateway: via.parse().ok(), ..Route::new(net.parse().unwrap(), NODE_ROUTES) }
    }

    #[test]
    fn only_the_difference_is_touched() {
        let kept = Route { link: Some(7), ..route("10.244.1.0/24", "10.90.0.11") };
        let moved = Route { link: Some(7), ..route("10.244.2.0/24", "10.90.0.12") };
        let wanted = [route("10.244.1.0/24", "10.90.0.11"), route("10.244.2.0/24", "10.90.0.13")];
        let (add, remove) = difference(&[kept, moved.clone()], &wanted.clone().into_iter().collect());
        assert_eq!(add, [wanted[1].clone()]);
        assert_eq!(remove, [moved]);
    }
}
