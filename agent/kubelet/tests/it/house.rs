//! A cluster of one node per test: API server, containerd, node namespace, kubelet. Removed when the test ends, also
//! by panic.

use async_trait::async_trait;
use causeway_api::config::ClusterConfig;
use causeway_api::identity::UserInfo;
use causeway_apiserver::{ApiServer, ApiServerConfig, NodeDialer};
use causeway_informers::Informers;
use causeway_kubelet::KubeletConfig;
use causeway_network::local::{LocalConfig, LocalSegment};
use causeway_network::netns::{NetNs, NetNsRuntime};
use causeway_network::{BridgeConfig, BridgeNetwork, PodNetwork};
use causeway_runtime::daemon::ContainerdDaemon;
use causeway_runtime::oci_build::ImageBuilder;
use causeway_runtime::{Containerd, ContainerdConfig, Runtime};
use causeway_store::{SledOptions, SledStore};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, NodeCondition, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

pub const BUSYBOX: &str = "busybox:test";

struct LanDialer(NetNs);

#[async_trait]
impl NodeDialer for LanDialer {
    async fn dial(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        self.0.connect_tcp(addr).await
    }
}

pub struct House {
    pub name: String,
    pub client: Client,
    pub dir: tempfile::TempDir,
    pub runtime: Arc<Containerd>,
    api: Arc<ApiServer>,
    address: SocketAddr,
    serving: CancellationToken,
    segment: Option<LocalSegment>,
    netns: NetNs,
    ip: std::net::IpAddr,
    daemon: Option<ContainerdDaemon>,
    kubelet: Option<(CancellationToken, NetNsRuntime)>,
    /// How long the next kubelet's pod network takes to be made, and whether that succeeds.
    pub network: (Duration, bool),
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop_kubelet();
        self.serving.cancel();
        self.daemon = None;
        self.segment = None;
        let (dir, name) = (self.dir.path().to_path_buf(), self.name.clone());
        // Its own thread and runtime: the test's may be unwinding.
        let cleaned = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let containers = ContainerdDaemon::clean_up(&dir.join("containerd"), &name).await;
                let segment = LocalSegment::delete(&name).await;
                let mounts = causeway_kubelet::unmount_below(&dir);
                (containers, segment, mounts)
            })
        });
        match cleaned.join() {
            Ok((Ok(_), Ok(()), Ok(()))) => {}
            other => eprintln!("cleaning up {} failed: {other:?}", self.name),
        }
        causeway_runtime::cgroup::kill_and_remove(&format!("/causeway-{}", self.name));
    }
}

fn busybox_image(path: &Path) {
    let applets = [
        "sh", "cat", "echo", "sleep", "id", "ls", "env", "httpd", "nc", "touch", "rm", "test", "true", "wget", "head",
        "tail", "stty", "mkdir", "hostname", "kill", "dd",
    ];
    let mut image = ImageBuilder::new(BUSYBOX).binary_with_libraries("/bin/busybox");
    for applet in applets {
        image = image.symlink(format!("/bin/{applet}"), "busybox");
    }
    image
        .file("/etc/passwd", "root:x:0:0::/:/bin/sh\n", 0o644)
        .file("/etc/group", "root:x:0:\n", 0o644)
        .dir("/tmp", 0o1777)
        .cmd(["/bin/sh"])
        .env("GREETING", "hello")
        .write(path)
        .unwrap();
}

impl House {
    /// With a ready node `n1` and busybox loaded.
    pub async fn new() -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let name = format!("k{:08x}", rand::random::<u32>());
        let dir = tempfile::tempdir().unwrap();
        let cluster = ClusterConfig { name: name.clone(), ..ClusterConfig::default() };
        let segment = LocalSegment::create(LocalConfig {
            cluster: name.clone(),
            node_cidrs: vec!["10.90.0.0/24".parse().unwrap()],
            layout: causeway_network::local::Layout::Shared,
            unreachable: cluster.pod_cidrs.iter().chain(&cluster.service_cidrs).copied().collect(),
            state_dir: dir.path().join("segment"),
        })
        .await
        .unwrap();
        let node = segment.add_node("n1").await.unwrap();
        let store = Arc::new(SledStore::open(&dir.path().join("store"), SledOptions::default()).unwrap());
        let config = ApiServerConfig {
            cluster,
            pki_dir: dir.path().join("pki"),
            advertise: "10.90.0.1:6443".parse().unwrap(),
            extra_sans: Vec::new(),
            kubelet_dialer: Arc::new(LanDialer(segment.lan().clone())),
            settings: causeway_apiserver::Settings::default(),
        };
        let api = Arc::new(ApiServer::start(config, store).await.unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, serving) = (listener.local_addr().unwrap(), CancellationToken::new());
        let (server, stop) = (api.clone(), serving.clone());
        tokio::spawn(async move { server.serve(vec![listener], stop).await });
        let daemon = ContainerdDaemon::start(&dir.path().join("containerd"), &name).await.unwrap();
        let mut config = ContainerdConfig::new(daemon.socket(), "causeway-n1", dir.path().join("runtime"));
        config.node_network = Some(node.netns.path().to_owned());
        let runtime = Arc::new(Containerd::connect(config).await.unwrap());
        let archive = dir.path().join("busybox.tar");
        busybox_image(&archive);
        runtime.load_image(&archive).await.unwrap();
        let client = api.client(UserInfo::admin());
        let mut house = Self {
            name,
            client,
            dir,
            runtime,
            api,
            address,
            serving,
            segment: Some(segment),
            netns: node.netns,
            ip: node.ip,
            daemon: Some(daemon),
            kubelet: None,
            network: (Duration::ZERO, true),
        };
        house.furnish().await;
        house.start_kubelet();
        house.node_ready().await;
        house
    }

    /// What controllers would make.
    async fn furnish(&self) {
        let account: ServiceAccount = object(json!({"metadata": {"name": "default"}}));
        let _ = Api::namespaced(self.client.clone(), "default").create(&PostParams::default(), &account).await;
        let ca: ConfigMap =
            object(json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": self.api.pki().ca_pem()}}));
        let _ = Api::namespaced(self.client.clone(), "default").create(&PostParams::default(), &ca).await;
    }

    async fn node_ready(&self) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        eventually("the node registers", async || nodes.get_opt("n1").await.unwrap()).await;
        let cidr = json!({"spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]}});
        nodes.patch("n1", &PatchParams::default(), &Patch::Merge(&cidr)).await.unwrap();
        eventually("the node is ready", async || {
            let status = nodes.get("n1").await.unwrap().status?;
            status.conditions?.iter().any(|c| c.type_ == "Ready" && c.status == "True").then_some(())
        })
        .await;
    }

    /// The node's condition Ready.
    pub async fn node_is_ready(&self) -> NodeCondition {
        let node = Api::<Node>::all(self.client.clone()).get("n1").await.unwrap();
        let all = node.status.and_then(|s| s.conditions).unwrap_or_default();
        all.into_iter().find(|c| c.type_ == "Ready").expect("the node has said whether it is ready")
    }

    pub fn start_kubelet(&mut self) {
        let runtime = self.netns.runtime("kubelet", 2).unwrap();
        let server = self.api.pki().issue_server("system:node:n1", &[self.ip.to_string()]).unwrap();
        let config = KubeletConfig {
            cluster: ClusterConfig { name: self.name.clone(), ..ClusterConfig::default() },
            node_name: "n1".to_owned(),
            node_ips: vec![self.ip],
            node_netns: Some(self.netns.path().to_owned()),
            dir: self.dir.path().join("kubelet"),
            cgroup_parent: format!("/causeway-{}/n1", self.name),
            labels: BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]),
            taints: Vec::new(),
            max_pods: 110,
            register: true,
            dns_ip: "10.96.0.10".parse().unwrap(),
            resolv_conf_upstream: None,
            server_listener: self.netns.bind_tcp(SocketAddr::new(self.ip, 10250)).unwrap(),
            server_certificate: Arc::new(
                causeway_access::Identity::new(&server.cert_pem, &server.key_pem).expect("the kubelet's certificate"),
            ),
            client_ca_pem: self.api.pki().ca_pem().to_owned(),
            capacity: None,
        };
        let bridge = BridgeConfig {
            bridge: "cw0".to_owned(),
            ..BridgeConfig::new("n1", Vec::new(), self.dir.path().join("net"), &format!("cw-{}-n1-", self.name))
        };
        let shutdown = CancellationToken::new();
        let client = self.api.client(UserInfo::node("n1"));
        let (containers, stop) = (self.runtime.clone(), shutdown.clone());
        let netns = self.netns.clone();
        let (time, succeeds) = self.network;
        runtime.handle().spawn(async move {
            let network = move |cidrs| -> futures::future::BoxFuture<'static, anyhow::Result<Arc<dyn PodNetwork>>> {
                Box::pin(async move {
                    tokio::time::sleep(time).await;
                    anyhow::ensure!(succeeds, "no bridge today");
                    let config = BridgeConfig { pod_cidrs: cidrs, ..bridge };
                    Ok(Arc::new(BridgeNetwork::open_in(config, &netns).await?) as Arc<dyn PodNetwork>)
                })
            };
            let ended =
                causeway_kubelet::run(client.clone(), Informers::new(client), config, containers, network, stop).await;
            assert_eq!(ended.is_ok(), succeeds, "{ended:?}");
        });
        self.kubelet = Some((shutdown, runtime));
    }

    pub fn stop_kubelet(&mut self) {
        if let Some((shutdown, runtime)) = self.kubelet.take() {
            shutdown.cancel();
            std::thread::spawn(move || runtime.shutdown(Duration::from_secs(5))).join().unwrap();
        }
    }

    /// As an administrator would come, over TLS: exec needs a connection that can be upgraded.
    pub async fn remote_pods(&self) -> Api<Pod> {
        let text = self.api.kubeconfig(&format!("https://{}", self.address), &self.name, &UserInfo::admin()).unwrap();
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        Api::namespaced(Client::try_from(config).unwrap(), "default")
    }

    /// As the node would come in a cluster: all on one connection.
    pub fn node_over_tls(&self) -> Client {
        let url = format!("https://{}", self.address);
        let endpoint = causeway_access::Endpoint::new(&url, self.api.pki().ca_pem()).unwrap();
        // It may watch what no pod of the node names: here it is about room on its connection.
        let node = UserInfo::component("system:node:n1", &["system:masters"]);
        let issued = self.api.pki().issue_client(&node).unwrap();
        let identity = causeway_access::Identity::new(&issued.cert_pem, &issued.key_pem).unwrap();
        causeway_access::client(&endpoint, Some(Arc::new(identity))).unwrap()
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Creates a pod on the node; `spec` is completed with the node's name and busybox.
    pub async fn create(&self, name: &str, mut spec: Value) -> Pod {
        spec["nodeName"] = json!("n1");
        spec.as_object_mut().unwrap().entry("terminationGracePeriodSeconds").or_insert(json!(2));
        for key in ["containers", "initContainers"] {
            for c in spec.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
                c.as_object_mut().unwrap().entry("image").or_insert(json!(BUSYBOX));
                c.as_object_mut().unwrap().entry("name").or_insert(json!("c"));
            }
        }
        let pod: Pod = object(json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec}));
        self.pods().create(&PostParams::default(), &pod).await.unwrap()
    }

    /// Waits until a pod's status fits; the pod then.
    pub async fn until(&self, name: &str, what: &str, check: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..900 {
            let pod = serde_json::to_value(self.pods().get(name).await.unwrap()).unwrap();
            if check(&pod["status"]) {
                return pod;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let pod = serde_json::to_value(self.pods().get_opt(name).await.unwrap()).unwrap();
        let status = serde_json::to_string_pretty(&pod["status"]).unwrap();
        panic!("waited 45 s in vain until pod {name} {what}: {status}\nevents: {:#?}", self.events(name).await);
    }

    pub async fn until_ready(&self, name: &str) -> Value {
        self.until(name, "is ready", ready).await
    }

    pub async fn logs(&self, name: &str) -> String {
        self.pods().logs(name, &LogParams::default()).await.unwrap()
    }

    pub async fn until_logged(&self, name: &str, words: &str) {
        eventually(&format!("pod {name} logs {words:?}"), async || {
            self.pods().logs(name, &LogParams::default()).await.ok().filter(|l| l.contains(words))
        })
        .await;
    }

    pub async fn events(&self, name: &str) -> Vec<(String, String)> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let all = api.list(&ListParams::default()).await.unwrap();
        let own = all.items.into_iter().filter(|e| e.involved_object.name.as_deref() == Some(name));
        own.map(|e| (e.reason.unwrap_or_default(), e.message.unwrap_or_default())).collect()
    }

    pub async fn until_event(&self, name: &str, reason: &str, words: &str) {
        eventually(&format!("event {reason} {words:?} of {name}"), async || {
            self.events(name).await.into_iter().find(|(r, m)| r == reason && m.contains(words))
        })
        .await;
    }

    pub async fn delete(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default()).await.unwrap();
        eventually(&format!("pod {name} goes"), async || {
            self.pods().get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await;
    }

    /// Nothing of a pod is left on the node.
    pub async fn assert_gone(&self, uid: &str) {
        eventually("containers are removed", async || {
            self.runtime.containers().await.unwrap().is_empty().then_some(())
        })
        .await;
        // An ended pod leaves the API at once; the node follows.
        let kubelet = self.dir.path().join("kubelet");
        eventually("the pod's folders are removed", async || {
            let logs = std::fs::read_dir(kubelet.join("logs/pods")).into_iter().flatten().flatten();
            let left = logs.filter(|e| e.file_name().to_string_lossy().contains(uid)).count();
            (left == 0 && !kubelet.join("pods").join(uid).exists()).then_some(())
        })
        .await;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(uid), "mounts of the pod are left");
        eventually("the pod's cgroups are removed", async || {
            let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
            let parents = ["n1", "n1/burstable", "n1/besteffort"];
            let left =
                hierarchies.flat_map(|h| parents.map(|p| h.path().join(format!("causeway-{}", self.name)).join(p)));
            (!left.into_iter().any(|p| p.join(format!("pod{uid}")).exists())).then_some(())
        })
        .await;
    }
}

pub fn ready(status: &Value) -> bool {
    condition(status, "Ready") == "True"
}

pub fn condition(status: &Value, type_: &str) -> String {
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    all.iter().find(|c| c["type"] == type_).map(|c| c["status"].as_str().unwrap().to_owned()).unwrap_or_default()
}

pub fn uid(pod: &Pod) -> String {
    pod.uid().unwrap()
}

pub fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..900 {
        if let Some(value) = check().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("waited 45 s in vain until: {what}");
}
