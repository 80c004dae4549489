//! The nodes of a cluster on this machine, each on or off, and with its link up or down. In: what all nodes are started
//! from; requests of people who try faults. Out: nodes that run, are cut off, or are gone as after a power cut.

use crate::clients::Issued;
use crate::node::{Ingress, Node, NodeConfig, containerd_namespace};
use crate::paths::Paths;
use crate::tasks::Health;
use anyhow::{Context, Result, bail};
use causeway_access::Endpoint;
use causeway_api::config::ClusterConfig;
use causeway_apiserver::ApiServer;
use causeway_handover::Sockets;
use causeway_kubelet::NodeCapacity;
use causeway_network::local::LocalSegment;
use causeway_runtime::daemon::ContainerdDaemon;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// What every node is started from.
pub struct Parts {
    /// Folders of the cluster.
    pub paths: Paths,
    /// Ranges and names.
    pub cluster: ClusterConfig,
    /// What nodes are connected to.
    pub segment: LocalSegment,
    /// The authority that nodes' certificates come from.
    pub api: Arc<ApiServer>,
    /// Where nodes reach the API.
    pub endpoint: Endpoint,
    /// Certificates given to nodes.
    pub issued: Arc<Issued>,
    /// The cluster's containerd.
    pub containerd: Arc<ContainerdDaemon>,
    /// Registries that are spoken to over plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Servers for names outside the cluster.
    pub dns_upstreams: Vec<String>,
    /// A node's share of the machine.
    pub capacity: Option<NodeCapacity>,
    /// The node with the ingress, and its listeners towards the user (HTTP, HTTPS).
    pub ingress: (String, TcpListener, TcpListener),
    /// Sockets that the next program takes over.
    pub sockets: Arc<Sockets>,
    /// Ends everything.
    pub stop: CancellationToken,
    /// What components are doing.
    pub health: Health,
}

/// Whether a node runs, and is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Power {
    /// It runs.
    Running,
    /// It runs, and its link to the segment is down.
    Cut,
    /// Nothing of it runs.
    Killed,
}

impl std::fmt::Display for Power {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Cut => "cut",
            Self::Killed => "killed",
        })
    }
}

/// What can be done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fault {
    /// Link down.
    Cut,
    /// Link up.
    Heal,
    /// Off, at once.
    Kill,
    /// On.
    Start,
}

/// The nodes by name; `None` for one that is off. One request is served at a time.
pub struct Nodes {
    parts: Parts,
    all: Mutex<BTreeMap<String, Option<Node>>>,
}

impl Nodes {
    /// None yet.
    pub fn new(parts: Parts) -> Self {
        Self { parts, all: Mutex::default() }
    }

    /// Starts a node that is new or off.
    pub async fn start(&self, name: &str) -> Result<()> {
        let mut all = self.all.lock().await;
        let node = self.boot(name).await?;
        all.insert(name.to_owned(), Some(node));
        Ok(())
    }

    /// Every node's state.
    pub async fn states(&self) -> Result<BTreeMap<String, Power>> {
        let mut states = BTreeMap::new();
        for (name, node) in self.all.lock().await.iter() {
            let power = match node {
                None => Power::Killed,
                Some(_) if self.parts.segment.is_cut(name).await? => Power::Cut,
                Some(_) => Power::Running,
            };
            states.insert(name.clone(), power);
        }
        Ok(states)
    }

    /// Does something to a node; says what, or why not.
    pub async fn inflict(&self, name: &str, fault: Fault) -> Result<String> {
        let mut all = self.all.lock().await;
        let Some(node) = all.get_mut(name) else {
            let known: Vec<&str> = all.keys().map(String::as_str).collect();
            bail!("there is no node {name:?}; the nodes are {}", known.join(", "));
        };
        let segment = &self.parts.segment;
        match (fault, node.is_some()) {
            (Fault::Cut | Fault::Heal, false) => bail!("node {name} is off; first: causeway node start {name}"),
            (Fault::Cut, true) => {
                segment.cut(name).await?;
                Ok(format!("node {name} is cut off; its containers go on"))
            }
            (Fault::Heal, true) => {
                segment.heal(name).await?;
                Ok(format!("node {name} is connected"))
            }
            (Fault::Kill, _) => {
                self.power_off(name, node.take()).await?;
                Ok(format!("node {name} is off"))
            }
            (Fault::Start, true) => Ok(format!("node {name} runs already")),
            (Fault::Start, false) => {
                *node = Some(self.boot(name).await?);
                Ok(format!("node {name} is starting"))
            }
        }
    }

    /// Ends all nodes in order; their containers go on.
    pub async fn stop(&self, grace: Duration) {
        for node in std::mem::take(&mut *self.all.lock().await).into_values().flatten() {
            node.stop(grace).await;
        }
    }

    /// Ends all nodes for another program to take over: see [`Node::hand_over`].
    pub async fn hand_over(&self, grace: Duration) {
        let all = std::mem::take(&mut *self.all.lock().await);
        futures::future::join_all(all.into_values().flatten().map(|node| node.hand_over(grace))).await;
    }

    async fn boot(&self, name: &str) -> Result<Node> {
        let p = &self.parts;
        let local = p.segment.add_node(name).await?;
        let names = local.ips.iter().map(ToString::to_string).chain([name.to_owned()]).collect();
        let config = NodeConfig {
            name: name.to_owned(),
            cluster: p.cluster.clone(),
            ips: local.ips.clone(),
            netns_path: Some(local.netns.path().to_owned()),
            netns: local.netns,
            dir: p.paths.node(name),
            run_dir: p.paths.run.join(name),
            containerd: p.containerd.socket(),
            cgroup_parent: self.cgroup(name),
            netns_prefix: format!("cw-{}-{name}", p.paths.name),
            capacity: p.capacity,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            clients: p.issued.clients(p.api.pki(), p.endpoint.clone(), name)?,
            serving: p.issued.serving(p.api.pki(), name, names)?,
            insecure_registries: p.insecure_registries.clone(),
            dns_upstreams: p.dns_upstreams.clone(),
            // Registries and upstreams are the machine's to reach; the node has no way out.
            outside: Handle::current(),
            ingress: None,
            sockets: p.sockets.clone(),
        };
        let ingress = self.ingress(&config)?;
        let config = NodeConfig { ingress, ..config };
        Node::start(config, &p.stop, &p.health).await
    }

    /// The user comes by 127.0.0.1; whoever is on the nodes' segment by the node's address.
    fn ingress(&self, config: &NodeConfig) -> Result<Option<Ingress>> {
        let (node, http, https) = &self.parts.ingress;
        if *node != config.name {
            return Ok(None);
        }
        let ip = config.ips.first().copied().with_context(|| format!("node {node} has no address"))?;
        Ok(Some(Ingress {
            public_ports: (http.local_addr()?.port(), https.local_addr()?.port()),
            http: vec![http.try_clone()?, config.listen(ip, 80, "the ingress")?],
            https: vec![https.try_clone()?, config.listen(ip, 443, "the ingress")?],
            addresses: vec![Ipv4Addr::LOCALHOST.into(), ip],
        }))
    }

    /// As a power cut: nobody says good-bye, and what lives in memory is gone. Disks stay.
    async fn power_off(&self, name: &str, node: Option<Node>) -> Result<()> {
        let p = &self.parts;
        if let Some(node) = node {
            // First of all, so that nothing of the end gets out.
            p.segment.cut(name).await?;
            node.kill().await;
        }
        p.health.forget(name);
        p.containerd.power_off(&containerd_namespace(name), &self.cgroup(name)).await;
        p.segment.remove_node(name).await?;
        let (dir, run) = (p.paths.node(name), p.paths.run.join(name));
        let gone = tokio::task::spawn_blocking(move || {
            causeway_kubelet::unmount_below(&dir).context("unmounting the node's volumes in memory")?;
            match std::fs::remove_dir_all(&run) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(e).with_context(|| format!("removing {}", run.display()))
                }
                _ => Ok(()),
            }
        });
        gone.await?
    }

    fn cgroup(&self, name: &str) -> String {
        format!("{}/{name}", self.parts.paths.cgroup())
    }
}
