//! What cluster DNS is told at its start.

use causeway_api::config::ClusterConfig;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;

/// Configuration of one node's DNS. Sockets are bound by the caller and non-blocking.
#[derive(Debug)]
pub struct DnsConfig {
    /// Domain and ranges.
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
    /// Servers for names outside the cluster; with none such names are refused.
    pub upstreams: Vec<SocketAddr>,
    /// Servers for the names of other domains, longest domain first wins.
    pub stub_domains: BTreeMap<String, Vec<SocketAddr>>,
    /// Where questions to upstreams are asked, when the caller's runtime has no way to them: a local node's network
    /// leads nowhere, while the machine's does. The caller's own with `None`.
    pub forward_on: Option<tokio::runtime::Handle>,
    /// Keep the EndpointSlice `kube-system/kube-dns-<node>`.
    pub publish: bool,
    /// Where the last known zone is kept, so that a restart without the API still answers.
    pub state_dir: Option<PathBuf>,
}
