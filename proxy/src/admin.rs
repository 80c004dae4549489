//! The administrative listener: health, readiness, metrics, and the table for people to look at.

use crate::config::Shared;
use crate::route::{Action, Route};
use crate::traffic::listen;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 64;

/// Serves until shutdown.
pub async fn serve(
    socket: std::net::TcpListener,
    shared: Arc<Shared>,
    ready: watch::Receiver<bool>,
    shutdown: CancellationToken,
) -> Result<(), listen::ServeError> {
    let listener = listen::adopt(socket)?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return Ok(()) };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (shared, ready, shutdown) = (Arc::clone(&shared), ready.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(request.uri().path(), &shared, *ready.borrow());
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            let connection = builder
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = shutdown.cancelled() => {}
                _ = connection => {}
            }
        });
    }
}

fn answer(path: &str, shared: &Shared, ready: bool) -> Response<Full<Bytes>> {
    let (status, kind, body) = match path {
        "/healthz" | "/livez" => (StatusCode::OK, "text/plain", "ok".to_owned()),
        "/readyz" if ready => (StatusCode::OK, "text/plain", "ok".to_owned()),
        "/readyz" => {
            let text = "waiting for the first complete list of objects from the API server";
            (StatusCode::SERVICE_UNAVAILABLE, "text/plain", text.to_owned())
        }
        "/metrics" => (StatusCode::OK, "text/plain; version=0.0.4", shared.metrics.render()),
        "/debug/routes" => (StatusCode::OK, "application/json", format!("{:#}\n", dump(shared))),
        _ => {
            let text = "try /healthz, /readyz, /metrics or /debug/routes";
            (StatusCode::NOT_FOUND, "text/plain", text.to_owned())
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

fn dump(shared: &Shared) -> Value {
    let row = |(host, path, route): (String, String, &Arc<Route>)| {
        let owner = route.owner.to_string();
        match &route.action {
            Action::Unavailable(why) => json!({"host": host, "path": path, "ingress": owner, "unavailable": &**why}),
            Action::Split(split) => {
                let backends = split.backends.iter().map(|b| match &b.target {
                    Ok(upstream) => json!({"weight": b.weight, "backend": upstream.key.to_string()}),
                    Err(why) => json!({"weight": b.weight, "unavailable": &**why}),
                });
                json!({"host": host, "path": path, "route": owner, "backends": backends.collect::<Vec<_>>()})
            }
            Action::Forward(upstream) => {
                let endpoints: Vec<_> = upstream
                    .endpoints()
                    .iter()
                    .map(|e| json!({"address": e.address.to_string(), "active": e.active(), "ejected": e.ejected()}))
                    .collect();
                json!({"host": host, "path": path, "ingress": owner,
                       "backend": upstream.key.to_string(), "endpoints": endpoints})
            }
        }
    };
    let rows: Vec<_> = shared.table.load().rows().into_iter().map(row).collect();
    json!({ "routes": rows, "certificates": shared.certificates.load().len() })
}
