//! The channel between a running cluster and the commands that want something of it: HTTP with JSON over a unix socket
//! that only root may use. In: the nodes, the store and its keys. Out: the nodes' states, faults done to them, snapshots of the
//! store, new keys for it.

use crate::nodes::{Fault, Nodes, Power};
use crate::paths::Paths;
use crate::store::keys;
use anyhow::{Context, Result, bail};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use causeway_encryption::Keeper;
use causeway_store::{Snapshot, Store, StoreError};
use futures::{StreamExt, TryStreamExt};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// What was done, or why it was not.
#[derive(Debug, Serialize, Deserialize)]
struct Said {
    message: String,
}

/// A refusal, with its code.
type Refused = (StatusCode, Json<Said>);

/// Listens for the life of the cluster.
pub fn listen(paths: &Paths) -> Result<UnixListener> {
    let path = paths.control();
    // One that a killed process left; the cluster's data folder is locked, so nobody else listens.
    drop(std::fs::remove_file(&path));
    let listener = UnixListener::bind(&path).with_context(|| format!("listening at {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("keeping others from {}", path.display()))?;
    Ok(listener)
}

/// What a process has that others ask for.
#[derive(Clone)]
pub struct Controlled {
    /// The nodes that it runs, where it runs a whole cluster.
    pub nodes: Option<Arc<Nodes>>,
    /// The store.
    pub store: Arc<dyn Store>,
    /// Who looks after the keys of what is encrypted in it.
    pub keys: Arc<Keeper>,
}

impl Controlled {
    fn nodes(&self) -> Result<Arc<Nodes>, Refused> {
        let other = || anyhow::anyhow!("this is a server: the nodes are machines of their own");
        self.nodes.clone().ok_or_else(|| refused(StatusCode::NOT_FOUND, &other()))
    }
}

/// The header that says a snapshot's revision.
const REVISION: &str = "causeway-revision";

/// Serves until told to stop.
pub async fn serve(listener: UnixListener, controlled: Controlled, stop: CancellationToken) -> Result<()> {
    let router = Router::new()
        .route("/nodes", get(states))
        .route("/nodes/{name}/{fault}", post(inflict))
        .route("/store/snapshot", get(snapshot))
        .route("/store/encryption-key", post(rotate));
    let serving = axum::serve(listener, router.with_state(controlled));
    serving.with_graceful_shutdown(stop.cancelled_owned()).await.context("serving the control socket")
}

async fn states(State(controlled): State<Controlled>) -> Result<Json<BTreeMap<String, Power>>, Refused> {
    controlled.nodes()?.states().await.map(Json).map_err(|e| refused(StatusCode::INTERNAL_SERVER_ERROR, &e))
}

/// The whole store as of now. One that fails on the way breaks the connection off, and is not whole.
async fn snapshot(State(controlled): State<Controlled>) -> Result<Response, Refused> {
    let snapshot = controlled.store.snapshot().await;
    let snapshot = snapshot.map_err(|e| refused(StatusCode::INTERNAL_SERVER_ERROR, &e.into()))?;
    let revision = [(REVISION, snapshot.revision.to_string())];
    Ok((revision, Body::from_stream(snapshot.bytes)).into_response())
}

/// A new key for what is encrypted.
async fn rotate(State(controlled): State<Controlled>) -> Result<Json<Said>, Refused> {
    // To its end, also when the one who asked goes away.
    let work = tokio::spawn(async move { controlled.keys.rotate().await });
    match work.await {
        Ok(Ok(rotated)) => Ok(Json(Said { message: keys::said(&rotated) })),
        Ok(Err(error)) => Err(refused(StatusCode::CONFLICT, &error.into())),
        Err(error) => Err(refused(StatusCode::INTERNAL_SERVER_ERROR, &error.into())),
    }
}

async fn inflict(
    State(controlled): State<Controlled>,
    Path((name, fault)): Path<(String, Fault)>,
) -> Result<Json<Said>, Refused> {
    let nodes = controlled.nodes()?;
    // Also when the one who asked goes away in the middle of it: a half-killed node helps nobody.
    let work = tokio::spawn(async move { nodes.inflict(&name, fault).await });
    match work.await {
        Ok(Ok(message)) => Ok(Json(Said { message })),
        Ok(Err(error)) => Err(refused(StatusCode::CONFLICT, &error)),
        Err(error) => Err(refused(StatusCode::INTERNAL_SERVER_ERROR, &error.into())),
    }
}

fn refused(code: StatusCode, error: &anyhow::Error) -> Refused {
    (code, Json(Said { message: format!("{error:#}") }))
}

/// Asks a running cluster for its nodes' states.
pub async fn ask_states(paths: &Paths) -> Result<BTreeMap<String, Power>> {
    ask(paths, "GET", "/nodes").await
}

/// Has a running cluster do something to a node; returns what it says.
pub async fn ask_fault(paths: &Paths, node: &str, fault: Fault) -> Result<String> {
    // What cannot be a name cannot be part of the request's path either.
    if node.is_empty() || !node.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') {
        bail!("{node:?} is not the name of a node");
    }
    let word = serde_json::to_value(fault)?;
    let said: Said = ask(paths, "POST", &format!("/nodes/{node}/{}", word.as_str().unwrap_or_default())).await?;
    Ok(said.message)
}

/// Has a running cluster make a new key for what is encrypted in its store; returns what it says.
pub async fn ask_rotate(paths: &Paths) -> Result<String> {
    let said: Said = ask(paths, "POST", "/store/encryption-key").await?;
    Ok(said.message)
}

/// Asks a running cluster for all of its store, as of now.
pub async fn ask_snapshot(paths: &Paths) -> Result<Snapshot> {
    let answer = answer(paths, "GET", "/store/snapshot").await?;
    let revision = answer.headers().get(REVISION).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let revision = revision.context("the cluster does not say of which revision its snapshot is")?;
    let broken = |e: hyper::Error| StoreError::Engine {
        doing: "reading the snapshot of the running cluster".to_owned(),
        detail: e.to_string(),
    };
    Ok(Snapshot { revision, bytes: answer.into_body().into_data_stream().map_err(broken).boxed() })
}

async fn ask<T: DeserializeOwned>(paths: &Paths, method: &str, path: &str) -> Result<T> {
    let asking = || format!("asking the cluster at {}", paths.control().display());
    let answer = answer(paths, method, path).await?;
    serde_json::from_slice(&answer.into_body().collect().await.with_context(asking)?.to_bytes()).with_context(asking)
}

/// An answer that is no refusal.
async fn answer(paths: &Paths, method: &str, path: &str) -> Result<http::Response<Incoming>> {
    let socket = paths.control();
    let asking = || format!("asking the cluster at {}", socket.display());
    let stream = UnixStream::connect(&socket).await.with_context(asking)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.with_context(asking)?;
    tokio::spawn(connection);
    let request = http::Request::builder().method(method).uri(path).header("host", "causeway");
    let answer = sender.send_request(request.body(Empty::<bytes::Bytes>::new())?).await.with_context(asking)?;
    let code = answer.status();
    if code.is_success() {
        return Ok(answer);
    }
    let body = answer.into_body().collect().await.with_context(asking)?.to_bytes();
    match serde_json::from_slice::<Said>(&body) {
        Ok(said) => bail!("{}", said.message),
        Err(_) => bail!("the cluster answered {code}: {}", String::from_utf8_lossy(&body)),
    }
}
