//! What cluster DNS is told at its start.

use causeway_api::config::ClusterConfig;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::PathBuf;

/// Configuration of one node's DNS. Sockets are bound by the caller and non-blocking.
#[derive(Debug)]
pub struct DnsConfig {
    /// Domain and ranges, and under `dns` what is answered and who is asked. The ConfigMap `kube-system/causeway-dns`
    /// goes before the latter.
    pub cluster: ClusterConfig,
    /// The node this DNS serves.
    pub node_name: String,
    /// Its addresses, for the EndpointSlice.
    pub node_ips: Vec<IpAddr>,
    /// Where queries come in.
    pub udp: Vec<UdpSocket>,
    /// Where queries come in.
    pub tcp: Vec<TcpListener>,
    /// `/health`, `/ready`, `/metrics`.
    pub admin: Option<TcpListener>,
    /// Where questions to upstreams are asked, when the caller's runtime has no way to them: a local node's network
    /// leads nowhere, while the machine's does. The caller's own with `None`.
    pub forward_on: Option<tokio::runtime::Handle>,
    /// Keep the EndpointSlice `kube-system/kube-dns-<node>`.
    pub publish: bool,
    /// Where the last known zone is kept, so that a restart without the API still answers.
    pub state_dir: Option<PathBuf>,
}
