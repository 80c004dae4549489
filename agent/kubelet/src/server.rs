//! The kubelet's own API on port 10250: logs, exec, attach, pods, health and metrics. Only the API server (and
//! administrators) may use it: it is reached over TLS with a client certificate.

mod authenticate;
mod logs;
mod stream;

use crate::context::Context;
use crate::pods::Pods;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use causeway_runtime::{ContainerInfo, ContainerState};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections at the same time.
const MAX_CONNECTIONS: usize = 1024;
/// For the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What the handlers work with.
#[derive(Clone)]
pub struct Api {
    ctx: Arc<Context>,
    pods: Arc<Pods>,
}

/// Who is calling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// The API server or an administrator.
    Trusted,
    /// Anyone else: health only.
    Unknown,
}

/// Serves until shutdown.
pub async fn run(ctx: Arc<Context>, pods: Arc<Pods>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = &ctx.config;
    let tls = authenticate::tls(config.server_certificate.clone(), &config.client_ca_pem)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = config.server_listener.try_clone()?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let app = routes(Api { ctx: ctx.clone(), pods });
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return Ok(()) };
        let stream = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "kubelet API");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (acceptor, app, shutdown) = (acceptor.clone(), app.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let _ = stream.set_nodelay(true);
            let Ok(Ok(tls)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
            let trusted = authenticate::trusted(tls.get_ref().1.peer_certificates());
            let caller = if trusted { Caller::Trusted } else { Caller::Unknown };
            let service = TowerToHyperService::new(app.layer(Extension(caller)));
            let builder = auto::Builder::new(TokioExecutor::new());
            let served = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
            tokio::select! {
                () = shutdown.cancelled() => {}
                _ = served => {}
            }
        });
    }
}

fn routes(api: Api) -> Router {
    let guarded = Router::new()
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::handle))
        .route("/exec/{namespace}/{pod}/{container}", get(stream::exec))
        .route("/attach/{namespace}/{pod}/{container}", get(stream::attach))
        .route("/portForward/{namespace}/{pod}", get(port_forward))
        .route("/pods", get(pods))
        .route("/stats/summary", get(summary))
        .route("/metrics", get(metrics))
        .layer(axum::middleware::from_fn(guard));
    Router::new().route("/healthz", get(|| async { "ok" })).merge(guarded).with_state(api)
}

async fn guard(Extension(caller): Extension<Caller>, request: axum::extract::Request, next: Next) -> Response {
    match caller {
        Caller::Trusted => next.run(request).await,
        Caller::Unknown => (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
    }
}

async fn port_forward() -> Response {
    let text = "port-forward is not supported by this version; use a Service of type NodePort or `kubectl exec`";
    (StatusCode::NOT_IMPLEMENTED, text).into_response()
}

async fn pods(State(api): State<Api>) -> Json<Value> {
    let items: Vec<Pod> = api.pods.all().iter().map(|p| (**p).clone()).collect();
    Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

async fn metrics(State(api): State<Api>) -> String {
    api.ctx.metrics.render(&api.ctx.config.node_name)
}

async fn summary(State(api): State<Api>) -> Json<Value> {
    let snapshot = api.ctx.observer.fresh().await.unwrap_or_default();
    let mut pods = Vec::new();
    for pod in api.pods.all() {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut containers = Vec::new();
        let running = |i: &&ContainerInfo| matches!(i.state, ContainerState::Running { .. });
        for info in snapshot.get(&uid).into_iter().flatten().filter(running) {
            let Ok(stats) = api.ctx.runtime.stats(&info.id).await else { continue };
            let now = jiff::Timestamp::now();
            containers.push(json!({
                "name": crate::names::label(info, crate::names::CONTAINER_NAME),
                "cpu": {"time": now, "usageCoreNanoSeconds": stats.cpu_nanos},
                "memory": {"time": now, "workingSetBytes": stats.memory_working_set},
            }));
        }
        let reference = json!({"name": pod.metadata.name, "namespace": pod.metadata.namespace, "uid": uid});
        pods.push(json!({"podRef": reference, "containers": containers}));
    }
    Json(json!({"node": {"nodeName": api.ctx.config.node_name}, "pods": pods}))
}

impl Api {
    /// A pod, and its containers of a name in the runtime, oldest first.
    async fn find(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<(Arc<Pod>, Vec<ContainerInfo>), Response> {
        let missing = |text: String| (StatusCode::NOT_FOUND, text).into_response();
        let found = self.pods.get(namespace, pod);
        let Some(found) = found else { return Err(missing(format!("pods \"{pod}\" not found on this node"))) };
        let spec = found.spec.as_ref();
        let known = spec
            .iter()
            .flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
            .any(|c| c.name == container);
        if !known {
            return Err(
                (StatusCode::BAD_REQUEST, format!("container {container} is not valid for pod {pod}")).into_response()
            );
        }
        let snapshot = self.ctx.observer.fresh().await;
        let snapshot = snapshot.map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response())?;
        let uid = found.metadata.uid.as_deref().unwrap_or("");
        let named = |i: &&ContainerInfo| crate::names::label(i, crate::names::CONTAINER_NAME) == container;
        let mut all: Vec<ContainerInfo> = snapshot.get(uid).into_iter().flatten().filter(named).cloned().collect();
        all.sort_by_key(attempt);
        Ok((found, all))
    }
}

fn attempt(info: &ContainerInfo) -> u32 {
    crate::names::label(info, crate::names::RESTART_COUNT).parse().unwrap_or(0)
}
