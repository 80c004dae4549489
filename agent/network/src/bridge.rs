//! The pod network of a node: a bridge with the gateway's address, and for every pod a namespace tied to it by a veth
//! pair.
//!
//! In: [`PodRef`]s from the kubelet. Out: namespaces in which the pod's address works. Pods get their address with a
//! full-length prefix and a default route through the gateway, so even two pods of one node talk through the node's
//! IP layer: service addresses are translated back there, and policies see every packet, without `br_netfilter`.

use crate::{
    NetNs, PodAddress, PodNetwork, PodRef, Result,
    journal::{Journal, Record, hash, state},
    netlink::{Link, Netlink, Route, VethEnd},
    netns::{kernel, write_sysctl},
};
use async_trait::async_trait;
use ipnet::IpNet;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::Arc,
};

/// Routes inside pods carry the kernel's number for "set by the administrator".
const STATIC: u8 = 4;
/// The bridge's name, unless told otherwise.
pub(crate) const BRIDGE: &str = "cw0";
/// The pod's end of its veth pair.
const POD_LINK: &str = "eth0";

/// What a [`BridgeNetwork`] must know.
#[derive(Debug, Clone)]
pub struct BridgeConfig {
    /// The node, for messages.
    pub node_name: String,
    /// The node's pod ranges, one a family, the primary first: `Node.spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// The bridge's name. Default `cw0`.
    pub bridge: String,
    /// Where allocations are kept.
    pub state_dir: PathBuf,
    /// Of bridge and pods, in bytes. Default 1500.
    pub mtu: u32,
    /// Pod namespaces are named `<netns_prefix>-<hash of the pod's uid>`. For a local cluster this must begin with
    /// `cw-<cluster>-`, so that taking the cluster down finds them.
    pub netns_prefix: String,
}

impl BridgeConfig {
    /// The usual bridge and MTU.
    pub fn new(node_name: &str, pod_cidrs: Vec<IpNet>, state_dir: PathBuf, netns_prefix: &str) -> Self {
        Self {
            node_name: node_name.to_owned(),
            pod_cidrs,
            bridge: BRIDGE.to_owned(),
            state_dir,
            mtu: 1500,
            netns_prefix: netns_prefix.to_owned(),
        }
    }
}

/// Pods on a bridge.
#[derive(Debug)]
pub struct BridgeNetwork {
    config: BridgeConfig,
    netlink: Netlink,
    bridge: Link,
    journal: Arc<Mutex<Journal>>,
    /// Calls for one pod come one after another.
    busy: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl BridgeNetwork {
    /// Makes or adopts the bridge in the calling thread's network namespace, which is to be the node's, and removes
    /// what a crashed process left without a record.
    pub async fn open(config: BridgeConfig) -> Result<Self> {
        let netlink = Netlink::here()?;
        Self::open_on(config, netlink, NetNs::current()?).await
    }

    /// As [`BridgeNetwork::open`], in a namespace that the caller is not in.
    pub async fn open_in(config: BridgeConfig, netns: &NetNs) -> Result<Self> {
        Self::open_on(config, Netlink::inside(netns)?, netns.clone()).await
    }

    async fn open_on(config: BridgeConfig, netlink: Netlink, node: NetNs) -> Result<Self> {
        if config.pod_cidrs.is_empty() {
            return Err(kernel(
                format!("preparing the pod network of node {}", config.node_name),
                "it has no pod CIDR yet; wait until spec.podCIDRs is set",
            ));
        }
        let journal = Journal::open(&config.state_dir.join("pods"), &config.pod_cidrs)?;
        // The address of the first pod range makes a hardware address that stays the same.
        let seed = hash(&format!("{}/{}", config.node_name, config.bridge)).to_be_bytes();
        let mac = [0x02, 0xc5, seed[0], seed[1], seed[2], seed[3]];
        let bridge = netlink.ensure_bridge(&config.bridge, config.mtu, Some(mac)).await?;
        let gateways: Vec<_> = journal.gateways().collect();
        prepare_node(&node, &config.bridge, gateways.iter().any(|g| g.addr().is_ipv6()))?;
        for gateway in &gateways {
            netlink.ensure_address(&bridge, *gateway).await?;
        }
        netlink.set_up(&bridge).await?;
        if let Some(lo) = netlink.link("lo").await? {
            netlink.set_up(&lo).await?;
        }
        let this = Self { config, netlink, bridge, journal: Arc::new(Mutex::new(journal)), busy: Mutex::default() };
        this.sweep().await?;
        Ok(this)
    }

    /// The gateways' addresses, one a family.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.journal.lock().gateways().map(|g| g.addr()).collect()
    }

    /// Removes links and namespaces that are named as ours but have no record.
    async fn sweep(&self) -> Result<()> {
        let (veths, namespaces): (HashSet<String>, HashSet<String>) =
            self.journal.lock().records().map(|r| (r.veth.clone(), r.netns.clone())).unzip();
        for link in self.netlink.links().await? {
            if link.controller == Some(self.bridge.index) && is_ours(&link.name, "cwp") && !veths.contains(&link.name) {
                tracing::info!(link = link.name, "removing a pod's link that nobody has a record of");
                self.netlink.delete_link(&link.name).await?;
            }
        }
        let prefix = format!("{}-", self.config.netns_prefix);
        for name in NetNs::list() {
            if is_ours(&name, &prefix) && !namespaces.contains(&name) {
                tracing::info!(netns = name, "removing a pod's namespace that nobody has a record of");
                NetNs::delete(&name)?;
            }
        }
        Ok(())
    }

    /// Brings the kernel to what the record says; touches nothing that is right already.
    async fn realise(&self, record: &Record) -> Result<NetNs> {
        let ipv6 = record.ips.iter().any(IpAddr::is_ipv6);
        let netns = match NetNs::open(&record.netns) {
            Ok(netns) => netns,
            Err(_) => {
                NetNs::delete(&record.netns)?;
                let name = record.netns.clone();
                blocking(move || NetNs::create_with(&name, || prepare_pod(ipv6))).await??
            }
        };
        let inside = Netlink::inside(&netns)?;
        if self.is_whole(record, &inside).await? {
            return Ok(netns);
        }
        self.netlink.delete_link(&record.veth).await?;
        inside.delete_link(POD_LINK).await?;
        let near = VethEnd { name: &record.veth, netns: None };
        let far = VethEnd { name: POD_LINK, netns: Some(&netns) };
        self.netlink.add_veth(near, far, self.config.mtu, Some(self.bridge.index)).await?;
        let gone = |name: &str| kernel(format!("connecting pod {}", record.pod.name), format!("{name} is gone again"));
        let port = self.netlink.link(&record.veth).await?.ok_or_else(|| gone(&record.veth))?;
        self.netlink.set_pod_port(&port).await?;
        let lo = inside.link("lo").await?.ok_or_else(|| gone("lo"))?;
        inside.set_up(&lo).await?;
        let link = inside.link(POD_LINK).await?.ok_or_else(|| gone(POD_LINK))?;
        inside.set_up(&link).await?;
        for ip in &record.ips {
            inside.ensure_address(&link, IpNet::from(*ip)).await?;
        }
        // Last: that the default routes are there tells that all the rest is.
        for gateway in self.gateways() {
            inside.put_route(&default_route(gateway, link.index)).await?;
        }
        Ok(netns)
    }

    async fn is_whole(&self, record: &Record, inside: &Netlink) -> Result<bool> {
        let Some(port) = self.netlink.link(&record.veth).await? else { return Ok(false) };
        let Some(link) = inside.link(POD_LINK).await? else { return Ok(false) };
        if port.controller != Some(self.bridge.index) || !port.up || !link.up {
            return Ok(false);
        }
        // A node that changed its mode changes its pods' size too, without cutting their connections.
        self.netlink.set_mtu(&port, self.config.mtu).await?;
        inside.set_mtu(&link, self.config.mtu).await?;
        let addresses = inside.addresses(&link).await?;
        let routes = inside.routes_of(STATIC).await?;
        Ok(record.ips.iter().all(|ip| addresses.contains(ip))
            && self.gateways().iter().all(|g| routes.iter().any(|r| r.gateway == Some(*g))))
    }

    fn lock_of(&self, uid: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.busy.lock().entry(uid.to_owned()).or_default().clone()
    }

    fn forget_lock(&self, uid: &str) {
        let mut busy = self.busy.lock();
        // Two: the map's and the caller's. Any other holder is waiting and keeps it.
        if busy.get(uid).is_some_and(|lock| Arc::strong_count(lock) <= 2) {
            busy.remove(uid);
        }
    }

    async fn set_up_alone(&self, pod: &PodRef) -> Result<PodAddress> {
        let journal = self.journal.clone();
        let (wanted, prefix) = (pod.clone(), self.config.netns_prefix.clone());
        let record = blocking(move || {
            let names = || {
                let id = hash(&wanted.uid);
                // A link's name has at most 15 bytes.
                (format!("{prefix}-{id:016x}"), format!("cwp{:012x}", id >> 16))
            };
            journal.lock().allocate(&wanted, names)
        })
        .await??;
        let netns = self.realise(&record).await?;
        Ok(PodAddress { ips: record.ips, netns: netns.path().to_owned() })
    }

    async fn tear_down_alone(&self, uid: &str) -> Result<()> {
        let Some(record) = self.journal.lock().get(uid).cloned() else { return Ok(()) };
        // Both ends go at once, also when processes keep the namespace alive.
        self.netlink.delete_link(&record.veth).await?;
        let (journal, uid) = (self.journal.clone(), uid.to_owned());
        blocking(move || {
            NetNs::delete(&record.netns)?;
            journal.lock().release(&uid)
        })
        .await?
    }
}

#[async_trait]
impl PodNetwork for BridgeNetwork {
    async fn set_up(&self, pod: &PodRef) -> Result<PodAddress> {
        let lock = self.lock_of(&pod.uid);
        let _alone = lock.lock().await;
        let result = self.set_up_alone(pod).await;
        self.forget_lock(&pod.uid);
        result
    }

    async fn tear_down(&self, uid: &str) -> Result<()> {
        let lock = self.lock_of(uid);
        let _alone = lock.lock().await;
        let result = self.tear_down_alone(uid).await;
        self.forget_lock(uid);
        result
    }

    async fn pods(&self) -> Result<Vec<(String, PodAddress)>> {
        let path = |r: &Record| std::path::Path::new(crate::netns::NETNS_DIR).join(&r.netns);
        let journal = self.journal.lock();
        Ok(journal.records().map(|r| (r.pod.uid.clone(), PodAddress { ips: r.ips.clone(), netns: path(r) })).collect())
    }
}

fn default_route(gateway: IpAddr, link: u32) -> Route {
    let any = match gateway {
        IpAddr::V4(_) => IpNet::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        IpAddr::V6(_) => IpNet::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    let any = IpNet::new(any.addr(), 0).unwrap_or(any);
    Route { gateway: Some(gateway), link: Some(link), ..Route::new(any, STATIC) }
}

/// Whether a name is the prefix and a hash: what other programs, and nodes with longer names, make never is.
pub(crate) fn is_ours(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| (rest.len() == 12 || rest.len() == 16) && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The sysctls of the node that forwarding between pods, nodes and services needs.
fn prepare_node(node: &NetNs, bridge: &str, ipv6: bool) -> Result<()> {
    let set = || -> std::io::Result<()> {
        write_sysctl("net/ipv4/ip_forward", "1")?;
        // Pods of one node talk through the gateway on purpose: no advice to take the short way.
        write_sysctl("net/ipv4/conf/all/send_redirects", "0")?;
        write_sysctl(&format!("net/ipv4/conf/{bridge}/send_redirects"), "0")?;
        if ipv6 {
            write_sysctl("net/ipv6/conf/all/forwarding", "1")?;
            write_sysctl(&format!("net/ipv6/conf/{bridge}/accept_dad"), "0")?;
        }
        // With br_netfilter the bridge would show every packet to the IP hooks a second time, for nothing. A host's
        // own setting is left alone: it may be another program's, and it does no harm beyond the work.
        if !is_host(node) {
            for key in ["iptables", "ip6tables"] {
                let key = format!("net/bridge/bridge-nf-call-{key}");
                if std::path::Path::new("/proc/sys").join(&key).exists() {
                    write_sysctl(&key, "0")?;
                }
            }
        }
        Ok(())
    };
    node.run(set).and_then(|r| r).map_err(|e| kernel("setting up the node's forwarding", e))
}

/// The same for a pod; runs inside it.
fn prepare_pod(ipv6: bool) -> std::io::Result<()> {
    // Pods talk through the gateway also when it says that there is a shorter way. Interfaces that come later take the
    // default.
    write_sysctl("net/ipv4/conf/all/accept_redirects", "0")?;
    write_sysctl("net/ipv4/conf/default/accept_redirects", "0")?;
    if ipv6 {
        write_sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        write_sysctl("net/ipv6/conf/all/accept_redirects", "0")?;
        write_sysctl("net/ipv6/conf/default/accept_redirects", "0")?;
    } else if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        write_sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    }
    Ok(())
}

fn is_host(node: &NetNs) -> bool {
    use std::os::unix::fs::MetadataExt;
    let ours = std::fs::metadata(node.path()).map(|m| m.ino());
    let init = std::fs::metadata("/proc/1/ns/net").map(|m| m.ino());
    matches!((ours, init), (Ok(a), Ok(b)) if a == b)
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(f)
        .await
        .map_err(|e| state(std::path::Path::new("(in memory)"), format!("the program is stopping: {e}")))
}
