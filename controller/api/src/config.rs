//! The cluster's ranges, ports and names, with their documented defaults.

use crate::balancer::Pool;
use crate::dns::DnsSettings;
use crate::ingress::IngressSettings;
pub use crate::pod_network::{PodNetworkConfig, PodNetworkMode, ipv6_defaults};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

/// What every component must know alike about the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterConfig {
    /// The cluster's name: `causeway up --name`. Default `default`.
    pub name: String,
    /// Pod addresses of the whole cluster, one range a family; every node gets a /24 (/64) of it. Default 10.244.0.0/16.
    pub pod_cidrs: Vec<IpNet>,
    /// Service addresses, one range a family. Default 10.96.0.0/12.
    pub service_cidrs: Vec<IpNet>,
    /// The address of cluster DNS, inside the first service range. Default 10.96.0.10.
    pub dns_ip: IpAddr,
    /// DNS domain of the cluster. Default `cluster.local`.
    pub domain: String,
    /// First and last node port. Default 30000–32767.
    pub node_ports: (u16, u16),
    /// Addresses for Services of type LoadBalancer. Default: none, such Services are left to others; on a cluster that
    /// `causeway up` makes on one machine, [`ClusterConfig::LOCAL_POOL`].
    pub load_balancer_pools: Option<Vec<Pool>>,
    /// On which of a node's addresses node ports are served: `primary`, or ranges. Default `[primary]`; empty is all.
    pub node_port_addresses: Vec<NodePortAddress>,
    /// How kube-proxy programs the kernel: `causeway up --proxy-mode`. Default `nftables`.
    pub proxy_mode: ProxyMode,
    /// In the mode `iptables`: which of its two sets of tables. Default `auto`, as the machine's other programs.
    pub iptables_flavour: IptablesFlavour,
    /// What cluster DNS answers and whom it asks.
    pub dns: DnsSettings,
    /// How the ingress and Gateways take connections, and what they log.
    pub ingress: IngressSettings,
    /// How pods of different nodes reach each other.
    pub pod_network: PodNetworkConfig,
    /// A node that is not heard of for so long is marked `Unknown`. Default 40, as in Kubernetes; less than a few
    /// renewals of a node's lease (10 s) marks healthy nodes.
    pub node_monitor_grace_period_seconds: u32,
}

/// How kube-proxy programs the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    /// One table of its own, by netlink.
    #[default]
    Nftables,
    /// Chains in the tables of `iptables`, by `iptables-restore`.
    Iptables,
}

impl std::fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

impl std::str::FromStr for ProxyMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "nftables" => Ok(Self::Nftables),
            "iptables" => Ok(Self::Iptables),
            _ => Err(format!("{text:?} is neither \"nftables\" nor \"iptables\"")),
        }
    }
}

/// The sets of tables that `iptables` can write to; a kernel can have rules in both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IptablesFlavour {
    /// The one with other programs' rules; without any, that of the command `iptables`.
    #[default]
    Auto,
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

/// An entry of `nodePortAddresses`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NodePortAddress {
    /// The node's primary addresses, one a family.
    Primary,
    /// All addresses of the node in this range.
    Range(IpNet),
}

impl std::str::FromStr for NodePortAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "primary" => Ok(Self::Primary),
            _ => text
                .parse()
                .map(Self::Range)
                .map_err(|_| format!("{text:?} is neither \"primary\" nor a range as 10.0.0.0/8")),
        }
    }
}

impl TryFrom<String> for NodePortAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NodePortAddress> for String {
    fn from(address: NodePortAddress) -> Self {
        match address {
            NodePortAddress::Primary => "primary".to_owned(),
            NodePortAddress::Range(range) => range.to_string(),
        }
    }
}

impl Default for ClusterConfig {
    fn default() -> Self {
        let net = |a, b, c, d, prefix| IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix));
        Self {
            name: "default".to_owned(),
            pod_cidrs: vec![net(10, 244, 0, 0, 16)],
            service_cidrs: vec![net(10, 96, 0, 0, 12)],
            dns_ip: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
            domain: "cluster.local".to_owned(),
            node_ports: (30000, 32767),
            load_balancer_pools: None,
            node_port_addresses: vec![NodePortAddress::Primary],
            proxy_mode: ProxyMode::default(),
            iptables_flavour: IptablesFlavour::default(),
            dns: DnsSettings::default(),
            ingress: IngressSettings::default(),
            pod_network: PodNetworkConfig::default(),
            node_monitor_grace_period_seconds: 40,
        }
    }
}

impl ClusterConfig {
    /// Load balancers' addresses on the segment of a local cluster; its nodes' addresses are below.
    pub const LOCAL_POOL: [&str; 2] = ["10.90.0.200-10.90.0.250", "fdca:5e3a:a700:90::200-fdca:5e3a:a700:90::2ff"];

    /// The pools of load balancers' addresses.
    pub fn pools(&self) -> &[Pool] {
        self.load_balancer_pools.as_deref().unwrap_or_default()
    }

    /// Whether the settings fit together; says which does not, and what it should be.
    pub fn check(&self) -> Result<(), String> {
        for (field, ranges) in [("podCidrs", &self.pod_cidrs), ("serviceCidrs", &self.service_cidrs)] {
            let v4 = ranges.iter().filter(|r| r.addr().is_ipv4()).count();
            if ranges.is_empty() || v4 > 1 || ranges.len() - v4 > 1 {
                return Err(format!("{field}: give one range a family, at least one"));
            }
        }
        let meet = |a: &IpNet, b: &IpNet| a.contains(&b.network()) || b.contains(&a.network());
        for pods in &self.pod_cidrs {
            if let Some(services) = self.service_cidrs.iter().find(|s| meet(pods, s)) {
                return Err(format!("podCidrs and serviceCidrs overlap: {pods} and {services}"));
            }
        }
        if !self.service_cidrs.first().is_some_and(|r| r.contains(&self.dns_ip)) {
            return Err(format!("dnsIp: {} is not in the first range of serviceCidrs", self.dns_ip));
        }
        if self.node_ports.0 == 0 || self.node_ports.0 > self.node_ports.1 {
            return Err(format!("nodePorts: {} to {} is no range", self.node_ports.0, self.node_ports.1));
        }
        for (i, pool) in self.pools().iter().enumerate() {
            if pool.name.is_empty() || self.pools()[..i].iter().any(|p| p.name == pool.name) {
                return Err(format!("loadBalancerPools: each needs a name of its own, and {:?} is not", pool.name));
            }
            let ranges = self.pod_cidrs.iter().chain(&self.service_cidrs);
            if let Some(range) = ranges.into_iter().find(|r| pool.meets(r)) {
                return Err(format!(
                    "loadBalancerPools: {:?} overlaps with {range}, which pods or services have",
                    pool.name
                ));
            }
        }
        let label = |l: &str| {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            !l.is_empty() && l.len() <= 63 && l.chars().all(fits) && !l.starts_with('-') && !l.ends_with('-')
        };
        if self.domain.len() > 200 || !self.domain.split('.').all(label) {
            return Err(format!("domain: {:?} is no DNS domain in lower case", self.domain));
        }
        self.pod_network.check()?;
        self.ingress.check()?;
        if self.node_monitor_grace_period_seconds == 0 {
            return Err("nodeMonitorGracePeriodSeconds: give at least 1".to_owned());
        }
        Ok(())
    }

    /// Adds the default IPv6 ranges where pods or services have none: a dual-stack cluster.
    pub fn make_dual_stack(&mut self) {
        let ranges = [(&mut self.pod_cidrs, ipv6_defaults::PODS), (&mut self.service_cidrs, ipv6_defaults::SERVICES)];
        for (ranges, default) in ranges {
            if !ranges.iter().any(|r| r.addr().is_ipv6()) {
                ranges.push(default);
            }
        }
    }

    /// Whether pods have addresses of IPv6, be it as the only family or the second.
    pub fn has_ipv6(&self) -> bool {
        self.pod_cidrs.iter().any(|r| r.addr().is_ipv6())
    }

    /// The node port range.
    pub fn node_port_range(&self) -> RangeInclusive<u16> {
        self.node_ports.0..=self.node_ports.1
    }

    /// The address of the `kubernetes` service: the first of the first service range.
    pub fn kubernetes_ip(&self) -> IpAddr {
        match self.service_cidrs.first() {
            Some(IpNet::V4(n)) => IpAddr::V4(Ipv4Addr::from(u32::from(n.network()).wrapping_add(1))),
            Some(IpNet::V6(n)) => IpAddr::V6((u128::from(n.network()).wrapping_add(1)).into()),
            None => IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
        }
    }
}
