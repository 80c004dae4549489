//! Traffic: connections in, requests through Pingora, connections out to pods.
//!
//! [`listen`] accepts and hands connections to Pingora's HTTP application, [`conn`] is the byte stream below it with
//! the limits Pingora lacks, [`tls`] terminates TLS, [`http`] decides for each request, [`pages`] says what went
//! wrong, [`policy`] does what a route asks for besides. Most requests are passed on by [`direct`], over connections that
//! [`kept`] has, or by [`calls`], over those of [`sessions`]; all others by Pingora's own way. Nothing here waits for the control plane.

pub mod access;
mod alarm;
pub mod announced;
mod calls;
pub mod checks;
pub mod conn;
mod connect;
mod cork;
mod direct;
mod filters;
mod find;
mod forwarded;
pub mod fronts;
pub mod http;
pub mod io;
pub mod kept;
mod link;
pub mod listen;
mod mirror;
pub mod pages;
mod patient;
pub mod policy;
pub mod raw;
mod rule;
pub mod sessions;
pub mod sni;
pub mod tls;
mod tries;
mod tunnel;
pub mod udp;
pub mod upgrade;
mod upstream_tls;
mod wire;

use causeway_api::ingress::{AccessLog, IngressSettings};
use ipnet::IpNet;
use std::time::Duration;

/// Limits and time-outs of the data plane.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time; beyond it new ones wait in the listening sockets. Default 16384.
    pub max_connections: usize,
    /// From the first byte of a request to the end of its head, and for a TLS handshake. Default 15 s.
    pub head_timeout: Duration,
    /// Bytes of a request's head; more gets 431. Default 64 KiB.
    pub max_head: usize,
    /// How long a connection may wait for the next request. Default 75 s.
    pub idle_timeout: Duration,
    /// Between two reads of a request's body, and for each write to a client. Default 60 s.
    pub client_timeout: Duration,
    /// For a connection to an endpoint. Default 2 s.
    pub connect_timeout: Duration,
    /// Between two reads of an answer, and for each write to an endpoint. Default 60 s.
    pub upstream_timeout: Duration,
    /// Silence of both sides on an upgraded connection (WebSocket). Default 1 h.
    pub upgraded_timeout: Duration,
    /// How long a connection to an endpoint is kept for reuse. Default 30 s.
    pub upstream_idle: Duration,
    /// Connections kept for reuse: to each endpoint by the short way, to all of them by Pingora's own, which has as many
    /// a core. Default 512.
    pub upstream_pool: usize,
    /// Endpoints a request is tried at. Default 4.
    pub attempts: usize,
    /// Concurrent streams of one HTTP/2 connection. Default 128.
    pub h2_streams: u32,
    /// How long requests under way may take after shutdown was asked for. Default 10 s.
    pub drain: Duration,
    /// Peers whose `X-Forwarded-*` headers are believed and extended instead of replaced. Default none.
    pub trusted_proxies: Vec<IpNet>,
    /// Trusted peers begin their connections with the PROXY protocol. Default no.
    pub proxy_protocol: bool,
    /// Backends get the header `Forwarded` too. Default no.
    pub forwarded_header: bool,
    /// Answers are compressed where that gains. Default no.
    pub compression: bool,
    /// One line a request, to standard output. Default off.
    pub access_log: AccessLog,
    /// The ports (HTTP, HTTPS) by which clients know us, where these are not 80 and 443: a redirect from the one to
    /// HTTPS names the other.
    pub public_ports: Option<(u16, u16)>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 16384,
            head_timeout: Duration::from_secs(15),
            max_head: 64 * 1024,
            idle_timeout: Duration::from_secs(75),
            client_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(2),
            upstream_timeout: Duration::from_secs(60),
            upgraded_timeout: Duration::from_secs(3600),
            upstream_idle: Duration::from_secs(30),
            upstream_pool: 512,
            attempts: 4,
            h2_streams: 128,
            drain: Duration::from_secs(10),
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            forwarded_header: false,
            compression: false,
            access_log: AccessLog::Off,
            public_ports: None,
        }
    }
}

impl Limits {
    /// As the cluster's configuration has them.
    pub fn of(settings: &IngressSettings) -> Self {
        let seconds = |n: u32| Duration::from_secs(n.into());
        Self {
            max_connections: settings.max_connections,
            head_timeout: seconds(settings.head_timeout_seconds),
            max_head: settings.max_head_bytes,
            idle_timeout: seconds(settings.idle_timeout_seconds),
            client_timeout: seconds(settings.client_timeout_seconds),
            upstream_timeout: seconds(settings.upstream_timeout_seconds),
            h2_streams: settings.max_http2_streams,
            drain: seconds(settings.drain_seconds),
            trusted_proxies: settings.trusted_proxies.clone(),
            proxy_protocol: settings.proxy_protocol,
            forwarded_header: settings.forwarded_header,
            compression: settings.compression,
            access_log: settings.access_log,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_agree() {
        assert_eq!(format!("{:?}", Limits::of(&IngressSettings::default())), format!("{:?}", Limits::default()));
    }
}
