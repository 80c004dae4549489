//! A few verbs on links, addresses and routes over one rtnetlink socket. The socket belongs to the namespace in which
//! it was opened; requests may come from anywhere.

mod vxlan;

pub(crate) use vxlan::{Mac, Vxlan};

use crate::{NetNs, Result, netns::kernel};
use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags},
        link::{InfoData, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tokio::task::AbortHandle;

/// A link as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    pub controller: Option<u32>,
    pub up: bool,
    pub mtu: u32,
    /// What kind of tunnel it is, if it is one.
    pub vxlan: Option<Vxlan>,
}

/// One end of a new veth pair: its name and the namespace it is born in (`None`: the socket's).
#[derive(Debug, Clone, Copy)]
pub(crate) struct VethEnd<'a> {
    pub name: &'a str,
    pub netns: Option<&'a NetNs>,
}

/// An open rtnetlink socket; closed on drop.
#[derive(Debug)]
pub(crate) struct Netlink {
    handle: Handle,
    pump: AbortHandle,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace. Must be called on a tokio runtime.
    pub fn here() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| kernel("opening a netlink socket", e))?;
        Ok(Self { handle, pump: tokio::spawn(connection).abort_handle() })
    }

    /// Opens a socket in another namespace. Must be called on a tokio runtime.
    pub fn inside(netns: &NetNs) -> Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        netns
            .run(move || {
                let _entered = runtime.enter();
                Self::here()
            })
            .map_err(|e| kernel(format!("entering the network namespace {}", netns.name()), e))?
    }

    pub async fn link(&self, name: &str) -> Result<Option<Link>> {
        let mut found = std::pin::pin!(self.handle.link().get().match_name(name).execute());
        match found.try_next().await {
            Ok(message) => Ok(message.map(read_link)),
            Err(e) if errno(&e) == Some(Errno::ENODEV) => Ok(None),
            Err(e) => Err(failed(format!("looking for the link {name}"), e)),
        }
    }

    pub async fn links(&self) -> Result<Vec<Link>> {
        let all = self.handle.link().get().execute().map_ok(read_link).try_collect().await;
        all.map_err(|e| failed("listing links", e))
    }

    /// Makes a bridge, or finds it and gives it the size wanted.
    pub async fn ensure_bridge(&self, name: &str, mtu: u32, mac: Option<Mac>) -> Result<Link> {
        if let Some(link) = self.link(name).await? {
            self.set_mtu(&link, mtu).await?;
            return Ok(link);
        }
        let mut message = LinkBridge::new(name).mtu(mtu);
        if let Some(mac) = mac {
            // Without an address of its own a bridge takes its lowest port's, and changes it under its neighbours.
            message = message.address(mac.to_vec());
        }
        let made = self.handle.link().add(message.build()).execute().await;
        made.map_err(|e| failed(format!("creating the bridge {name}"), e))?;
        self.must_link(name).await
    }

    /// Makes a veth pair, the near end up and a port of `controller`, if any. The kernel lets no far end be born up.
    pub async fn add_veth(&self, near: VethEnd<'_>, far: VethEnd<'_>, mtu: u32, controller: Option<u32>) -> Result<()> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name(far.name).mtu(mtu);
        if let Some(netns) = far.netns {
            peer = peer.setns_by_fd(netns.raw_fd());
        }
        let mut message = LinkVeth::new(near.name, far.name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .mtu(mtu)
            .up();
        if let Some(controller) = controller {
            message = message.controller(controller);
        }
        if let Some(netns) = near.netns {
            message = message.setns_by_fd(netns.raw_fd());
        }
        let made = self.handle.link().add(message.build()).execute().await;
        made.map_err(|e| failed(format!("creating the veth pair {} and {}", near.name, far.name), e))
    }

    /// Makes a bridge's port that of a pod: what goes out may come back by the gateway (hairpin), and no frame gets to
    /// another pod by the bridge alone, past the node's IP layer and so past network policies (isolated).
    pub async fn set_pod_port(&self, port: &Link) -> Result<()> {
        let message = LinkBridgePort::new(port.index).hairpin(true).isolated(true).build();
        let done = self.handle.link().set_port(message).execute().await;
        done.map_err(|e| failed(format!("making {} the port of a pod", port.name), e))
    }

    pub async fn set_up(&self, link: &Link) -> Result<()> {
        if link.up {
            return Ok(());
        }
        let done = self.handle.link().set(LinkUnspec::new_with_index(link.index).up().build()).execute().await;
        done.map_err(|e| failed(format!("bringing {} up", link.name), e))
    }

    pub async fn set_down(&self, link: &Link) -> Result<()> {
        let done = self.handle.link().set(LinkUnspec::new_with_index(link.index).down().build()).execute().await;
        done.map_err(|e| failed(format!("taking {} down", link.name), e))
    }

    /// The largest packet of a link; nothing is cut when it has the size already.
    pub async fn set_mtu(&self, link: &Link, mtu: u32) -> Result<()> {
        if link.mtu == mtu {
            return Ok(());
        }
        let done = self.handle.link().set(LinkUnspec::new_with_index(link.index).mtu(mtu).build()).execute().await;
        done.map_err(|e| failed(format!("giving {} an MTU of {mtu}", link.name), e))
    }

    /// Removes a link by name; succeeds when there is none.
    pub async fn delete_link(&self, name: &str) -> Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
        match self.handle.link().del_with_message(message).execute().await {
            Err(e) if errno(&e) != Some(Errno::ENODEV) => Err(failed(format!("deleting the link {name}"), e)),
            _ => Ok(()),
        }
    }

    /// Adds an address, at once usable (no duplicate address detection); succeeds when it is there.
    pub async fn ensure_address(&self, link: &Link, address: IpNet) -> Result<()> {
        let mut request = self.handle.address().add(link.index, address.addr(), address.prefix_len()).replace();
        if address.addr().is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let done = request.execute().await;
        done.map_err(|e| failed(format!("giving {} the address {address}", link.name), e))
    }

    /// Removes an address; succeeds when it is not there.
    pub async fn delete_address(&self, link: &Link, address: IpNet) -> Result<()> {
        let mut message = self.handle.address().add(link.index, address.addr(), address.prefix_len());
        match self.handle.address().del(message.message_mut().clone()).execute().await {
            Err(e) if errno(&e) != Some(Errno::EADDRNOTAVAIL) => {
                Err(failed(format!("taking the address {address} from {}", link.name), e))
            }
            _ => Ok(()),
        }
    }

    /// The link that holds an address.
    pub async fn link_with(&self, ip: IpAddr) -> Result<Option<Link>> {
        for link in self.links().await? {
            if self.addresses(&link).await?.contains(&ip) {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    /// The addresses of a link.
    pub async fn addresses(&self, link: &Link) -> Result<Vec<IpAddr>> {
        let found = self.handle.address().get().set_link_index_filter(link.index).execute();
        let found: Vec<_> =
            found.try_collect().await.map_err(|e| failed(format!("reading the addresses of {}", link.name), e))?;
        Ok(found
            .iter()
            .flat_map(|m| &m.attributes)
            .filter_map(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None })
            .collect())
    }

    /// Adds or replaces a route.
    pub async fn put_route(&self, route: &Route) -> Result<()> {
        let done = self.handle.route().add(route.message()).replace().execute().await;
        done.map_err(|e| failed(format!("adding the route {route}"), e))
    }

    /// Removes a route; succeeds when there is none.
    pub async fn delete_route(&self, route: &Route) -> Result<()> {
        match self.handle.route().del(route.message()).execute().await {
            Err(e) if errno(&e) != Some(Errno::ESRCH) => Err(failed(format!("deleting the route {route}"), e)),
            _ => Ok(()),
        }
    }

    /// The routes of the main table that carry a protocol number.
    pub async fn routes_of(&self, protocol: u8) -> Result<Vec<Route>> {
        let mut found = Vec::new();
        for message in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let mut messages = std::pin::pin!(self.handle.route().get(message).execute());
            while let Some(message) = messages.next().await {
                let message = message.map_err(|e| failed("listing routes", e))?;
                if message.header.protocol == RouteProtocol::from(protocol) {
                    found.extend(Route::read(&message));
                }
            }
        }
        Ok(found)
    }

    async fn must_link(&self, name: &str) -> Result<Link> {
        self.link(name).await?.ok_or_else(|| kernel(format!("looking for the link {name}"), "it is gone again"))
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Route {
    pub destination: IpNet,
    pub gateway: Option<IpAddr>,
    pub link: Option<u32>,
    pub source: Option<IpAddr>,
    pub metric: Option<u32>,
    pub unreachable: bool,
    pub protocol: u8,
}

impl Route {
    pub fn new(destination: IpNet, protocol: u8) -> Self {
        let destination = destination.trunc();
        Self { destination, gateway: None, link: None, source: None, metric: None, unreachable: false, protocol }
    }

    fn message(&self) -> RouteMessage {
        let mut builder = match self.destination {
            IpNet::V4(net) => {
                let mut b = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net.network(), net.prefix_len());
                if let Some(IpAddr::V4(via)) = self.gateway {
                    b = b.gateway(via).onlink();
                }
                if let Some(IpAddr::V4(source)) = self.source {
                    b = b.pref_source(source);
                }
                RouteBuilder::V4(b)
            }
            IpNet::V6(net) => {
                let mut b = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(net.network(), net.prefix_len());
                if let Some(IpAddr::V6(via)) = self.gateway {
                    b = b.gateway(via).onlink();
                }
                if let Some(IpAddr::V6(source)) = self.source {
                    b = b.pref_source(source);
                }
                RouteBuilder::V6(b)
            }
        };
        let message = builder.get_mut();
        message.header.protocol = RouteProtocol::from(self.protocol);
        if self.unreachable {
            message.header.kind = RouteType::Unreachable;
        } else if self.gateway.is_none() {
            message.header.scope = RouteScope::Link;
        }
        if self.link.is_none() {
            message.header.flags = Default::default();
        }
        message.attributes.extend(self.link.map(RouteAttribute::Oif));
        message.attributes.extend(self.metric.map(RouteAttribute::Priority));
        message.clone()
    }

    fn read(message: &RouteMessage) -> Option<Self> {
        let any = match message.header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let ip = |a: &RouteAddress| match a {
            RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
            RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
            _ => None,
        };
        let net = IpNet::new(any, message.header.destination_prefix_length).ok()?;
        let mut route = Self::new(net, message.header.protocol.into());
        route.unreachable = message.header.kind == RouteType::Unreachable;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(a) => {
                    route.destination = IpNet::new(ip(a)?, message.header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Gateway(a) => route.gateway = ip(a),
                RouteAttribute::PrefSource(a) => route.source = ip(a),
                RouteAttribute::Oif(index) => route.link = Some(*index),
                RouteAttribute::Priority(metric) => route.metric = Some(*metric),
                _ => {}
            }
        }
        Some(route)
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.unreachable {
            f.write_str("unreachable ")?;
        }
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        Ok(())
    }
}

enum RouteBuilder {
    V4(RouteMessageBuilder<Ipv4Addr>),
    V6(RouteMessageBuilder<Ipv6Addr>),
}

impl RouteBuilder {
    fn get_mut(&mut self) -> &mut RouteMessage {
        match self {
            Self::V4(b) => b.get_mut(),
            Self::V6(b) => b.get_mut(),
        }
    }
}

fn read_link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        controller: None,
        up: message.header.flags.contains(rtnetlink::packet_route::link::LinkFlags::Up),
        mtu: 0,
        vxlan: None,
    };
    let mut mac = None;
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(address) => mac = Mac::try_from(address).ok(),
            LinkAttribute::LinkInfo(infos) => {
                let data = infos.into_iter().find_map(|i| if let LinkInfo::Data(data) = i { Some(data) } else { None });
                if let Some(InfoData::Vxlan(data)) = data {
                    link.vxlan = Vxlan::read(&data);
                }
            }
            _ => {}
        }
    }
    if let (Some(vxlan), Some(mac)) = (&mut link.vxlan, mac) {
        vxlan.mac = mac;
    }
    link
}

fn errno(e: &rtnetlink::Error) -> Option<Errno> {
    match e {
        rtnetlink::Error::NetlinkError(message) => Some(Errno::from_raw(-message.raw_code())),
        _ => None,
    }
}

fn failed(doing: impl Into<String>, e: rtnetlink::Error) -> crate::NetworkError {
    match errno(&e) {
        Some(errno) => kernel(doing, errno.desc()),
        None => kernel(doing, e),
    }
}
