//! What the worker makes of operations that have ended.

use super::{CLEAN_RETRY, SANDBOX_RETRY, SOON, VOLUMES, Worker};
use crate::context::Context;
use crate::model::{Sandbox, Unhealthy};
use crate::operations::{Outcome, Start};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};
use std::sync::Arc;
use std::time::Duration;

impl Worker {
    pub(super) fn ended(&mut self, outcome: Outcome) {
        let now = Timestamp::now();
        let later = |d| now.saturating_add(d).unwrap_or(now);
        match outcome {
            Outcome::SetUp(Ok(ready)) => {
                self.model.sandbox = Sandbox::Ready(ready.ips.clone());
                self.ready = Some(ready);
                self.refreshed_at = now;
            }
            Outcome::SetUp(Err(error)) => {
                tracing::debug!(pod = crate::names::format_pod(&self.model.pod), error, "sandbox not ready");
                // What was missing may have come while it was looked for.
                let pause = if self.stale { SOON } else { SANDBOX_RETRY };
                self.model.sandbox = Sandbox::Absent { retry_at: Some(later(pause)) };
            }
            Outcome::Started { name, result } => self.started(&name, result),
            Outcome::Stopped { name, error } => {
                self.running.remove(&name);
                let life = self.model.life_mut(&name);
                life.op = None;
                life.unhealthy = None;
                self.look = true;
                if let Some(error) = error {
                    tracing::warn!(
                        pod = crate::names::format_pod(&self.model.pod),
                        container = name,
                        error,
                        "stop failed"
                    );
                }
            }
            Outcome::TornDown(result) => {
                if let Err(error) = result {
                    tracing::warn!(pod = crate::names::format_pod(&self.model.pod), error, "network not removed");
                }
                let ips = self.ready.take().map(|r| r.ips).unwrap_or_default();
                self.model.sandbox = Sandbox::Gone(ips);
                self.objects.close();
            }
            Outcome::Cleaned(Ok(())) => {
                self.model.sandbox = Sandbox::Cleaned;
                self.objects.close();
                self.model.records.clear();
                if !self.orphan && !self.model.vanished {
                    self.operations.spawn(delete(self.ctx.clone(), self.model.pod.clone(), self.publisher.flushed()));
                }
            }
            Outcome::Cleaned(Err(error)) => {
                tracing::warn!(pod = crate::names::format_pod(&self.model.pod), error, "pod not removed yet");
                self.retry_clean = Some(later(CLEAN_RETRY));
                self.model.sandbox = Sandbox::Gone(Vec::new());
                self.look = true;
            }
            Outcome::Refreshed => drop(self.running.remove(VOLUMES)),
            Outcome::Done => {}
        }
    }

    /// An operation was cut off, or broke by a defect of ours: it is asked for again.
    pub(super) fn broken(&mut self, error: &tokio::task::JoinError) {
        if error.is_cancelled() {
            return;
        }
        tracing::error!(pod = crate::names::format_pod(&self.model.pod), %error, "an operation broke");
        let keys: Vec<String> =
            self.running.iter().filter(|(_, h)| h.id() == error.id()).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.running.remove(&key);
            if key == "sandbox/" {
                let retry_at = Timestamp::now().saturating_add(SANDBOX_RETRY).ok();
                self.model.sandbox = Sandbox::Absent { retry_at };
            } else if let Some(life) = self.model.lives.get_mut(&key) {
                life.op = None;
            }
        }
        self.look = true;
    }

    pub(super) fn started(&mut self, name: &str, result: Start) {
        self.running.remove(name);
        self.look = true;
        let soon = self.stale.then(|| Timestamp::now().saturating_add(SOON).unwrap_or(Timestamp::MAX));
        let life = self.model.life_mut(name);
        life.op = None;
        match result {
            Start::Running => {
                life.waiting = None;
                life.failed_start = None;
            }
            Start::Refused(refused) => {
                life.waiting = Some(refused.waiting);
                // What was missing may have come while it was looked for.
                life.retry_at = Some(soon.map_or(refused.retry_at, |soon| refused.retry_at.min(soon)));
            }
            Start::Failed(record, waiting) => {
                life.waiting = Some(waiting);
                life.failed_start = Some(*record);
            }
            Start::HookFailed { id, message } => {
                life.waiting = None;
                life.failed_start = None;
                life.unhealthy = Some(Unhealthy { message, grace: None });
                // Not to be probed: it is stopped next.
                life.probed = id;
                life.started = false;
                life.ready = false;
            }
        }
    }
}

/// Tells the API that the pod has left the node.
async fn delete(ctx: Arc<Context>, pod: Arc<Pod>, flushed: impl Future<Output = ()> + Send) -> Outcome {
    flushed.await;
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), pod.metadata.namespace.as_deref().unwrap_or(""));
    let name = pod.metadata.name.clone().unwrap_or_default();
    let preconditions = Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() };
    let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
    let mut delay = Duration::from_millis(200);
    loop {
        match api.delete(&name, &params).await {
            Ok(_) => return Outcome::Done,
            Err(kube::Error::Api(s)) if s.is_not_found() || s.is_conflict() => return Outcome::Done,
            Err(error) => {
                tracing::debug!(pod = name, %error, "pod not deleted from the API yet");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(Duration::from_secs(10));
            }
        }
    }
}
