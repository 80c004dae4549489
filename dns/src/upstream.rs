//! One server that is asked for names outside the cluster. In: a question. Out: its response, by UDP with TCP where that is
//! cut, or by TLS. A server that fails is left out until it answers a probe again.

use futures::StreamExt;
use hickory_net::NetError;
use hickory_net::proto::op::{DnsRequest, DnsRequestOptions, DnsResponse, Query};
use hickory_net::proto::rr::{Name, RecordType};
use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::tcp::TcpClientStream;
use hickory_net::tls::tls_exchange;
use hickory_net::udp::UdpClientStream;
use hickory_net::xfer::{DnsExchange, DnsHandle, DnsRequestSender};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Mutex;

/// An upstream gets this long for an answer; packets are sent again within it.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// Probes of a server that failed: this often, each with this long.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// Questions under way on one connection.
const MAX_ON_CONNECTION: usize = 1000;
/// The port of DNS, and of DNS over TLS.
const PORTS: (u16, u16) = (53, 853);

/// Where a server is, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    addr: SocketAddr,
    /// Over TLS, with this name in the certificate.
    tls: Option<ServerName<'static>>,
}

impl Address {
    /// Reads `ADDRESS`, `ADDRESS:PORT` or `tls://ADDRESS[:PORT][#NAME]`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            format!("DNS upstream {text:?}: {what}; write ADDRESS, ADDRESS:PORT or tls://ADDRESS[:PORT][#NAME]")
        };
        let (rest, secure) = match text.strip_prefix("tls://") {
            Some(rest) => (rest, true),
            None => (text.strip_prefix("dns://").unwrap_or(text), false),
        };
        let (place, name) = match rest.split_once('#') {
            Some((place, name)) if secure => (place, Some(name)),
            Some(_) => return Err(wrong("a name is checked only over TLS")),
            None => (rest, None),
        };
        let port = if secure { PORTS.1 } else { PORTS.0 };
        let bare = place.strip_prefix('[').and_then(|p| p.strip_suffix(']')).unwrap_or(place);
        let addr = match place.parse::<SocketAddr>() {
            Ok(addr) => addr,
            Err(_) => SocketAddr::new(bare.parse::<IpAddr>().map_err(|_| wrong("that is no address"))?, port),
        };
        if addr.port() == 0 || addr.ip().is_unspecified() {
            return Err(wrong("nobody can be asked there"));
        }
        let tls = match (secure, name) {
            (false, _) => None,
            (true, None) => Some(ServerName::IpAddress(addr.ip().into())),
            (true, Some(name)) => {
                Some(ServerName::try_from(name.to_owned()).map_err(|_| wrong("the name is no host name"))?)
            }
        };
        Ok(Self { addr, tls })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "tls://" } else { "" };
        write!(f, "{scheme}{}", self.addr)
    }
}

/// What a certificate of an upstream is checked against: the given ones, or those that the machine trusts.
pub fn trust(pem: Option<&str>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|e| format!("tlsCa of the DNS upstreams is no PEM: {e}"))?;
                roots.add(certificate).map_err(|e| format!("tlsCa of the DNS upstreams: {e}"))?;
            }
            if roots.is_empty() {
                return Err("tlsCa of the DNS upstreams holds no certificate".to_owned());
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS for the DNS upstreams: {e}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// A server with its connection and its health.
pub struct Upstream {
    /// As it is written in metrics.
    pub label: String,
    address: Address,
    trust: Option<ClientConfig>,
    /// Holds the tasks of connections: they end with it.
    provider: TokioRuntimeProvider,
    /// The connection in use, for TLS and for what is too long for a packet.
    held: Mutex<Option<DnsExchange<TokioRuntimeProvider>>>,
    fails: AtomicU32,
    probing: AtomicBool,
    max_fails: u32,
}

impl Upstream {
    /// Nothing is sent yet.
    pub fn new(address: Address, trust: Option<ClientConfig>, max_fails: u32) -> Self {
        Self {
            label: address.to_string(),
            address,
            trust,
            provider: TokioRuntimeProvider::default(),
            held: Mutex::default(),
            fails: AtomicU32::new(0),
            probing: AtomicBool::new(false),
            max_fails,
        }
    }

    /// False while it is left out.
    pub fn is_up(&self) -> bool {
        self.max_fails == 0 || self.fails.load(Ordering::Relaxed) < self.max_fails
    }

    /// Asks, on the runtime of the caller.
    pub async fn ask(&self, request: DnsRequest) -> Result<DnsResponse, NetError> {
        if self.address.tls.is_some() {
            return self.by_stream(request).await;
        }
        let mut udp =
            UdpClientStream::builder(self.address.addr, self.provider.clone()).with_timeout(Some(TIMEOUT)).build();
        let response = udp.send_message(request.clone()).next().await.unwrap_or(Err(NetError::Timeout))?;
        if response.metadata.truncation { self.by_stream(request).await } else { Ok(response) }
    }

    /// By the connection in use; by a new one when there is none, or it has ended meanwhile.
    async fn by_stream(&self, request: DnsRequest) -> Result<DnsResponse, NetError> {
        loop {
            let (exchange, fresh) = {
                let mut held = self.held.lock().await;
                match held.as_ref() {
                    Some(exchange) => (exchange.clone(), false),
                    None => {
                        let exchange = tokio::time::timeout(TIMEOUT, self.connect()).await;
                        let exchange = exchange.map_err(|_| NetError::Timeout)??;
                        *held = Some(exchange.clone());
                        (exchange, true)
                    }
                }
            };
            let answer = tokio::time::timeout(TIMEOUT, exchange.send(request.clone()).next()).await;
            match answer {
                Ok(Some(Ok(response))) => return Ok(response),
                // "Busy" is also what a connection says that has ended.
                failed => {
                    *self.held.lock().await = None;
                    if fresh {
                        return Err(match failed {
                            Ok(Some(Err(error))) => error,
                            _ => NetError::Timeout,
                        });
                    }
                }
            }
        }
    }

    async fn connect(&self) -> Result<DnsExchange<TokioRuntimeProvider>, NetError> {
        let (addr, provider) = (self.address.addr, self.provider.clone());
        match (&self.address.tls, &self.trust) {
            (Some(name), Some(trust)) => {
                tls_exchange(addr, name.clone(), trust.clone(), TIMEOUT, Some(MAX_ON_CONNECTION), provider).await
            }
            (Some(_), None) => Err(NetError::from("nothing to check certificates against")),
            (None, _) => TcpClientStream::exchange(addr, None, TIMEOUT, Some(MAX_ON_CONNECTION), provider).await,
        }
    }

    /// It answered.
    pub fn succeeded(&self) {
        self.fails.store(0, Ordering::Relaxed);
    }

    /// It did not: probes begin, unless they are under way. `on_fail` is called for each that fails.
    pub fn failed(self: &Arc<Self>, on_fail: impl Fn(&str) + Send + 'static) {
        // CoreDNS counts failed probes only; a question lost is reason enough for the first.
        self.fails.fetch_add(1, Ordering::Relaxed);
        if !self.probing.swap(true, Ordering::AcqRel) {
            tokio::spawn(probe(Arc::downgrade(self), on_fail));
        }
    }
}

/// Asks a server for the root's name servers until it says anything at all, or is no longer used.
async fn probe(upstream: Weak<Upstream>, on_fail: impl Fn(&str)) {
    loop {
        tokio::time::sleep(PROBE_EVERY).await;
        let Some(upstream) = upstream.upgrade() else { return };
        let query = Query::query(Name::root(), RecordType::NS);
        let question = DnsRequest::from_query(query, DnsRequestOptions::default());
        match tokio::time::timeout(PROBE_EVERY * 2, upstream.ask(question)).await {
            Ok(Ok(_)) => {
                upstream.probing.store(false, Ordering::Release);
                upstream.succeeded();
                tracing::info!(upstream = %upstream.label, "a DNS upstream answers again");
                return;
            }
            _ => {
                upstream.fails.fetch_add(1, Ordering::Relaxed);
                on_fail(&upstream.label);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_written_in_a_few_ways() {
        for (text, want) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("9.9.9.9:5300", "9.9.9.9:5300"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]", "[2001:db8::1]:53"),
            ("[2001:db8::1]:5300", "[2001:db8::1]:5300"),
            ("tls://9.9.9.9", "tls://9.9.9.9:853"),
            ("tls://9.9.9.9:8853#dns.example", "tls://9.9.9.9:8853"),
            ("tls://[2001:db8::1]#dns.example", "tls://[2001:db8::1]:853"),
        ] {
            assert_eq!(Address::parse(text).map(|a| a.to_string()), Ok(want.to_owned()));
        }
        for text in ["", "dns.example", "9.9.9.9#dns.example", "tls://", "tls://9.9.9.9#-", "9.9.9.9:0", "0.0.0.0"] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn trust_is_given_or_refused() {
        assert!(trust(Some("nonsense")).unwrap_err().contains("no certificate"));
        let certificate = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
        assert!(trust(Some(&certificate.cert.pem())).is_ok());
    }
}
