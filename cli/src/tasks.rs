//! Components as supervised tasks. In: a future that runs a component. Out: a component that is started again when it
//! fails or panics, with its health known to `causeway status`, and a way to end them all.

use anyhow::Result;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// A component that failed is started again after this, doubled up to [`RESTART_MAX`].
const RESTART_MIN: Duration = Duration::from_millis(500);
const RESTART_MAX: Duration = Duration::from_secs(30);

/// The state of a component that runs.
pub const RUNNING: &str = "running";

/// What every supervised component is doing: `running`, or why it is not.
#[derive(Clone, Default)]
pub struct Health {
    components: Arc<Mutex<BTreeMap<String, String>>>,
    changed: Arc<Notify>,
}

impl Health {
    /// Says what a component is doing; who supervises it says so too.
    pub fn set(&self, component: &str, state: &str) {
        self.components.lock().insert(component.to_owned(), state.to_owned());
        self.changed.notify_one();
    }

    /// A node's components are no longer expected to do anything.
    pub fn forget(&self, node: &str) {
        let place = place(node);
        self.components.lock().retain(|component, _| !component.ends_with(&place));
        self.changed.notify_one();
    }

    /// All components and their states.
    pub fn all(&self) -> BTreeMap<String, String> {
        self.components.lock().clone()
    }

    /// Waits for a change.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// Components that run until a token is cancelled.
pub struct Tasks {
    token: CancellationToken,
    set: JoinSet<()>,
    handle: Handle,
    health: Health,
    /// What the names of these components end in: `@node-1`.
    place: String,
}

impl Tasks {
    /// Tasks on the calling runtime.
    pub fn new(token: CancellationToken, health: &Health) -> Self {
        Self { token, set: JoinSet::new(), handle: Handle::current(), health: health.clone(), place: String::new() }
    }

    /// Tasks of a node, on its runtime.
    pub fn of_node(node: &str, handle: Handle, token: CancellationToken, health: &Health) -> Self {
        Self { token, set: JoinSet::new(), handle, health: health.clone(), place: place(node) }
    }

    /// What tells these tasks to end.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Runs what cannot be started again: when it ends before it was told to, so does everything.
    pub fn must_run(
        &mut self,
        name: &'static str,
        everything: CancellationToken,
        work: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        let (token, health) = (self.token.clone(), self.health.clone());
        health.set(name, RUNNING);
        let work = async move {
            let outcome = work.await;
            if !token.is_cancelled() {
                let why = outcome.err().map_or_else(|| "it ended by itself".to_owned(), |e| format!("{e:#}"));
                tracing::error!(component = name, "failed: {why}; stopping the cluster");
                health.set(name, &why);
                everything.cancel();
            }
        };
        self.set.spawn_on(work, &self.handle);
    }

    /// Runs again whenever it fails or panics, until told to end.
    pub fn supervise<F>(&mut self, name: &'static str, mut make: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let (token, health) = (self.token.clone(), self.health.clone());
        let name = format!("{name}{}", self.place);
        let work = async move {
            let mut delay = RESTART_MIN;
            while !token.is_cancelled() {
                health.set(&name, RUNNING);
                let begin = std::time::Instant::now();
                let outcome = tokio::spawn(make()).await;
                if token.is_cancelled() {
                    return;
                }
                let why = match outcome {
                    Ok(Ok(())) => "ended by itself".to_owned(),
                    Ok(Err(error)) => format!("failed: {error:#}"),
                    Err(panic) => format!("panicked: {panic}"),
                };
                tracing::error!(component = name, "{why}; starting it again");
                health.set(&name, &why);
                if begin.elapsed() > RESTART_MAX {
                    delay = RESTART_MIN;
                }
                tokio::select! {
                    () = token.cancelled() => return,
                    () = tokio::time::sleep(delay) => delay = (delay * 2).min(RESTART_MAX),
                }
            }
        };
        self.set.spawn_on(work, &self.handle);
    }

    /// Tells all to end and waits for them, up to `grace`.
    pub async fn stop(mut self, grace: Duration) {
        self.token.cancel();
        let all = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, all).await.is_err() {
            tracing::warn!("some components did not end in time");
        }
    }
}

/// What the names of a node's components end in.
fn place(node: &str) -> String {
    format!("@{node}")
}

/// Cancels `stop` at SIGINT or SIGTERM; the handle ends then.
pub fn stop_on_signal(stop: CancellationToken) -> Result<JoinHandle<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stop.cancel();
    }))
}
