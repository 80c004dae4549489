//! The private segment on which the nodes of a local cluster live.
//!
//! In: the cluster's name and ranges, names of nodes. Out: a LAN namespace that holds the first address of each range,
//! and for every node a namespace tied to it: all on one bridge, or each on a link of its own with the LAN as the router
//! between them ([`Layout`]). A node's link can be taken down and up again, as if a cable were pulled. No way leads out: no default route, and the pod and service
//! ranges are unreachable where nothing better is known. Everything is named `cw-<cluster>-…`; nothing else is touched,
//! and the host's own namespace sees no link and no route.

use crate::{
    NetNs, Result,
    bridge::is_ours,
    journal::{hash, state, write_durably},
    netlink::{Link, Netlink, Route, VethEnd},
    netns::{kernel, write_sysctl},
    pool::Pool,
    routes::Routes,
};
use ipnet::IpNet;
use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};
use tokio::sync::Mutex;

const BRIDGE: &str = "lan0";
const NODE_LINK: &str = "eth0";
/// Nodes' addresses start here, so that the ones before stay free for what the segment itself needs.
const FIRST_NODE: usize = 11;
const MTU: u32 = 1500;
/// The kernel's number for routes "set by the administrator".
const STATIC: u8 = 4;

/// What a [`LocalSegment`] must know.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// The cluster's name.
    pub cluster: String,
    /// The nodes' ranges, one a family, the primary first. Default 10.90.0.0/24.
    pub node_cidrs: Vec<IpNet>,
    /// Whether nodes are neighbours.
    pub layout: Layout,
    /// Pod and service ranges.
    pub unreachable: Vec<IpNet>,
    /// Where the nodes' addresses are kept.
    pub state_dir: PathBuf,
}

/// How nodes are connected. Their addresses are the same either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// All on one bridge.
    #[default]
    Shared,
    /// Each on a link of its own. The LAN namespace routes between them by their addresses, and knows no pods.
    Separate,
}

/// A node of the segment.
#[derive(Debug, Clone)]
pub struct LocalNode {
    /// The node's namespace.
    pub netns: NetNs,
    /// Its primary address on the segment: the Node's first InternalIP.
    pub ip: IpAddr,
    /// All its addresses, one a family, the primary first.
    pub ips: Vec<IpAddr>,
}

/// The segment.
#[derive(Debug)]
pub struct LocalSegment {
    config: LocalConfig,
    lan: NetNs,
    netlink: Netlink,
    /// Primary addresses by node name; one node is added at a time.
    nodes: Mutex<BTreeMap<String, IpAddr>>,
}

impl LocalSegment {
    /// Makes the segment, or adopts what is there, also half-made.
    pub async fn create(config: LocalConfig) -> Result<Self> {
        check_name(&config.cluster, "cluster")?;
        std::fs::create_dir_all(&config.state_dir).map_err(|e| state(&config.state_dir, e))?;
        let lan = ensure_netns(&lan_name(&config.cluster))?;
        let netlink = Netlink::inside(&lan)?;
        let seed = hash(&config.cluster).to_be_bytes();
        let mac = [0x02, 0xc5, seed[0], seed[1], seed[2], seed[3]];
        let bridge = netlink.ensure_bridge(BRIDGE, MTU, Some(mac)).await?;
        for range in &config.node_cidrs {
            netlink.ensure_address(&bridge, Pool::new(*range).gateway()).await?;
        }
        netlink.set_up(&bridge).await?;
        if let Some(lo) = netlink.link("lo").await? {
            netlink.set_up(&lo).await?;
        }
        prepare_lan(&lan, &config)?;
        Routes::inside(&lan)?.make_unreachable(&config.unreachable).await?;
        let nodes = Mutex::new(read_nodes(&config)?);
        Ok(Self { config, lan, netlink, nodes })
    }

    /// The LAN namespace, where what serves all nodes listens.
    pub fn lan(&self) -> &NetNs {
        &self.lan
    }

    /// The segment's own primary address: the first of the first range.
    pub fn ip(&self) -> IpAddr {
        Pool::new(primary(&self.config)).gateway().addr()
    }

    /// The segment's own addresses, one a family: the first of each range.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.config.node_cidrs.iter().map(|range| Pool::new(*range).gateway().addr()).collect()
    }

    /// Adds a node, or adopts it. A name keeps its address for the life of the state directory.
    pub async fn add_node(&self, name: &str) -> Result<LocalNode> {
        check_name(name, "node")?;
        let mut nodes = self.nodes.lock().await;
        let ip = match nodes.get(name) {
            Some(ip) => *ip,
            None => {
                let ip = self.free_address(&nodes)?;
                let mut with = nodes.clone();
                with.insert(name.to_owned(), ip);
                let path = nodes_file(&self.config);
                write_durably(&path, &with).map_err(|e| state(&path, e))?;
                *nodes = with;
                ip
            }
        };
        let netns = ensure_netns(&node_netns(&self.config.cluster, name))?;
        let ips = addresses(&self.config.node_cidrs, ip);
        self.connect(name, &netns, &ips).await?;
        Ok(LocalNode { netns, ip, ips: ips.iter().map(IpNet::addr).collect() })
    }

    /// Takes a node's link to the segment down, as if its cable were pulled: the node itself goes on.
    pub async fn cut(&self, name: &str) -> Result<()> {
        let port = self.port(name).await?;
        self.netlink.set_down(&port).await
    }

    /// Takes a node's link up again.
    pub async fn heal(&self, name: &str) -> Result<()> {
        let nodes = self.nodes.lock().await;
        let port = self.port(name).await?;
        self.netlink.set_up(&port).await?;
        match nodes.get(name) {
            // Going down took the port's addresses and routes with it.
            Some(ip) => self.route_to(&port, &addresses(&self.config.node_cidrs, *ip)).await,
            None => Ok(()),
        }
    }

    /// Whether a node's link is down.
    pub async fn is_cut(&self, name: &str) -> Result<bool> {
        Ok(!self.port(name).await?.up)
    }

    async fn port(&self, name: &str) -> Result<Link> {
        let found = self.netlink.link(&port_name(name)).await?;
        found.ok_or_else(|| kernel(format!("looking for the link of node {name}"), "it has none; is the node running?"))
    }

    /// Removes a node's namespace and those of its pods; its address stays reserved for the name.
    pub async fn remove_node(&self, name: &str) -> Result<()> {
        check_name(name, "node")?;
        let _alone = self.nodes.lock().await;
        self.netlink.delete_link(&port_name(name)).await?;
        let pods = format!("{}-", node_netns(&self.config.cluster, name));
        for pod in NetNs::list().iter().filter(|n| is_ours(n, &pods)) {
            remove_netns(pod).await?;
        }
        remove_netns(&node_netns(&self.config.cluster, name)).await
    }

    /// Removes everything of a cluster by its name, whatever state it is in. Needs no state directory.
    pub async fn delete(cluster: &str) -> Result<()> {
        check_name(cluster, "cluster")?;
        let prefix = format!("cw-{cluster}-");
        let all = NetNs::list();
        let lan = lan_name(cluster);
        // A cluster whose name goes on where this one's ends is another cluster; it is known by its LAN.
        let others: Vec<String> = all
            .iter()
            .filter(|n| n.starts_with(&prefix) && **n != lan)
            .filter_map(|n| n.strip_suffix("lan").filter(|n| n.ends_with('-')).map(str::to_owned))
            .collect();
        let ours = |n: &&String| n.starts_with(&prefix) && **n != lan && !others.iter().any(|o| n.starts_with(o));
        for name in all.iter().filter(ours) {
            remove_netns(name).await?;
        }
        // Last, so that a deletion that was cut off is still known as a cluster of its own.
        remove_netns(&lan).await
    }

    async fn connect(&self, name: &str, netns: &NetNs, ips: &[IpNet]) -> Result<()> {
        let port = port_name(name);
        let inside = Netlink::inside(netns)?;
        let bridge = self.netlink.ensure_bridge(BRIDGE, MTU, None).await?;
        let controller = (self.config.layout == Layout::Shared).then_some(bridge.index);
        let whole = match (self.netlink.link(&port).await?, inside.link(NODE_LINK).await?) {
            (Some(near), Some(_)) => near.controller == controller && near.up,
            _ => false,
        };
        if !whole {
            self.netlink.delete_link(&port).await?;
            inside.delete_link(NODE_LINK).await?;
            let near = VethEnd { name: &port, netns: None };
            let far = VethEnd { name: NODE_LINK, netns: Some(netns) };
            self.netlink.add_veth(near, far, MTU, controller).await?;
        }
        let gone = |link: &str| kernel(format!("connecting node {name}"), format!("{link} is gone again"));
        let lo = inside.link("lo").await?.ok_or_else(|| gone("lo"))?;
        inside.set_up(&lo).await?;
        let link = inside.link(NODE_LINK).await?.ok_or_else(|| gone(NODE_LINK))?;
        inside.set_up(&link).await?;
        for ip in ips {
            let alone = self.config.layout == Layout::Separate;
            inside.ensure_address(&link, if alone { IpNet::from(ip.addr()) } else { *ip }).await?;
        }
        if self.config.layout == Layout::Separate {
            for range in &self.config.node_cidrs {
                let router = Pool::new(*range).gateway().addr();
                let on_link = Route { link: Some(link.index), ..Route::new(IpNet::from(router), STATIC) };
                inside.put_route(&on_link).await?;
                inside
                    .put_route(&Route { gateway: Some(router), link: Some(link.index), ..Route::new(*range, STATIC) })
                    .await?;
            }
        }
        let port = self.port(name).await?;
        self.route_to(&port, ips).await?;
        Routes::inside(netns)?.make_unreachable(&self.config.unreachable).await
    }

    /// The router's side of a node's own link: nothing to do where there is a bridge.
    async fn route_to(&self, port: &Link, ips: &[IpNet]) -> Result<()> {
        if self.config.layout == Layout::Shared {
            return Ok(());
        }
        for router in self.ips() {
            self.netlink.ensure_address(port, IpNet::from(router)).await?;
        }
        for ip in ips {
            let route = Route { link: Some(port.index), ..Route::new(IpNet::from(ip.addr()), STATIC) };
            self.netlink.put_route(&route).await?;
        }
        Ok(())
    }

    fn free_address(&self, nodes: &BTreeMap<String, IpAddr>) -> Result<IpAddr> {
        let mut pool = Pool::new(primary(&self.config));
        std::iter::from_fn(|| pool.take()).skip(FIRST_NODE - 2).find(|ip| !nodes.values().any(|n| n == ip)).ok_or_else(
            || crate::NetworkError::NoFreeAddress { cidr: primary(&self.config).to_string(), used: nodes.len() },
        )
    }
}

/// The name of a cluster's LAN namespace.
pub fn lan_name(cluster: &str) -> String {
    format!("cw-{cluster}-lan")
}

/// The name of a node's namespace.
pub fn node_netns(cluster: &str, node: &str) -> String {
    format!("cw-{cluster}-{node}")
}

fn port_name(node: &str) -> String {
    format!("n{:012x}", hash(node) >> 16)
}

fn nodes_file(config: &LocalConfig) -> PathBuf {
    config.state_dir.join("nodes.json")
}

fn read_nodes(config: &LocalConfig) -> Result<BTreeMap<String, IpAddr>> {
    let path = nodes_file(config);
    let mut nodes: BTreeMap<String, IpAddr> = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| state(&path, e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
        Err(e) => return Err(state(&path, e)),
    };
    nodes.retain(|_, ip| primary(config).contains(&*ip));
    Ok(nodes)
}

/// The range of the nodes' primary addresses.
fn primary(config: &LocalConfig) -> IpNet {
    config.node_cidrs.first().copied().unwrap_or_else(|| IpNet::from(IpAddr::from([0, 0, 0, 0])))
}

/// A node's addresses: at the same place in every range as the primary in the first. Pure.
fn addresses(ranges: &[IpNet], primary: IpAddr) -> Vec<IpNet> {
    let place = ranges.first().and_then(|range| Pool::new(*range).place_of(primary));
    let at = |range: &IpNet| IpNet::new(Pool::new(*range).at(place?), range.prefix_len()).ok();
    ranges.iter().filter_map(at).collect()
}

/// Switches forwarding on where the LAN is a router, and off where an earlier run left it on.
fn prepare_lan(lan: &NetNs, config: &LocalConfig) -> Result<()> {
    let forward = if config.layout == Layout::Separate { "1" } else { "0" };
    let set = || -> std::io::Result<()> {
        write_sysctl("net/ipv4/ip_forward", forward)?;
        if config.node_cidrs.iter().any(|range| range.addr().is_ipv6()) {
            write_sysctl("net/ipv6/conf/all/forwarding", forward)?;
        }
        Ok(())
    };
    lan.run(set).and_then(|r| r).map_err(|e| kernel("setting up the segment's forwarding", e))
}

fn check_name(name: &str, what: &str) -> Result<()> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let doing = || format!("naming the {what} {name:?}");
    if name.is_empty() || name.len() > 63 || !name.chars().all(valid) || name.starts_with(['-', '.']) {
        return Err(kernel(doing(), "use at most 63 lower-case letters, digits, '-' and '.'"));
    }
    // Deleting a cluster knows others by their LAN's name.
    if name == "lan" || name.ends_with("-lan") {
        return Err(kernel(doing(), "names that end in \"lan\" stand for segments; choose another"));
    }
    Ok(())
}

fn ensure_netns(name: &str) -> Result<NetNs> {
    if let Ok(netns) = NetNs::open(name) {
        return Ok(netns);
    }
    NetNs::delete(name)?;
    NetNs::create_with(name, || {
        let no_dad = "net/ipv6/conf/default/accept_dad";
        if std::path::Path::new("/proc/sys").join(no_dad).exists() {
            write_sysctl(no_dad, "0")?;
        }
        Ok(())
    })
}

/// Empties a namespace, then takes its name away: should a process still live in it, it at least has no links left.
async fn remove_netns(name: &str) -> Result<()> {
    if let Ok(netns) = NetNs::open(name) {
        let netlink = Netlink::inside(&netns)?;
        for link in netlink.links().await?.iter().filter(|l| l.name != "lo") {
            // Some kernels have fallback devices that cannot be deleted; they go with the namespace.
            if let Err(error) = netlink.delete_link(&link.name).await {
                tracing::debug!(netns = name, %error, "left to the kernel");
            }
        }
    }
    NetNs::delete(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_same_place_in_every_range() {
        let ranges = ["10.90.0.0/24".parse().unwrap(), "fd90::/64".parse().unwrap()];
        let all = addresses(&ranges, "10.90.0.11".parse().unwrap());
        assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.90.0.11/24", "fd90::b/64"]);
    }
}
