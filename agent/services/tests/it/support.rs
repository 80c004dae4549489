//! A segment with two nodes and pods that answer, all of it gone after the test.

use causeway_network::{
    BridgeConfig, BridgeNetwork, NetNs, PodNetwork, PodRef,
    local::{LocalConfig, LocalNode, LocalSegment},
    routes::Routes,
};
use causeway_services::{
    family::Family,
    kernel::Kernel,
    model::{self, NodeView},
    program::{Done, Program, Ranges},
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

/// Shorter than any time-out of TCP's own, longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(2);

pub struct Lab {
    name: String,
    pub dir: tempfile::TempDir,
    pub segment: LocalSegment,
    pub one: LocalNode,
    pub two: LocalNode,
    nets: [BridgeNetwork; 2],
    pub program: Program,
}

/// A pod that serves TCP and UDP on port 8080.
pub struct Pod {
    pub netns: NetNs,
    pub ip: IpAddr,
    pub node: &'static str,
}

impl Lab {
    pub async fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("s{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().unwrap();
        let ranges = vec!["10.244.0.0/16".parse().unwrap(), "10.96.0.0/12".parse().unwrap()];
        let config = LocalConfig {
            cluster: name.clone(),
            node_cidr: "10.90.0.0/24".parse().unwrap(),
            unreachable: ranges,
            state_dir: dir.path().join("segment"),
        };
        let clean = Clean(name.clone());
        let segment = LocalSegment::create(config).await.unwrap();
        let one = segment.add_node("one").await.unwrap();
        let two = segment.add_node("two").await.unwrap();
        let cidrs = ["10.244.1.0/24", "10.244.2.0/24"].map(|c| c.parse().unwrap());
        let open = |node: &LocalNode, i: usize| {
            let prefix = format!("cw-{name}-{i}");
            let config = BridgeConfig::new(&prefix, vec![cidrs[i]], dir.path().join(i.to_string()), &prefix);
            let netns = node.netns.clone();
            async move { BridgeNetwork::open_in(config, &netns).await.unwrap() }
        };
        let nets = [open(&one, 0).await, open(&two, 1).await];
        let to = [(cidrs[0], one.ip), (cidrs[1], two.ip)];
        Routes::inside(&one.netns).unwrap().sync(&to[1..]).await.unwrap();
        Routes::inside(&two.netns).unwrap().sync(&to[..1]).await.unwrap();
        Routes::inside(segment.lan()).unwrap().sync(&to).await.unwrap();
        let services = ["10.96.0.0/12".parse().unwrap()];
        Routes::inside(&one.netns).unwrap().sync_service_ranges(&services, &[one.ip]).await.unwrap();
        let program = open_program(&one.netns, dir.path().join("proxy"));
        std::mem::forget(clean);
        Self { name, dir, segment, one, two, nets, program }
    }

    /// A pod on node `one` or `two`.
    pub async fn pod(&self, node: &'static str, name: &str) -> Pod {
        let pod = PodRef { uid: name.into(), namespace: "d".into(), name: name.into() };
        let made = self.nets[usize::from(node == "two")].set_up(&pod).await.unwrap();
        let netns = NetNs::open(&made.netns).unwrap();
        serve(&netns, SocketAddr::new(made.ips[0], 8080));
        Pod { netns, ip: made.ips[0], node }
    }

    pub fn node(&self) -> NodeView {
        NodeView {
            name: "one".into(),
            ips: vec![self.one.ip],
            zone: None,
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        }
    }

    pub fn ranges(&self) -> Ranges {
        Ranges {
            pods: vec!["10.244.0.0/16".parse().unwrap()],
            services: vec!["10.96.0.0/12".parse().unwrap()],
            local: vec!["10.244.1.0/24".parse().unwrap(), self.one.ip.into()],
        }
    }

    /// Programs a service with endpoints.
    pub fn set(&mut self, service: &Service, pods: &[&Pod]) -> Done {
        let slice = slice(pods);
        let model = model::service(service, [&slice], &self.node());
        let name = service.metadata.name.clone().unwrap();
        let ranges = self.ranges();
        self.program.sync(vec![(name, Some(model))], &ranges, false).unwrap()
    }

    /// As if the process had ended and another begun.
    pub fn restart(&mut self) {
        self.program = open_program(&self.one.netns, self.dir.path().join("proxy"));
    }

    /// Runs `nft` on node one.
    pub fn nft(&self, arguments: &str) -> String {
        let out = Command::new("ip")
            .args(["netns", "exec", self.one.netns.name(), "nft"])
            .args(arguments.split(' '))
            .output()
            .unwrap();
        assert!(out.status.success(), "nft {arguments}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
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

fn open_program(netns: &NetNs, dir: PathBuf) -> Program {
    let kernel = netns.run(|| Kernel::open(vec![Family::V4])).unwrap().unwrap();
    Program::open(kernel, &dir).unwrap()
}

/// A service `name` at [`VIP`], ports 80 → 8080 TCP and UDP, node port 30080.
pub fn service(name: &str, more: Value) -> Service {
    let mut spec = json!({"clusterIP": VIP, "clusterIPs": [VIP], "type": "NodePort", "ports": [
        {"name": "t", "port": 80, "protocol": "TCP", "nodePort": 30080},
        {"name": "u", "port": 80, "protocol": "UDP", "nodePort": 30080}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec})).unwrap()
}

pub fn slice(pods: &[&Pod]) -> EndpointSlice {
    let endpoints: Vec<_> =
        pods.iter().map(|p| json!({"addresses": [p.ip], "nodeName": p.node, "conditions": {"ready": true}})).collect();
    serde_json::from_value(json!({"metadata": {"name": "s-1", "namespace": "d"}, "addressType": "IPv4",
        "endpoints": endpoints, "ports": [{"name": "t", "port": 8080, "protocol": "TCP"},
            {"name": "u", "port": 8080, "protocol": "UDP"}]}))
    .unwrap()
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
    let socket = from.bind_udp("0.0.0.0:0".parse().unwrap()).unwrap();
    from.run(|| socket.connect(to)).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub fn udp(from: &NetNs, to: SocketAddr) -> io::Result<Answer> {
    exchange(&udp_socket(from, to))
}
