//! `/health`, `/ready` and `/metrics`. In: HTTP requests. Out: what probes and dashboards of CoreDNS expect. `/health` is
//! also asked by ourselves, every second: how long that takes says how busy this process is.

use crate::server::Handler;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections at the same time.
const MAX_CONNECTIONS: usize = 64;
/// A connection ends after this long, whatever it does.
const CONNECTION: Duration = Duration::from_secs(60);
/// How long a client may take to say what it wants.
const HEAD: Duration = Duration::from_secs(5);
/// Our own health is asked for this often.
const EVERY: Duration = Duration::from_secs(1);

/// Serves until `shutdown`. `/health` fails once `ending` is set: whoever sends us traffic should stop.
pub(crate) async fn serve(
    listener: TcpListener,
    handler: Arc<Handler>,
    ending: Arc<AtomicBool>,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    if let Ok(addr) = listener.local_addr() {
        tokio::spawn(ask_ourselves(addr, handler.clone(), shutdown.clone()));
    }
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let (handler, ending) = (handler.clone(), ending.clone());
        let service = service_fn(move |request| {
            let response = answer(&request, &handler, &ending);
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(async move {
            let _slot = slot;
            let mut server = hyper::server::conn::http1::Builder::new();
            let connection = server.timer(TokioTimer::new()).header_read_timeout(HEAD);
            let connection = connection.serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION, connection).await {
                tracing::trace!(%error, "a connection to DNS' health ended");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, handler: &Handler, ending: &AtomicBool) -> Response<Full<bytes::Bytes>> {
    let (status, body) = match request.uri().path() {
        "/health" if ending.load(Ordering::Acquire) => (StatusCode::SERVICE_UNAVAILABLE, "lameduck".to_owned()),
        "/health" => (StatusCode::OK, "OK".to_owned()),
        "/ready" if handler.ready.load(Ordering::Acquire) => (StatusCode::OK, "OK".to_owned()),
        "/ready" => (StatusCode::SERVICE_UNAVAILABLE, "kubernetes\n".to_owned()),
        "/metrics" => (StatusCode::OK, handler.render()),
        _ => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert("content-type", hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}

async fn ask_ourselves(addr: SocketAddr, handler: Arc<Handler>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let begin = Instant::now();
        let asked = tokio::time::timeout(HEAD, async {
            let mut stream = TcpStream::connect(addr).await?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.map(drop)
        });
        match asked.await {
            Ok(Ok(())) => handler.metrics.health_duration.observe(begin.elapsed().as_secs_f64()),
            _ => handler.metrics.health_failures.inc(),
        }
    }
}
