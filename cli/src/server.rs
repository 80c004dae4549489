//! `causeway server`: the control plane on this machine, for nodes on others. In: the command line, a file. Out: API,
//! controllers and scheduler until the process is asked to stop; with `--with-node`, this machine is a node as well.

use crate::agent::{self, Machine};
use crate::api_settings::ApiSettings;
use crate::args::{Cluster, require_root};
use crate::clients::Issued;
use crate::config::OfMachine;
use crate::control::Controlled;
use crate::instance::{self, Record, Role};
use crate::node::{self, Ingress, Node, NodeConfig};
use crate::paths::Paths;
use crate::store::{keys, schedule, started};
use crate::tasks::{self, Health, Tasks};
use crate::upgrade::{End, Program, Wish};
use crate::{control, control_plane, data, kubeconfig, logging, notify, ports};
use anyhow::{Context, Result, bail};
use causeway_access::Endpoint;
use causeway_api::config::ClusterConfig;
use causeway_api::identity::UserInfo;
use causeway_apiserver::{ApiServer, ApiServerConfig, DirectDialer};
use causeway_backup::Settings as BackupSettings;
use causeway_handover::Sockets;
use causeway_network::routes::Routes;
use causeway_proxy::route::front::FrontKey;
use causeway_runtime::daemon::ContainerdDaemon;
use causeway_store::Store;
use kube::api::{Api, Patch, PatchParams};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What is asked to stop gets this long before its threads are taken away.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// `causeway server`.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerArgs {
    #[command(flatten)]
    pub cluster: Cluster,
    /// A file with the settings below, and the cluster's; flags win.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address at which nodes and pods reach the API [default: the machine's only one].
    #[arg(long, value_name = "ADDRESS")]
    pub advertise_address: Option<IpAddr>,
    /// Address on which the API listens [default: all].
    #[arg(long, value_name = "ADDRESS")]
    pub bind_address: Option<IpAddr>,
    /// Port of the API [default: 6443].
    #[arg(long)]
    pub api_port: Option<u16>,
    /// More names and addresses in the API's certificate (repeatable).
    #[arg(long = "tls-san", value_name = "NAME")]
    pub tls_sans: Vec<String>,
    /// This machine is a node as well.
    #[arg(long)]
    pub with_node: bool,
    /// Name of that node [default: the machine's host name].
    #[arg(long)]
    pub node_name: Option<String>,
    /// That node has no ingress.
    #[arg(long)]
    pub without_ingress: bool,
    /// Port of the ingress for HTTP [default: 80].
    #[arg(long, value_name = "PORT")]
    pub ingress_http_port: Option<u16>,
    /// Port of the ingress for HTTPS [default: 443].
    #[arg(long, value_name = "PORT")]
    pub ingress_https_port: Option<u16>,
    /// DNS servers for names outside the cluster, for that node.
    #[arg(long = "dns-upstream", value_name = "ADDRESS")]
    pub dns_upstreams: Vec<String>,
    /// Registries that are spoken to over plain HTTP (host:port), by that node.
    #[arg(long = "insecure-registry", value_name = "HOST")]
    pub insecure_registries: Vec<String>,
}

/// The file: `configs/server.yaml` shows all of it.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct ServerFile {
    advertise_address: Option<IpAddr>,
    bind_address: Option<IpAddr>,
    api_port: Option<u16>,
    tls_sans: Vec<String>,
    with_node: bool,
    without_ingress: bool,
    ingress_http_port: Option<u16>,
    ingress_https_port: Option<u16>,
    node_name: Option<String>,
    dns_upstreams: Vec<String>,
    insecure_registries: Vec<String>,
    cluster: ClusterConfig,
    api_server: ApiSettings,
    backup: Option<BackupSettings>,
    encryption_configuration: Option<PathBuf>,
}

/// The command line over the file, and the cluster's settings.
fn settle(args: &ServerArgs) -> Result<(ServerArgs, ClusterConfig, OfMachine)> {
    let mut args = args.clone();
    let file = match &args.config {
        Some(path) => crate::config::file(path)?,
        None => ServerFile::default(),
    };
    args.advertise_address = args.advertise_address.or(file.advertise_address);
    args.bind_address = args.bind_address.or(file.bind_address);
    args.api_port = args.api_port.or(file.api_port);
    args.with_node |= file.with_node;
    args.without_ingress |= file.without_ingress;
    args.ingress_http_port = args.ingress_http_port.or(file.ingress_http_port);
    args.ingress_https_port = args.ingress_https_port.or(file.ingress_https_port);
    args.node_name = args.node_name.or(file.node_name);
    args.tls_sans.extend(file.tls_sans);
    args.dns_upstreams.extend(file.dns_upstreams);
    args.insecure_registries.extend(file.insecure_registries);
    let cluster = crate::config::settle(file.cluster, &args.cluster.name)?;
    let machine = OfMachine {
        api_server: file.api_server,
        backup: file.backup,
        encryption_configuration: file.encryption_configuration,
    };
    machine.check()?;
    Ok((args, cluster, machine))
}

/// Where the API listens, and where others reach it.
struct Addresses {
    bind: SocketAddr,
    advertise: SocketAddr,
}

impl Addresses {
    fn of(args: &ServerArgs) -> Result<Self> {
        let port = args.api_port.unwrap_or(6443);
        let bind = args.bind_address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let advertise = match args.advertise_address {
            Some(ip) => ip,
            None if !bind.is_unspecified() => bind,
            None => only_address()?,
        };
        if advertise.is_unspecified() || advertise.is_loopback() {
            bail!("nodes cannot reach the API at {advertise}; give another --advertise-address");
        }
        Ok(Self { bind: SocketAddr::new(bind, port), advertise: SocketAddr::new(advertise, port) })
    }
}

/// The machine's address, if there is no choice.
fn only_address() -> Result<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().context("reading the machine's addresses")?;
    let addresses = all.filter_map(|i| i.address?.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip));
    let addresses: Vec<Ipv4Addr> = addresses.filter(|ip| !ip.is_loopback() && !ip.is_link_local()).collect();
    match addresses.as_slice() {
        [one] => Ok(IpAddr::V4(*one)),
        [] => bail!("this machine has no address; give one with --advertise-address"),
        many => {
            let many: Vec<String> = many.iter().map(ToString::to_string).collect();
            bail!("this machine has the addresses {}; say which one with --advertise-address", many.join(", "))
        }
    }
}

/// Runs the command.
pub fn run(args: &ServerArgs) -> Result<()> {
    require_root("causeway server")?;
    let (args, cluster, machine) = settle(args)?;
    let paths = Paths::new(&args.cluster.name, args.cluster.data_dir.as_deref())?;
    if let Some(record) = instance::another(&paths)? {
        bail!("cluster {:?} is running already on this machine (process {})", paths.name, record.pid);
    }
    logging::init("info");
    let addresses = Addresses::of(&args)?;
    let program = Program::this()?;
    let sockets = &program.sockets;
    let listener = sockets.tcp("api", || ports::bind_at(addresses.bind, "the API", "--api-port"))?;
    let ingress =
        if args.with_node && !args.without_ingress { Some(ingress(&args, &addresses, sockets)?) } else { None };
    if args.with_node {
        data::share_what_containers_see();
    }
    let owned = data::claim(&paths)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("control").enable_all().build()?;
    let outcome = runtime.block_on(serve(&args, &paths, (cluster, machine), &addresses, (listener, ingress), sockets));
    runtime.shutdown_timeout(STOP_GRACE);
    drop(owned);
    program.end(&paths, outcome?)
}

/// What the ingress of the server's own node listens on: all addresses of the machine, or the one that the API has.
fn ingress(args: &ServerArgs, addresses: &Addresses, sockets: &Sockets) -> Result<Ingress> {
    let (http, https) = (args.ingress_http_port.unwrap_or(80), args.ingress_https_port.unwrap_or(443));
    let at = |port| SocketAddr::new(addresses.bind.ip(), port);
    let bind = |port, flag| move || ports::bind_at(at(port), "the ingress", flag);
    Ok(Ingress {
        http: vec![sockets.tcp("http", bind(http, "--ingress-http-port, or --without-ingress"))?],
        https: vec![sockets.tcp("https", bind(https, "--ingress-https-port, or --without-ingress"))?],
        public_ports: (http, https),
        addresses: vec![addresses.advertise.ip()],
    })
}

async fn serve(
    args: &ServerArgs,
    paths: &Paths,
    (cluster, machine): (ClusterConfig, OfMachine),
    addresses: &Addresses,
    (listener, ingress): (TcpListener, Option<Ingress>),
    sockets: &Arc<Sockets>,
) -> Result<End> {
    let (stop, health) = (CancellationToken::new(), Health::default());
    let signalled = tasks::stop_on_signal(stop.clone())?;
    let mut wish = Wish::new()?;
    let mut record = Record {
        api_port: addresses.bind.port(),
        role: Role::Server,
        generation: sockets.generation(),
        ..Record::of_this_process(paths, "starting the API server")?
    };
    instance::write(paths, &record)?;
    started::keep(paths, args.config.as_deref())?;
    let keys = keys::open(paths, machine.encryption_configuration.as_deref()).await?;
    let store: Arc<dyn Store> = Arc::new(keys.store());
    let api = ApiServer::start(
        ApiServerConfig {
            cluster: cluster.clone(),
            pki_dir: paths.pki(),
            advertise: addresses.advertise,
            extra_sans: args.tls_sans.clone(),
            kubelet_dialer: Arc::new(DirectDialer),
            settings: machine.api_server.load(&cluster.domain)?,
        },
        store.clone(),
    )
    .await?;
    let api = Arc::new(api);
    let mut control = Tasks::new(stop.child_token(), &health);
    let serving = (api.clone(), control.token());
    control.must_run("apiserver", stop.clone(), async move { serving.0.serve(vec![listener], serving.1).await });
    let here = if addresses.bind.ip().is_unspecified() {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), addresses.bind.port())
    } else {
        addresses.advertise
    };
    let admin = api.kubeconfig(&format!("https://{here}"), &format!("causeway-{}", paths.name), &UserInfo::admin())?;
    kubeconfig::write(paths, &admin)?;
    control_plane::start(&api, &control_plane::informers(&api), &cluster, paths, &mut control);
    control.supervise("control-socket", {
        let (paths, token) = (paths.clone(), control.token());
        let controlled = Controlled { nodes: None, store: store.clone(), keys: keys.clone() };
        // It is there before this process says that it is ready.
        let mut first = Some(control::listen(&paths)?);
        move || {
            let listener = first.take().map_or_else(|| control::listen(&paths), Ok);
            let (controlled, token) = (controlled.clone(), token.clone());
            async move { control::serve(listener?, controlled, token).await }
        }
    });
    keys::look_after(&keys, &mut control);
    schedule::start(machine.backup, paths, &store, api.client(UserInfo::admin()), &mut control, &health);
    // It asks for the sockets of Gateways when it has seen them.
    let has_ingress = ingress.is_some();
    let node = match args.with_node {
        true => {
            let shared = (sockets.clone(), ingress);
            Some(own_node(args, paths, &api, cluster, addresses, shared, &mut control, &stop, &health).await?)
        }
        false => None,
    };
    record.nodes = node.iter().map(|(name, ..)| name.clone()).collect();
    tracing::info!(advertise = %addresses.advertise, "the API serves; machines join with: causeway token create");
    notify::tell("READY=1");
    record.ready = true;
    sockets.close_unclaimed(|name| !(has_ingress && FrontKey::names(name)));
    if instance::follow(paths, record, &health, &stop, &mut wish).await == End::HandOver {
        notify::tell("RELOADING=1");
        if let Some((_, node, _)) = node {
            node.hand_over(STOP_GRACE).await;
        }
        control.stop(STOP_GRACE).await;
        return Ok(End::HandOver);
    }
    tracing::info!("stopping");
    notify::tell("STOPPING=1");
    if let Some((_, node, containerd)) = node {
        node.stop(STOP_GRACE).await;
        drop(containerd);
    }
    control.stop(STOP_GRACE).await;
    crate::up::failed(&health, signalled.is_finished()).map(|()| End::Stop)
}

/// This machine as a node. Its identity comes straight from the authority, which is here.
#[expect(clippy::too_many_arguments, reason = "the wiring of a server's own node: each is a different part")]
async fn own_node(
    args: &ServerArgs,
    paths: &Paths,
    api: &Arc<ApiServer>,
    cluster: ClusterConfig,
    addresses: &Addresses,
    (sockets, ingress): (Arc<Sockets>, Option<Ingress>),
    control: &mut Tasks,
    stop: &CancellationToken,
    health: &Health,
) -> Result<(String, Node, ContainerdDaemon)> {
    let name = match &args.node_name {
        Some(name) => name.clone(),
        None => agent::host_name()?,
    };
    let ip = addresses.advertise.ip();
    let endpoint = Endpoint::new(&format!("https://{}", addresses.advertise), api.pki().ca_pem())?;
    let issued = Arc::new(Issued::default());
    let clients = issued.clients(api.pki(), endpoint, &name)?;
    let serving = issued.serving(api.pki(), &name, vec![name.clone(), ip.to_string()])?;
    control.supervise("certificates", {
        let (api, token) = (api.clone(), control.token());
        move || {
            let (api, issued, token) = (api.clone(), issued.clone(), token.clone());
            async move { issued.renew(api.pki(), token).await }
        }
    });
    control.supervise("node-role", {
        let (api, name, token) = (api.clone(), name.clone(), control.token());
        move || mark(api.client(UserInfo::admin()), name.clone(), token.clone())
    });
    let containerd = ContainerdDaemon::start(&paths.data, &paths.name).await?;
    let machine = Machine {
        labels: BTreeMap::new(),
        upstreams: node::upstreams(&args.dns_upstreams)?,
        registries: args.insecure_registries.clone(),
    };
    let config = agent::of_machine(paths, &containerd, &name, vec![ip], clients, cluster, machine)?;
    let ranges: Vec<_> = config.cluster.pod_cidrs.iter().chain(&config.cluster.service_cidrs).copied().collect();
    Routes::here()?.make_unreachable(&ranges).await.context("closing the pods' and services' ranges")?;
    let node = Node::start(NodeConfig { serving, ingress, sockets, ..config }, stop, health).await?;
    Ok((name, node, containerd))
}

/// Gives the node its role, which no kubelet may give itself.
async fn mark(client: kube::Client, name: String, token: CancellationToken) -> Result<()> {
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client);
    let role = json!({ "metadata": { "labels": { "node-role.kubernetes.io/control-plane": "" } } });
    loop {
        match nodes.patch(&name, &PatchParams::default(), &Patch::Merge(&role)).await {
            Ok(_) => {
                token.cancelled().await;
                return Ok(());
            }
            // It has not registered yet.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => tracing::warn!(%error, "the node has no role yet; trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
            () = token.cancelled() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_documented_file_is_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/server.yaml");
        let file: ServerFile = crate::config::file(&path).unwrap();
        assert_eq!(file, ServerFile::default());
    }

    #[derive(clap::Parser)]
    struct ServerCommand {
        #[command(flatten)]
        args: ServerArgs,
    }

    fn addresses(line: &[&str]) -> Result<Addresses> {
        Addresses::of(&<ServerCommand as clap::Parser>::try_parse_from(line).unwrap().args)
    }

    #[test]
    fn nodes_must_be_able_to_reach_what_is_advertised() {
        let both = addresses(&["server", "--advertise-address", "10.0.0.1", "--api-port", "7443"]).unwrap();
        assert_eq!(
            (both.bind.to_string(), both.advertise.to_string()),
            ("0.0.0.0:7443".into(), "10.0.0.1:7443".into())
        );
        let bound = addresses(&["server", "--bind-address", "10.0.0.2"]).unwrap();
        assert_eq!(bound.advertise.to_string(), "10.0.0.2:6443");
        for bad in ["127.0.0.1", "0.0.0.0"] {
            assert!(addresses(&["server", "--advertise-address", bad]).is_err(), "{bad}");
        }
    }
}
