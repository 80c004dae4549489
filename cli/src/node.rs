//! A node of a cluster on this machine: a network namespace, a runtime whose threads live in it, and the node's
//! components on that. In: the API server's clients, containerd, sockets. Out: components that run until told to stop.

use crate::args::UpArgs;
use crate::paths::Paths;
use crate::tasks::{Health, Tasks};
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use causeway_api::config::ClusterConfig;
use causeway_api::identity::{USER_DNS, USER_INGRESS, USER_PROXY, UserInfo};
use causeway_apiserver::{ApiServer, NodeDialer};
use causeway_dns::DnsConfig;
use causeway_kubelet::{KubeletConfig, NodeCapacity};
use causeway_network::local::LocalNode;
use causeway_network::{BridgeConfig, BridgeNetwork, NetNs, NetNsRuntime, PodNetwork};
use causeway_proxy::ProxyConfig;
use causeway_runtime::daemon::ContainerdDaemon;
use causeway_runtime::{Containerd, ContainerdConfig, Runtime};
use causeway_services::ServicesConfig;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// The kubelet's API.
pub const KUBELET_PORT: u16 = 10250;
/// kube-proxy's `/healthz` and `/metrics`.
pub const SERVICES_PORT: u16 = 10256;
/// `/ready` and `/metrics` of DNS, where CoreDNS has its metrics.
pub const DNS_ADMIN_PORT: u16 = 9153;
/// `/readyz`, `/metrics` and `/debug/routes` of the ingress.
pub const INGRESS_ADMIN_PORT: u16 = 10254;

/// Reaches the nodes from their own segment.
pub struct LanDialer(pub NetNs);

#[async_trait]
impl NodeDialer for LanDialer {
    async fn dial(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        self.0.connect_tcp(addr).await
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
        health: &Health,
    ) -> Result<Self> {
        let runtime = local.netns.runtime(name, 2).with_context(|| format!("entering the namespace of {name}"))?;
        let mut tasks = Tasks::of_node(name, runtime.handle(), stop.child_token(), health);
        let containers = Containerd::connect(ContainerdConfig {
            insecure_registries: args.insecure_registries.clone(),
            node_network: Some(local.netns.path().to_owned()),
            // Registries are the machine's to reach; the node has no way out.
            pull_on: Some(Handle::current()),
            ..ContainerdConfig::new(containerd.socket(), containerd_namespace(name), paths.run.join(name))
        })
        .await?;
        kubelet(args, paths, config, api, name, &local, Arc::new(containers), &mut tasks)?;
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

#[expect(clippy::too_many_arguments, reason = "the wiring of a kubelet: each is a different part of the cluster")]
fn kubelet(
    args: &UpArgs,
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
    let listener = listen(local, KUBELET_PORT, "the kubelet")?;
    let capacity = share(args.nodes)?;
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
                capacity,
            };
            let network = move |cidrs| {
                let (name, state, prefix) = bridge;
                let opened = async move {
                    let network = BridgeNetwork::open(BridgeConfig::new(&name, cidrs, state, &prefix)).await?;
                    Ok(Arc::new(network) as Arc<dyn PodNetwork>)
                };
                Box::pin(opened) as futures::future::BoxFuture<'static, _>
            };
            causeway_kubelet::run(client, kubelet, runtime, network, token).await
        }
    });
    Ok(())
}

/// A node's share of the machine; a single node has it all.
fn share(nodes: u8) -> Result<Option<NodeCapacity>> {
    if nodes == 1 {
        return Ok(None);
    }
    use procfs::Current;
    let nodes = u64::from(nodes);
    let cpus = std::thread::available_parallelism().context("counting CPUs")?.get() as u64;
    let memory = procfs::Meminfo::current().context("reading how much memory there is")?.mem_total;
    Ok(Some(NodeCapacity { cpu_milli: cpus * 1000 / nodes, memory_bytes: memory / nodes }))
}

fn services(
    paths: &Paths,
    config: &ClusterConfig,
    api: &Arc<ApiServer>,
    name: &str,
    local: &LocalNode,
    tasks: &mut Tasks,
) -> Result<()> {
    let healthz = listen(local, SERVICES_PORT, "kube-proxy's health")?;
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
    let admin = listen(local, DNS_ADMIN_PORT, "DNS' health")?;
    // Upstreams are the machine's to reach; the node has no way out.
    let forward_on = Handle::current();
    let upstreams = args.dns_upstreams.iter().map(|u| upstream(u)).collect::<Result<Vec<_>>>()?;
    let (api, token, name, ip, config) = (api.clone(), tasks.token(), name.to_owned(), local.ip, config.clone());
    let state_dir = paths.node(&name).join("dns");
    tasks.supervise("dns", move || {
        let client = api.client(UserInfo::component(USER_DNS, &[]));
        let sockets = udp.try_clone().and_then(|udp| Ok((udp, tcp.try_clone()?, admin.try_clone()?)));
        let (token, config, name) = (token.clone(), config.clone(), name.clone());
        let (upstreams, state_dir, forward_on) = (upstreams.clone(), state_dir.clone(), forward_on.clone());
        async move {
            let (udp, tcp, admin) = sockets?;
            let dns = DnsConfig {
                cluster: config,
                node_name: name,
                node_ips: vec![ip],
                udp: vec![udp],
                tcp: vec![tcp],
                admin: Some(admin),
                upstreams,
                stub_domains: Default::default(),
                forward_on: Some(forward_on),
                publish: true,
                state_dir: Some(state_dir),
            };
            causeway_dns::run(client, dns, token).await
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
    let admin = listen(local, INGRESS_ADMIN_PORT, "the ingress' health")?;
    let (api, token, ip, name) = (api.clone(), tasks.token(), local.ip, name.to_owned());
    tasks.supervise("ingress", move || {
        let client = api.client(UserInfo::component(USER_INGRESS, &[]));
        let all = [&http, &http_inside, &https, &https_inside, &admin].map(TcpListener::try_clone);
        let (token, name) = (token.clone(), name.clone());
        async move {
            let [http, http_inside, https, https_inside, admin] = all;
            let config = ProxyConfig {
                http: vec![http?, http_inside?],
                https: vec![https?, https_inside?],
                admin: Some(admin?),
                publish_addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST).to_string(), ip.to_string()],
                name_servers: vec![ip],
                node_name: Some(name),
                ..ProxyConfig::default()
            };
            causeway_proxy::run(client, config, token).await
        }
    });
    Ok(())
}
