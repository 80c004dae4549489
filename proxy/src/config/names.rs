//! Services of type ExternalName: keeps the addresses of the names that are in use.
//!
//! Names are asked for in the background, so that no request ever waits for DNS. What was last known stays when an
//! answer fails to come. Loopback, link-local and unspecified addresses are not taken: a name must not open a way to
//! the node itself.

use super::Shared;
use crate::route::upstream::BackendKey;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often names are asked for again.
const REFRESH: Duration = Duration::from_secs(5);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where names are looked up.
pub enum Resolver {
    /// The machine's resolver (`/etc/resolv.conf`).
    System,
    /// These name servers, usually cluster DNS.
    Servers(Box<TokioResolver>),
}

impl Resolver {
    /// Asks the given servers, or the machine's resolver when there is none.
    pub fn new(servers: &[IpAddr]) -> anyhow::Result<Self> {
        if servers.is_empty() {
            return Ok(Self::System);
        }
        let servers = servers.iter().map(|&ip| NameServerConfig::udp_and_tcp(ip)).collect();
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build()?;
        Ok(Self::Servers(Box::new(resolver)))
    }

    async fn addresses(&self, name: &str) -> anyhow::Result<Vec<IpAddr>> {
        let found: Vec<IpAddr> = match self {
            Self::System => {
                tokio::time::timeout(PATIENCE, tokio::net::lookup_host((name, 0))).await??.map(|a| a.ip()).collect()
            }
            Self::Servers(resolver) => {
                // A full name: the search path of a pod does not apply.
                let full = format!("{}.", name.trim_end_matches('.'));
                tokio::time::timeout(PATIENCE, resolver.lookup_ip(full)).await??.iter().collect()
            }
        };
        let mut found: Vec<_> = found.into_iter().filter(|&ip| permitted(ip)).collect();
        found.sort();
        found.dedup();
        anyhow::ensure!(!found.is_empty(), "no address that may be used");
        Ok(found)
    }
}

/// Keeps external upstreams up to date until shutdown.
pub async fn run(shared: Arc<Shared>, resolver: Resolver, shutdown: CancellationToken) {
    loop {
        let mut wanted: BTreeMap<Arc<str>, Vec<_>> = BTreeMap::new();
        for upstream in shared.registry.live() {
            if let BackendKey::External { name, .. } = &upstream.key {
                wanted.entry(Arc::clone(name)).or_default().push(upstream);
            }
        }
        for (name, upstreams) in wanted {
            let answer = tokio::select! {
                () = shutdown.cancelled() => return,
                answer = resolver.addresses(&name) => answer,
            };
            match answer {
                Ok(found) => {
                    for upstream in upstreams {
                        if let BackendKey::External { port, .. } = upstream.key {
                            upstream.set(&found.iter().map(|&ip| SocketAddr::new(ip, port)).collect::<Vec<_>>());
                        }
                    }
                }
                Err(error) => tracing::debug!(%error, %name, "external name not resolved; keeping what was known"),
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = shared.names_changed.notified() => {}
            () = tokio::time::sleep(REFRESH) => {}
        }
    }
}

fn permitted(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast()),
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_itself_is_not_reachable_by_a_name() {
        for (ip, want) in [
            ("127.0.0.1", false),
            ("::1", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("fe80::1", false),
            ("::ffff:127.0.0.1", false),
            ("10.0.0.1", true),
            ("203.0.113.9", true),
            ("2001:db8::1", true),
        ] {
            assert_eq!(permitted(ip.parse().unwrap()), want, "{ip}");
        }
    }
}
