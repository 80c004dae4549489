//! Our own API server with the Services and EndpointSlices that are measured; there is nothing else in the cluster.
//!
//! Whoever is measured speaks to it over TLS with a kubeconfig, ours and peers alike. Its store is in memory (`/dev/shm`),
//! so that a disk is not part of any figure.

use crate::lab::{self, API, NODE, NODE_IP};
use anyhow::{Context, Result};
use causeway_api::config::ClusterConfig;
use causeway_api::identity::UserInfo;
use causeway_apiserver::{ApiServer, ApiServerConfig, DirectDialer};
use causeway_network::NetNs;
use causeway_store::{SledOptions, SledStore, Store};
use futures::{StreamExt, TryStreamExt};
use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Services are spread over so many namespaces.
pub const NAMESPACES: u32 = 10;
/// Endpoints of each Service.
pub const ENDPOINTS: u32 = 10;
/// The Service whose only endpoint changes.
pub const FLIP: &str = "flip";
/// Its addresses: one that kube-proxy serves, and the headless one's name for DNS.
pub const FLIP_IP: Ipv4Addr = Ipv4Addr::new(10, 98, 255, 1);
/// The headless Service whose only endpoint changes.
pub const FLIP_HEADLESS: &str = "flip-headless";
/// So many creations are under way at once.
const AT_ONCE: usize = 64;

/// A running API server.
pub struct Cluster {
    /// Drives it, and clients of it.
    pub runtime: tokio::runtime::Runtime,
    /// Where it listens.
    pub netns: NetNs,
    /// The administrator's, without a socket.
    pub client: kube::Client,
    /// The administrator's, as a file.
    pub kubeconfig: PathBuf,
    /// Which of the Services have no address: every so manieth, for DNS.
    headless_every: Option<u32>,
    services: u32,
    _stop: DropGuard,
    // Last, so that it is still there when the rest ends.
    dir: TempDir,
}

/// The address of a Service by its number.
pub fn service_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 97, 0, 0)) + number)
}

/// Namespace and name of a Service by its number.
pub fn service_name(number: u32) -> (String, String) {
    (format!("bench-{}", number % NAMESPACES), format!("s{number:05}"))
}

/// Where its endpoints are. For kube-proxy packets must arrive there; for DNS every address is another pod's.
pub fn endpoint_ip(number: u32, endpoint: u32, all_different: bool) -> Ipv4Addr {
    let pod = number * ENDPOINTS + endpoint;
    if all_different { Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 0, 0)) + pod) } else { lab::pod(pod) }
}

impl Cluster {
    /// Starts it, with a node and the Services that change.
    pub fn start(headless_every: Option<u32>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let dir = tempfile::Builder::new().prefix("bench-net").tempdir_in("/dev/shm")?;
        let api = runtime.block_on(async {
            let store: Arc<dyn Store> = Arc::new(
                SledStore::open(&dir.path().join("store"), SledOptions::default()).context("opening a store")?,
            );
            let config = ApiServerConfig {
                cluster: config(),
                pki_dir: dir.path().join("pki"),
                advertise: API,
                extra_sans: Vec::new(),
                kubelet_dialer: Arc::new(DirectDialer),
                settings: causeway_apiserver::Settings::default(),
            };
            ApiServer::start(config, store).await
        })?;
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig(&format!("https://{API}"), "bench", &UserInfo::admin())?)?;
        let client = api.client(UserInfo::admin());
        let (netns, listener) = lab::api_namespace()?;
        let stop = CancellationToken::new();
        let until = stop.clone();
        // It stops for good with its sockets, so it has one and the same for all cases.
        runtime.spawn(async move {
            if let Err(error) = api.serve(vec![listener], until).await {
                eprintln!("bench-net: the API server ended: {error:#}");
            }
        });
        let this =
            Self { runtime, netns, client, kubeconfig, headless_every, services: 0, _stop: stop.drop_guard(), dir };
        this.runtime.block_on(this.basics())?;
        Ok(this)
    }

    /// A folder that goes when the cluster goes.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    async fn basics(&self) -> Result<()> {
        let post = PostParams::default();
        for number in 0..NAMESPACES {
            let namespace = json!({"metadata": {"name": format!("bench-{number}")}});
            Api::all(self.client.clone()).create(&post, &of::<Namespace>(namespace)?).await?;
        }
        let node = json!({
            "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}},
            "spec": {"podCIDR": "10.244.200.0/24", "podCIDRs": ["10.244.200.0/24"]},
        });
        let nodes = Api::<Node>::all(self.client.clone());
        nodes.create(&post, &of(node)?).await?;
        let status = json!({"status": {"addresses": [
            {"type": "InternalIP", "address": NODE_IP}, {"type": "Hostname", "address": NODE}]}});
        nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await?;
        for (name, ip, port) in [(FLIP, FLIP_IP.to_string(), 80), (FLIP_HEADLESS, "None".to_owned(), lab::NAMED_PORT)] {
            let spec =
                json!({"clusterIP": ip, "ports": [{"name": "http", "port": port, "targetPort": lab::NAMED_PORT}]});
            self.create(0, name, spec, json!([endpoint(lab::pod(0), "pod-0")]), lab::NAMED_PORT).await?;
        }
        Ok(())
    }

    /// Adds Services until there are so many.
    pub fn grow(&mut self, to: u32) -> Result<()> {
        let each = (self.services..to).map(|number| self.service(number));
        self.runtime.block_on(futures::stream::iter(each).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>())?;
        self.services = to;
        Ok(())
    }

    /// How many there are.
    pub fn services(&self) -> u32 {
        self.services
    }

    /// Whether a Service is a headless one.
    pub fn is_headless(&self, number: u32) -> bool {
        self.headless_every.is_some_and(|every| number.is_multiple_of(every))
    }

    async fn service(&self, number: u32) -> Result<()> {
        let (_, name) = service_name(number);
        let ip = if self.is_headless(number) { "None".to_owned() } else { service_ip(number).to_string() };
        let spec = json!({"clusterIP": ip, "ports": [{"name": "http", "port": 80, "targetPort": lab::PORT}]});
        let different = self.headless_every.is_some();
        let endpoints = (0..ENDPOINTS).map(|e| endpoint(endpoint_ip(number, e, different), &format!("{name}-{e}")));
        self.create(number % NAMESPACES, &name, spec, endpoints.collect(), lab::PORT).await
    }

    async fn create(&self, namespace: u32, name: &str, spec: Value, endpoints: Value, port: u16) -> Result<()> {
        let namespace = format!("bench-{namespace}");
        let service = of::<Service>(json!({"metadata": {"name": name}, "spec": spec}))?;
        let slice = of::<EndpointSlice>(json!({
            "metadata": {"name": format!("{name}-x"), "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": port, "protocol": "TCP"}], "endpoints": endpoints,
        }))?;
        let post = PostParams::default();
        let client = || self.client.clone();
        Api::namespaced(client(), &namespace)
            .create(&post, &service)
            .await
            .with_context(|| format!("Service {name}"))?;
        Api::namespaced(client(), &namespace)
            .create(&post, &slice)
            .await
            .with_context(|| format!("slice of {name}"))?;
        Ok(())
    }

    /// Gives the changing Services their endpoint.
    pub async fn flip(&self, service: &str, to: Ipv4Addr) -> Result<()> {
        self.set_endpoints("bench-0", service, json!([endpoint(to, "pod-0")])).await
    }

    /// Replaces one of a Service's ten endpoints by another pod, a different one in every round.
    pub async fn change(&self, number: u32, round: u32) -> Result<()> {
        let (namespace, name) = service_name(number);
        let different = self.headless_every.is_some();
        let endpoints = (0..ENDPOINTS).map(|e| {
            let ip = if e == 0 { lab::pod(20_000 + round) } else { endpoint_ip(number, e, different) };
            endpoint(ip, &format!("{name}-{e}"))
        });
        self.set_endpoints(&namespace, &name, endpoints.collect()).await
    }

    async fn set_endpoints(&self, namespace: &str, name: &str, endpoints: Value) -> Result<()> {
        let slices = Api::<EndpointSlice>::namespaced(self.client.clone(), namespace);
        let patch = Patch::Merge(json!({"endpoints": endpoints}));
        slices.patch(&format!("{name}-x"), &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(NetNs::delete(self.netns.name()));
    }
}

/// The cluster's ranges: the default ones, but for room for a hundred thousand pods.
pub fn config() -> ClusterConfig {
    let pods = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 15));
    ClusterConfig { pod_cidrs: vec![pods], ..ClusterConfig::default() }
}

fn endpoint(ip: Ipv4Addr, pod: &str) -> Value {
    json!({"addresses": [ip], "nodeName": "node-2", "conditions": {"ready": true, "serving": true, "terminating": false},
        "targetRef": {"kind": "Pod", "name": pod}})
}

fn of<K: serde::de::DeserializeOwned>(value: Value) -> Result<K> {
    Ok(serde_json::from_value(value)?)
}
