//! The verbs on VXLAN devices: the device itself, which node is behind which hardware address (forwarding), and which
//! hardware address a gateway has (neighbours).

use super::{Link, Netlink, errno, failed};
use crate::Result;
use futures::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::{
    LinkVxlan,
    packet_route::{
        AddressFamily,
        link::InfoVxlan,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    },
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// What makes a VXLAN device the one that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub id: u32,
    pub port: u16,
    /// The address that packets leave from.
    pub local: IpAddr,
    pub mac: Mac,
}

impl Vxlan {
    pub(super) fn read(data: &[InfoVxlan]) -> Option<Self> {
        let id = data.iter().find_map(|d| if let InfoVxlan::Id(id) = d { Some(*id) } else { None })?;
        let port = data.iter().find_map(|d| if let InfoVxlan::Port(port) = d { Some(*port) } else { None })?;
        let local = data.iter().find_map(|d| match d {
            InfoVxlan::Local(ip) => Some(IpAddr::V4(*ip)),
            InfoVxlan::Local6(ip) => Some(IpAddr::V6(*ip)),
            _ => None,
        })?;
        Some(Self { id, port, local, mac: [0; 6] })
    }
}

impl Netlink {
    /// Makes a VXLAN device, finds it, or replaces one that differs, and brings it up.
    pub async fn ensure_vxlan(&self, name: &str, wanted: &Vxlan, mtu: u32) -> Result<Link> {
        let mut found = self.link(name).await?;
        if found.as_ref().is_some_and(|link| link.vxlan.as_ref() != Some(wanted)) {
            self.delete_link(name).await?;
            found = None;
        }
        if found.is_none() {
            let device = LinkVxlan::new(name, wanted.id).port(wanted.port).learning(false);
            let device = match wanted.local {
                IpAddr::V4(ip) => device.local(ip),
                IpAddr::V6(ip) => device.local6(ip),
            };
            let message = device.address(wanted.mac.to_vec()).mtu(mtu).build();
            let made = self.handle.link().add(message).execute().await;
            made.map_err(|e| failed(format!("creating the VXLAN device {name}"), e))?;
        }
        let link = self.must_link(name).await?;
        self.set_mtu(&link, mtu).await?;
        self.set_up(&link).await?;
        Ok(link)
    }

    /// Permanent forwarding entries of a VXLAN device: hardware address and the node behind it.
    pub async fn forwarding(&self, link: &Link) -> Result<Vec<(Mac, IpAddr)>> {
        let found = self.neighbour_messages(link, AddressFamily::Bridge).await?;
        Ok(found.iter().filter_map(|m| Some((mac_of(m)?, ip_of(m)?))).collect())
    }

    /// Says which node is behind a hardware address.
    pub async fn put_forwarding(&self, link: &Link, mac: Mac, node: IpAddr) -> Result<()> {
        let request = self.handle.neighbours().add_bridge(link.index, &mac).destination(node);
        let done = request.flags(NeighbourFlags::Own).replace().execute().await;
        done.map_err(|e| failed(format!("forwarding to the node {node} on {}", link.name), e))
    }

    /// Forgets it; succeeds when there is nothing.
    pub async fn delete_forwarding(&self, link: &Link, mac: Mac, node: IpAddr) -> Result<()> {
        let mut request = self.handle.neighbours().add_bridge(link.index, &mac).destination(node);
        request.message_mut().header.flags = NeighbourFlags::Own;
        let message = request.message_mut().clone();
        self.delete_neighbour_message(message, format!("no longer forwarding to the node {node} on {}", link.name))
            .await
    }

    /// Permanent neighbours on a link.
    pub async fn neighbours(&self, link: &Link) -> Result<Vec<(IpAddr, Mac)>> {
        let mut all = self.neighbour_messages(link, AddressFamily::Inet).await?;
        all.extend(self.neighbour_messages(link, AddressFamily::Inet6).await?);
        Ok(all.iter().filter_map(|m| Some((ip_of(m)?, mac_of(m)?))).collect())
    }

    /// Says which hardware address a neighbour has, for good.
    pub async fn put_neighbour(&self, link: &Link, ip: IpAddr, mac: Mac) -> Result<()> {
        let done = self.handle.neighbours().add(link.index, ip).link_layer_address(&mac).replace().execute().await;
        done.map_err(|e| failed(format!("making {ip} a neighbour on {}", link.name), e))
    }

    /// Forgets it; succeeds when there is nothing.
    pub async fn delete_neighbour(&self, link: &Link, ip: IpAddr) -> Result<()> {
        let message = self.handle.neighbours().add(link.index, ip).message_mut().clone();
        self.delete_neighbour_message(message, format!("forgetting the neighbour {ip} on {}", link.name)).await
    }

    async fn delete_neighbour_message(&self, message: NeighbourMessage, doing: String) -> Result<()> {
        match self.handle.neighbours().del(message).execute().await {
            Err(e) if errno(&e) != Some(Errno::ENOENT) => Err(failed(doing, e)),
            _ => Ok(()),
        }
    }

    async fn neighbour_messages(&self, link: &Link, family: AddressFamily) -> Result<Vec<NeighbourMessage>> {
        let mut request = self.handle.neighbours().get().set_address_family(family);
        // The kernel dumps forwarding entries of all devices unless told which.
        request.message_mut().header.ifindex = link.index;
        let found: Vec<_> = request
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed(format!("reading the neighbours of {}", link.name), e))?;
        let ours = |m: &NeighbourMessage| {
            m.header.ifindex == link.index && m.header.family == family && m.header.state == NeighbourState::Permanent
        };
        Ok(found.into_iter().filter(ours).collect())
    }
}

fn mac_of(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => Mac::try_from(mac.as_slice()).ok(),
        _ => None,
    })
}

fn ip_of(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        // The address of a forwarding entry has no family of its own.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(|b| IpAddr::V4(Ipv4Addr::from(b)))
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(|b| IpAddr::V6(Ipv6Addr::from(b))))
            .ok(),
        _ => None,
    })
}
