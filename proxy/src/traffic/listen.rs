//! Accept loops, and the end of them: connections come in while the token lives, then drain within a deadline.

use super::conn::Conn;
use super::http::HttpApp;
use super::{Limits, tls};
use crate::config::Shared;
use pingora::apps::{HttpServerApp, HttpServerOptions, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// After the system has no descriptor or memory for a connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

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

/// A listening socket and what is spoken on it. Further kinds (passthrough, PROXY protocol) become fields here.
struct Listener {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
}

/// What connections need.
struct Server {
    shared: Arc<Shared>,
    limits: Arc<Limits>,
    proxy: Arc<HttpProxy<HttpApp>>,
    shutdown: ShutdownWatch,
    slots: Arc<Semaphore>,
    connections: TaskTracker,
    /// Ends what has not drained in time.
    kill: CancellationToken,
}

/// Serves on sockets that others have opened, until shutdown, then drains.
pub async fn serve(
    shared: Arc<Shared>,
    limits: Arc<Limits>,
    http: Vec<std::net::TcpListener>,
    https: Vec<std::net::TcpListener>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let acceptor = if https.is_empty() { None } else { Some(tls::acceptor(Arc::clone(&shared))?) };
    let mut listeners = Vec::new();
    for (socket, tls) in http.into_iter().map(|s| (s, None)).chain(https.into_iter().map(|s| (s, acceptor.clone()))) {
        listeners.push(Listener { socket: adopt(socket)?, tls });
    }
    let (stop, stopped) = watch::channel(false);
    let server = Arc::new(Server {
        proxy: Arc::new(application(&shared, &limits)),
        slots: Arc::new(Semaphore::new(limits.max_connections)),
        shared,
        limits,
        shutdown: stopped,
        connections: TaskTracker::new(),
        kill: CancellationToken::new(),
    });
    let loops = TaskTracker::new();
    for listener in listeners {
        loops.spawn(accept(Arc::clone(&server), listener, shutdown.clone()));
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
    socket
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(socket))
        .map_err(|error| ServeError::Listener(address, error))
}

async fn drain(server: &Server, stop: &watch::Sender<bool>) {
    // HTTP/2 says GOAWAY, HTTP/1 says Connection: close with its next answer, idle connections are closed.
    stop.send_replace(true);
    server.proxy.http_cleanup().await;
    server.connections.close();
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

async fn accept(server: Arc<Server>, listener: Listener, shutdown: CancellationToken) {
    let counter = match &listener.tls {
        Some(_) => server.shared.metrics.connections_https.clone(),
        None => server.shared.metrics.connections_http.clone(),
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = listener.socket.accept() => accepted,
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
            () = shutdown.cancelled() => return,
        };
        counter.inc();
        let (server, tls) = (Arc::clone(&server), listener.tls.clone());
        let connections = server.connections.clone();
        connections.spawn(async move {
            let _slot = slot;
            server.shared.metrics.connections.inc();
            tokio::select! {
                () = server.kill.cancelled() => {}
                () = connection(&server, stream, peer, tls) => {}
            }
            server.shared.metrics.connections.dec();
        });
    }
}

async fn connection(server: &Server, stream: TcpStream, peer: SocketAddr, tls: Option<TlsAcceptor>) {
    let _ = stream.set_nodelay(true);
    let limits = Arc::clone(&server.limits);
    let mut conn = match tls {
        None => Conn::plain(stream, peer, limits),
        Some(tls) => match tokio::time::timeout(limits.head_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => Conn::tls(stream, peer, limits),
            Ok(Err(error)) => {
                tracing::debug!(%error, %peer, "TLS handshake failed");
                server.shared.metrics.handshake_failures.inc();
                return;
            }
            Err(_) => {
                server.shared.metrics.handshake_failures.inc();
                return;
            }
        },
    };
    let mut stopping = server.shutdown.clone();
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
        server.proxy.process_new(Box::new(conn), &server.shutdown).await;
    } else {
        http1(server, Box::new(conn)).await;
    }
}

/// One HTTP/1 connection, request after request.
async fn http1(server: &Server, mut stream: Stream) {
    let mut kept = None;
    loop {
        let mut session = ServerSession::new_http1(stream);
        match kept.take() {
            None => session.set_keepalive(Some(server.limits.idle_timeout.as_secs().max(1))),
            Some(settings) => pingora::apps::HttpPersistentSettings::apply_to_session(settings, &mut session),
        }
        let Some(reused) = server.proxy.process_new_http(session, &server.shutdown).await else { return };
        (stream, kept) = reused.consume();
        if let Some(conn) = (*stream).as_any().downcast_ref::<Conn>() {
            conn.wait_for_next();
        }
    }
}
