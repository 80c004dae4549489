//! The channel between a running cluster and the commands that want something of it: HTTP with JSON over a unix socket
//! that only root may use. In: the nodes. Out: their states, and faults done to them.

use crate::nodes::{Fault, Nodes, Power};
use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::{BodyExt, Empty};
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

/// Serves until told to stop.
pub async fn serve(listener: UnixListener, nodes: Arc<Nodes>, stop: CancellationToken) -> Result<()> {
    let router = Router::new().route("/nodes", get(states)).route("/nodes/{name}/{fault}", post(inflict));
    let serving = axum::serve(listener, router.with_state(nodes));
    serving.with_graceful_shutdown(stop.cancelled_owned()).await.context("serving the control socket")
}

async fn states(State(nodes): State<Arc<Nodes>>) -> Result<Json<BTreeMap<String, Power>>, Refused> {
    nodes.states().await.map(Json).map_err(|e| refused(StatusCode::INTERNAL_SERVER_ERROR, &e))
}

async fn inflict(
    State(nodes): State<Arc<Nodes>>,
    Path((name, fault)): Path<(String, Fault)>,
) -> Result<Json<Said>, Refused> {
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

async fn ask<T: DeserializeOwned>(paths: &Paths, method: &str, path: &str) -> Result<T> {
    let socket = paths.control();
    let asking = || format!("asking the cluster at {}", socket.display());
    let stream = UnixStream::connect(&socket).await.with_context(asking)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.with_context(asking)?;
    tokio::spawn(connection);
    let request = http::Request::builder().method(method).uri(path).header("host", "causeway");
    let answer = sender.send_request(request.body(Empty::<bytes::Bytes>::new())?).await.with_context(asking)?;
    let code = answer.status();
    let body = answer.into_body().collect().await.with_context(asking)?.to_bytes();
    if code.is_success() {
        return serde_json::from_slice(&body).with_context(asking);
    }
    match serde_json::from_slice::<Said>(&body) {
        Ok(said) => bail!("{}", said.message),
        Err(_) => bail!("the cluster answered {code}: {}", String::from_utf8_lossy(&body)),
    }
}
