//! A cluster without nodes' software: API server, controllers, and hands that play scheduler and kubelet.

use causeway_api::config::ClusterConfig;
use causeway_api::identity::{USER_CONTROLLER_MANAGER, USER_CONTROLLERS, UserInfo};
use causeway_apiserver::{ApiServer, ApiServerConfig, DirectDialer};
use causeway_controllers::ControllersConfig;
use causeway_informers::Informers;
use causeway_store::{SledOptions, SledStore};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub const CA: &str = "-----BEGIN CERTIFICATE-----\ntest\n-----END CERTIFICATE-----\n";

pub struct Cluster {
    pub client: Client,
    _api: ApiServer,
    _dir: TempDir,
    shutdown: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Cluster {
    pub async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, ClusterConfig::default()).await
    }

    pub async fn start_with(nodes: usize, cluster: ClusterConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SledStore::open(&dir.path().join("store"), SledOptions::default()).unwrap());
        let config = ApiServerConfig {
            cluster: cluster.clone(),
            pki_dir: dir.path().join("pki"),
            advertise: SocketAddr::from(([10, 90, 0, 1], 6443)),
            extra_sans: Vec::new(),
            kubelet_dialer: Arc::new(DirectDialer),
            settings: causeway_apiserver::Settings::default(),
        };
        let api = ApiServer::start(config, store).await.unwrap();
        let client = api.client(UserInfo::admin());
        let shutdown = CancellationToken::new();
        for i in 1..=nodes {
            add_node(&client, &format!("n{i}")).await;
        }
        let mut config = ControllersConfig::new(cluster, CA.to_owned(), PathBuf::from("/var/lib/causeway/volumes"));
        config.node_grace = Duration::from_secs(4);
        let controllers = api.client(UserInfo::component(USER_CONTROLLER_MANAGER, &[]));
        let informers = copies(&api);
        tokio::spawn(causeway_controllers::run(controllers, informers, config, shutdown.clone()));
        tokio::spawn(hands(client.clone(), shutdown.clone()));
        Self { client, _api: api, _dir: dir, shutdown }
    }

    /// A second set of controllers beside the first, as after a botched hand-over.
    pub async fn another(&self, cluster: ClusterConfig) {
        let config = ControllersConfig::new(cluster, CA.to_owned(), PathBuf::from("/var/lib/causeway/volumes"));
        let client = self._api.client(UserInfo::component(USER_CONTROLLER_MANAGER, &[]));
        tokio::spawn(causeway_controllers::run(client, copies(&self._api), config, self.shutdown.clone()));
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub fn all<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }

    pub async fn create<K>(&self, object: Value) -> K
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + serde::Serialize
            + Clone
            + std::fmt::Debug,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    pub async fn pods(&self, app: &str) -> Vec<Pod> {
        let list = self.api::<Pod>().list(&ListParams::default().labels(&format!("app={app}"))).await.unwrap();
        list.items
    }

    pub async fn ready(&self, app: &str) -> usize {
        self.pods(app).await.iter().filter(|p| causeway_api::pod::is_ready(p)).count()
    }

    pub async fn event_messages(&self, reason: &str) -> Vec<String> {
        let events = self.all::<Event>().list(&ListParams::default()).await.unwrap().items;
        let mut wanted: Vec<_> = events.into_iter().filter(|e| e.reason.as_deref() == Some(reason)).collect();
        wanted.sort_by_key(|e| e.metadata.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok()));
        wanted.into_iter().filter_map(|e| e.message).collect()
    }
}

async fn add_node(client: &Client, name: &str) {
    let node: Node = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
    }))
    .unwrap();
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&PostParams::default(), &node).await.unwrap();
    beat(client, name).await;
}

/// A sign of life of a node.
pub async fn beat(client: &Client, name: &str) {
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let patch = json!({ "status": { "conditions": [{
        "type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now,
    }]}});
    let nodes: Api<Node> = Api::all(client.clone());
    // Gone nodes do not beat.
    let _ = nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
}

/// Binds pods, reports them ready (unless the image says `broken`), and removes those that are deleted. Nodes beat,
/// unless they carry the label `silent`.
async fn hands(client: Client, shutdown: CancellationToken) {
    let heart = client.clone();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        while !stop.is_cancelled() {
            let nodes: Api<Node> = Api::all(heart.clone());
            for node in nodes.list(&ListParams::default()).await.map(|l| l.items).unwrap_or_default() {
                if !node.labels().contains_key("silent") {
                    beat(&heart, &node.name_any()).await;
                }
            }
            // A kubelet that comes back finishes what was asked of it meanwhile.
            let pods: Api<Pod> = Api::all(heart.clone());
            for pod in pods.list(&ListParams::default()).await.map(|l| l.items).unwrap_or_default() {
                if pod.metadata.deletion_timestamp.is_some() {
                    handle(heart.clone(), pod).await;
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let mut stream = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .applied_objects()
        .boxed();
    loop {
        let pod = tokio::select! {
            pod = stream.try_next() => pod,
            () = shutdown.cancelled() => return,
        };
        if let Ok(Some(pod)) = pod {
            tokio::spawn(handle(client.clone(), pod));
        }
    }
}

async fn handle(client: Client, pod: Pod) {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
    let name = pod.name_any();
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    if pod.metadata.deletion_timestamp.is_some() {
        let nodes: Api<Node> = Api::all(client.clone());
        let silent = match &node {
            Some(n) => nodes.get_opt(n).await.unwrap().is_none_or(|n| n.labels().contains_key("silent")),
            None => false,
        };
        if !silent {
            tokio::time::sleep(Duration::from_millis(30)).await;
            let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
        }
        return;
    }
    let Some(node) = node else {
        let target = pinned(&pod).unwrap_or_else(|| "n1".to_owned());
        select_claims(&client, &pod, &target).await;
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name },
            "target": { "apiVersion": "v1", "kind": "Node", "name": target },
        });
        let bound: Result<Value, _> = pods.create_subresource("binding", &name, &PostParams::default(), &binding).await;
        if let Err(error) = bound {
            tracing::debug!(%error, "not bound");
        }
        return;
    };
    let image = pod.spec.as_ref().and_then(|s| s.containers[0].image.clone()).unwrap_or_default();
    if causeway_api::pod::phase(&pod) == "Pending" && !image.contains("broken") && node != "nowhere" {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let ip = format!("10.244.{}.{}", n / 250, n % 250 + 1);
        let now = k8s_openapi::jiff::Timestamp::now().to_string();
        let patch = json!({ "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": now }],
        }});
        let _ = pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
    }
}

fn pinned(pod: &Pod) -> Option<String> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    terms.first()?.match_fields.as_ref()?.first()?.values.as_ref()?.first().cloned()
}

/// What the scheduler does for claims that wait for their first consumer.
async fn select_claims(client: &Client, pod: &Pod, node: &str) {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    for claim in volumes.filter_map(|v| v.persistent_volume_claim.as_ref()) {
        let patch = json!({ "metadata": { "annotations": { "volume.kubernetes.io/selected-node": node } } });
        let _ = claims.patch(&claim.claim_name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    }
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

pub fn template(app: &str, image: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": app } },
        "spec": { "containers": [{ "name": "c", "image": image, "ports": [{ "name": "http", "containerPort": 8080 }] }] },
    })
}

pub fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": template(name, image),
        },
    })
}

/// The copies that controllers read, under the name that they are read by.
fn copies(api: &ApiServer) -> Informers {
    Informers::new(api.client(UserInfo::component(USER_CONTROLLERS, &[])))
}
