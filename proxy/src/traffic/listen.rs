//! Accept loops, and the end of them: connections come in while the token lives, then drain within a deadline.

use super::conn::Conn;
use super::http::{HttpApp, KEPT};
use super::io::Rewind;
use super::sni::Ready;
use super::{Limits, announced, fronts, raw, sni, tls};
use crate::config::{Shared, Socket};
use crate::route::front::{FrontService, TlsMode};
use arc_swap::ArcSwap;
use causeway_handover::Sockets;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpNoDelay;
use pingora::apps::{HttpServerApp, HttpServerOptions, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// After the system has no descriptor or memory for a connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// How long connections that are kept may bring another request after shutdown was asked for.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Why traffic cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listening socket cannot be used.
    #[error("taking over the listening socket {0:?}: {1}")]
    Listener(Option<SocketAddr>, std::io::Error),
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// What is spoken on a listening socket.
#[derive(Clone)]
pub(super) enum Kind {
    /// The ingress' HTTP in clear text.
    Http,
    /// The ingress' HTTPS.
    Https(TlsAcceptor),
    /// Whatever the front of a Gateway says at that moment.
    Front {
        /// The socket, with its front.
        socket: Arc<Socket>,
        /// The front's TLS listeners.
        tls: Arc<ArcSwap<Vec<Ready>>>,
    },
}

/// What connections need.
pub(super) struct Server {
    pub(super) shared: Arc<Shared>,
    pub(super) limits: Arc<Limits>,
    proxy: Arc<HttpProxy<HttpApp>>,
    slots: Arc<Semaphore>,
    pub(super) connections: TaskTracker,
    /// Ends what has not drained in time.
    pub(super) kill: CancellationToken,
}

/// Serves on sockets that others have opened, and on those that Gateways need at an address of ours, until shutdown;
/// then drains.
pub async fn serve(
    shared: Arc<Shared>,
    limits: Arc<Limits>,
    http: Vec<std::net::TcpListener>,
    https: Vec<std::net::TcpListener>,
    gateways: Option<(IpAddr, Arc<Sockets>)>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let mut listeners = Vec::new();
    for socket in http {
        listeners.push((adopt(socket)?, Kind::Http));
    }
    if !https.is_empty() {
        let acceptor = tls::acceptor(Arc::clone(&shared))?;
        for socket in https {
            listeners.push((adopt(socket)?, Kind::Https(acceptor.clone())));
        }
    }
    let (stop, stopped) = watch::channel(false);
    let server = Arc::new(Server {
        proxy: Arc::new(application(&shared, &limits)),
        slots: Arc::new(Semaphore::new(limits.max_connections)),
        shared,
        limits,
        connections: TaskTracker::new(),
        kill: CancellationToken::new(),
    });
    let loops = TaskTracker::new();
    for (socket, kind) in listeners {
        loops.spawn(accept(Arc::clone(&server), socket, kind, stopped.clone(), shutdown.clone()));
    }
    if let Some((address, sockets)) = gateways {
        loops.spawn(fronts::run(Arc::clone(&server), address, sockets, shutdown.clone()));
    }
    loops.close();
    shutdown.cancelled().await;
    loops.wait().await;
    drain(&server, &stop).await;
    Ok(())
}

/// Opens a socket of the standard library to this runtime.
pub fn adopt(socket: std::net::TcpListener) -> Result<TcpListener, ServeError> {
    let address = socket.local_addr().ok();
    open(socket).map_err(|error| ServeError::Listener(address, error))
}

/// The same for any socket. Connections it takes send at once what they are given.
pub(super) fn open(socket: std::net::TcpListener) -> std::io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    // Connections have this from their listener, which saves a system call for each.
    setsockopt(&socket, TcpNoDelay, &true)?;
    TcpListener::from_std(socket)
}

async fn drain(server: &Server, stop: &watch::Sender<bool>) {
    // A client that has just sent its next request must get the answer: before idle connections are closed, each is told
    // with an answer that it is the last one.
    server.shared.closing.store(true, Ordering::Relaxed);
    server.connections.close();
    drop(tokio::time::timeout(LAST_ANSWERS.min(server.limits.drain), server.connections.wait()).await);
    // HTTP/2 says GOAWAY, HTTP/1 says Connection: close with its next answer, idle connections are closed.
    stop.send_replace(true);
    server.proxy.http_cleanup().await;
    if tokio::time::timeout(server.limits.drain, server.connections.wait()).await.is_err() {
        tracing::warn!(left = server.connections.len(), "connections did not end in time; closing them");
        server.kill.cancel();
        server.connections.wait().await;
    }
}

fn application(shared: &Arc<Shared>, limits: &Arc<Limits>) -> HttpProxy<HttpApp> {
    let conf = ServerConf {
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        upstream_keepalive_pool_size: limits.upstream_pool,
        ..ServerConf::default()
    };
    let mut proxy = http_proxy(&Arc::new(conf), HttpApp::new(Arc::clone(shared), Arc::clone(limits)));
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(limits.idle_timeout);
    proxy.server_options = Some(options);
    let mut h2 = default_h2_options();
    h2.max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(u32::try_from(limits.max_head).unwrap_or(u32::MAX))
        .initial_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_frame_size(16 * 1024)
        .max_send_buffer_size(256 * 1024)
        .max_pending_accept_reset_streams(20)
        .max_concurrent_reset_streams(20)
        .max_local_error_reset_streams(Some(256));
    proxy.h2_options = Some(h2);
    proxy
}

/// Takes connections until `stop`; `draining` turns true when those that were taken shall end.
pub(super) async fn accept(
    server: Arc<Server>,
    socket: TcpListener,
    kind: Kind,
    draining: ShutdownWatch,
    stop: CancellationToken,
) {
    let local = match socket.local_addr() {
        Ok(local) => local,
        Err(error) => {
            tracing::warn!(%error, "a listening socket has no address");
            return;
        }
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = socket.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // A connection that was gone before we took it costs nothing; a lack of descriptors needs a pause.
                if !matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
                continue;
            }
        };
        // Beyond the limit this one waits here, and all further ones in the socket's queue.
        let slot = tokio::select! {
            biased;
            slot = Arc::clone(&server.slots).acquire_owned() => match slot {
                Ok(slot) => slot,
                Err(_) => return,
            },
            () = stop.cancelled() => return,
        };
        let (server, kind, draining) = (Arc::clone(&server), kind.clone(), draining.clone());
        let connections = server.connections.clone();
        connections.spawn(async move {
            let _slot = slot;
            server.shared.metrics.connections.inc();
            tokio::select! {
                () = server.kill.cancelled() => {}
                () = connection(&server, stream, (peer, local), kind, draining) => {}
            }
            server.shared.metrics.connections.dec();
        });
    }
}

async fn connection(
    server: &Server,
    stream: TcpStream,
    (peer, local): (SocketAddr, SocketAddr),
    kind: Kind,
    draining: ShutdownWatch,
) {
    let metrics = &server.shared.metrics;
    let Some((stream, peer)) = announced(server, stream, peer).await else { return };
    match kind {
        Kind::Http => {
            metrics.connections_http.inc();
            http(server, Conn::plain(stream, (peer, local), Arc::clone(&server.limits)), peer, draining).await;
        }
        Kind::Https(acceptor) => {
            metrics.connections_https.inc();
            let Some(stream) = decrypt(server, &acceptor, stream, peer).await else { return };
            http(server, Conn::tls(stream, (peer, local), Arc::clone(&server.limits)), peer, draining).await;
        }
        // Of its own, so that connections of the ingress do not hold room for all that a Gateway's may be.
        Kind::Front { socket, tls } => {
            Box::pin(front(server, stream, (peer, local), &socket, &tls, draining)).await;
        }
    }
}

/// Whose connection it is: a trusted proxy's first words say so.
async fn announced(server: &Server, mut stream: TcpStream, peer: SocketAddr) -> Option<(Rewind, SocketAddr)> {
    let limits = &server.limits;
    let ip = peer.ip().to_canonical();
    if !limits.proxy_protocol || !limits.trusted_proxies.iter().any(|net| net.contains(&ip)) {
        return Some((Rewind::new(stream), peer));
    }
    match Box::pin(tokio::time::timeout(limits.head_timeout, announced::read(&mut stream))).await {
        Ok(Ok((client, ahead))) => Some((Rewind::with(stream, ahead), client.unwrap_or(peer))),
        Ok(Err(error)) => {
            tracing::debug!(%error, %peer, "no PROXY header from a trusted proxy");
            server.shared.metrics.malformed.inc();
            None
        }
        Err(_) => None,
    }
}

/// A connection to a Gateway's port.
async fn front(
    server: &Server,
    mut stream: Rewind,
    (peer, local): (SocketAddr, SocketAddr),
    socket: &Socket,
    tls: &ArcSwap<Vec<Ready>>,
    draining: ShutdownWatch,
) {
    let metrics = &server.shared.metrics;
    let front = socket.front.load_full();
    match &front.service {
        FrontService::Http(_) => {
            metrics.connections_http.inc();
            http(server, Conn::plain(stream, (peer, local), Arc::clone(&server.limits)), peer, draining).await;
        }
        FrontService::Tls(_) => {
            metrics.connections_https.inc();
            let hello = tokio::time::timeout(server.limits.head_timeout, sni::hello(&mut stream)).await;
            let Ok(Ok(hello)) = hello else {
                metrics.handshake_failures.inc();
                return;
            };
            let ready = tls.load_full();
            let Some(found) = sni::listener(&ready, hello.name.as_deref()) else {
                metrics.handshake_failures.inc();
                // Where TLS is not ours to speak we do not speak it, not even to refuse (TLSRoute's rules).
                if ready.iter().all(|r| matches!(r.listener.mode, TlsMode::Https(..))) {
                    sni::unrecognized(&mut stream, &server.limits).await;
                }
                return;
            };
            by_name(server, stream, (peer, local), hello, found, draining).await;
        }
        FrontService::Tcp(split) => {
            metrics.connections_http.inc();
            ended(raw::relay(&mut stream, &[], split, &server.limits, (peer, local)).await, peer);
        }
        FrontService::Udp(_) => {}
    }
}

/// A connection whose listener has been found by its server name.
async fn by_name(
    server: &Server,
    mut stream: Rewind,
    (peer, local): (SocketAddr, SocketAddr),
    hello: sni::Hello,
    found: &Ready,
    draining: ShutdownWatch,
) {
    let name = hello.name.as_deref();
    match (&found.listener.mode, &found.acceptor) {
        (TlsMode::Passthrough(table), _) => {
            // Without a route it is closed without a word, as above.
            if let Some(split) = table.lookup(name, ROOT) {
                ended(raw::relay(&mut stream, &hello.bytes, split, &server.limits, (peer, local)).await, peer);
            }
        }
        (TlsMode::Terminate(_, table), Some(acceptor)) => {
            let Some(split) = table.lookup(name, ROOT).cloned() else { return };
            let Some(mut stream) = decrypt(server, acceptor, stream.again(hello.bytes), peer).await else {
                return;
            };
            ended(raw::relay(&mut stream, &[], &split, &server.limits, (peer, local)).await, peer);
        }
        (TlsMode::Https(..), Some(acceptor)) => {
            let Some(stream) = decrypt(server, acceptor, stream.again(hello.bytes), peer).await else { return };
            http(server, Conn::tls(stream, (peer, local), Arc::clone(&server.limits)), peer, draining).await;
        }
        // Its TLS could not be configured.
        (_, None) => {}
    }
}

/// What tables by server name have instead of a path.
const ROOT: &[u8] = b"/";

fn ended(result: std::io::Result<()>, peer: SocketAddr) {
    if let Err(error) = result {
        tracing::debug!(%error, %peer, "connection ended");
    }
}

async fn decrypt(
    server: &Server,
    acceptor: &TlsAcceptor,
    stream: Rewind,
    peer: SocketAddr,
) -> Option<tokio_rustls::server::TlsStream<Rewind>> {
    // Of its own, so that its room is free once it is done.
    match Box::pin(tokio::time::timeout(server.limits.head_timeout, acceptor.accept(stream))).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => tracing::debug!(%error, %peer, "TLS handshake failed"),
        Err(_) => {}
    }
    server.shared.metrics.handshake_failures.inc();
    None
}

/// A connection that speaks HTTP.
async fn http(server: &Server, mut conn: Conn, peer: SocketAddr, draining: ShutdownWatch) {
    let mut stopping = draining.clone();
    let detected = tokio::select! {
        biased;
        detected = conn.detect() => detected,
        _ = stopping.wait_for(|stop| *stop) => return,
    };
    if let Err(error) = detected {
        tracing::trace!(%error, %peer, "connection ended before a request");
        return;
    }
    if conn.is_h2() {
        server.proxy.process_new(Box::new(conn), &draining).await;
    } else {
        http1(server, conn, &draining).await;
    }
}

/// One HTTP/1 connection, request after request, and then what it has become.
async fn http1(server: &Server, conn: Conn, draining: &ShutdownWatch) {
    let heir = conn.heir();
    let mut stopping = draining.clone();
    let mut stopped = pin!(stopping.wait_for(|stop| *stop));
    let mut conn = Box::new(conn);
    let mut kept = None;
    loop {
        let more = tokio::select! {
            biased;
            more = conn.next() => more,
            _ = &mut stopped => false,
        };
        if !more {
            return;
        }
        let mut session = ServerSession::new_http1(conn);
        match kept.take() {
            None => session.set_keepalive(Some(KEPT)),
            Some(settings) => pingora::apps::HttpPersistentSettings::apply_to_session(settings, &mut session),
        }
        let Some(reused) = server.proxy.process_new_http(session, draining).await else { break };
        let stream;
        (stream, kept) = reused.consume();
        match stream.into_any().downcast() {
            Ok(same) => conn = same,
            Err(_) => return,
        }
    }
    let upgraded = heir.lock().take();
    if let Some(upgraded) = upgraded {
        upgraded.run().await;
    }
}
