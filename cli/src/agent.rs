//! `causeway agent`: this machine as a node of a cluster. In: the command line, a file. Out: a node that runs until the
//! process is asked to stop; its containers go on then, and the next start finds them.

use crate::args::require_root;
use crate::clients::Clients;
use crate::instance::{self, Record, Role};
use crate::node::{self, Node, NodeConfig};
use crate::paths::Paths;
use crate::tasks::{self, Health, Tasks};
use crate::upgrade::{End, Program, Wish};
use crate::{data, logging, notify};
use anyhow::{Context, Result, bail};
use causeway_access::{JoinConfig, Membership, join};
use causeway_handover::Sockets;
use causeway_network::NetNs;
use causeway_network::routes::Routes;
use causeway_runtime::daemon::ContainerdDaemon;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// What is asked to stop gets this long before its threads are taken away.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// `causeway agent`.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentArgs {
    /// Name of this instance: in the names of folders, namespaces and cgroups on this machine.
    #[arg(long, default_value = "agent", env = "CAUSEWAY_NAME")]
    pub name: String,
    /// Where the node's data is kept [default: /var/lib/causeway/NAME].
    #[arg(long, env = "CAUSEWAY_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// A file with the settings below; flags win.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The API's address, for example https://10.0.0.1:6443.
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// A bootstrap token (causeway token create); needed only the first time.
    #[arg(long, env = "CAUSEWAY_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// A file with the bootstrap token, which other users of this machine do not see as they see a command line.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// The hash of the cluster's authority, as `causeway token create` prints it: joins no other cluster.
    #[arg(long, value_name = "sha256:HASH")]
    pub ca_hash: Option<String>,
    /// Join without that hash: whoever knows the token can then be taken for the cluster.
    #[arg(long)]
    pub unsafe_skip_ca_hash: bool,
    /// Name of the node [default: the machine's host name].
    #[arg(long)]
    pub node_name: Option<String>,
    /// Address of the node, the primary first (repeatable) [default: the one that the server is reached from].
    #[arg(long, value_name = "ADDRESS")]
    pub node_ip: Vec<IpAddr>,
    /// Label given to the node at registration: KEY=VALUE (repeatable).
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = label)]
    pub node_labels: Vec<(String, String)>,
    /// DNS servers for names outside the cluster (address or address:port).
    #[arg(long = "dns-upstream", value_name = "ADDRESS")]
    pub dns_upstreams: Vec<String>,
    /// Registries that are spoken to over plain HTTP (host:port).
    #[arg(long = "insecure-registry", value_name = "HOST")]
    pub insecure_registries: Vec<String>,
}

/// The file: `configs/agent.yaml` shows all of it.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct AgentFile {
    server: Option<String>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    ca_hash: Option<String>,
    node_name: Option<String>,
    node_ips: Vec<IpAddr>,
    node_labels: BTreeMap<String, String>,
    dns_upstreams: Vec<String>,
    insecure_registries: Vec<String>,
}

/// `KEY=VALUE`.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must look like KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// The command line over the file.
fn settle(args: &AgentArgs) -> Result<AgentArgs> {
    let mut args = args.clone();
    let Some(path) = &args.config else { return Ok(args) };
    let file: AgentFile = crate::config::file(path)?;
    args.server = args.server.or(file.server);
    if args.token.is_none() && args.token_file.is_none() {
        (args.token, args.token_file) = (file.token, file.token_file);
    }
    args.ca_hash = args.ca_hash.or(file.ca_hash);
    args.node_name = args.node_name.or(file.node_name);
    if args.node_ip.is_empty() {
        args.node_ip = file.node_ips;
    }
    let labels = std::mem::take(&mut args.node_labels);
    args.node_labels = file.node_labels.into_iter().chain(labels).collect();
    args.dns_upstreams.extend(file.dns_upstreams);
    args.insecure_registries.extend(file.insecure_registries);
    Ok(args)
}

/// The token itself. A file that is gone is none: it is needed the first time only.
fn token(args: &AgentArgs) -> Result<Option<String>> {
    let (None, Some(path)) = (&args.token, &args.token_file) else { return Ok(args.token.clone()) };
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::debug!(path = %path.display(), "no token: a machine that has joined needs none");
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("reading the token in {}", path.display())),
    }
}

/// Runs the command.
pub fn run(args: &AgentArgs) -> Result<()> {
    require_root("causeway agent")?;
    let args = settle(args)?;
    let Some(server) = args.server.clone() else {
        bail!("give the API's address: --server https://ADDRESS:6443 (causeway token create prints the whole command)");
    };
    let paths = Paths::new(&args.name, args.data_dir.as_deref())?;
    if let Some(record) = instance::another(&paths)? {
        bail!("{:?} is running already on this machine (process {})", paths.name, record.pid);
    }
    logging::init("info");
    let node_name = match &args.node_name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let ips = match args.node_ip.as_slice() {
        [] => vec![towards(&server)?],
        given => given.to_vec(),
    };
    data::share_what_containers_see();
    let owned = data::claim(&paths)?;
    let program = Program::this()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("agent").enable_all().build()?;
    let outcome = runtime.block_on(serve(&args, &paths, server, node_name, ips, &program.sockets));
    runtime.shutdown_timeout(STOP_GRACE);
    drop(owned);
    program.end(&paths, outcome?)
}

/// The machine's name, as Kubernetes writes node names: in lower case.
pub fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("asking for the machine's host name")?;
    let name = name.to_string_lossy().trim().to_lowercase();
    if name.is_empty() || name == "localhost" {
        bail!("the machine has no host name of its own; name the node with --node-name");
    }
    Ok(name)
}

/// The address of this machine from which a server is reached. Nothing is sent: the kernel only looks for a route.
fn towards(server: &str) -> Result<IpAddr> {
    let url: http::Uri = server.parse().with_context(|| format!("the API's address {server:?} is no URL"))?;
    let host = url.host().unwrap_or("").trim_matches(['[', ']']);
    let port = url.port_u16().unwrap_or(443);
    let found = (host, port).to_socket_addrs().ok().and_then(|mut all| all.next());
    let target = found.with_context(|| format!("the server's name {host:?} is not known; use its address"))?;
    let socket = UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    let here = socket.connect(target).and_then(|()| socket.local_addr());
    let here = here.with_context(|| format!("looking for a way to {target}; is the network up?"))?.ip();
    if here.is_loopback() {
        bail!("{server} is this machine; name an address that others reach it by with --node-ip");
    }
    Ok(here)
}

async fn serve(
    args: &AgentArgs,
    paths: &Paths,
    server: String,
    node_name: String,
    ips: Vec<IpAddr>,
    sockets: &Arc<Sockets>,
) -> Result<End> {
    let (stop, health) = (CancellationToken::new(), Health::default());
    let signalled = tasks::stop_on_signal(stop.clone())?;
    let mut wish = Wish::new()?;
    let mut record = Record {
        nodes: vec![node_name.clone()],
        role: Role::Agent,
        generation: sockets.generation(),
        ..Record::of_this_process(paths, "joining the cluster")?
    };
    instance::write(paths, &record)?;
    let joining = join(JoinConfig {
        server,
        token: token(args)?,
        ca_hash: args.ca_hash.clone(),
        skip_ca_hash: args.unsafe_skip_ca_hash,
        node_name,
        dir: paths.identity(),
        life: None,
    });
    let membership = tokio::select! {
        joined = joining => joined?,
        () = stop.cancelled() => return Ok(End::Stop),
    };
    // Adopts what an earlier run left: containers outlive us.
    let containerd = ContainerdDaemon::start(&paths.data, &paths.name).await?;
    let mut own = Tasks::new(stop.child_token(), &health);
    own.supervise("identity", {
        let (membership, ips, token) = (membership.clone(), ips.clone(), own.token());
        move || {
            let (membership, ips, token) = (membership.clone(), ips.clone(), token.clone());
            async move { membership.keep(&ips, token).await }
        }
    });
    let (labels, upstreams) = (args.node_labels.clone(), node::upstreams(&args.dns_upstreams)?);
    let machine =
        Machine { labels: labels.into_iter().collect(), upstreams, registries: args.insecure_registries.clone() };
    let machine = (machine, sockets.clone());
    let node = start(paths, &containerd, membership, ips, machine, &stop, &health).await?;
    tracing::info!(node = record.nodes.first(), "running");
    notify::tell("READY=1");
    record.ready = true;
    sockets.close_unclaimed(|_| true);
    if instance::follow(paths, record, &health, &stop, &mut wish).await == End::HandOver {
        notify::tell("RELOADING=1");
        node.hand_over(STOP_GRACE).await;
        own.stop(STOP_GRACE).await;
        return Ok(End::HandOver);
    }
    tracing::info!("stopping; containers go on");
    notify::tell("STOPPING=1");
    node.stop(STOP_GRACE).await;
    own.stop(STOP_GRACE).await;
    drop(containerd);
    crate::up::failed(&health, signalled.is_finished()).map(|()| End::Stop)
}

/// What only this machine knows of its node.
pub struct Machine {
    /// Labels given at registration.
    pub labels: BTreeMap<String, String>,
    /// Servers for names outside the cluster.
    pub upstreams: Vec<String>,
    /// Registries over plain HTTP.
    pub registries: Vec<String>,
}

/// Starts the node's components in the machine's own network namespace.
async fn start(
    paths: &Paths,
    containerd: &ContainerdDaemon,
    membership: Membership,
    ips: Vec<IpAddr>,
    (machine, sockets): (Machine, Arc<Sockets>),
    stop: &CancellationToken,
    health: &Health,
) -> Result<Node> {
    let clients = Clients::of_node(membership.endpoint.clone(), membership.identity.clone());
    let config = of_machine(paths, containerd, &membership.node, ips, clients, membership.settings, machine)?;
    let config = NodeConfig { serving: membership.serving, sockets, ..config };
    // A packet to a pod or service that nobody has ends here, and does not wander out by the default route.
    let ranges: Vec<_> = config.cluster.pod_cidrs.iter().chain(&config.cluster.service_cidrs).copied().collect();
    Routes::here()?.make_unreachable(&ranges).await.context("closing the pods' and services' ranges")?;
    Node::start(config, stop, health).await
}

/// The node that the machine itself is.
pub fn of_machine(
    paths: &Paths,
    containerd: &ContainerdDaemon,
    name: &str,
    ips: Vec<IpAddr>,
    clients: Clients,
    cluster: causeway_api::config::ClusterConfig,
    machine: Machine,
) -> Result<NodeConfig> {
    Ok(NodeConfig {
        name: name.to_owned(),
        cluster,
        ips,
        netns: NetNs::current().context("opening the machine's network namespace")?,
        netns_path: None,
        dir: paths.node(name),
        run_dir: paths.run.join(name),
        containerd: containerd.socket(),
        cgroup_parent: format!("{}/{name}", paths.cgroup()),
        netns_prefix: format!("cw-{}-{name}", paths.name),
        capacity: None,
        labels: machine.labels,
        taints: Vec::new(),
        clients,
        serving: Default::default(),
        insecure_registries: machine.registries,
        dns_upstreams: machine.upstreams,
        outside: Handle::current(),
        ingress: None,
        sockets: Arc::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_documented_file_is_read_and_flags_win() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/agent.yaml");
        let file: AgentFile = crate::config::file(&path).unwrap();
        assert_eq!(file, AgentFile::default(), "everything in it is a comment");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.yaml");
        std::fs::write(&path, "server: https://10.0.0.1:6443\nnodeName: a\nnodeLabels: {zone: x}\n").unwrap();
        let parsed = <AgentCommand as clap::Parser>::try_parse_from([
            "agent",
            "--config",
            path.to_str().unwrap(),
            "--node-name",
            "b",
            "--node-label",
            "zone=y",
        ]);
        let args = settle(&parsed.unwrap().args).unwrap();
        assert_eq!(args.server.as_deref(), Some("https://10.0.0.1:6443"));
        assert_eq!(args.node_name.as_deref(), Some("b"));
        assert_eq!(args.node_labels.last(), Some(&("zone".to_owned(), "y".to_owned())));
        std::fs::write(&path, "servr: x\n").unwrap();
        let error = format!("{:#}", crate::config::file::<AgentFile>(&path).unwrap_err());
        assert!(error.contains("servr"), "{error}");
    }

    #[derive(clap::Parser)]
    struct AgentCommand {
        #[command(flatten)]
        args: AgentArgs,
    }
}
