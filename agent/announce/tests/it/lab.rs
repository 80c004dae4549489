//! A segment with nodes that announce, an API server on it, and eyes on the wire; all of it gone after the test.

use causeway_announce::{AnnounceConfig, run};
use causeway_api::balancer::Pool;
use causeway_api::config::ClusterConfig;
use causeway_api::identity::{USER_ANNOUNCE, USER_NODE, UserInfo};
use causeway_apiserver::{ApiServer, ApiServerConfig, DirectDialer};
use causeway_informers::Informers;
use causeway_network::NetNsRuntime;
use causeway_network::local::{Layout, LocalConfig, LocalNode, LocalSegment};
use causeway_store::{SledOptions, SledStore};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub struct Lab {
    name: String,
    _segment: LocalSegment,
    nodes: BTreeMap<String, LocalNode>,
    running: BTreeMap<String, (NetNsRuntime, CancellationToken)>,
    api: Arc<ApiServer>,
    pub services: Api<Service>,
    pub leases: Api<Lease>,
    slices: Api<EndpointSlice>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
    _clean: Clean,
}

/// Removes everything of a cluster's name when dropped, also after a panic.
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

pub fn pools() -> Vec<Pool> {
    serde_json::from_value(json!([{ "name": "p", "addresses": ["10.90.0.200-10.90.0.220", "fd00:90::/120"] }])).unwrap()
}

impl Lab {
    pub async fn new(nodes: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("a{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (dir, clean) = (tempfile::tempdir().unwrap(), Clean(name.clone()));
        let config = LocalConfig {
            cluster: name.clone(),
            node_cidrs: vec!["10.90.0.0/24".parse().unwrap()],
            layout: Layout::Shared,
            unreachable: vec!["10.96.0.0/12".parse().unwrap()],
            state_dir: dir.path().join("segment"),
        };
        let segment = LocalSegment::create(config).await.unwrap();
        let address = SocketAddr::new(segment.ip(), 6443);
        let config = ApiServerConfig {
            cluster: ClusterConfig::default(),
            pki_dir: dir.path().join("pki"),
            advertise: address,
            extra_sans: Vec::new(),
            kubelet_dialer: Arc::new(DirectDialer),
            settings: causeway_apiserver::Settings::default(),
        };
        let store = Arc::new(SledStore::open(&dir.path().join("store"), SledOptions::default()).unwrap());
        let api = Arc::new(ApiServer::start(config, store).await.unwrap());
        let listener = segment.lan().bind_tcp(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (serving, stop) = (api.clone(), CancellationToken::new());
        let token = stop.clone();
        tokio::spawn(async move { serving.serve(vec![listener], token).await });
        let admin = api.client(UserInfo::admin());
        let mut lab = Self {
            services: Api::namespaced(admin.clone(), "default"),
            leases: Api::namespaced(admin.clone(), "kube-system"),
            slices: Api::namespaced(admin.clone(), "default"),
            nodes: BTreeMap::new(),
            running: BTreeMap::new(),
            name,
            _segment: segment,
            api,
            stop,
            _dir: dir,
            _clean: clean,
        };
        let objects: Api<Node> = Api::all(admin);
        for node in nodes {
            lab.nodes.insert((*node).to_owned(), lab._segment.add_node(node).await.unwrap());
            let object = json!({ "metadata": { "name": node },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
            objects.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
            lab.start(node).await;
        }
        lab
    }

    /// The announcer of a node, on threads of its namespace, with a client that uses the node's own network.
    pub async fn start(&mut self, node: &str) {
        let local = &self.nodes[node];
        let runtime = local.netns.runtime(node, 2).unwrap();
        let server = format!("https://{}:6443", self._segment.ip());
        let text = self.api.kubeconfig(&server, "test", &UserInfo::component(USER_ANNOUNCE, &[])).unwrap();
        let config = AnnounceConfig { node_name: node.to_owned(), node_ip: local.ip, pools: pools() };
        let stop = CancellationToken::new();
        let token = stop.clone();
        let copies = self.api.client(UserInfo::component(USER_NODE, &[]));
        runtime.handle().spawn(async move {
            let copies = Informers::new(copies);
            let file = kube::config::Kubeconfig::from_yaml(&text).unwrap();
            let client = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap();
            let client = kube::Client::try_from(client).unwrap();
            run(client, copies, config, token).await.unwrap();
        });
        self.running.insert(node.to_owned(), (runtime, stop));
    }

    /// As a kill of the process: nothing is given up.
    pub async fn kill(&mut self, node: &str) {
        let (runtime, _) = self.running.remove(node).unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown(Duration::ZERO)).await.unwrap();
    }

    /// As a stop of the program.
    pub async fn stop(&mut self, node: &str) {
        let (runtime, stop) = self.running.remove(node).unwrap();
        stop.cancel();
        eventually("the addresses are given up", || async { self.on_link(node).is_empty().then_some(()) }).await;
        tokio::task::spawn_blocking(move || runtime.shutdown(Duration::from_secs(1))).await.unwrap();
    }

    pub async fn service(&self, name: &str, ips: &[&str], spec: Value) {
        let mut whole = json!({ "type": "LoadBalancer", "ports": [{ "port": 80 }] });
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let object = json!({ "metadata": { "name": name }, "spec": whole });
        self.services.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        let ingress: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip, "ipMode": "VIP" })).collect();
        let status = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
        self.services.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    }

    /// The Service has one ready endpoint, on this node.
    pub async fn endpoint(&self, service: &str, node: &str) {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": service, "labels": { "kubernetes.io/service-name": service } },
            "addressType": "IPv4", "ports": [{ "port": 80, "protocol": "TCP" }],
            "endpoints": [{ "addresses": ["10.244.0.9"], "nodeName": node, "conditions": { "ready": true } }],
        });
        self.slices.patch(service, &PatchParams::apply("test").force(), &Patch::Apply(&slice)).await.unwrap();
    }

    /// Lines of the API server's metrics about Leases: the labels, and the number.
    async fn metrics_of_leases(&self, name: &str) -> Vec<(String, u64)> {
        let request = kube::core::Request::new("").get("metrics", &kube::api::GetParams::default()).unwrap();
        let text = self.leases.clone().into_client().request_text(request).await.unwrap();
        let lines = text.lines().filter(|l| l.starts_with(name) && l.contains("resource=\"leases\""));
        lines.filter_map(|l| l.rsplit_once(' ')).map(|(labels, n)| (labels.to_owned(), n.parse().unwrap())).collect()
    }

    /// How many watches of Leases there are.
    pub async fn watches_of_leases(&self) -> u64 {
        self.metrics_of_leases("apiserver_longrunning_requests{").await.iter().map(|(_, n)| n).sum()
    }

    /// Requests for Leases so far, by verb.
    pub async fn requests_for_leases(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for (labels, n) in self.metrics_of_leases("apiserver_request_total{").await {
            let verb = labels.split("verb=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
            *all.entry(verb.to_owned()).or_default() += n;
        }
        all
    }

    fn netns(&self, node: &str) -> String {
        format!("cw-{}-{node}", self.name)
    }

    fn inside(&self, node: &str, command: &[&str]) -> (bool, String) {
        let output = Command::new("ip").args(["netns", "exec", &self.netns(node)]).args(command).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The addresses that a node announces, as the kernel has them.
    pub fn on_link(&self, node: &str) -> BTreeSet<String> {
        on_link(&self.netns(node))
    }

    /// The only node that announces the address, if there is exactly one.
    pub fn announcer(&self, ip: &str) -> Option<String> {
        let mut all = self.nodes.keys().filter(|n| self.on_link(n).contains(ip));
        all.next().filter(|_| all.next().is_none()).cloned()
    }

    pub async fn announced(&self, ip: &str) -> String {
        eventually(&format!("one node announces {ip}"), || async { self.announcer(ip) }).await
    }

    /// The hardware addresses that answer on the wire for an address.
    pub fn answering(&self, ip: &str) -> BTreeSet<String> {
        let command: &[&str] = match ip.contains(':') {
            true => &["ndisc6", "-q", "-m", "-n", "-r", "1", "-w", "500", ip, "lan0"],
            false => &["arping", "-b", "-c", "2", "-w", "2", "-I", "lan0", ip],
        };
        let (_, said) = self.inside("lan", command);
        let words = said.split(|c: char| c.is_whitespace() || c == '[' || c == ']');
        // All but the asker's own; arping and ndisc6 write them alike but for the case.
        words.filter(|w| w.len() == 17 && w.matches(':').count() == 5).map(str::to_lowercase).collect()
    }

    /// The hardware address of a node's uplink.
    pub fn mac(&self, node: &str) -> String {
        let (_, said) = self.inside(node, &["cat", "/sys/class/net/eth0/address"]);
        said.trim().to_owned()
    }

    /// What the segment believes, without asking.
    pub fn remembered(&self, ip: &str) -> Option<String> {
        let (_, said) = self.inside("lan", &["ip", "neigh", "show", ip]);
        let words: Vec<&str> = said.split_whitespace().collect();
        words.iter().position(|w| *w == "lladdr").map(|at| words[at + 1].to_owned())
    }

    /// One datagram, so that the segment learns who has the address.
    pub fn touch(&self, ip: &str) {
        self.inside("lan", &["ping", "-c", "1", "-W", "1", ip]);
    }

    pub fn link(&self, node: &str, state: &str) {
        assert!(self.inside(node, &["ip", "link", "set", "eth0", state]).0);
    }

    /// Takes away, or gives back, the node's way to the API server; its link stays.
    pub fn api_route(&self, node: &str, cut: bool) {
        let verb = if cut { "add" } else { "del" };
        let api = format!("{}/32", self._segment.ip());
        assert!(self.inside(node, &["ip", "route", verb, "blackhole", &api]).0);
    }

    /// Watches all nodes' links until the guard is dropped; then no address may ever have been on two of them.
    pub fn guard(&self) -> Guard {
        let (stop, names) =
            (Arc::new(AtomicBool::new(false)), self.nodes.keys().map(|n| self.netns(n)).collect::<Vec<_>>());
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            while !flag.load(Ordering::Relaxed) {
                // The second look counts: between two looks an address may have moved.
                let first: Vec<_> = names.iter().map(|n| on_link(n)).collect();
                let doubled = twice(&first);
                if !doubled.is_empty() {
                    let again = twice(&names.iter().map(|n| on_link(n)).collect::<Vec<_>>());
                    let both: Vec<_> = doubled.intersection(&again).collect();
                    assert!(both.is_empty(), "on two nodes at once: {both:?}");
                }
                rounds += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            rounds
        });
        Guard { stop, thread: Some(thread) }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
        let running: Vec<_> = std::mem::take(&mut self.running).into_values().collect();
        let ended =
            std::thread::spawn(move || running.into_iter().for_each(|(r, _)| r.shutdown(Duration::from_secs(1))));
        let _ = ended.join();
    }
}

pub struct Guard {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u32>>,
}

impl Guard {
    pub fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.thread.take().unwrap().join().unwrap() > 5, "it hardly looked");
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn twice(all: &[BTreeSet<String>]) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    all.iter().flatten().filter(|ip| !seen.insert((*ip).clone())).cloned().collect()
}

fn on_link(netns: &str) -> BTreeSet<String> {
    let output = Command::new("ip").args(["-n", netns, "-j", "address", "show", "dev", "eth0"]).output().unwrap();
    let links: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let all =
        links.as_array().into_iter().flatten().flat_map(|l| l["addr_info"].as_array().cloned().unwrap_or_default());
    // Nothing else on these nodes has addresses of this length.
    all.filter(|a| a["prefixlen"] == 32 || a["prefixlen"] == 128)
        .filter_map(|a| a["local"].as_str().map(str::to_owned))
        .collect()
}

/// Waits until something holds.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    for _ in 0..600 {
        if let Some(value) = check().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 30 s: {what}");
}
