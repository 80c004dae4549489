//! A node: a network namespace (its own, or the machine's), a runtime whose threads live in it, and the node's
//! components on that. In: [`NodeConfig`], values only. Out: components that run until told to stop, and that know of the
//! cluster what the API tells them over HTTPS.

use crate::clients::Clients;
use crate::tasks::{Health, Tasks};
use anyhow::{Context, Result};
use causeway_access::Identity;
use causeway_announce::AnnounceConfig;
use causeway_api::config::ClusterConfig;
use causeway_api::identity::{USER_ANNOUNCE, USER_DNS, USER_INGRESS, USER_NODE, USER_POLICY};
use causeway_dns::DnsConfig;
use causeway_handover::Sockets;
use causeway_informers::Informers;
use causeway_kubelet::{KubeletConfig, NodeCapacity};
use causeway_network::{BridgeConfig, BridgeNetwork, NetNs, NetNsRuntime, PodNetwork, vxlan};
use causeway_policy::{Gate, PolicyConfig};
use causeway_proxy::ProxyConfig;
use causeway_runtime::{Containerd, ContainerdConfig, Runtime};
use causeway_services::ServicesConfig;
use k8s_openapi::api::core::v1::Taint;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// The kubelet's API.
pub const KUBELET_PORT: u16 = 10250;
/// kube-proxy's `/healthz` and `/metrics`.
pub const SERVICES_PORT: u16 = 10256;
/// `/ready` and `/metrics` of DNS, where CoreDNS has its metrics.
pub const DNS_ADMIN_PORT: u16 = 9153;
/// `/healthz` and `/metrics` of network policies.
pub const POLICY_PORT: u16 = 9091;
/// `/readyz`, `/metrics` and `/debug/routes` of the ingress.
pub const INGRESS_ADMIN_PORT: u16 = 10254;

/// What a node is started from.
pub struct NodeConfig {
    /// `metadata.name`.
    pub name: String,
    /// Ranges and names of the cluster.
    pub cluster: ClusterConfig,
    /// The node's addresses, the primary first.
    pub ips: Vec<IpAddr>,
    /// The namespace in which its components run.
    pub netns: NetNs,
    /// That namespace's file, for containers with `hostNetwork`; `None` when the node is the machine itself.
    pub netns_path: Option<PathBuf>,
    /// What must last: pods, volumes, given addresses, last states.
    pub dir: PathBuf,
    /// Pipes of containers; goes with a reboot.
    pub run_dir: PathBuf,
    /// containerd's socket.
    pub containerd: PathBuf,
    /// The cgroup above all its pods.
    pub cgroup_parent: String,
    /// Pods' namespaces are named so, and a hash.
    pub netns_prefix: String,
    /// Its share of the machine; `None`: all of it.
    pub capacity: Option<NodeCapacity>,
    /// Labels given at registration.
    pub labels: BTreeMap<String, String>,
    /// Taints given at the first registration.
    pub taints: Vec<Taint>,
    /// Who its components are.
    pub clients: Clients,
    /// The kubelet's certificate as a server.
    pub serving: Arc<Identity>,
    /// Registries that are spoken to over plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Servers for names outside the cluster.
    pub dns_upstreams: Vec<String>,
    /// The runtime on which registries and upstreams are asked: the machine's, where a node has no way out.
    pub outside: Handle,
    /// What the ingress listens on, for the node that has it.
    pub ingress: Option<Ingress>,
    /// Sockets that the next program takes over.
    pub sockets: Arc<Sockets>,
}

/// Where the ingress of a node is reached.
pub struct Ingress {
    /// Listeners for HTTP.
    pub http: Vec<TcpListener>,
    /// Listeners for HTTPS.
    pub https: Vec<TcpListener>,
    /// The ports (HTTP, HTTPS) by which clients know it.
    pub public_ports: (u16, u16),
    /// What `status.loadBalancer` of every Ingress says.
    pub addresses: Vec<IpAddr>,
}

/// A node's running components, and the runtime they are on.
pub struct Node {
    name: String,
    runtime: NetNsRuntime,
    tasks: Tasks,
    /// What has requests under way, which have time to end before all else does.
    front: Tasks,
    sockets: Arc<Sockets>,
}

impl Node {
    /// Starts a node's components.
    pub async fn start(mut config: NodeConfig, stop: &CancellationToken, health: &Health) -> Result<Self> {
        let name = config.name.clone();
        let runtime = config.netns.runtime(&name, 2).with_context(|| format!("entering the namespace of {name}"))?;
        let mut tasks = Tasks::of_node(&name, runtime.handle(), stop.child_token(), health);
        let mut front = Tasks::of_node(&name, runtime.handle(), stop.child_token(), health);
        let containers = Containerd::connect(ContainerdConfig {
            insecure_registries: config.insecure_registries.clone(),
            node_network: config.netns_path.clone(),
            pull_on: Some(config.outside.clone()),
            record_dir: Some(config.dir.join("containers")),
            ..ContainerdConfig::new(&config.containerd, containerd_namespace(&name), &config.run_dir)
        })
        .await?;
        let ingress = config.ingress.take();
        let config = Arc::new(config);
        let informers = {
            let _inside = runtime.handle().enter();
            Informers::new(config.clients.client(USER_NODE)?)
        };
        // Before the kubelet: a pod starts when its policies are in force.
        let gate = Gate::default();
        network_policy(&config, &informers, &gate, &mut tasks)?;
        kubelet(&config, &informers, Arc::new(containers), &gate, &mut tasks)?;
        services(&config, &informers, &mut tasks)?;
        announce(&config, &informers, &mut tasks)?;
        dns(&config, &informers, &mut tasks)?;
        if let Some(ingress) = ingress {
            proxy(&config, &informers, ingress, &mut front)?;
        }
        node_routes(&config, &informers, &mut tasks);
        Ok(Self { name, runtime, tasks, front, sockets: config.sockets.clone() })
    }

    /// Ends what serves requests, and waits for those under way; its sockets stay open for the next program. Then ends
    /// the rest in the middle of what it is doing: rules and containers stay, and the next program adopts them.
    pub async fn hand_over(self, grace: Duration) {
        self.front.stop(grace).await;
        break_off(self.runtime, self.tasks).await;
    }

    /// Ends everything in the middle of what it is doing. Nobody is told to stop, so nobody says good-bye.
    pub async fn kill(self) {
        self.sockets.forget(&socket_name(&self.name, ""));
        drop(self.front);
        break_off(self.runtime, self.tasks).await;
    }

    /// Ends the components, then the runtime.
    pub async fn stop(self, grace: Duration) {
        self.sockets.forget(&socket_name(&self.name, ""));
        tokio::join!(self.front.stop(grace), self.tasks.stop(grace));
        let runtime = self.runtime;
        drop(tokio::task::spawn_blocking(move || runtime.shutdown(Duration::from_secs(2))).await);
    }
}

impl NodeConfig {
    /// Listens on a port of the node, or takes over the socket that the program before this one had there.
    pub fn listen(&self, ip: IpAddr, port: u16, what: &str) -> Result<TcpListener> {
        let addr = SocketAddr::new(ip, port);
        let bind = || self.netns.bind_tcp(addr).with_context(|| format!("listening on {addr} for {what}"));
        let listener = self.sockets.tcp(&socket_name(&self.name, &addr.to_string()), bind)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    fn primary(&self) -> Result<IpAddr> {
        self.ips.first().copied().with_context(|| format!("node {} has no address", self.name))
    }
}

/// Ends tasks and their runtime in the middle of what they do.
async fn break_off(runtime: NetNsRuntime, tasks: Tasks) {
    drop(tasks);
    drop(tokio::task::spawn_blocking(move || runtime.shutdown(Duration::from_millis(500))).await);
}

/// What a node's socket is called when it is handed on.
fn socket_name(node: &str, address: &str) -> String {
    format!("{node} {address}")
}

/// The containerd namespace that holds a node's containers and images.
pub fn containerd_namespace(node: &str) -> String {
    format!("causeway-{node}")
}

fn kubelet(
    config: &Arc<NodeConfig>,
    informers: &Informers,
    runtime: Arc<dyn Runtime>,
    gate: &Gate,
    tasks: &mut Tasks,
) -> Result<()> {
    let listener = config.listen(config.primary()?, KUBELET_PORT, "the kubelet")?;
    let (config, informers, gate, token) = (config.clone(), informers.clone(), gate.clone(), tasks.token());
    tasks.supervise("kubelet", move || {
        let listener = listener.try_clone();
        let (config, runtime, gate, token) = (config.clone(), runtime.clone(), gate.clone(), token.clone());
        let informers = informers.clone();
        async move {
            let kubelet = KubeletConfig {
                dns_ip: config.cluster.dns_ip,
                cluster: config.cluster.clone(),
                node_name: config.name.clone(),
                node_ips: config.ips.clone(),
                node_netns: config.netns_path.clone(),
                dir: config.dir.clone(),
                cgroup_parent: config.cgroup_parent.clone(),
                labels: config.labels.clone(),
                taints: config.taints.clone(),
                max_pods: 110,
                register: true,
                resolv_conf_upstream: None,
                server_listener: listener?,
                server_certificate: config.serving.clone(),
                client_ca_pem: config.clients.endpoint.ca_pem.clone(),
                capacity: config.capacity,
            };
            let client = config.clients.kubelet()?;
            let network = move |cidrs| {
                let opened = async move {
                    let state = config.dir.join("network");
                    let mtu = vxlan::pod_mtu(&config.cluster.pod_network, config.primary()?).await?;
                    let bridge = BridgeConfig::new(&config.name, cidrs, state, &config.netns_prefix);
                    let bridge = BridgeConfig { mtu, ..bridge };
                    let network = gate.around(Arc::new(BridgeNetwork::open(bridge).await?));
                    Ok(Arc::new(network) as Arc<dyn PodNetwork>)
                };
                Box::pin(opened) as futures::future::BoxFuture<'static, _>
            };
            causeway_kubelet::run(client, informers, kubelet, runtime, network, token).await
        }
    });
    Ok(())
}

fn network_policy(config: &Arc<NodeConfig>, informers: &Informers, gate: &Gate, tasks: &mut Tasks) -> Result<()> {
    let admin = config.listen(config.primary()?, POLICY_PORT, "the health of network policies")?;
    let (config, informers, gate, token) = (config.clone(), informers.clone(), gate.clone(), tasks.token());
    tasks.supervise("network-policy", move || {
        let (config, gate, token, admin) = (config.clone(), gate.clone(), token.clone(), admin.try_clone());
        let informers = informers.clone();
        async move {
            let policy = PolicyConfig {
                node_name: config.name.clone(),
                cluster: config.cluster.clone(),
                gate,
                admin: Some(admin?),
                ready: None,
            };
            causeway_policy::run(config.clients.client(USER_POLICY)?, informers, policy, token).await
        }
    });
    Ok(())
}

fn services(config: &Arc<NodeConfig>, informers: &Informers, tasks: &mut Tasks) -> Result<()> {
    let healthz = config.listen(config.primary()?, SERVICES_PORT, "kube-proxy's health")?;
    let (config, informers, token) = (config.clone(), informers.clone(), tasks.token());
    tasks.supervise("kube-proxy", move || {
        let (config, token, healthz) = (config.clone(), token.clone(), healthz.try_clone());
        let informers = informers.clone();
        async move {
            let services = ServicesConfig {
                node_name: config.name.clone(),
                node_ips: config.ips.clone(),
                cluster: config.cluster.clone(),
                state_dir: config.dir.join("services"),
                healthz_listener: Some(healthz?),
                registry: None,
                ready: None,
            };
            causeway_services::run(informers, services, token).await
        }
    });
    Ok(())
}

fn announce(config: &Arc<NodeConfig>, informers: &Informers, tasks: &mut Tasks) -> Result<()> {
    let (node_ip, config, token) = (config.primary()?, config.clone(), tasks.token());
    let informers = informers.clone();
    tasks.supervise("announce", move || {
        let (config, informers, token) = (config.clone(), informers.clone(), token.clone());
        let pools = config.cluster.pools().to_vec();
        let announce = AnnounceConfig { node_name: config.name.clone(), node_ip, pools };
        async move { causeway_announce::run(config.clients.client(USER_ANNOUNCE)?, informers, announce, token).await }
    });
    Ok(())
}

fn dns(config: &Arc<NodeConfig>, informers: &Informers, tasks: &mut Tasks) -> Result<()> {
    let (mut udp, mut tcp) = (Vec::new(), Vec::new());
    for ip in &config.ips {
        let addr = SocketAddr::new(*ip, 53);
        let bind = || config.netns.bind_udp(addr).with_context(|| format!("listening on {addr} for DNS"));
        let socket = config.sockets.udp(&socket_name(&config.name, &addr.to_string()), bind)?;
        socket.set_nonblocking(true)?;
        udp.push(socket);
        tcp.push(config.listen(*ip, 53, "DNS")?);
    }
    let admin = config.listen(config.primary()?, DNS_ADMIN_PORT, "DNS' health")?;
    let mut cluster = config.cluster.clone();
    cluster.dns.upstreams.extend(config.dns_upstreams.iter().cloned());
    causeway_dns::check(&cluster.dns).map_err(anyhow::Error::msg).context("reading the settings of DNS")?;
    let (config, informers, token) = (config.clone(), informers.clone(), tasks.token());
    tasks.supervise("dns", move || {
        let udp = udp.iter().map(std::net::UdpSocket::try_clone).collect::<std::io::Result<Vec<_>>>();
        let tcp = tcp.iter().map(TcpListener::try_clone).collect::<std::io::Result<Vec<_>>>();
        let (config, token, admin, cluster) = (config.clone(), token.clone(), admin.try_clone(), cluster.clone());
        let informers = informers.clone();
        async move {
            let dns = DnsConfig {
                cluster,
                node_name: config.name.clone(),
                node_ips: config.ips.clone(),
                udp: udp?,
                tcp: tcp?,
                admin: Some(admin?),
                forward_on: Some(config.outside.clone()),
                publish: true,
                state_dir: Some(config.dir.join("dns")),
            };
            causeway_dns::run(config.clients.client(USER_DNS)?, informers, dns, token).await
        }
    });
    Ok(())
}

/// Servers for names outside the cluster, as given on the command line.
pub fn upstreams(texts: &[String]) -> Result<Vec<String>> {
    for text in texts {
        causeway_dns::upstream::Address::parse(text).map_err(anyhow::Error::msg).context("--dns-upstream")?;
    }
    Ok(texts.to_vec())
}

fn proxy(config: &Arc<NodeConfig>, informers: &Informers, ingress: Ingress, tasks: &mut Tasks) -> Result<()> {
    let ip = config.primary()?;
    let admin = config.listen(ip, INGRESS_ADMIN_PORT, "the ingress' health")?;
    let (config, informers, token) = (config.clone(), informers.clone(), tasks.token());
    tasks.supervise("ingress", move || {
        let copies = |all: &[TcpListener]| all.iter().map(TcpListener::try_clone).collect::<std::io::Result<Vec<_>>>();
        let (http, https, admin) = (copies(&ingress.http), copies(&ingress.https), admin.try_clone());
        let (config, informers, token) = (config.clone(), informers.clone(), token.clone());
        let (public_ports, addresses) = (Some(ingress.public_ports), ingress.addresses.clone());
        async move {
            let proxy = ProxyConfig {
                limits: causeway_proxy::Limits { public_ports, ..causeway_proxy::Limits::of(&config.cluster.ingress) },
                http: http?,
                https: https?,
                admin: Some(admin?),
                publish_addresses: addresses.iter().map(IpAddr::to_string).collect(),
                name_servers: vec![ip],
                gateway_address: Some(ip),
                node_name: Some(config.name.clone()),
                sockets: config.sockets.clone(),
                acme: config.cluster.ingress.acme.clone().map(|acme| (acme, config.outside.clone())),
                ..ProxyConfig::default()
            };
            causeway_proxy::run(config.clients.client(USER_INGRESS)?, informers, proxy, token).await
        }
    });
    Ok(())
}

fn node_routes(config: &Arc<NodeConfig>, informers: &Informers, tasks: &mut Tasks) {
    let (config, informers, token) = (config.clone(), informers.clone(), tasks.token());
    tasks.supervise("node-routes", move || {
        let (config, informers, token) = (config.clone(), informers.clone(), token.clone());
        async move {
            let routes = causeway_network::node_routes::NodeRoutesConfig {
                node_name: Some(config.name.clone()),
                node_ips: config.ips.clone(),
                netns: None,
                cluster: config.cluster.clone(),
            };
            causeway_network::node_routes::run(informers, routes, token).await
        }
    });
}
