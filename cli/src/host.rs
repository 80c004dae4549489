//! The parts a cluster on this machine is made of: supervised tasks, nodes in namespaces of their own, the way from the
//! API server to them, and what it means that everything is ready.

use crate::args::UpArgs;
use crate::instance::Record;
use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use causeway_api::config::ClusterConfig;
use causeway_api::identity::{USER_DNS, USER_INGRESS, USER_PROXY, UserInfo};
use causeway_apiserver::{ApiServer, NodeDialer};
use causeway_dns::DnsConfig;
use causeway_kubelet::KubeletConfig;
use causeway_network::local::LocalNode;
use causeway_network::{BridgeConfig, BridgeNetwork, NetNs, NetNsRuntime, PodNetwork};
use causeway_proxy::ProxyConfig;
use causeway_runtime::daemon::ContainerdDaemon;
use causeway_runtime::{Containerd, ContainerdConfig, Runtime};
use causeway_services::ServicesConfig;
use k8s_openapi::api::core::v1::Node as NodeObject;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// A component that failed is started again after this, doubled up to [`RESTART_MAX`].
const RESTART_MIN: Duration = Duration::from_millis(500);
const RESTART_MAX: Duration = Duration::from_secs(30);
/// How long a cluster may take to become ready before we say what is missing.
const READY_PATIENCE: Duration = Duration::from_secs(120);

/// Reaches the nodes from their own segment.
pub struct LanDialer(pub NetNs);

#[async_trait]
impl NodeDialer for LanDialer {
    async fn dial(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        self.0.connect_tcp(addr).await
    }
}

/// Components that run until a token is cancelled.
pub struct Tasks {
    token: CancellationToken,
    set: JoinSet<()>,
    handle: Handle,
}

impl Tasks {
    /// Tasks on the calling runtime.
    pub fn new(token: CancellationToken) -> Self {
        Self::on(Handle::current(), token)
    }

    /// Tasks on another runtime.
    pub fn on(handle: Handle, token: CancellationToken) -> Self {
        Self { token, set: JoinSet::new(), handle }
    }

    /// What tells these tasks to end.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Runs once; an error is logged.
    pub fn spawn(&mut self, name: &'static str, work: impl Future<Output = Result<()>> + Send + 'static) {
        let token = self.token.clone();
        let work = async move {
            match work.await {
                Err(error) if !token.is_cancelled() => tracing::error!(component = name, "failed: {error:#}"),
                _ => {}
            }
        };
        self.set.spawn_on(work, &self.handle);
    }

    /// Runs again whenever it fails or panics, until told to end.
    pub fn supervise<F>(&mut self, name: &'static str, mut make: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let token = self.token.clone();
        let work = async move {
            let mut delay = RESTART_MIN;
            while !token.is_cancelled() {
                let outcome = tokio::spawn(make()).await;
                if token.is_cancelled() {
                    return;
                }
                match outcome {
                    Ok(Ok(())) => tracing::warn!(component = name, "ended by itself; starting it again"),
                    Ok(Err(error)) => tracing::error!(component = name, "failed: {error:#}; starting it again"),
                    Err(panic) => tracing::error!(component = name, %panic, "panicked; starting it again"),
                }
                tokio::select! {
                    () = token.cancelled() => return,
                    () = tokio::time::sleep(delay) => delay = (delay * 2).min(RESTART_MAX),
                }
            }
        };
        self.set.spawn_on(work, &self.handle);
    }

    /// Tells all to end and waits for them, up to `grace`.
    pub async fn stop(mut self, grace: Duration) {
        self.token.cancel();
        let all = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, all).await.is_err() {
            tracing::warn!("some components did not end in time");
        }
    }
}

/// A node: a namespace, a runtime whose threads live in it, and the node's components on that.
pub struct Node {
    runtime: NetNsRuntime,
    tasks: Tasks,
}

impl Node {
    /// Starts a node's components. `ingress` are the listeners towards the user, given to one node.
    #[expect(clippy::too_many_arguments, reason = "the wiring of a node: each is a different part of the cluster")]
    pub async fn start(
        args: &UpArgs,
        paths: &Paths,
        config: &ClusterConfig,
        api: &Arc<ApiServer>,
        containerd: &ContainerdDaemon,
        name: &str,
        local: LocalNode,
        ingress: Option<(TcpListener, TcpListener)>,
        stop: &CancellationToken,
    ) -> Result<Self> {
        let runtime = local.netns.runtime(name, 2).with_context(|| format!("entering the namespace of {name}"))?;
        let mut tasks = Tasks::on(runtime.handle(), stop.child_token());
        let containers = Containerd::connect(ContainerdConfig {
            insecure_registries: args.insecure_registries.clone(),
            node_network: Some(local.netns.path().to_owned()),
            // Registries are the machine's to reach; the node has no way out.
            pull_on: Some(Handle::current()),
            ..ContainerdConfig::new(containerd.socket(), containerd_namespace(name), paths.run.join(name))
        })
        .await?;
        kubelet(paths, config, api, name, &local, Arc::new(containers), &mut tasks)?;
        services(paths, config, api, name, &local, &mut tasks)?;
        dns(args, paths, config, api, name, &local, &mut tasks)?;
        if let Some((http, https)) = ingress {
            proxy(api, name, &local, http, https, &mut tasks)?;
        }
        tasks.supervise("node-routes", {
            let (api, token, name) = (api.clone(), tasks.token(), name.to_owned());
            move || {
                let config =
                    causeway_network::node_routes::NodeRoutesConfig { node_name: Some(name.clone()), netns: None };
                causeway_network::node_routes::run(api.client(UserInfo::node(&name)), config, token.clone())
            }
        });
        Ok(Self { runtime, tasks })
    }

    /// Ends the components, then the runtime.
    pub async fn stop(self, grace: Duration) {
        self.tasks.stop(grace).await;
        let runtime = self.runtime;
        drop(tokio::task::spawn_blocking(move || runtime.shutdown(Duration::from_secs(2))).await);
    }
}

/// The containerd namespace that holds a node's containers and images.
pub fn containerd_namespace(node: &str) -> String {
    format!("causeway-{node}")
}

fn listen(local: &LocalNode, port: u16, what: &str) -> Result<TcpListener> {
    let addr = SocketAddr::new(local.ip, port);
    let listener = local.netns.bind_tcp(addr).with_context(|| format!("listening on {addr} for {what}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn kubelet(
    paths: &Paths,
    config: &ClusterConfig,
    api: &Arc<ApiServer>,
    name: &str,
    local: &LocalNode,
    runtime: Arc<dyn Runtime>,
    tasks: &mut Tasks,
) -> Result<()> {
    let cert = api.pki().issue_server(&format!("system:node:{name}"), &[name.to_owned(), local.ip.to_string()])?;
    let ca = api.pki().ca_pem().to_owned();
    let dir = paths.node(name);
    let listener = listen(local, 10250, "the kubelet")?;
    let (api, token) = (api.clone(), tasks.token());
    let (name, ip, config) = (name.to_owned(), local.ip, config.clone());
    let (cgroup_parent, netns) = (format!("{}/{name}", paths.cgroup()), local.netns.path().to_owned());
    let prefix = format!("cw-{}-{name}", config.name);
    tasks.supervise("kubelet", move || {
        let listener = listener.try_clone();
        let (cert, ca, dir, config) = (cert.clone(), ca.clone(), dir.clone(), config.clone());
        let (name, cgroup_parent, netns) = (name.clone(), cgroup_parent.clone(), netns.clone());
        let (client, runtime, token) = (api.client(UserInfo::node(&name)), runtime.clone(), token.clone());
        let prefix = prefix.clone();
        async move {
            let bridge = (name.clone(), dir.join("network"), prefix);
            let kubelet = KubeletConfig {
                dns_ip: config.dns_ip,
                cluster: config,
                node_name: name,
                node_ips: vec![ip],
                node_netns: Some(netns),
                dir,
                cgroup_parent,
                labels: Default::default(),
                taints: Vec::new(),
                max_pods: 110,
                register: true,
                resolv_conf_upstream: None,
                server_listener: listener?,
                server_cert_pem: cert.cert_pem,
                server_key_pem: cert.key_pem,
                client_ca_pem: ca,
                capacity: None,
            };
            let network = move |cidrs| {
                let (name, state, prefix) = bridge;
                let opened = async move {
                    let network = BridgeNetwork::open(BridgeConfig::new(&name, cidrs, state, &prefix)).await?;
                    Ok(Arc::new(network) as Arc<dyn PodNetwork>)
                };
                Box::pin(opened) as futures::future::BoxFuture<'static, _>
            };
            Ok(causeway_kubelet::run(client, kubelet, runtime, network, token).await?)
        }
    });
    Ok(())
}

fn services(
    paths: &Paths,
    config: &ClusterConfig,
    api: &Arc<ApiServer>,
    name: &str,
    local: &LocalNode,
    tasks: &mut Tasks,
) -> Result<()> {
    let healthz = listen(local, 10256, "kube-proxy's health")?;
    let (api, token, name, ip, config) = (api.clone(), tasks.token(), name.to_owned(), local.ip, config.clone());
    let state_dir = paths.node(&name).join("services");
    tasks.supervise("kube-proxy", move || {
        let client = api.client(UserInfo::component(USER_PROXY, &[]));
        let (token, healthz) = (token.clone(), healthz.try_clone());
        let (node_name, cluster, state_dir) = (name.clone(), config.clone(), state_dir.clone());
        async move {
            let services = ServicesConfig {
                node_name,
                node_ips: vec![ip],
                cluster,
                state_dir,
                healthz_listener: Some(healthz?),
                registry: None,
                ready: None,
            };
            causeway_services::run(client, services, token).await
        }
    });
    Ok(())
}

fn dns(
    args: &UpArgs,
    paths: &Paths,
    config: &ClusterConfig,
    api: &Arc<ApiServer>,
    name: &str,
    local: &LocalNode,
    tasks: &mut Tasks,
) -> Result<()> {
    let addr = SocketAddr::new(local.ip, 53);
    let udp = local.netns.bind_udp(addr).with_context(|| format!("listening on {addr} for DNS"))?;
    udp.set_nonblocking(true)?;
    let tcp = listen(local, 53, "DNS")?;
    let upstreams = args.dns_upstreams.iter().map(|u| upstream(u)).collect::<Result<Vec<_>>>()?;
    let (api, token, name, ip, config) = (api.clone(), tasks.token(), name.to_owned(), local.ip, config.clone());
    let state_dir = paths.node(&name).join("dns");
    tasks.supervise("dns", move || {
        let client = api.client(UserInfo::component(USER_DNS, &[]));
        let sockets = udp.try_clone().and_then(|udp| Ok((udp, tcp.try_clone()?)));
        let (token, config, name) = (token.clone(), config.clone(), name.clone());
        let (upstreams, state_dir) = (upstreams.clone(), state_dir.clone());
        async move {
            let (udp, tcp) = sockets?;
            let dns = DnsConfig {
                cluster: config,
                node_name: name,
                node_ips: vec![ip],
                udp: vec![udp],
                tcp: vec![tcp],
                admin: None,
                upstreams,
                stub_domains: Default::default(),
                forward_on: None,
                publish: true,
                state_dir: Some(state_dir),
            };
            Ok(causeway_dns::run(client, dns, token).await?)
        }
    });
    Ok(())
}

fn upstream(text: &str) -> Result<SocketAddr> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(addr);
    }
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, 53)),
        Err(_) => bail!("--dns-upstream {text:?} is neither an address nor address:port"),
    }
}

fn proxy(
    api: &Arc<ApiServer>,
    name: &str,
    local: &LocalNode,
    http: TcpListener,
    https: TcpListener,
    tasks: &mut Tasks,
) -> Result<()> {
    // The user comes by 127.0.0.1; whoever is on the nodes' segment by the node's address.
    let (http_inside, https_inside) = (listen(local, 80, "the ingress")?, listen(local, 443, "the ingress")?);
    let (api, token, ip, name) = (api.clone(), tasks.token(), local.ip, name.to_owned());
    tasks.supervise("ingress", move || {
        let client = api.client(UserInfo::component(USER_INGRESS, &[]));
        let all = [&http, &http_inside, &https, &https_inside].map(TcpListener::try_clone);
        let (token, name) = (token.clone(), name.clone());
        async move {
            let [http, http_inside, https, https_inside] = all;
            let config = ProxyConfig {
                http: vec![http?, http_inside?],
                https: vec![https?, https_inside?],
                publish_addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST).to_string(), ip.to_string()],
                name_servers: vec![ip],
                node_name: Some(name),
                ..ProxyConfig::default()
            };
            Ok(causeway_proxy::run(client, config, token).await?)
        }
    });
    Ok(())
}

/// Cancels `stop` at SIGINT or SIGTERM; the handle ends then.
pub fn stop_on_signal(stop: CancellationToken) -> Result<JoinHandle<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stop.cancel();
    }))
}

/// Waits until every node is Ready, its DNS answers for the cluster, and the ingress takes connections.
pub async fn wait_ready(client: &kube::Client, record: &Record) -> Result<()> {
    let missing = async {
        loop {
            let missing = not_ready(client, record).await;
            if missing.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(READY_PATIENCE, missing).await.is_err() {
        let missing = not_ready(client, record).await.join("; ");
        bail!("the cluster is not ready after {} s: {missing}", READY_PATIENCE.as_secs());
    }
    Ok(())
}

/// What is not ready, in words.
pub async fn not_ready(client: &kube::Client, record: &Record) -> Vec<String> {
    let mut missing = Vec::new();
    let nodes: Api<NodeObject> = Api::all(client.clone());
    for name in &record.nodes {
        let conditions = match nodes.get_opt(name).await {
            Ok(node) => node.and_then(|n| n.status).and_then(|s| s.conditions).unwrap_or_default(),
            Err(error) => return vec![format!("the API does not answer: {error}")],
        };
        match conditions.iter().find(|c| c.type_ == "Ready") {
            Some(c) if c.status == "True" => {}
            Some(c) => missing.push(format!("node {name}: {}", c.message.as_deref().unwrap_or("not ready"))),
            None => missing.push(format!("node {name} has not registered")),
        }
    }
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "kube-system");
    let params = ListParams::default().labels("kubernetes.io/service-name=kube-dns");
    let serving: Vec<String> = match slices.list(&params).await {
        Ok(list) => {
            let endpoints = list.items.into_iter().flat_map(|s| s.endpoints);
            endpoints
                .filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true))
                .filter_map(|e| e.node_name)
                .collect()
        }
        Err(_) => Vec::new(),
    };
    missing.extend(record.nodes.iter().filter(|n| !serving.contains(n)).map(|n| format!("DNS on {n} is not ready")));
    if !ingress_answers(record.http_port).await {
        missing.push("the ingress does not answer yet".to_owned());
    }
    missing
}

/// Whether the ingress has its configuration: before that it accepts no connection, so no answer comes.
async fn ingress_answers(port: u16) -> bool {
    use http_body_util::Empty;
    let ask = async {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
        tokio::spawn(connection);
        let request = http::Request::get("/").header("host", "causeway.invalid").body(Empty::<bytes::Bytes>::new());
        sender.send_request(request.ok()?).await.ok()
    };
    matches!(tokio::time::timeout(Duration::from_secs(1), ask).await, Ok(Some(_)))
}
