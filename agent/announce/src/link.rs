//! The addresses on this node's uplink that are there to be announced.
//!
//! In: addresses and how long they may stay. Out: the kernel has them, with a protocol number by which we know them
//! again, and with a life after which it takes them away by itself; a word when the uplink has changed.

use anyhow::{Context, Result, bail};
use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup};
use std::net::IpAddr;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// Before the kernel is listened to anew, when it would not tell any more.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Protocol number of our addresses (`ip address` shows it as `proto`).
pub const PROTOCOL: u8 = 142;

/// The link that has the node's address.
pub struct Uplink {
    handle: Handle,
    _pump: AbortOnDropHandle<()>,
    news: News,
    node_ip: IpAddr,
    index: u32,
    up: bool,
    /// The link's name.
    pub name: String,
}

impl Uplink {
    /// Finds it in the calling thread's namespace. Must be called on a tokio runtime.
    pub async fn find(node_ip: IpAddr) -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
        let _pump = AbortOnDropHandle::new(tokio::spawn(connection));
        let news = News::listen()?;
        let mut this = Self { handle, _pump, news, node_ip, index: 0, up: false, name: String::new() };
        this.look().await?;
        Ok(this)
    }

    /// Looks for the link again, and says whether it can carry packets.
    pub async fn look(&mut self) -> Result<bool> {
        self.up = false;
        self.up = self.is_up().await?;
        Ok(self.up)
    }

    async fn is_up(&mut self) -> Result<bool> {
        let addresses: Vec<AddressMessage> =
            self.handle.address().get().execute().try_collect().await.context("listing addresses")?;
        let Some(with) = addresses.iter().find(|a| ip_of(a) == Some(self.node_ip)) else {
            if self.index == 0 {
                bail!("no link has the node's address {}", self.node_ip);
            }
            return Ok(false);
        };
        self.index = with.header.index;
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .match_index(self.index)
            .execute()
            .try_collect()
            .await
            .context("reading the uplink")?;
        let Some(link) = links.first() else { return Ok(false) };
        for attribute in &link.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                self.name.clone_from(name);
            }
        }
        Ok(link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp))
    }

    /// Waits until something about the uplink may have changed. Giving up the wait loses nothing.
    pub async fn changed(&mut self) {
        loop {
            match self.news.messages.next().await {
                Some((message, _)) if self.concerns(&message) => return,
                Some(_) => {}
                None => {
                    // More was told than could be heard: what it was is seen by looking.
                    tokio::time::sleep(LISTEN_AGAIN).await;
                    match News::listen() {
                        Ok(news) => self.news = news,
                        Err(error) => tracing::warn!("{error:#}; trying again"),
                    }
                    return;
                }
            }
        }
    }

    fn concerns(&self, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        let NetlinkPayload::InnerMessage(message) = &message.payload else { return false };
        match message {
            // While it is not up it may come again as another link.
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                !self.up || link.header.index == self.index
            }
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
                ip_of(address) == Some(self.node_ip)
            }
            _ => false,
        }
    }

    /// Our addresses on the link.
    pub async fn ours(&self) -> Result<Vec<IpAddr>> {
        let all = self.handle.address().get().set_link_index_filter(self.index).execute();
        let all: Vec<AddressMessage> = all.try_collect().await.context("listing the uplink's addresses")?;
        let marked = |a: &&AddressMessage| {
            a.attributes.iter().any(|x| matches!(x, AddressAttribute::Protocol(p) if u8::from(*p) == PROTOCOL))
        };
        Ok(all.iter().filter(|a| a.header.index == self.index).filter(marked).filter_map(ip_of).collect())
    }

    /// Puts an address there, or lengthens its life.
    pub async fn put(&self, ip: IpAddr, life: Duration) -> Result<()> {
        let prefix = if ip.is_ipv4() { 32 } else { 128 };
        let mut request = self.handle.address().add(self.index, ip, prefix).replace();
        let message = request.message_mut();
        message.header.scope = AddressScope::Universe;
        let mut cache = CacheInfo::default();
        // Not preferred: the node's own connections keep to its own address.
        cache.ifa_preferred = 0;
        cache.ifa_valid = u32::try_from(life.as_secs()).unwrap_or(1).max(1);
        message.attributes.push(AddressAttribute::CacheInfo(cache));
        message.attributes.push(AddressAttribute::Protocol(AddressProtocol::from(PROTOCOL)));
        if ip.is_ipv6() {
            // Who may have it is settled already; nobody should wait for duplicate address detection.
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.with_context(|| format!("putting {ip} on {}", self.name))
    }

    /// Takes an address away; succeeds when it is not there.
    pub async fn remove(&self, ip: IpAddr) -> Result<()> {
        let all = self.handle.address().get().set_link_index_filter(self.index).execute();
        let all: Vec<AddressMessage> = all.try_collect().await.context("listing the uplink's addresses")?;
        for message in all.into_iter().filter(|a| a.header.index == self.index && ip_of(a) == Some(ip)) {
            if let Err(error) = self.handle.address().del(message).execute().await
                && !is_gone(&error)
            {
                return Err(error).with_context(|| format!("taking {ip} off {}", self.name));
            }
        }
        Ok(())
    }

    /// Sends word to the neighbours.
    pub async fn tell(&self, addresses: Vec<IpAddr>) -> Result<()> {
        let name = self.name.clone();
        let sent = tokio::task::spawn_blocking(move || crate::packet::tell(&name, &addresses)).await;
        sent.context("the sender of announcements panicked")?.with_context(|| format!("announcing on {}", self.name))
    }
}

/// What the kernel tells of links and addresses, by a socket of its own: when too much is told at once it is this one that
/// breaks.
struct News {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    _handle: Handle,
    _pump: AbortOnDropHandle<()>,
}

impl News {
    fn listen() -> Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let opened = rtnetlink::new_multicast_connection(&groups);
        let (connection, handle, messages) = opened.context("listening to news of links")?;
        Ok(Self { messages, _handle: handle, _pump: AbortOnDropHandle::new(tokio::spawn(connection)) })
    }
}

fn is_gone(error: &rtnetlink::Error) -> bool {
    // EADDRNOTAVAIL: its life has ended meanwhile.
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -99)
}

fn ip_of(message: &AddressMessage) -> Option<IpAddr> {
    if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return None;
    }
    // Of a point-to-point link, `Address` is the other end.
    let by = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    by(true).or_else(|| by(false))
}
