//! The private segment on which the nodes of a local cluster live.
//!
//! In: the cluster's name and range, names of nodes. Out: a LAN namespace with a bridge that holds the first address,
//! and for every node a namespace tied to that bridge. No way leads out: no default route, and the pod and service
//! ranges are unreachable where nothing better is known. Everything is named `cw-<cluster>-…`; nothing else is touched,
//! and the host's own namespace sees no link and no route.

use crate::{
    NetNs, Result,
    journal::{hash, state, write_durably},
    netlink::{Netlink, VethEnd},
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

/// What a [`LocalSegment`] must know.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// The cluster's name.
    pub cluster: String,
    /// The segment's range. Default 10.90.0.0/24.
    pub node_cidr: IpNet,
    /// Pod and service ranges.
    pub unreachable: Vec<IpNet>,
    /// Where the nodes' addresses are kept.
    pub state_dir: PathBuf,
}

/// A node of the segment.
#[derive(Debug, Clone)]
pub struct LocalNode {
    /// The node's namespace.
    pub netns: NetNs,
    /// Its address on the segment: the Node's InternalIP.
    pub ip: IpAddr,
}

/// The segment.
#[derive(Debug)]
pub struct LocalSegment {
    config: LocalConfig,
    lan: NetNs,
    netlink: Netlink,
    /// Addresses by node name; one node is added at a time.
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
        netlink.ensure_address(&bridge, Pool::new(config.node_cidr).gateway()).await?;
        netlink.set_up(&bridge).await?;
        if let Some(lo) = netlink.link("lo").await? {
            netlink.set_up(&lo).await?;
        }
        Routes::inside(&lan)?.make_unreachable(&config.unreachable).await?;
        let nodes = Mutex::new(read_nodes(&config)?);
        Ok(Self { config, lan, netlink, nodes })
    }

    /// The LAN namespace, where what serves all nodes listens.
    pub fn lan(&self) -> &NetNs {
        &self.lan
    }

    /// The segment's own address: the first of the range.
    pub fn ip(&self) -> IpAddr {
        Pool::new(self.config.node_cidr).gateway().addr()
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
        self.connect(name, &netns, ip).await?;
        Ok(LocalNode { netns, ip })
    }

    /// Removes a node's namespace; its address stays reserved for the name.
    pub async fn remove_node(&self, name: &str) -> Result<()> {
        check_name(name, "node")?;
        let _alone = self.nodes.lock().await;
        self.netlink.delete_link(&port_name(name)).await?;
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

    async fn connect(&self, name: &str, netns: &NetNs, ip: IpAddr) -> Result<()> {
        let port = port_name(name);
        let inside = Netlink::inside(netns)?;
        let bridge = self.netlink.ensure_bridge(BRIDGE, MTU, None).await?;
        let whole = match (self.netlink.link(&port).await?, inside.link(NODE_LINK).await?) {
            (Some(near), Some(_)) => near.controller == Some(bridge.index) && near.up,
            _ => false,
        };
        if !whole {
            self.netlink.delete_link(&port).await?;
            inside.delete_link(NODE_LINK).await?;
            let near = VethEnd { name: &port, netns: None };
            let far = VethEnd { name: NODE_LINK, netns: Some(netns) };
            self.netlink.add_veth(near, far, MTU, bridge.index).await?;
        }
        let gone = |link: &str| kernel(format!("connecting node {name}"), format!("{link} is gone again"));
        let lo = inside.link("lo").await?.ok_or_else(|| gone("lo"))?;
        inside.set_up(&lo).await?;
        let link = inside.link(NODE_LINK).await?.ok_or_else(|| gone(NODE_LINK))?;
        inside.set_up(&link).await?;
        let address = IpNet::new(ip, self.config.node_cidr.prefix_len()).unwrap_or(IpNet::from(ip));
        inside.ensure_address(&link, address).await?;
        Routes::inside(netns)?.make_unreachable(&self.config.unreachable).await
    }

    fn free_address(&self, nodes: &BTreeMap<String, IpAddr>) -> Result<IpAddr> {
        let mut pool = Pool::new(self.config.node_cidr);
        std::iter::from_fn(|| pool.take()).skip(FIRST_NODE - 2).find(|ip| !nodes.values().any(|n| n == ip)).ok_or_else(
            || crate::NetworkError::NoFreeAddress { cidr: self.config.node_cidr.to_string(), used: nodes.len() },
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
    nodes.retain(|_, ip| config.node_cidr.contains(&*ip));
    Ok(nodes)
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
