//! How pods of different nodes reach each other, and the IPv6 ranges of clusters that name none.

use serde::{Deserialize, Serialize};

/// How pods of different nodes reach each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct PodNetworkConfig {
    /// `routed` where all nodes are neighbours on one segment, `vxlan` where they are not. Default `routed`.
    pub mode: PodNetworkMode,
    /// Number of the virtual network. Default 1.
    pub vxlan_id: u32,
    /// UDP port of the tunnels. Default 8472, the Linux kernel's; the one of RFC 7348 is 4789.
    pub vxlan_port: u16,
    /// Whether what pods send to others than pods comes from their node's address. Default: in the mode `vxlan`, where
    /// nobody else knows the way back to a pod, and not in `routed`.
    pub masquerade: Option<bool>,
    /// Largest packet of a pod, in bytes. Default: of the link that holds the node's address, less the tunnel's
    /// headers (50 bytes over IPv4, 70 over IPv6).
    pub mtu: Option<u32>,
}

/// See [`PodNetworkConfig::mode`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodNetworkMode {
    /// A route to each node's pods by the node's address.
    #[default]
    Routed,
    /// A tunnel between each two nodes; what lies between them sees nodes' addresses only.
    Vxlan,
}

impl Default for PodNetworkConfig {
    fn default() -> Self {
        Self { mode: PodNetworkMode::Routed, vxlan_id: 1, vxlan_port: 8472, masquerade: None, mtu: None }
    }
}

impl PodNetworkConfig {
    /// Whether the settings fit together; says which does not.
    pub fn check(&self) -> Result<(), String> {
        if self.vxlan_id >= 1 << 24 {
            return Err(format!("podNetwork.vxlanId: {} has more than 24 bits", self.vxlan_id));
        }
        if self.vxlan_port == 0 {
            return Err("podNetwork.vxlanPort: 0 is no port".to_owned());
        }
        // Below, IPv6 does not work.
        match self.mtu {
            Some(mtu) if !(1280..=65_535).contains(&mtu) => {
                Err(format!("podNetwork.mtu: {mtu} is not between 1280 and 65535"))
            }
            _ => Ok(()),
        }
    }

    /// See [`PodNetworkConfig::masquerade`].
    pub fn masquerades(&self) -> bool {
        self.masquerade.unwrap_or(self.mode == PodNetworkMode::Vxlan)
    }
}

/// The IPv6 ranges of a dual-stack cluster that names none, and of its local nodes: of one unique local /48 (RFC 4193),
/// chosen at random.
pub mod ipv6_defaults {
    use ipnet::{IpNet, Ipv6Net};
    use std::net::Ipv6Addr;

    /// Pods: fdca:5e3a:a700:100::/56, a /64 for each node.
    pub const PODS: IpNet = net(0x100, 56);
    /// Services: fdca:5e3a:a700:10::/112.
    pub const SERVICES: IpNet = net(0x10, 112);
    /// Nodes of a local cluster: fdca:5e3a:a700:90::/64.
    pub const NODES: IpNet = net(0x90, 64);

    const fn net(subnet: u16, prefix: u8) -> IpNet {
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfdca, 0x5e3a, 0xa700, subnet, 0, 0, 0, 0), prefix))
    }
}
