//! The command line: what users type, and which module answers.

use crate::agent::AgentArgs;
use crate::apply::{self, ApplyArgs};
use crate::bench::{self, BenchArgs};
use crate::nodes::Fault;
use crate::server::ServerArgs;
use crate::store::{self, StoreCommand};
use crate::token::{self, TokenCommand};
use crate::{agent, control, data, image, instance, kubeconfig, paths::Paths, server, status, teardown, up, upgrade};
use anyhow::{Result, bail};
use causeway_api::config::ProxyMode;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// A networking-first, Kubernetes-compatible orchestrator.
#[derive(Debug, Parser)]
#[command(name = "causeway", version, propagate_version = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

/// Which cluster of this machine is meant.
#[derive(Debug, Clone, clap::Args)]
pub struct Cluster {
    /// Name of the cluster; clusters of different names live side by side.
    #[arg(long, default_value = "default", env = "CAUSEWAY_NAME")]
    pub name: String,
    /// Where the cluster's data is kept [default: /var/lib/causeway/NAME].
    #[arg(long, env = "CAUSEWAY_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster on this machine.
    Up(UpArgs),
    /// Stop a cluster and remove everything it made, except its data.
    Down(DownArgs),
    /// Put this program in the place of the one that runs a cluster or a machine's part of it; no connection is refused.
    Upgrade(Cluster),
    /// Show components, nodes, addresses and the store's revision.
    Status(Cluster),
    /// Print the administrator's kubeconfig.
    Kubeconfig(Cluster),
    /// Look at the nodes of a cluster on this machine, and try faults.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Run the control plane on this machine, for nodes on others.
    Server(Box<ServerArgs>),
    /// Make this machine a node of a cluster.
    Agent(Box<AgentArgs>),
    /// Make, list and delete the tokens with which machines join.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Back up and restore a cluster; check, defragment and mend its store.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Load and list container images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Apply manifests to a cluster of this machine, as `kubectl apply --server-side` does.
    Apply(Box<ApplyArgs>),
    /// Put load on an HTTP server and measure how long it takes to answer.
    Bench(Box<BenchArgs>),
}

/// `causeway up`.
#[derive(Debug, Clone, clap::Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub cluster: Cluster,
    /// A file with the cluster's settings (YAML); configs/cluster.yaml has all of them with their defaults.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Number of nodes, each a network namespace of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub nodes: u8,
    /// Port on 127.0.0.1 where the ingress answers HTTP.
    #[arg(long, default_value_t = 8080)]
    pub http_port: u16,
    /// Port on 127.0.0.1 where the ingress answers HTTPS.
    #[arg(long, default_value_t = 8443)]
    pub https_port: u16,
    /// Port on 127.0.0.1 where the API answers.
    #[arg(long, default_value_t = 6443)]
    pub api_port: u16,
    /// How pods of different nodes reach each other [default: routed, or what the configuration says]. With `vxlan` the
    /// nodes are no neighbours: each is behind a router that knows nodes only.
    #[arg(long, value_name = "MODE", value_parser = ["routed", "vxlan"])]
    pub pod_network: Option<String>,
    /// Addresses of pods and services: IPv4 alone, or IPv6 too [default: by the ranges of the configuration].
    #[arg(long, value_name = "FAMILY", value_parser = ["ipv4", "dual"])]
    pub ip_family: Option<String>,
    /// DNS servers for names outside the cluster (address or address:port); without one they are refused.
    #[arg(long = "dns-upstream", value_name = "ADDRESS")]
    pub dns_upstreams: Vec<String>,
    /// Registries that are spoken to over plain HTTP (host:port).
    #[arg(long = "insecure-registry", value_name = "HOST")]
    pub insecure_registries: Vec<String>,
    /// How kube-proxy programs the kernel: nftables, or iptables [default: as in the configuration, or nftables].
    #[arg(long, value_name = "MODE")]
    pub proxy_mode: Option<ProxyMode>,
    /// Return when the cluster is ready and leave it running.
    #[arg(long)]
    pub detach: bool,
    /// Set by `--detach` for the process it leaves behind.
    #[arg(long, hide = true)]
    pub detached: bool,
}

/// `causeway down`.
#[derive(Debug, Clone, clap::Args)]
pub struct DownArgs {
    #[command(flatten)]
    pub cluster: Cluster,
    /// Remove the cluster's data too: all objects, images and volumes.
    #[arg(long)]
    pub delete_data: bool,
}

/// `causeway node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes: whether they run, and what the cluster knows of them.
    Ls(Cluster),
    /// Take a node's link to the others down, as if its cable were pulled; its containers go on.
    Cut(NodeArgs),
    /// Take a node's link up again.
    Heal(NodeArgs),
    /// End a node at once, as a power cut would: its components and containers are gone, its disks stay.
    Kill(NodeArgs),
    /// Start a node that was killed.
    Start(NodeArgs),
}

/// Which node is meant.
#[derive(Debug, Clone, clap::Args)]
pub struct NodeArgs {
    /// Its name, for example node-2.
    #[arg(value_name = "NODE")]
    pub node: String,
    #[command(flatten)]
    pub cluster: Cluster,
}

/// `causeway image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Load an OCI layout or docker archive (tar, also gzipped) into every node.
    Load {
        /// The archive.
        #[arg(value_name = "IMAGE.tar", required = true)]
        archives: Vec<PathBuf>,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// List the images on the nodes.
    Ls(Cluster),
    /// Pack files into an image archive, without a registry or a Dockerfile.
    Pack(Box<image::PackArgs>),
}

/// Runs a command to its end.
pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Up(up) => up::run(&up),
        Command::Down(down) => {
            let paths = known(&down.cluster)?;
            let machine = instance::read(&paths)?.is_some_and(|r| r.role != instance::Role::Local);
            instance::stop(&paths)?;
            teardown::sweep(&paths)?;
            if machine {
                teardown::release_machine()?;
            }
            if down.delete_data {
                data::delete(&paths)?;
            }
            println!("cluster {:?} is down", paths.name);
            Ok(())
        }
        Command::Upgrade(cluster) => upgrade::run(&known(&cluster)?),
        Command::Status(cluster) => status::run(&known(&cluster)?),
        Command::Kubeconfig(cluster) => kubeconfig::print(&known(&cluster)?),
        Command::Node(NodeCommand::Ls(cluster)) => status::nodes(&known(&cluster)?),
        Command::Node(NodeCommand::Cut(node)) => fault(&node, Fault::Cut),
        Command::Node(NodeCommand::Heal(node)) => fault(&node, Fault::Heal),
        Command::Node(NodeCommand::Kill(node)) => fault(&node, Fault::Kill),
        Command::Node(NodeCommand::Start(node)) => fault(&node, Fault::Start),
        Command::Server(server) => server::run(&server),
        Command::Agent(agent) => agent::run(&agent),
        Command::Token(command) => token::run(&command, &known(command.cluster())?),
        Command::Store(command) => store::run(&command),
        Command::Image(ImageCommand::Load { archives, cluster }) => image::load(&known(&cluster)?, &archives),
        Command::Image(ImageCommand::Ls(cluster)) => image::list(&known(&cluster)?),
        Command::Image(ImageCommand::Pack(pack)) => image::pack(&pack),
        Command::Apply(apply) => apply::run(&apply, &known(&apply.cluster)?),
        Command::Bench(bench) => bench::run(&bench),
    }
}

/// Has the running cluster do something to one of its nodes.
fn fault(asked: &NodeArgs, fault: Fault) -> Result<()> {
    require_root("doing something to a node")?;
    let paths = known(&asked.cluster)?;
    if instance::running(&paths)?.is_none() {
        bail!("cluster {:?} is not running; start it with: causeway up --name {}", paths.name, paths.name);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("{}", runtime.block_on(control::ask_fault(&paths, &asked.node, fault))?);
    Ok(())
}

/// The paths of a cluster that is or was here: a running one knows its own data directory.
pub fn known(cluster: &Cluster) -> Result<Paths> {
    let mut paths = Paths::new(&cluster.name, cluster.data_dir.as_deref())?;
    if cluster.data_dir.is_none()
        && let Some(record) = instance::read(&paths)?
    {
        paths.data = record.data_dir;
    }
    Ok(paths)
}

/// Everything that touches namespaces, mounts and cgroups needs root: say so before anything is half-made.
pub fn require_root(what: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("{what} needs root (network namespaces, mounts, cgroups); run it with sudo");
    }
    Ok(())
}
