//! A segment with two nodes under policies, and pods that answer, all of it gone after the test.

use causeway_network::{
    BridgeConfig, BridgeNetwork, NetNs, PodNetwork, PodRef,
    local::{LocalConfig, LocalNode, LocalSegment},
    routes::Routes,
};
use causeway_nft::family::Family;
use causeway_policy::{
    kernel::Kernel,
    model,
    plan::Planner,
    program::{Done, Program},
};
use serde_json::{Value, json};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// What is allowed has come by then, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// What has not come by then is denied.
const DENIED: Duration = Duration::from_millis(700);

/// Ports on which every pod serves TCP and UDP.
pub const PORTS: [u16; 3] = [8080, 8081, 8082];

pub const CIDRS: [[&str; 2]; 2] = [["10.244.1.0/24", "fd10:244:0:1::/64"], ["10.244.2.0/24", "fd10:244:0:2::/64"]];

pub struct Lab {
    name: String,
    pub segment: LocalSegment,
    pub nodes: [LocalNode; 2],
    nets: [BridgeNetwork; 2],
    pub programs: [(Program, Planner); 2],
    /// What planners are told; of namespaces, name and labels.
    namespaces: Vec<(String, Value)>,
    pods: Vec<Value>,
    policies: Vec<Value>,
    _dir: tempfile::TempDir,
}

/// A pod that serves.
#[derive(Debug, Clone)]
pub struct Pod {
    pub netns: NetNs,
    pub ips: Vec<IpAddr>,
    pub uid: String,
}

impl Pod {
    pub fn of(&self, family: Family) -> IpAddr {
        self.ips[usize::from(family == Family::V6)]
    }
}

/// Runs `ip`.
pub fn ip(arguments: &str) {
    let out = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(out.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Lab {
    pub async fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("n{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().unwrap();
        let config = LocalConfig {
            cluster: name.clone(),
            node_cidrs: vec!["10.90.0.0/24".parse().unwrap()],
            layout: causeway_network::local::Layout::Shared,
            unreachable: ["10.244.0.0/16", "10.96.0.0/12", "fd10:244::/48"].map(|r| r.parse().unwrap()).into(),
            state_dir: dir.path().join("segment"),
        };
        let clean = Clean(name.clone());
        let segment = LocalSegment::create(config).await.unwrap();
        let nodes = [segment.add_node("one").await.unwrap(), segment.add_node("two").await.unwrap()];
        ip(&format!("-n {} addr add fd10:90::1/64 dev lan0 nodad", segment.lan().name()));
        for (node, last) in nodes.iter().zip(["11", "12"]) {
            ip(&format!("-n {} addr add fd10:90::{last}/64 dev eth0 nodad", node.netns.name()));
        }
        let cidrs = CIDRS.map(|pair| pair.map(|c| c.parse().unwrap()));
        let open = |i: usize| {
            let prefix = format!("cw-{name}-{i}");
            let config = BridgeConfig::new(&prefix, cidrs[i].to_vec(), dir.path().join(i.to_string()), &prefix);
            let netns = nodes[i].netns.clone();
            async move { BridgeNetwork::open_in(config, &netns).await.unwrap() }
        };
        let nets = [open(0).await, open(1).await];
        let via = |i: usize| [nodes[i].ip, format!("fd10:90::1{}", i + 1).parse().unwrap()];
        let to = [0, 1].map(|i| cidrs[i].into_iter().zip(via(i)).collect::<Vec<_>>());
        Routes::inside(&nodes[0].netns).unwrap().sync(&to[1]).await.unwrap();
        Routes::inside(&nodes[1].netns).unwrap().sync(&to[0]).await.unwrap();
        Routes::inside(segment.lan()).unwrap().sync(&to.concat()).await.unwrap();
        let programs = [0, 1].map(|i| open_program(&nodes[i].netns, i));
        std::mem::forget(clean);
        let mut lab = Self {
            name,
            segment,
            nodes,
            nets,
            programs,
            namespaces: Vec::new(),
            pods: Vec::new(),
            policies: Vec::new(),
            _dir: dir,
        };
        for name in ["a", "b"] {
            lab.namespace(name, json!({"kubernetes.io/metadata.name": name}));
        }
        lab
    }

    /// A namespace's labels.
    pub fn namespace(&mut self, name: &str, labels: Value) {
        self.namespaces.retain(|(n, _)| n != name);
        self.namespaces.push((name.to_owned(), labels));
        self.tell();
    }

    /// A pod on node 0 or 1, in namespace `a` or `b`, known to the policies.
    pub async fn pod(&mut self, node: usize, namespace: &str, name: &str, labels: Value) -> Pod {
        self.pod_with_port(node, namespace, name, labels, 8080).await
    }

    /// One whose port `http` has a certain number.
    pub async fn pod_with_port(&mut self, node: usize, namespace: &str, name: &str, labels: Value, http: u16) -> Pod {
        let pod = self.unknown_pod(node, name).await;
        self.know(node, namespace, &pod, labels, http);
        pod
    }

    /// One that policies have not heard of.
    pub async fn unknown_pod(&self, node: usize, name: &str) -> Pod {
        let pod = PodRef { uid: name.into(), namespace: "any".into(), name: name.into() };
        let made = self.nets[node].set_up(&pod).await.unwrap();
        let netns = NetNs::open(&made.netns).unwrap();
        for ip in &made.ips {
            PORTS.iter().for_each(|port| serve(&netns, SocketAddr::new(*ip, *port)));
        }
        Pod { netns, ips: made.ips, uid: name.into() }
    }

    /// Tells the policies of a pod.
    pub fn know(&mut self, node: usize, namespace: &str, pod: &Pod, labels: Value, http: u16) {
        let ips: Vec<_> = pod.ips.iter().map(|ip| json!({"ip": ip})).collect();
        let object = json!({"metadata": {"name": pod.uid, "namespace": namespace, "uid": pod.uid, "labels": labels},
            "spec": {"nodeName": (["one", "two"][node]), "containers": [{"name": "c", "ports": [
                {"name": "http", "containerPort": http}]}]},
            "status": {"phase": "Running", "podIPs": ips}});
        self.pods.push(object);
        self.tell();
    }

    /// A policy in a namespace.
    pub fn policy(&mut self, namespace: &str, name: &str, spec: Value) {
        let is_other = |p: &Value| p["metadata"]["name"] != name || p["metadata"]["namespace"] != namespace;
        self.policies.retain(is_other);
        self.policies.push(json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec}));
        self.tell();
    }

    /// Takes all policies away.
    pub fn no_policies(&mut self) {
        let gone = std::mem::take(&mut self.policies);
        for (_, planner) in &mut self.programs {
            for p in &gone {
                let meta = |key: &str| p["metadata"][key].as_str().unwrap();
                planner.set_policy(meta("namespace"), meta("name"), None);
            }
        }
        self.sync();
    }

    /// Tells both nodes all there is, and programs it.
    fn tell(&mut self) -> [Done; 2] {
        for (_, planner) in &mut self.programs {
            for (name, labels) in &self.namespaces {
                planner.set_namespace(name, Some(serde_json::from_value(labels.clone()).unwrap()));
            }
            for p in &self.policies {
                let policy = serde_json::from_value(p.clone()).unwrap();
                let meta = |key: &str| p["metadata"][key].as_str().unwrap();
                planner.set_policy(meta("namespace"), meta("name"), Some(model::policy(&policy)));
            }
            for p in &self.pods {
                let pod = serde_json::from_value(p.clone()).unwrap();
                planner.set_pod(p["metadata"]["name"].as_str().unwrap(), Some(model::pod(&pod)));
            }
        }
        self.sync()
    }

    /// Programs what has changed on both nodes.
    pub fn sync(&mut self) -> [Done; 2] {
        self.programs.each_mut().map(|(program, planner)| program.sync(planner).unwrap())
    }

    /// As if the processes had ended and others begun.
    pub fn restart(&mut self) -> [Done; 2] {
        self.programs = [0, 1].map(|i| open_program(&self.nodes[i].netns, i));
        self.tell()
    }

    /// Runs `nft` on a node.
    pub fn nft(&self, node: usize, arguments: &str) -> String {
        let out = Command::new("ip")
            .args(["netns", "exec", self.nodes[node].netns.name(), "nft"])
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

fn open_program(netns: &NetNs, i: usize) -> (Program, Planner) {
    let kernel = netns.run(|| Kernel::open(vec![Family::V4, Family::V6])).unwrap().unwrap();
    let mut planner = Planner::new(["one", "two"][i]);
    planner.set_ranges(CIDRS[i].map(|c| c.parse().unwrap()).into());
    (Program::new(kernel), planner)
}

/// Answers everything.
fn serve(netns: &NetNs, addr: SocketAddr) {
    let tcp = netns.bind_tcp(addr).unwrap();
    let udp = netns.bind_udp(addr).unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { return };
            // An echo: a connection can be held open and used again.
            std::thread::spawn(move || {
                let mut buffer = [0; 100];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..length], peer);
        }
    });
}

/// How to talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Tcp,
    Udp,
    Ping,
}

/// One question: may they talk?
#[derive(Clone)]
pub struct Talk {
    from: NetNs,
    to: SocketAddr,
    by: By,
    allowed: bool,
    why: String,
}

impl Talk {
    pub fn new(from: &NetNs, to: IpAddr, port: u16, by: By, allowed: bool, why: &str) -> Self {
        Self { from: from.clone(), to: SocketAddr::new(to, port), by, allowed, why: why.to_owned() }
    }

    fn describe(&self) -> String {
        let wanted = if self.allowed { "allowed" } else { "denied" };
        format!("{}: {} to {} by {:?} should be {wanted}", self.why, self.from.name(), self.to, self.by)
    }

    /// Whether an answer comes in time.
    fn answered(&self) -> bool {
        let patience = if self.allowed { PATIENCE } else { DENIED };
        let begin = Instant::now();
        loop {
            let left = patience.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return false;
            }
            let try_for = left.min(Duration::from_secs(3)).max(Duration::from_millis(50));
            let done = match self.by {
                By::Tcp => connect(&self.from, self.to, try_for).and_then(|mut s| exchange(&mut s)).is_ok(),
                By::Udp => self.ask_by_udp(try_for).is_ok(),
                By::Ping => self.ping(try_for),
            };
            if done {
                return true;
            }
        }
    }

    fn ask_by_udp(&self, patience: Duration) -> io::Result<()> {
        let any = if self.to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = self.from.bind_udp(any.parse().unwrap())?;
        self.from.run(|| socket.connect(self.to))??;
        socket.set_read_timeout(Some(patience.min(Duration::from_millis(500))))?;
        socket.send(b"?")?;
        socket.recv(&mut [0; 10]).map(drop)
    }

    fn ping(&self, patience: Duration) -> bool {
        let seconds = format!("{:.1}", patience.as_secs_f64());
        let mut ping = Command::new("ip");
        ping.args(["netns", "exec", self.from.name(), "ping", "-c1", "-W", &seconds, &self.to.ip().to_string()]);
        ping.output().unwrap().status.success()
    }
}

/// Puts all questions at the same time.
pub fn expect(talks: &[Talk]) {
    std::thread::scope(|scope| {
        let all: Vec<_> = talks.iter().map(|t| (t, scope.spawn(|| t.answered()))).collect();
        let wrong: Vec<String> = all
            .into_iter()
            .filter_map(|(t, answer)| (answer.join().unwrap() != t.allowed).then(|| t.describe()))
            .collect();
        assert!(wrong.is_empty(), "otherwise than expected:\n{}", wrong.join("\n"));
    });
}

pub fn connect(from: &NetNs, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    from.run(|| TcpStream::connect_timeout(&to, patience))?
}

/// Sends something and waits until it comes back.
pub fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}
