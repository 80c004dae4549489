//! Pods of different nodes: by routes where nodes are neighbours, by tunnels where they are not; and the faults of a
//! node's link.

use crate::support::{Cluster, ask, echo, inside, object, pod};
use causeway_api::config::{ClusterConfig, PodNetworkConfig, PodNetworkMode};
use causeway_network::{
    BridgeNetwork, NetNs, PodAddress, PodNetwork,
    local::{Layout, LocalNode, LocalSegment},
    node_routes::{NodeRoutes, NodeRoutesConfig},
    vxlan,
};
use k8s_openapi::api::core::v1::Node;
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
};

const RANGES: [&str; 2] = ["10.244.1.0/24,fd12:244:0:1::/64", "10.244.2.0/24,fd12:244:0:2::/64"];
/// A filter of the segment's router that lets no packet with a pod's address pass.
const NO_PODS: &str = "table inet test { chain forward { type filter hook forward priority 0;
    ip saddr 10.244.0.0/16 drop; ip daddr 10.244.0.0/16 drop;
    ip6 saddr fd12:244::/56 drop; ip6 daddr fd12:244::/56 drop; }; }";

/// Two nodes with a pod each.
struct Two {
    cluster: Cluster,
    segment: LocalSegment,
    nodes: [LocalNode; 2],
    objects: [Node; 2],
    mode: PodNetworkConfig,
    mtu: u32,
    networks: Vec<BridgeNetwork>,
    pods: Vec<PodAddress>,
}

impl Two {
    async fn new(layout: Layout, node_cidrs: &[&str], mode: PodNetworkMode) -> Self {
        let cluster = Cluster::new();
        let segment = cluster.segment_on(layout, node_cidrs).await;
        let nodes = [segment.add_node("one").await.unwrap(), segment.add_node("two").await.unwrap()];
        let objects = [object("one", &nodes[0], RANGES[0]), object("two", &nodes[1], RANGES[1])];
        let mode = PodNetworkConfig { mode, ..PodNetworkConfig::default() };
        let runtime = nodes[0].netns.runtime("mtu", 1).unwrap();
        let (config, ip) = (mode.clone(), nodes[0].ip);
        let asked = runtime.handle().spawn(async move { vxlan::pod_mtu(&config, ip).await });
        let mtu = asked.await.unwrap().unwrap();
        let mut two = Self { cluster, segment, nodes, objects, mode, mtu, networks: Vec::new(), pods: Vec::new() };
        two.make_pods().await;
        assert!(two.sync().await > 0);
        two
    }

    /// Makes the pods, or finds them.
    async fn make_pods(&mut self) {
        (self.networks, self.pods) = Default::default();
        for (i, name) in ["one", "two"].into_iter().enumerate() {
            let network = self.cluster.pods_of_size(&self.nodes[i], name, RANGES[i], self.mtu).await;
            self.pods.push(network.set_up(&pod(&format!("on-{name}"))).await.unwrap());
            self.networks.push(network);
        }
    }

    fn cluster_config(&self) -> ClusterConfig {
        let pod_cidrs = ["10.244.0.0/16", "fd12:244::/56"].map(|r| r.parse().unwrap()).to_vec();
        ClusterConfig { pod_network: self.mode.clone(), pod_cidrs, ..ClusterConfig::default() }
    }

    async fn sync_one(&self, i: usize, objects: &[Node]) -> usize {
        let config = NodeRoutesConfig {
            node_name: self.objects[i].metadata.name.clone(),
            node_ips: self.nodes[i].ips.clone(),
            netns: Some(self.nodes[i].netns.clone()),
            cluster: self.cluster_config(),
        };
        NodeRoutes::open(config).unwrap().sync(objects).await.unwrap()
    }

    /// As after a start of the program: nothing is remembered from the last time.
    async fn sync(&self) -> usize {
        let lan = NodeRoutesConfig {
            netns: Some(self.segment.lan().clone()),
            cluster: self.cluster_config(),
            ..NodeRoutesConfig::default()
        };
        let lan = NodeRoutes::open(lan).unwrap().sync(&self.objects).await.unwrap();
        lan + self.sync_one(0, &self.objects).await + self.sync_one(1, &self.objects).await
    }

    fn pod(&self, i: usize) -> NetNs {
        NetNs::open(&self.pods[i].netns).unwrap()
    }

    /// Pods reach each other by both families, each seeing the other's own address; nodes reach each other's pods.
    async fn all_reach_all(&self) {
        for (from, to) in [(0, 1), (1, 0)] {
            for family in 0..2 {
                let at = echo(&self.pod(to), SocketAddr::new(self.pods[to].ips[family], 0));
                let seen = ask(&self.pod(from), at).await.unwrap_or_else(|e| panic!("{from} to {at}: {e}"));
                assert_eq!(seen, self.pods[from].ips[family], "no address is translated on the way to {at}");
                ask(&self.nodes[from].netns, at).await.unwrap_or_else(|e| panic!("node {from} to {at}: {e}"));
            }
        }
    }

    /// Packets of the full size pass unfragmented, larger ones do not, and a long stream arrives.
    fn full_size_passes(&self, size: u32) {
        let pod = self.pod(0);
        let link = inside(&pod, "ip link show eth0").unwrap();
        assert!(link.contains(&format!("mtu {size} ")), "{link}");
        for (ip, headers) in [(self.pods[1].ips[0], 28), (self.pods[1].ips[1], 48)] {
            let ping = |bytes: u32| inside(&pod, &format!("ping -c 1 -W 5 -M do -s {bytes} {ip}"));
            ping(size - headers).unwrap_or_else(|e| panic!("{size} bytes to {ip}: {e}"));
            ping(size - headers + 1).unwrap_err();
            assert_eq!(stream(&pod, &self.pod(1), ip), 4 << 20);
        }
    }
}

/// Sends 4 MiB and tells how much arrived.
fn stream(from: &NetNs, to: &NetNs, ip: IpAddr) -> usize {
    let listener = to.bind_tcp(SocketAddr::new(ip, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let mut all = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut all).unwrap();
        all.len()
    });
    from.run(|| std::net::TcpStream::connect(at).unwrap().write_all(&vec![7; 4 << 20]).unwrap()).unwrap();
    receiver.join().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_need_routes_only() {
    let two = Two::new(Layout::Shared, &["10.90.0.0/24", "fd12:90::/64"], PodNetworkMode::Routed).await;
    two.all_reach_all().await;
    two.full_size_passes(1500);
    assert_eq!(two.sync().await, 0, "a second time there is nothing to do");
    assert!(inside(&two.nodes[0].netns, "ip link show cwvx0").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_talk_through_tunnels_only_where_the_segment_knows_none() {
    let two = Two::new(Layout::Separate, &["10.90.0.0/24", "fd12:90::/64"], PodNetworkMode::Vxlan).await;
    inside(two.segment.lan(), &format!("nft {NO_PODS}")).unwrap();
    two.all_reach_all().await;
    two.full_size_passes(1450);
    let at = echo(&two.pod(0), SocketAddr::new(two.pods[0].ips[0], 81));
    assert!(ask(two.segment.lan(), at).await.is_err(), "the segment knows no way to pods");
    // What a pod sends to somebody else comes from its node; what it sends to its own node from itself.
    for family in 0..2 {
        let other = [two.segment.ips()[family], two.nodes[1].ips[family]];
        for (netns, ip) in [two.segment.lan(), &two.nodes[1].netns].into_iter().zip(other) {
            let seen = ask(&two.pod(0), echo(netns, SocketAddr::new(ip, 0))).await.unwrap();
            assert_eq!(seen, two.nodes[0].ips[family]);
        }
        let at = echo(&two.nodes[0].netns, SocketAddr::new(two.nodes[0].ips[family], 0));
        assert_eq!(ask(&two.pod(0), at).await.unwrap(), two.pods[0].ips[family]);
    }
    // Nodes are not neighbours, and reach each other through the router.
    for ip in &two.nodes[1].ips {
        let route = inside(&two.nodes[0].netns, &format!("ip route get {ip}")).unwrap();
        assert!(route.contains(" via "), "{route}");
        inside(&two.nodes[0].netns, &format!("ping -c 1 -W 5 {ip}")).unwrap();
    }
    for netns in [&two.nodes[0].netns, &two.nodes[1].netns, two.segment.lan()] {
        for family in ["-4", "-6"] {
            let routes = inside(netns, &format!("ip {family} route show default")).unwrap();
            assert_eq!(routes.trim(), "", "nothing leads out");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_over_ipv6_leave_less_room() {
    let two = Two::new(Layout::Separate, &["fd12:90::/64", "10.90.0.0/24"], PodNetworkMode::Vxlan).await;
    assert!(two.nodes[0].ip.is_ipv6());
    inside(two.segment.lan(), &format!("nft {NO_PODS}")).unwrap();
    two.all_reach_all().await;
    two.full_size_passes(1430);
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_are_adopted_follow_nodes_and_go_with_them() {
    let mut two = Two::new(Layout::Separate, &["10.90.0.0/24", "fd12:90::/64"], PodNetworkMode::Vxlan).await;
    assert_eq!(two.sync().await, 0, "after a restart there is nothing to do");
    let one = two.nodes[0].netns.clone();
    let state = || {
        let forwarding = inside(&one, "bridge fdb show dev cwvx0").unwrap();
        let neighbours = inside(&one, "ip neigh show dev cwvx0 nud permanent").unwrap();
        let routes = inside(&one, "ip route show proto 140").unwrap();
        (forwarding, neighbours, routes)
    };
    // Meddling is mended.
    inside(&one, "bridge fdb del 0a:c5:0a:5a:00:0c dev cwvx0 dst 10.90.0.12 self").unwrap();
    inside(&one, "ip route del 10.244.2.0/24").unwrap();
    inside(&one, "ip neigh add 10.244.9.1 lladdr 0a:c5:0a:5a:00:63 dev cwvx0 nud permanent").unwrap();
    inside(&one, "nft flush chain ip causeway-pods postrouting").unwrap();
    assert_eq!(two.sync().await, 4);
    two.all_reach_all().await;
    // A node that has another address is behind that one.
    let mut moved = two.objects.clone();
    moved[1].status.as_mut().unwrap().addresses.as_mut().unwrap()[0].address = "10.90.0.77".to_owned();
    two.sync_one(0, &moved).await;
    let (forwarding, neighbours, _) = state();
    assert!(forwarding.contains("0a:c5:0a:5a:00:4d dst 10.90.0.77"), "{forwarding}");
    assert!(
        !forwarding.contains("10.90.0.12") && !neighbours.contains("0a:c5:0a:5a:00:0c"),
        "{forwarding}{neighbours}"
    );
    // A node that is gone leaves nothing.
    two.sync_one(0, &two.objects[..1]).await;
    let (forwarding, neighbours, routes) = state();
    assert_eq!((forwarding.contains("dst"), neighbours.as_str(), routes.as_str()), (false, "", ""));
    assert_eq!(two.sync().await, 5, "and comes back: a forwarding entry, two neighbours, two routes");
    two.all_reach_all().await;
    // Other settings make another device.
    two.mode.vxlan_port = 4789;
    two.sync().await;
    assert!(inside(&one, "ip -d link show cwvx0").unwrap().contains("dstport 4789"));
    two.all_reach_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_mode_removes_what_the_first_left_and_keeps_the_pods() {
    let mut two = Two::new(Layout::Shared, &["10.90.0.0/24", "fd12:90::/64"], PodNetworkMode::Routed).await;
    let pods = two.pods.clone();
    for (layout, mode, mtu) in
        [(Layout::Separate, PodNetworkMode::Vxlan, 1450), (Layout::Shared, PodNetworkMode::Routed, 1500)]
    {
        two.segment = two.cluster.segment_of(layout).await;
        two.nodes = [two.segment.add_node("one").await.unwrap(), two.segment.add_node("two").await.unwrap()];
        (two.mode.mode, two.mtu) = (mode, mtu);
        two.make_pods().await;
        assert_eq!(two.pods, pods, "they were not made anew");
        two.sync().await;
        two.all_reach_all().await;
        two.full_size_passes(mtu);
        let routes = inside(&two.nodes[0].netns, "ip route show proto 140").unwrap();
        assert_eq!((routes.lines().count(), routes.contains("cwvx0")), (1, mode == PodNetworkMode::Vxlan), "{routes}");
        let tables = inside(&two.nodes[0].netns, "nft list tables").unwrap();
        assert_eq!(tables.contains("causeway-pods"), mode == PodNetworkMode::Vxlan, "{tables}");
        let bridge = inside(&two.nodes[0].netns, "ip link show cw0").unwrap();
        assert!(bridge.contains(&format!("mtu {mtu} ")), "{bridge}");
    }
    assert!(inside(&two.nodes[0].netns, "ip link show cwvx0").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_node_is_alone_until_it_is_healed() {
    for (layout, mode) in [(Layout::Shared, PodNetworkMode::Routed), (Layout::Separate, PodNetworkMode::Vxlan)] {
        let two = Two::new(layout, &["10.90.0.0/24", "fd12:90::/64"], mode).await;
        let ping = |from: &NetNs, ip: IpAddr| inside(from, &format!("ping -c 1 -W 1 {ip}"));
        two.segment.cut("one").await.unwrap();
        assert!(two.segment.is_cut("one").await.unwrap() && !two.segment.is_cut("two").await.unwrap());
        for family in 0..2 {
            ping(two.segment.lan(), two.nodes[0].ips[family]).unwrap_err();
            ping(&two.pod(1), two.pods[0].ips[family]).unwrap_err();
            ping(&two.nodes[0].netns, two.nodes[1].ips[family]).unwrap_err();
            ping(&two.nodes[0].netns, two.pods[0].ips[family]).unwrap();
        }
        two.segment.heal("one").await.unwrap();
        assert!(!two.segment.is_cut("one").await.unwrap());
        for ip in &two.nodes[0].ips {
            // A neighbour that did not answer is asked again only after a moment.
            let found = (0..20).any(|_| ping(two.segment.lan(), *ip).is_ok());
            assert!(found, "{ip}");
        }
        two.all_reach_all().await;
        assert!(two.segment.cut("three").await.unwrap_err().to_string().contains("is the node running?"));
    }
}
