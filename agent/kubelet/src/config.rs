//! What a kubelet is told at its start. Values only; nothing is read from the environment.

use causeway_api::config::ClusterConfig;
use k8s_openapi::api::core::v1::Taint;
use rustls::server::ResolvesServerCert;
use std::collections::BTreeMap;
use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

/// Configuration of one kubelet.
#[derive(Debug)]
pub struct KubeletConfig {
    /// Ranges and names of the cluster.
    pub cluster: ClusterConfig,
    /// `metadata.name` of this node.
    pub node_name: String,
    /// Addresses of this node, the primary first: `InternalIP`.
    pub node_ips: Vec<IpAddr>,
    /// The node's network namespace for pods with `hostNetwork`; `None` when the node is the machine itself.
    pub node_netns: Option<PathBuf>,
    /// State: `pods/`, `logs/` are made below it.
    pub dir: PathBuf,
    /// Absolute cgroup path above all pods of this node, for example `/causeway-default/node-1`.
    pub cgroup_parent: String,
    /// Labels given to the node at registration, beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Taints given to the node when it is registered for the first time.
    pub taints: Vec<Taint>,
    /// Most pods on this node. Kubernetes' default is 110.
    pub max_pods: u32,
    /// Create the Node object when it does not exist.
    pub register: bool,
    /// Name server of pods with DNS policy `ClusterFirst`.
    pub dns_ip: IpAddr,
    /// A `resolv.conf` whose servers pods with DNS policy `Default` get; `None`: they get none.
    pub resolv_conf_upstream: Option<PathBuf>,
    /// The kubelet's own API, bound by the caller in the node's namespace (port 10250).
    pub server_listener: TcpListener,
    /// Its certificate; asked for at every handshake, so that it can be renewed meanwhile.
    pub server_certificate: Arc<dyn ResolvesServerCert>,
    /// The authority whose client certificates are accepted.
    pub client_ca_pem: String,
    /// Says how much of the machine is this node's; `None`: all of it.
    pub capacity: Option<NodeCapacity>,
}

/// A node's share of the machine it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeCapacity {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

impl KubeletConfig {
    /// The folder of a pod: volumes, hosts file, termination messages.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.dir.join("pods").join(uid)
    }

    /// The folder of a pod's logs, `<namespace>_<name>_<uid>` as Kubernetes lays them out.
    pub fn log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.dir.join("logs").join("pods").join(format!("{namespace}_{name}_{uid}"))
    }
}
