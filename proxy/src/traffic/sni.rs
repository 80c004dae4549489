//! TLS at a Gateway's port: which listener a connection is for, by the server name it asks for, and what decrypts it
//! there. In: the listeners of a front, and the first bytes of a connection. Out: a listener, with those bytes to be
//! read again.

use super::Limits;
use super::tls::{TlsError, provider};
use crate::config::certs::{self, Certificates};
use crate::config::staple;
use crate::route::front::{ClientValidation, TlsListener, TlsMode, TlsServer, most_specific};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Acceptor, ClientHello, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

/// The most bytes of a ClientHello.
const MAX_HELLO: usize = 64 * 1024;

/// A listener, ready to take connections.
#[derive(Clone)]
pub struct Ready {
    /// As it is configured.
    pub listener: Arc<TlsListener>,
    /// What decrypts its connections; none: nothing does.
    pub acceptor: Option<TlsAcceptor>,
}

/// What a connection asks for.
pub struct Hello {
    /// The server name, lower case.
    pub name: Option<String>,
    /// All that has been read, to be read again.
    pub bytes: Vec<u8>,
}

/// Makes listeners ready. One whose TLS cannot be configured refuses its connections, the others are served. Sessions of
/// those that were ready before are taken up again, where their terms are the same.
pub fn ready(listeners: &[Arc<TlsListener>], before: &[Ready]) -> Vec<Ready> {
    let one = |listener: &Arc<TlsListener>| {
        let tickets = tickets(listener, before);
        let acceptor = match &listener.mode {
            TlsMode::Passthrough(_) => None,
            TlsMode::Https(server, _) => configured(listener, server, true, tickets),
            TlsMode::Terminate(server, _) => configured(listener, server, false, tickets),
        };
        Ready { listener: Arc::clone(listener), acceptor }
    };
    listeners.iter().map(one).collect()
}

/// What made the tickets of the same listener, if clients had to show the same then.
fn tickets(listener: &TlsListener, before: &[Ready]) -> Option<Arc<dyn ProducesTickets>> {
    let terms = |listener: &TlsListener| match &listener.mode {
        TlsMode::Https(server, _) | TlsMode::Terminate(server, _) => Some(server.clients.clone()),
        TlsMode::Passthrough(_) => None,
    };
    let same = |old: &&Ready| {
        old.listener.name == listener.name
            && old.listener.host == listener.host
            && terms(&old.listener) == terms(listener)
    };
    let old = before.iter().find(same)?.acceptor.as_ref()?;
    Some(Arc::clone(&old.config().ticketer))
}

fn configured(
    listener: &TlsListener,
    server: &TlsServer,
    http: bool,
    tickets: Option<Arc<dyn ProducesTickets>>,
) -> Option<TlsAcceptor> {
    match config(server, http, tickets) {
        Ok(config) => Some(TlsAcceptor::from(Arc::new(config))),
        Err(error) => {
            tracing::warn!(%error, listener = %listener.name, "a listener's TLS cannot be configured");
            None
        }
    }
}

/// The listener for a server name.
pub fn listener<'a>(all: &'a [Ready], name: Option<&str>) -> Option<&'a Ready> {
    most_specific(all, |r| &r.listener.host, name)
}

/// Reads what a client asks for.
///
/// # Errors
/// When it is no TLS, too long, or the connection ends; an alert has been sent then where one is due.
pub async fn hello(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<Hello> {
    let mut acceptor = Acceptor::default();
    let mut bytes = Vec::with_capacity(2048);
    loop {
        let before = bytes.len();
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut new = &bytes[before..];
        while !new.is_empty() {
            acceptor.read_tls(&mut new)?;
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                    return Ok(Hello { name, bytes });
                }
                Ok(None) => {}
                Err((error, mut alert)) => {
                    let mut text = Vec::new();
                    alert.write_all(&mut text)?;
                    let _ = stream.write_all(&text).await;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
        }
        if bytes.len() > MAX_HELLO {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the ClientHello is too long"));
        }
    }
}

/// Tells a client that nobody of that name is here: a fatal alert `unrecognized_name` (RFC 6066, section 3).
pub async fn unrecognized(stream: &mut (impl AsyncWrite + Unpin), limits: &Limits) {
    let alert = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70];
    let _ = tokio::time::timeout(limits.head_timeout, stream.write_all(&alert)).await;
}

fn config(server: &TlsServer, http: bool, tickets: Option<Arc<dyn ProducesTickets>>) -> Result<ServerConfig, TlsError> {
    let fallback = Arc::new(certs::self_signed()?);
    let resolver = Arc::new(ByName { certificates: Arc::clone(&server.certificates), fallback });
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match &server.clients {
        None => builder.with_no_client_auth(),
        Some(clients) => builder.with_client_cert_verifier(verifier(clients)?),
    };
    let mut config = builder.with_cert_resolver(resolver);
    if http {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    // Own tickets: a session of another listener, with other terms for clients, is not taken up here.
    config.ticketer = match tickets {
        Some(tickets) => tickets,
        None => rustls::crypto::ring::Ticketer::new()?,
    };
    Ok(config)
}

fn verifier(clients: &ClientValidation) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    if clients.optional {
        return Ok(Arc::new(Anyone));
    }
    let mut roots = RootCertStore::empty();
    for root in &clients.roots {
        roots.add(root.clone())?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    builder.build().map_err(|error| TlsError::Clients(error.to_string()))
}

#[derive(Debug)]
struct ByName {
    certificates: Arc<Certificates>,
    fallback: Arc<CertifiedKey>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        Some(staple::current(self.certificates.find(name.as_deref()).unwrap_or(&self.fallback)))
    }
}

/// Asks clients for a certificate and lets in whoever has none, or one that nobody vouches for
/// (`AllowInsecureFallback`). That the client has the certificate's key is verified all the same.
#[derive(Debug)]
struct Anyone;

impl ClientCertVerifier for Anyone {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
