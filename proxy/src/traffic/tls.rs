//! TLS termination: the certificate is chosen by server name from what is in force at that moment.

use crate::acme::challenge;
use crate::config::Shared;
use crate::config::certs::{self, CertError};
use crate::config::staple;
use crate::route::front::{FrontService, TlsMode, most_specific};
use pingora::protocols::tls::SslDigest;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::sync::{Arc, LazyLock};
use tokio_rustls::TlsAcceptor;

/// Why TLS cannot be served at all.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate for connections without one could not be made.
    #[error("making the self-signed default certificate: {0}")]
    Default(#[from] CertError),
    /// Certificates of clients cannot be verified.
    #[error("configuring the verification of clients: {0}")]
    Clients(String),
    /// rustls refused the configuration.
    #[error("configuring TLS: {0}")]
    Config(#[from] rustls::Error),
}

#[derive(Debug)]
struct Resolver {
    shared: Arc<Shared>,
    fallback: Arc<CertifiedKey>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.alpn().is_some_and(|mut all| all.any(|p| p == challenge::ALPN)) {
            // An authority asks whether the name is ours; nobody else speaks so.
            return self.shared.challenges.certificate(&hello.server_name()?.to_ascii_lowercase());
        }
        let certificates = self.shared.certificates.load();
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let name = name.as_deref();
        let found = certificates.named(name).cloned().or_else(|| of_gateways(&self.shared, name));
        Some(staple::current(found.as_ref().or_else(|| certificates.find(name)).unwrap_or(&self.fallback)))
    }
}

/// What all cryptography here is done with.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
    Arc::clone(&PROVIDER)
}

/// The server name that a connection asked for.
pub fn server_name(digest: &SslDigest) -> Option<&str> {
    digest.organization.as_deref()
}

/// The certificate of a Gateway that is served at the ingress' sockets too.
fn of_gateways(shared: &Shared, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
    let local = shared.local.load();
    local.iter().find_map(|front| match &front.service {
        FrontService::Tls(listeners) => match &most_specific(listeners, |l| &l.host, name)?.mode {
            TlsMode::Https(server, _) => server.certificates.find(name).cloned(),
            _ => None,
        },
        _ => None,
    })
}

/// An acceptor that offers HTTP/2 and HTTP/1.1.
pub fn acceptor(shared: Arc<Shared>) -> Result<TlsAcceptor, TlsError> {
    let fallback = Arc::new(certs::self_signed()?);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Resolver { shared, fallback }));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), challenge::ALPN.to_vec()];
    config.ticketer = ring::Ticketer::new()?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
