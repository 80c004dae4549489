//! The ingress as it really runs: a client of a real API server, on a runtime that lives in a node's network namespace,
//! with listening sockets from the host's. Objects in; traffic, status and events out.

use crate::harness::*;
use causeway_api::config::ClusterConfig;
use causeway_api::identity::{USER_INGRESS, USER_NODE, UserInfo};
use causeway_apiserver::{ApiServer, ApiServerConfig, DirectDialer};
use causeway_informers::Informers;
use causeway_proxy::status::PROBLEMS_ANNOTATION;
use causeway_proxy::{Limits, ProxyConfig};
use causeway_store::{SledOptions, SledStore};
use k8s_openapi::api::core::v1::{Event, Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client as KubeClient, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The address pods have in the test's namespace; nothing else anywhere has it.
const POD_ADDRESS: [u8; 4] = [10, 244, 7, 1];

/// A runtime whose threads are in a network namespace of their own, which goes with them.
pub struct Node {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Node {
    pub async fn start() -> Self {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            sender.send(builder.worker_threads(2).enable_all().build().unwrap()).unwrap();
        });
        let node = Self { runtime: Some(receiver.await.unwrap()) };
        node.run(async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            handle.link().set(rtnetlink::LinkUnspec::new_with_index(1).up().build()).execute().await.unwrap();
            handle.address().add(1, POD_ADDRESS.into(), 32).execute().await.unwrap();
        })
        .await;
        node
    }

    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.spawn(work).await.unwrap()
    }

    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.as_ref().unwrap().spawn(work)
    }

    pub async fn backend(&self, name: &'static str) -> Backend {
        self.run(async move {
            Backend::start_on(name, std::net::TcpListener::bind(SocketAddr::from((POD_ADDRESS, 0))).unwrap())
        })
        .await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Cluster {
    node: Node,
    admin: KubeClient,
    http: SocketAddr,
    debug: SocketAddr,
    ready: watch::Receiver<bool>,
    shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    _server: ApiServer,
    _folder: tempfile::TempDir,
}

/// A real API server whose things are in `folder`.
pub async fn api_server(folder: &Path) -> ApiServer {
    let store = Arc::new(SledStore::open(&folder.join("store"), SledOptions::default()).unwrap());
    let config = ApiServerConfig {
        cluster: ClusterConfig::default(),
        pki_dir: folder.join("pki"),
        advertise: "127.0.0.1:6443".parse().unwrap(),
        extra_sans: Vec::new(),
        kubelet_dialer: Arc::new(DirectDialer),
        settings: causeway_apiserver::Settings::default(),
    };
    ApiServer::start(config, store).await.unwrap()
}

async fn cluster() -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let server = api_server(folder.path()).await;
    let (http, admin) = (listener(), listener());
    let (http_address, admin_address) = (http.local_addr().unwrap(), admin.local_addr().unwrap());
    let (ready_sender, ready) = watch::channel(false);
    let config = ProxyConfig {
        http: vec![http],
        admin: Some(admin),
        publish_addresses: vec!["127.0.0.1".to_owned(), "lb.example".to_owned()],
        ready: Some(ready_sender),
        ..ProxyConfig::default()
    };
    let shutdown = CancellationToken::new();
    let client = server.client(UserInfo::component(USER_INGRESS, &[]));
    let informers = Informers::new(server.client(UserInfo::component(USER_NODE, &[])));
    let node = Node::start().await;
    Cluster {
        admin: server.client(UserInfo::admin()),
        http: http_address,
        debug: admin_address,
        ready,
        running: node.spawn(causeway_proxy::run(client, informers, config, shutdown.clone())),
        node,
        shutdown,
        _server: server,
        _folder: folder,
    }
}

/// A kind of object that lives in a namespace.
pub trait Object:
    kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
    + serde::Serialize
    + DeserializeOwned
    + Clone
    + Debug
{
}

impl Object for Service {}
impl Object for Ingress {}
impl Object for EndpointSlice {}

/// Creates an object in namespace `t`.
pub async fn create<K: Object>(admin: &KubeClient, mut object: Value) {
    object["metadata"].as_object_mut().unwrap().remove("creationTimestamp");
    let object: K = serde_json::from_value(object).unwrap();
    Api::<K>::namespaced(admin.clone(), "t").create(&PostParams::default(), &object).await.unwrap();
}

impl Cluster {
    async fn create<K: Object>(&self, object: Value) {
        create::<K>(&self.admin, object).await;
    }

    async fn until<T>(&self, what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = check().await {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "never happened: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn answer(&self, host: &str) -> (u16, String) {
        let (status, body) = Client::connect(self.http).await.get(host, "/").await.unwrap();
        (status.as_u16(), body)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_become_traffic_status_and_events() {
    let mut c = cluster().await;
    tokio::time::timeout(PATIENCE, c.ready.wait_for(|r| *r)).await.unwrap().unwrap();
    assert_eq!(curl(&["-f", &format!("http://{}/readyz", c.debug)]).await, (true, "ok".to_owned()));
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "t"}})).unwrap();
    Api::<Namespace>::all(c.admin.clone()).create(&PostParams::default(), &namespace).await.unwrap();

    // Our class is there and is the default one.
    let classes = Api::<IngressClass>::all(c.admin.clone());
    let class = c.until("the IngressClass", async || classes.get_opt("causeway").await.unwrap()).await;
    assert_eq!(class.spec.unwrap().controller.as_deref(), Some("causeway.dev/ingress"));

    // Routes before endpoints, endpoints, traffic.
    assert_eq!(c.answer("h.localhost").await.0, 404);
    let (a, b) = (c.node.backend("a").await, c.node.backend("b").await);
    c.create::<Service>(service("s")).await;
    c.create::<Ingress>(ingress("old", &[("h.localhost", "/", "Prefix", "s", 80)])).await;
    c.until("503", async || (c.answer("h.localhost").await.0 == 503).then_some(())).await;
    c.create::<EndpointSlice>(slice("s", a.address)).await;
    c.until("200", async || (c.answer("h.localhost").await.0 == 200).then_some(())).await;

    // Another address for the service, then the first one goes.
    c.create::<EndpointSlice>(slice("s", b.address)).await;
    let first = format!("s-{}", a.address.port());
    Api::<EndpointSlice>::namespaced(c.admin.clone(), "t").delete(&first, &DeleteParams::default()).await.unwrap();
    c.until("b alone", async || {
        let mut all = true;
        for _ in 0..5 {
            all &= said(&c.answer("h.localhost").await.1)["backend"] == "b";
        }
        all.then_some(())
    })
    .await;

    // The status names our addresses.
    let ingresses = Api::<Ingress>::namespaced(c.admin.clone(), "t");
    let status =
        c.until("the status", async || ingresses.get("old").await.unwrap().status?.load_balancer?.ingress).await;
    assert_eq!(status[0].ip.as_deref(), Some("127.0.0.1"));
    assert_eq!(status[1].hostname.as_deref(), Some("lb.example"));

    // A second one for the same host and path is told so, by annotation and event, until it is mended.
    // Ages are whole seconds, and of the same age the name decides: "old" comes before "young".
    c.create::<Ingress>(ingress("young", &[("h.localhost", "/", "Prefix", "s", 81)])).await;
    let problem = c
        .until("the annotation", async || {
            ingresses.get("young").await.unwrap().annotations().get(PROBLEMS_ANNOTATION).cloned()
        })
        .await;
    assert!(problem.starts_with("Conflict: host h.localhost path / (Prefix) is served by Ingress t/old"), "{problem}");
    let events = Api::<Event>::namespaced(c.admin.clone(), "t");
    let event = c
        .until("the event", async || {
            let all = events.list(&ListParams::default()).await.unwrap();
            all.into_iter().find(|e| e.reason.as_deref() == Some("Conflict"))
        })
        .await;
    assert_eq!(event.involved_object.name.as_deref(), Some("young"));
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    let mend = json!([{"op": "replace", "path": "/spec/rules/0/host", "value": "young.localhost"}]);
    let mend: json_patch::Patch = serde_json::from_value(mend).unwrap();
    ingresses.patch("young", &PatchParams::default(), &Patch::<()>::Json(mend)).await.unwrap();
    c.until("the annotation's end", async || {
        (!ingresses.get("young").await.unwrap().annotations().contains_key(PROBLEMS_ANNOTATION)).then_some(())
    })
    .await;
    assert_eq!(c.answer("young.localhost").await.0, 200);

    // Somebody else's class is left alone.
    let mut other = ingress("other", &[("other.localhost", "/", "Prefix", "s", 80)]);
    other["spec"]["ingressClassName"] = json!("somebody-elses");
    c.create::<Ingress>(other).await;
    ingresses.delete("young", &DeleteParams::default()).await.unwrap();
    c.until("404", async || (c.answer("young.localhost").await.0 == 404).then_some(())).await;
    assert_eq!(c.answer("other.localhost").await.0, 404);
    assert_eq!(ingresses.get("other").await.unwrap().status.and_then(|s| s.load_balancer?.ingress), None);

    let (_, dump) = curl(&[&format!("http://{}/debug/routes", c.debug)]).await;
    assert!(dump.contains("\"h.localhost\"") && dump.contains(&b.address.to_string()), "{dump}");
    c.shutdown.cancel();
    tokio::time::timeout(PATIENCE, c.running).await.unwrap().unwrap().unwrap();
}

/// Without an API server: alive, not ready, and nothing is answered before there is a configuration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_served_before_the_first_configuration() {
    // Bound, but not listening: refuses connections, and no other test gets the port.
    let nobody = tokio::net::TcpSocket::new_v4().unwrap();
    nobody.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let config = kube::Config::new(format!("http://{}", nobody.local_addr().unwrap()).parse().unwrap());
    let client = KubeClient::try_from(config).unwrap();
    let (http, admin) = (listener(), listener());
    let (http_address, admin_address) = (http.local_addr().unwrap(), admin.local_addr().unwrap());
    let config =
        ProxyConfig { http: vec![http], admin: Some(admin), limits: Limits::default(), ..ProxyConfig::default() };
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(causeway_proxy::run(client.clone(), Informers::new(client), config, shutdown.clone()));
    assert!(curl(&["-f", &format!("http://{admin_address}/healthz")]).await.0);
    assert!(!curl(&["-f", &format!("http://{admin_address}/readyz")]).await.0);
    let (ok, _) = curl(&["--max-time", "1", &format!("http://{http_address}/")]).await;
    assert!(!ok, "answered without a configuration");
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
}
