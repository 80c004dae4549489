//! What is to be sent, where, how often and for how long. In: what a user typed. Out: a checked [`Plan`].

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Uri};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Requests a second at most.
const MAX_RATE: f64 = 1_000_000.0;
/// The longest run.
const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);
/// Connections at most.
const MAX_CONNECTIONS: usize = 20_000;

/// A load.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `http://…` or `https://…`.
    pub url: Uri,
    /// The method.
    pub method: Method,
    /// Further headers; a `host` among them replaces the URL's.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body of every request.
    pub body: Bytes,
    /// Requests a second, whether or not they are answered (open loop). None: each connection sends its next request
    /// when the last one is answered (closed loop), which finds the most that a server can take and says little about
    /// latency.
    pub rate: Option<f64>,
    /// For how long requests become due.
    pub duration: Duration,
    /// Before that, for so long, requests are sent and not counted.
    pub warmup: Duration,
    /// Connections.
    pub connections: usize,
    /// HTTP/2; in clear text with prior knowledge.
    pub http2: bool,
    /// Requests at a time on one HTTP/2 connection.
    pub streams: usize,
    /// A new connection for every request.
    pub fresh: bool,
    /// Connect there, whatever the URL's host.
    pub connect_to: Option<SocketAddr>,
    /// From when a request is due until it has failed.
    pub timeout: Duration,
    /// Believe any certificate.
    pub insecure: bool,
    /// Believe these authorities (PEM) and no others.
    pub ca: Option<PathBuf>,
}

/// Where and what to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where to connect.
    pub addresses: Vec<SocketAddr>,
    /// The name in TLS; none: clear text.
    pub tls: Option<String>,
}

impl Plan {
    /// The defaults: 64 connections as fast as they can for ten seconds.
    pub fn new(url: &str) -> Result<Self> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let url: Uri = url.parse().with_context(|| format!("{url:?} is no URL"))?;
        if url.host().is_none() || !matches!(url.scheme_str(), Some("http" | "https")) {
            bail!("{url} is neither http://… nor https://…");
        }
        Ok(Self {
            url,
            method: Method::GET,
            headers: Vec::new(),
            body: Bytes::new(),
            rate: None,
            duration: Duration::from_secs(10),
            warmup: Duration::ZERO,
            connections: 64,
            http2: false,
            streams: 1,
            fresh: false,
            connect_to: None,
            timeout: Duration::from_secs(10),
            insecure: false,
            ca: None,
        })
    }

    /// Refuses what makes no sense or has no bound.
    pub fn check(&self) -> Result<()> {
        if let Some(rate) = self.rate
            && !(rate > 0.0 && rate <= MAX_RATE)
        {
            bail!("--rate {rate}: give requests a second, above 0 and at most {MAX_RATE}");
        }
        if self.duration.is_zero() || self.duration > MAX_DURATION || self.warmup > MAX_DURATION {
            bail!("--duration and --warmup: at most 24 h, and the former above zero");
        }
        if self.connections == 0 || self.connections > MAX_CONNECTIONS {
            bail!("--connections {}: from 1 to {MAX_CONNECTIONS}", self.connections);
        }
        if self.streams == 0 || self.streams > 1000 || (self.streams > 1 && !self.http2) {
            bail!("--streams {}: from 1 to 1000, and only with --http2", self.streams);
        }
        if self.fresh && self.http2 {
            bail!("--new-connection is for HTTP/1.1");
        }
        Ok(())
    }

    /// A header as `Name: value`.
    pub fn header(text: &str) -> Result<(HeaderName, HeaderValue)> {
        let (name, value) = text.split_once(':').with_context(|| format!("--header {text:?}: write Name: value"))?;
        let name = name.trim().parse().with_context(|| format!("--header {text:?}: {name:?} is no header's name"))?;
        let value = value.trim().parse().with_context(|| format!("--header {text:?}: the value cannot be sent"))?;
        Ok((name, value))
    }

    /// Looks the host up, once: names below `.localhost` are this machine (RFC 6761).
    pub async fn target(&self) -> Result<Target> {
        let host = self.url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_tls = self.url.scheme_str() == Some("https");
        let port = self.url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let addresses = if let Some(address) = self.connect_to {
            vec![address]
        } else if host == "localhost" || host.ends_with(".localhost") {
            vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)]
        } else if let Ok(ip) = host.parse() {
            vec![SocketAddr::new(ip, port)]
        } else {
            let found = tokio::net::lookup_host((host.as_str(), port)).await;
            found
                .with_context(|| format!("looking up {host}; give --connect-to ADDRESS:PORT to go elsewhere"))?
                .collect()
        };
        if addresses.is_empty() {
            bail!("{host} has no address");
        }
        Ok(Target { addresses, tls: is_tls.then_some(host) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_bounds() {
        for bad in ["", "ftp://x", "http://", "http://a b", "/x"] {
            assert!(Plan::new(bad).is_err(), "{bad:?}");
        }
        let plan = Plan::new("shop.localhost:8080/x?y").unwrap();
        assert_eq!(plan.url.to_string(), "http://shop.localhost:8080/x?y");
        plan.check().unwrap();
        for (what, bad) in [
            ("--rate", Plan { rate: Some(0.0), ..plan.clone() }),
            ("--rate", Plan { rate: Some(f64::NAN), ..plan.clone() }),
            ("--duration", Plan { duration: Duration::ZERO, ..plan.clone() }),
            ("--connections", Plan { connections: 0, ..plan.clone() }),
            ("--streams", Plan { streams: 4, ..plan.clone() }),
            ("--new-connection", Plan { fresh: true, http2: true, ..plan.clone() }),
        ] {
            assert!(bad.check().unwrap_err().to_string().contains(what), "{what}");
        }
        assert!(Plan::header("no colon").is_err() && Plan::header("b ad: x").is_err());
        assert_eq!(Plan::header("X-A: b: c").unwrap().1, "b: c");
    }

    #[tokio::test]
    async fn localhost_is_here() {
        for (url, want, tls) in [
            ("http://shop.localhost:8080/", "127.0.0.1:8080", None),
            ("https://shop.localhost/", "127.0.0.1:443", Some("shop.localhost")),
            ("http://[::1]:81/", "[::1]:81", None),
        ] {
            let target = Plan::new(url).unwrap().target().await.unwrap();
            assert_eq!(target, Target { addresses: vec![want.parse().unwrap()], tls: tls.map(str::to_owned) });
        }
    }
}
