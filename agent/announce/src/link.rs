//! The addresses on this node's uplink that are there to be announced.
//!
//! In: addresses and how long they may stay. Out: the kernel has them, with a protocol number by which we know them
//! again, and with a life after which it takes them away by itself.

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use std::net::IpAddr;
use std::time::Duration;
use tokio::task::AbortHandle;

/// Protocol number of our addresses (`ip address` shows it as `proto`).
pub const PROTOCOL: u8 = 142;

/// The link that has the node's address.
pub struct Uplink {
    handle: Handle,
    pump: AbortHandle,
    node_ip: IpAddr,
    index: u32,
    /// The link's name.
    pub name: String,
}

impl Uplink {
    /// Finds it in the calling thread's namespace. Must be called on a tokio runtime.
    pub async fn find(node_ip: IpAddr) -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
        let pump = tokio::spawn(connection).abort_handle();
        let mut this = Self { handle, pump, node_ip, index: 0, name: String::new() };
        this.look().await?;
        Ok(this)
    }

    /// Looks for the link again, and says whether it can carry packets.
    pub async fn look(&mut self) -> Result<bool> {
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

impl Drop for Uplink {
    fn drop(&mut self) {
        self.pump.abort();
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
