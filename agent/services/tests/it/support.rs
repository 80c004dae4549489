//! A segment with two nodes and pods that answer, of both families, all of it gone after the test; and the renderers to
//! try on it.

use causeway_network::{
    BridgeConfig, BridgeNetwork, NetNs, PodNetwork, PodRef,
    local::{LocalConfig, LocalNode, LocalSegment},
    routes::Routes,
};
use causeway_services::{
    conntrack::Conntrack,
    family::Family,
    iptables::{
        program::Iptables,
        tool::{Flavour, Tool},
    },
    kernel::Kernel,
    metrics::IptablesMetrics,
    model::{self, NodeView},
    program::Program,
    renderer::{Done, Ranges, Renderer},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::{Value, json};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

pub const VIP: &str = "10.96.0.5";
pub const VIP6: &str = "fd96::5";
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Shorter than any time-out of TCP's own, longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// A way to put the model into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Nftables,
    Iptables(Flavour),
}

/// Every test of packets runs over all of these.
pub fn modes() -> Vec<Mode> {
    vec![Mode::Nftables, Mode::Iptables(Flavour::Nft), Mode::Iptables(Flavour::Legacy)]
}

/// Runs a test on a fresh lab for each mode.
pub async fn each_mode(test: impl AsyncFn(Lab)) {
    for mode in modes() {
        println!("mode: {mode:?}");
        test(Lab::new(mode).await).await;
    }
}

pub struct Lab {
    name: String,
    pub mode: Mode,
    pub dir: tempfile::TempDir,
    pub segment: LocalSegment,
    pub one: LocalNode,
    pub two: LocalNode,
    nets: [BridgeNetwork; 2],
    pub program: Box<dyn Renderer>,
    /// What `NodeView` says of the node's zone.
    pub zone: Option<String>,
    /// Addresses for node ports beyond the primary ones.
    pub more_node_port_ips: Vec<IpAddr>,
}

/// A pod that serves TCP and UDP on port 8080.
pub struct Pod {
    pub netns: NetNs,
    pub ip: IpAddr,
    pub ip6: IpAddr,
    pub node: &'static str,
}

impl Pod {
    pub fn of(&self, family: Family) -> IpAddr {
        if family == Family::V4 { self.ip } else { self.ip6 }
    }
}

/// The service's address.
pub fn vip(family: Family) -> IpAddr {
    if family == Family::V4 { VIP.parse().unwrap() } else { VIP6.parse().unwrap() }
}

/// Node one's address.
pub fn node_one(family: Family) -> IpAddr {
    if family == Family::V4 { "10.90.0.11" } else { "fd10:90::11" }.parse().unwrap()
}

/// The address of a client outside of the cluster.
pub fn outside(family: Family) -> IpAddr {
    if family == Family::V4 { "10.90.0.1" } else { "fd10:90::1" }.parse().unwrap()
}

/// What a dropped connection ends with.
pub fn is_silence(result: io::Result<Answer>) -> bool {
    result.is_err_and(|e| matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock))
}

/// Runs `ip`.
pub fn ip(arguments: &str) {
    let out = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(out.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Lab {
    pub async fn new(mode: Mode) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("s{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().unwrap();
        let unreachable = ["10.244.0.0/16", "10.96.0.0/12", "fd10:244::/48", "fd96::/108"];
        let config = LocalConfig {
            cluster: name.clone(),
            node_cidrs: vec!["10.90.0.0/24".parse().unwrap()],
            layout: causeway_network::local::Layout::Shared,
            unreachable: unreachable.map(|r| r.parse().unwrap()).into(),
            state_dir: dir.path().join("segment"),
        };
        let clean = Clean(name.clone());
        let segment = LocalSegment::create(config).await.unwrap();
        let one = segment.add_node("one").await.unwrap();
        let two = segment.add_node("two").await.unwrap();
        ip(&format!("-n {} addr add fd10:90::1/64 dev lan0 nodad", segment.lan().name()));
        ip(&format!("-n {} addr add fd10:90::11/64 dev eth0 nodad", one.netns.name()));
        ip(&format!("-n {} addr add fd10:90::12/64 dev eth0 nodad", two.netns.name()));
        let cidrs = [["10.244.1.0/24", "fd10:244:0:1::/64"], ["10.244.2.0/24", "fd10:244:0:2::/64"]]
            .map(|pair| pair.map(|c| c.parse().unwrap()));
        let open = |node: &LocalNode, i: usize| {
            let prefix = format!("cw-{name}-{i}");
            let config = BridgeConfig::new(&prefix, cidrs[i].to_vec(), dir.path().join(i.to_string()), &prefix);
            let netns = node.netns.clone();
            async move { BridgeNetwork::open_in(config, &netns).await.unwrap() }
        };
        let nets = [open(&one, 0).await, open(&two, 1).await];
        let via = |node: &LocalNode, six: &str| [node.ip, six.parse().unwrap()];
        let to_one: Vec<_> = cidrs[0].into_iter().zip(via(&one, "fd10:90::11")).collect();
        let to_two: Vec<_> = cidrs[1].into_iter().zip(via(&two, "fd10:90::12")).collect();
        Routes::inside(&one.netns).unwrap().sync(&to_two).await.unwrap();
        Routes::inside(&two.netns).unwrap().sync(&to_one).await.unwrap();
        Routes::inside(segment.lan()).unwrap().sync(&[to_one, to_two].concat()).await.unwrap();
        let services = ["10.96.0.0/12", "fd96::/108"].map(|r| r.parse().unwrap());
        let (routes, own) = (Routes::inside(&one.netns).unwrap(), FAMILIES.map(node_one));
        match mode {
            Mode::Nftables => routes.sync_service_ranges(&services, &own).await.unwrap(),
            Mode::Iptables(_) => routes.sync_forwarded_service_ranges(&services, &own).await.unwrap(),
        };
        let program = open_program(mode, &one.netns, dir.path().join("proxy"));
        std::mem::forget(clean);
        Self { name, mode, dir, segment, one, two, nets, program, zone: None, more_node_port_ips: Vec::new() }
    }

    /// A pod on node `one` or `two`.
    pub async fn pod(&self, node: &'static str, name: &str) -> Pod {
        let pod = PodRef { uid: name.into(), namespace: "d".into(), name: name.into() };
        let made = self.nets[usize::from(node == "two")].set_up(&pod).await.unwrap();
        let netns = NetNs::open(&made.netns).unwrap();
        for ip in &made.ips {
            serve(&netns, SocketAddr::new(*ip, 8080));
        }
        Pod { netns, ip: made.ips[0], ip6: made.ips[1], node }
    }

    pub fn node(&self) -> NodeView {
        NodeView {
            name: "one".into(),
            ips: FAMILIES.map(node_one).into(),
            node_port_ips: FAMILIES.map(node_one).into_iter().chain(self.more_node_port_ips.clone()).collect(),
            zone: self.zone.clone(),
            pod_cidrs: ["10.244.1.0/24", "fd10:244:0:1::/64"].map(|r| r.parse().unwrap()).into(),
        }
    }

    pub fn ranges(&self) -> Ranges {
        let node = self.node();
        Ranges {
            pods: ["10.244.0.0/16", "fd10:244::/48"].map(|r| r.parse().unwrap()).into(),
            services: ["10.96.0.0/12", "fd96::/108"].map(|r| r.parse().unwrap()).into(),
            local: node.pod_cidrs.into_iter().chain(node.ips.into_iter().map(Into::into)).collect(),
        }
    }

    /// Programs a service with endpoints.
    pub fn set(&mut self, service: &Service, pods: &[&Pod]) -> Done {
        self.set_slices(service, &slices(&pods.iter().map(|p| (*p, json!({}))).collect::<Vec<_>>()))
    }

    /// Programs a service with slices.
    pub fn set_slices(&mut self, service: &Service, slices: &[EndpointSlice]) -> Done {
        let model = model::service(service, slices, &self.node());
        let name = service.metadata.name.clone().unwrap();
        let ranges = self.ranges();
        self.program.sync(vec![(name, Some(model))], &ranges, false).unwrap()
    }

    /// Removes a service.
    pub fn remove(&mut self, service: &Service) -> Done {
        let ranges = self.ranges();
        self.program.sync(vec![(service.metadata.name.clone().unwrap(), None)], &ranges, false).unwrap()
    }

    /// Looks whether somebody has changed our rules, and mends them.
    pub fn check(&mut self) -> Done {
        let ranges = self.ranges();
        self.program.sync(Vec::new(), &ranges, false).unwrap()
    }

    /// As if the process had ended and another begun.
    pub fn restart(&mut self) {
        self.program = open_program(self.mode, &self.one.netns, self.dir.path().join("proxy"));
    }

    /// Runs a program on node one.
    pub fn run(&self, command: &str) -> String {
        let out = Command::new("ip")
            .args(["netns", "exec", self.one.netns.name()])
            .args(command.split(' '))
            .output()
            .unwrap();
        assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs `nft` on node one.
    pub fn nft(&self, arguments: &str) -> String {
        self.run(&format!("nft {arguments}"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(Clean(self.name.clone()));
    }
}

struct Clean(String);

impl Drop for Clean {
    fn drop(&mut self) {
        let name = self.0.clone();
        let done = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(LocalSegment::delete(&name))
        });
        let _ = done.join();
    }
}

fn open_program(mode: Mode, netns: &NetNs, dir: PathBuf) -> Box<dyn Renderer> {
    let open = move || -> Box<dyn Renderer> {
        match mode {
            Mode::Nftables => {
                let kernel = Kernel::open(FAMILIES.to_vec()).unwrap();
                Box::new(Program::open(kernel, Conntrack::open().unwrap(), &dir).unwrap())
            }
            Mode::Iptables(flavour) => {
                let metrics = IptablesMetrics::new(&prometheus::Registry::new()).unwrap();
                let tool = Tool::open(Some(flavour)).unwrap();
                Box::new(
                    Iptables::open(tool, FAMILIES.to_vec(), Conntrack::open().unwrap(), metrics)
                        .unwrap()
                        .comparing_always(),
                )
            }
        }
    };
    netns.run(open).unwrap()
}

/// A service `name` of both families at [`VIP`] and [`VIP6`], ports 80 → 8080 TCP and UDP, node port 30080.
pub fn service(name: &str, more: Value) -> Service {
    let mut spec = json!({"clusterIP": VIP, "clusterIPs": [VIP, VIP6], "type": "NodePort", "ports": [
        {"name": "t", "port": 80, "protocol": "TCP", "nodePort": 30080},
        {"name": "u", "port": 80, "protocol": "UDP", "nodePort": 30080}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec})).unwrap()
}

/// A slice of IPv4.
pub fn slice(pods: &[&Pod]) -> EndpointSlice {
    slices(&pods.iter().map(|p| (*p, json!({}))).collect::<Vec<_>>()).remove(0)
}

/// A slice for each family; each endpoint with more fields than address and node.
pub fn slices(pods: &[(&Pod, Value)]) -> Vec<EndpointSlice> {
    let of = |family: Family| {
        let endpoints = pods.iter().map(|(pod, more)| {
            let mut endpoint =
                json!({"addresses": [pod.of(family)], "nodeName": pod.node, "conditions": {"ready": true}});
            endpoint.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            endpoint
        });
        let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
        serde_json::from_value(json!({"metadata": {"name": format!("s-{kind}"), "namespace": "d"}, "addressType": kind,
            "endpoints": endpoints.collect::<Vec<_>>(), "ports": [{"name": "t", "port": 8080, "protocol": "TCP"},
                {"name": "u", "port": 8080, "protocol": "UDP"}, {"name": "s", "port": 8080, "protocol": "SCTP"}]}))
        .unwrap()
    };
    FAMILIES.map(of).into()
}

pub fn at(ip: impl ToString, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_string().parse().unwrap(), port)
}

/// Tells every client its own and the server's address.
fn serve(netns: &NetNs, addr: SocketAddr) {
    let tcp = netns.bind_tcp(addr).unwrap();
    let udp = netns.bind_udp(addr).unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { return };
            let (Ok(peer), Ok(own)) = (stream.peer_addr(), stream.local_addr()) else { continue };
            let _ = stream.write_all(format!("{} {}", peer.ip(), own.ip()).as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{} {}", peer.ip(), addr.ip()).as_bytes(), peer);
        }
    });
}

/// What the server saw as the client's address, and which one it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub client: IpAddr,
    pub server: IpAddr,
}

fn read(text: &str) -> io::Result<Answer> {
    let (client, server) = text.split_once(' ').ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(Answer { client: client.parse().unwrap(), server: server.parse().unwrap() })
}

pub fn tcp(from: &NetNs, to: SocketAddr) -> io::Result<Answer> {
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        read(&text)
    })?
}

pub fn exchange(socket: &UdpSocket) -> io::Result<Answer> {
    let mut buffer = [0; 100];
    socket.send(b"?")?;
    let length = socket.recv(&mut buffer)?;
    read(std::str::from_utf8(&buffer[..length]).unwrap())
}

pub fn udp_socket(from: &NetNs, to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = from.bind_udp(any.parse().unwrap()).unwrap();
    from.run(|| socket.connect(to)).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub fn udp(from: &NetNs, to: SocketAddr) -> io::Result<Answer> {
    exchange(&udp_socket(from, to))
}
