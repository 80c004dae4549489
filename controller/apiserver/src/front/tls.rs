//! The transport of everybody else: HTTPS, HTTP/1.1 and HTTP/2.

use super::Front;
use super::held::Held;
use super::idle::Activity;
use crate::authn::certificates::Authorities;
use crate::exchange::Peer;
use crate::pki::{CertKey, Pki};
use anyhow::Context;
use arc_swap::ArcSwap;
use axum::body::Body;
use causeway_flowcontrol::Budget;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long requests in flight may take after shutdown began.
const DRAIN: Duration = Duration::from_secs(5);
const RENEWAL_CHECK: Duration = Duration::from_secs(12 * 3600);

fn roots(ca_pem: &str) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(cert.context("reading the authority's certificate")?)?;
    }
    Ok(roots)
}

/// TLS towards kubelets, with a client certificate.
pub fn client_tls(ca_pem: &str, identity: &CertKey) -> anyhow::Result<Arc<ClientConfig>> {
    let chain = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_pem)?)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// The server's certificate, exchanged while connections go on.
#[derive(Debug)]
struct Certificate(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certified(pki: &Pki, sans: &[String]) -> anyhow::Result<CertifiedKey> {
    let issued = pki.issue_server("apiserver", sans)?;
    let chain = CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes())?;
    Ok(CertifiedKey::from_der(chain, key, &ring::default_provider())?)
}

/// Serves HTTPS until shutdown.
pub async fn serve(
    server: Arc<Front>,
    pki: Arc<Pki>,
    sans: Vec<String>,
    listeners: Vec<std::net::TcpListener>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let provider = Arc::new(ring::default_provider());
    let certificate = Arc::new(Certificate(ArcSwap::from_pointee(certified(&pki, &sans)?)));
    let proxies = server.authenticator.external.proxy_ca_pem().map(roots).transpose()?;
    let authorities = Arc::new(Authorities::new(roots(pki.ca_pem())?, proxies)?);
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(authorities.clone())
        .with_cert_resolver(certificate.clone());
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let graceful = Arc::new(GracefulShutdown::new());
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let front = Listener {
            server: server.clone(),
            acceptor: acceptor.clone(),
            authorities: authorities.clone(),
            graceful: graceful.clone(),
        };
        tasks.spawn(front.accept(listener, shutdown.clone()));
    }
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(RENEWAL_CHECK) => {}
                () = shutdown.cancelled() => return,
            }
            match certified(&pki, &sans) {
                Ok(new) => certificate.0.store(Arc::new(new)),
                Err(error) => tracing::error!(%error, "the server's certificate was not renewed"),
            }
        }
    });
    while tasks.join_next().await.is_some() {}
    // Watches would go on for ever: they are told to end, the rest may finish.
    server.endpoints.shutdown.cancel();
    if let Some(graceful) = Arc::into_inner(graceful) {
        let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
    }
    Ok(())
}

/// One listener's accept loop.
struct Listener {
    server: Arc<Front>,
    acceptor: TlsAcceptor,
    authorities: Arc<Authorities>,
    graceful: Arc<GracefulShutdown>,
}

impl Listener {
    async fn accept(self, listener: tokio::net::TcpListener, shutdown: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => match self.server.flow.budgets.connection(peer.ip()) {
                    Ok(budget) => self.connection(stream, Peer(peer), budget),
                    Err(why) => tracing::debug!(%peer, %why, "connection closed"),
                },
                Err(error) => {
                    // Out of file descriptors, most likely: give others time to close theirs.
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn connection(&self, stream: tokio::net::TcpStream, peer: Peer, budget: Budget) {
        let (server, acceptor, authorities) = (self.server.clone(), self.acceptor.clone(), self.authorities.clone());
        let watcher = self.graceful.watcher();
        tokio::spawn(async move {
            let _budget = budget;
            let _ = stream.set_nodelay(true);
            let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => return tracing::debug!("TLS handshake timed out"),
            };
            // Who shows no certificate has places of their own, and fewer of them.
            let stranger = stream.get_ref().1.peer_certificates().is_none();
            let _place = match stranger.then(|| server.flow.strangers.connection(peer.0.ip())).transpose() {
                Ok(place) => place,
                Err(why) => return tracing::debug!(peer = %peer.0, %why, "connection closed"),
            };
            let activity = Activity::new();
            let seen = authorities.seen(stream.get_ref().1.peer_certificates().unwrap_or_default());
            let asked = activity.clone();
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let (server, seen, busy) = (server.clone(), seen.clone(), asked.busy());
                async move {
                    let mut request = request.map(Body::new);
                    request.extensions_mut().insert(peer);
                    seen.note(request.extensions_mut());
                    // On its own task: a client that goes away does not leave a write half done.
                    let response = tokio::spawn(server.handle(request)).await;
                    response.map(|response| response.map(|body| Held::new(body, busy)))
                }
            });
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
            builder
                .http2()
                .timer(TokioTimer::new())
                // All of a node comes on one connection, with a watch for each object that one of its pods names: the kubelet
                // stops at 1500 (`MOST_WATCHES` in `kubelet/src/objects/source.rs`). A request beyond the limit waits for a
                // watch to end, and so would the lease.
                .max_concurrent_streams(2048)
                .keep_alive_interval(Some(Duration::from_secs(30)))
                .keep_alive_timeout(Duration::from_secs(20));
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
            tokio::select! {
                ended = watcher.watch(connection) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection ended");
                    }
                }
                () = activity.idle() => tracing::debug!(peer = %peer.0, "a connection that asks for nothing is closed"),
            }
        });
    }
}
