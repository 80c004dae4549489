//! A cluster of the test's own that is gone afterwards, also after a panic, and small network programs.

use causeway_network::{
    BridgeConfig, BridgeNetwork, NetNs, PodRef,
    local::{Layout, LocalConfig, LocalNode, LocalSegment},
};
use k8s_openapi::api::core::v1::Node;
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// A name that no other test, and no other run, uses.
pub fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A cluster's name and directory; removes everything of that name when dropped.
pub struct Cluster {
    pub name: String,
    pub dir: tempfile::TempDir,
}

impl Cluster {
    pub fn new() -> Self {
        Self { name: unique(), dir: tempfile::tempdir().unwrap() }
    }

    pub async fn segment(&self) -> LocalSegment {
        self.segment_of(Layout::Shared).await
    }

    /// Of both families.
    pub async fn segment_of(&self, layout: Layout) -> LocalSegment {
        self.segment_on(layout, &["10.90.0.0/24", "fd12:90::/64"]).await
    }

    pub async fn segment_on(&self, layout: Layout, node_cidrs: &[&str]) -> LocalSegment {
        let ranges = |all: &[&str]| all.iter().map(|r| r.parse().unwrap()).collect();
        let config = LocalConfig {
            cluster: self.name.clone(),
            node_cidrs: ranges(node_cidrs),
            layout,
            unreachable: ranges(&["10.244.0.0/16", "10.96.0.0/12", "fd12:244::/56"]),
            state_dir: self.dir.path().join("segment"),
        };
        LocalSegment::create(config).await.unwrap()
    }

    pub async fn pods(&self, node: &LocalNode, name: &str, cidr: &str) -> BridgeNetwork {
        self.pods_of_size(node, name, cidr, 1500).await
    }

    pub async fn pods_of_size(&self, node: &LocalNode, name: &str, cidr: &str, mtu: u32) -> BridgeNetwork {
        let config = BridgeConfig::new(
            name,
            cidr.split(',').map(|c| c.parse().unwrap()).collect(),
            self.dir.path().join(name),
            &format!("cw-{}-{name}", self.name),
        );
        BridgeNetwork::open_in(BridgeConfig { mtu, ..config }, &node.netns).await.unwrap()
    }

    /// Namespaces, also half-made ones, that bear the cluster's name.
    pub fn left_over(&self) -> Vec<String> {
        let prefix = format!("cw-{}-", self.name);
        NetNs::list().into_iter().filter(|n| n.starts_with(&prefix)).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let name = self.name.clone();
        let done = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(LocalSegment::delete(&name))
        });
        let _ = done.join();
    }
}

pub fn pod(uid: &str) -> PodRef {
    PodRef { uid: uid.into(), namespace: "default".into(), name: uid.into() }
}

/// The Node object of a local node with these pod ranges.
pub fn object(name: &str, node: &LocalNode, cidrs: &str) -> Node {
    let ranges: Vec<&str> = cidrs.split(',').collect();
    let addresses: Vec<_> =
        node.ips.iter().map(|ip| serde_json::json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": name}, "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
        "status": {"addresses": addresses},
    }))
    .unwrap()
}

/// Runs a command in a namespace; its output, also that of a failure.
pub fn inside(netns: &NetNs, command: &str) -> Result<String, String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = std::process::Command::new("ip").args(["netns", "exec", netns.name()]).args(words).output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let all = format!("{}{}", text(&output.stdout), text(&output.stderr));
    if output.status.success() { Ok(all) } else { Err(all) }
}

/// Serves one connection after another: sends back the peer's address and what came.
pub fn echo(netns: &NetNs, addr: SocketAddr) -> SocketAddr {
    let listener: TcpListener = netns.bind_tcp(addr).unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().unwrap().ip();
            let mut got = [0; 4];
            if stream.read_exact(&mut got).is_ok() {
                let _ = stream.write_all(format!("{peer} {}", String::from_utf8_lossy(&got)).as_bytes());
            }
        }
    });
    at
}

/// Asks an [`echo`]; the answer is the source address it saw.
pub async fn ask(from: &NetNs, to: SocketAddr) -> std::io::Result<IpAddr> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let exchange = async {
        let mut stream = from.connect_tcp(to).await?;
        stream.write_all(b"ping").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let (peer, word) = text.split_once(' ').ok_or(std::io::ErrorKind::InvalidData)?;
        assert_eq!(word, "ping");
        Ok(peer.parse().unwrap())
    };
    tokio::time::timeout(Duration::from_secs(10), exchange).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

/// The host's links, routes and forwarding switch, as text.
pub fn host() -> String {
    let links = std::fs::read_to_string("/proc/net/dev").unwrap();
    let links: Vec<_> = links.lines().filter_map(|l| l.split_once(':')).map(|(name, _)| name.trim()).collect();
    let read = |p: &str| std::fs::read_to_string(p).unwrap();
    format!("{links:?}\n{}\n{}", read("/proc/net/route"), read("/proc/sys/net/ipv4/ip_forward"))
}
