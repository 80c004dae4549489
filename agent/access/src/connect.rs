//! The connection: one HTTP/2 connection over TLS for each client, made again when it breaks.
//!
//! A cut link says nothing, so silence has to be asked about: HTTP/2 pings tell that the other side is gone, also while
//! a watch only waits, and everything on the connection fails then; TCP gives up on unacknowledged data as soon. The next
//! request connects anew, with time limits on every step. Together a cut is noticed within [`PING`] + [`PONG`], and a
//! healed link is used at the next attempt of whoever waits (`causeway_api::backoff` bounds the pause before it).

use crate::Identity;
use anyhow::{Context, Result};
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Request, Uri};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::Body;
use kube::client::middleware::BaseUriLayer;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tower::{BoxError, Service, ServiceBuilder};

/// A connection that was silent for this long is asked whether it still is one.
pub const PING: Duration = Duration::from_secs(4);
/// How long the answer may take.
pub const PONG: Duration = Duration::from_secs(4);
/// For TCP's handshake: its first retransmission comes after one second.
const CONNECT: Duration = Duration::from_secs(3);
/// For TCP and TLS together.
const HANDSHAKE: Duration = Duration::from_secs(8);

/// Where the API is, and who signs for it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `https://` and an address or name, with a port if it is not 443.
    pub url: Uri,
    /// The authority's certificate.
    pub ca_pem: String,
}

impl Endpoint {
    /// From text; says what is wrong with it.
    pub fn new(url: &str, ca_pem: &str) -> Result<Self> {
        let parsed: Uri = url.parse().with_context(|| format!("the API's address {url:?} is no URL"))?;
        let whole = parsed.scheme_str() == Some("https") && parsed.host().is_some();
        anyhow::ensure!(whole, "the API's address {url:?} must look like https://10.0.0.1:6443");
        Ok(Self { url: parsed, ca_pem: ca_pem.to_owned() })
    }
}

/// A client of the API; without an identity it is nobody. To be called on a tokio runtime, whose threads then open the
/// sockets: in their network namespace.
pub fn client(endpoint: &Endpoint, identity: Option<Arc<Identity>>) -> Result<kube::Client> {
    let mut tls = tls(&endpoint.ca_pem)?;
    if let Some(identity) = identity {
        tls.client_auth_cert_resolver = identity;
    }
    client_with(&endpoint.url, tls, None)
}

/// As [`client`], with TLS as the caller wants it, and maybe a token.
pub fn client_with(url: &Uri, tls: ClientConfig, token: Option<&str>) -> Result<kube::Client> {
    let bearer = token.map(|t| HeaderValue::from_str(&format!("Bearer {t}"))).transpose();
    let bearer = bearer.context("the token has characters that no token has")?;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(PING));
    tcp.set_keepalive_interval(Some(PONG));
    tcp.set_keepalive_retries(Some(2));
    tcp.set_tcp_user_timeout(Some(PING + PONG));
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http2().wrap_connector(tcp);
    let connector = tower::service_fn(move |uri: Uri| {
        let connecting = https.clone().call(uri);
        Box::pin(async move {
            match tokio::time::timeout(HANDSHAKE, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(BoxError::from(format!("no TLS handshake within {} s", HANDSHAKE.as_secs()))),
            }
        })
    });
    let http = HyperClient::builder(TokioExecutor::new())
        .http2_only(true)
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PONG)
        .http2_keep_alive_while_idle(true)
        .build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(BaseUriLayer::new(url.clone()))
        .map_request(move |mut request: Request<Body>| {
            if let Some(bearer) = &bearer {
                request.headers_mut().insert(AUTHORIZATION, bearer.clone());
            }
            // The version is the connection's business; kube writes HTTP/1.1 into every request.
            *request.version_mut() = http::Version::HTTP_2;
            request
        })
        .service(http);
    Ok(kube::Client::new(service, "default"))
}

/// TLS that trusts this authority only, without an identity of its own.
pub fn tls(ca_pem: &str) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(cert.context("reading the cluster's authority")?)?;
    }
    anyhow::ensure!(!roots.is_empty(), "the cluster's authority is empty: no certificate in it");
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
