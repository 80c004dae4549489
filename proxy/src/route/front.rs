//! Fronts: the ports of Gateways as the data plane serves them. A front is one port of one Gateway; its listeners share
//! that port and are told apart by host name (HTTP) or server name (TLS). Immutable values that are swapped whole.
//!
//! Which socket a front is served on is found out when the socket is opened: the Gateway's address and port lead there
//! through a Service, so no two Gateways get in each other's way.

use super::rule::{RuleTable, Split};
use super::{HostPattern, ObjectKey};
use crate::config::certs::Certificates;
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::sync::Arc;

/// What names a front.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontKey {
    /// The Gateway.
    pub gateway: ObjectKey,
    /// The port clients connect to.
    pub port: u16,
    /// UDP, not TCP.
    pub udp: bool,
}

/// One port of a Gateway.
#[derive(Debug)]
pub struct Front {
    /// Which.
    pub key: FrontKey,
    /// What is done there.
    pub service: FrontService,
}

/// What is spoken at a port.
#[derive(Debug)]
pub enum FrontService {
    /// HTTP/1.1 and h2c in clear text; the listener is chosen by the request's host.
    Http(Vec<Arc<HttpListener>>),
    /// TLS; the listener is chosen by the server name.
    Tls(Vec<Arc<TlsListener>>),
    /// Bytes as they come (TCPRoute).
    Tcp(Split),
    /// Datagrams (UDPRoute).
    Udp(Split),
}

/// A listener that speaks HTTP, in clear text or behind TLS.
#[derive(Debug)]
pub struct HttpListener {
    /// Its name in the Gateway or ListenerSet.
    pub name: Arc<str>,
    /// The hosts it is for.
    pub host: HostPattern,
    /// The routes that are attached to it, and no others.
    pub rules: RuleTable,
}

/// A listener behind TLS.
#[derive(Debug)]
pub struct TlsListener {
    /// Its name in the Gateway or ListenerSet.
    pub name: Arc<str>,
    /// The server names it is for.
    pub host: HostPattern,
    /// What is done with its connections.
    pub mode: TlsMode,
}

/// What is done with a connection that speaks TLS.
#[derive(Debug)]
pub enum TlsMode {
    /// Decrypted here, HTTP inside (protocol HTTPS).
    Https(TlsServer, Arc<HttpListener>),
    /// Decrypted here, bytes sent on (TLSRoute, mode Terminate).
    Terminate(TlsServer, SniTable),
    /// Sent on as it is (TLSRoute, mode Passthrough).
    Passthrough(SniTable),
}

/// Backends by server name: the routes of a TLS listener.
pub type SniTable = super::Table<Arc<Split>>;

/// How TLS is decrypted.
#[derive(Debug)]
pub struct TlsServer {
    /// By server name; the first one of the listener is the default.
    pub certificates: Arc<Certificates>,
    /// What clients must show.
    pub clients: Option<ClientValidation>,
}

/// Certificates of clients (GEP-91).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientValidation {
    /// Who may sign them. Empty: no client can be believed, connections are refused.
    pub roots: Vec<CertificateDer<'static>>,
    /// Clients without one, or with one that nobody vouches for, are let in.
    pub optional: bool,
}

impl FrontKey {
    /// Whether a text, such as the name of a socket, begins as that of a front does.
    pub fn names(text: &str) -> bool {
        text.starts_with("Gateway ")
    }
}

impl fmt::Display for FrontKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gateway {} port {}{}", self.gateway, self.port, if self.udp { "/UDP" } else { "" })
    }
}

/// The listener for a name: the most specific of those whose pattern fits. A wildcard stands for one label or more.
pub fn most_specific<'a, L>(
    listeners: &'a [L],
    host: impl Fn(&L) -> &HostPattern,
    name: Option<&str>,
) -> Option<&'a L> {
    let rank = |pattern: &HostPattern| match pattern {
        HostPattern::Any => Some(0),
        HostPattern::Exact(own) => (Some(&**own) == name).then_some(usize::MAX),
        HostPattern::Wildcard(suffix) => {
            let label = name?.strip_suffix(&**suffix)?.strip_suffix('.')?;
            (!label.is_empty()).then_some(suffix.len() + 1)
        }
    };
    let ranked = listeners.iter().filter_map(|l| Some((rank(host(l))?, l)));
    // Of equals the first: `max_by_key` would take the last.
    ranked.rev().max_by_key(|(rank, _)| *rank).map(|(_, l)| l)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_listener_answers() {
        let all =
            ["", "*.example.org", "*.a.example.org", "b.a.example.org"].map(|h| HostPattern::parse(Some(h)).unwrap());
        let found = |name| most_specific(&all, |h| h, name).unwrap().to_string();
        assert_eq!(found(Some("b.a.example.org")), "b.a.example.org");
        assert_eq!(found(Some("c.a.example.org")), "*.a.example.org");
        assert_eq!(found(Some("d.c.a.example.org")), "*.a.example.org");
        assert_eq!(found(Some("a.example.org")), "*.example.org");
        assert_eq!(found(Some("example.org")), "*");
        assert_eq!(found(None), "*");
        assert!(most_specific(&all[1..], |h| h, Some("example.org")).is_none());
        assert!(most_specific(&all[1..2], |h| h, Some("badexample.org")).is_none());
    }
}
