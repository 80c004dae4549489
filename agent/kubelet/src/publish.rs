//! Writes a pod's status: only when it changed, the newest only, again until it is written. In: statuses from the
//! worker. Out: patches of `/status` that touch nothing but what a kubelet owns.

use crate::context::Context;
use crate::status::OWN_CONDITIONS;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// What was written: how many statuses were taken, and the resource version of the last answer.
#[derive(Debug, Clone)]
struct Written {
    number: u64,
    resource_version: u64,
}

/// The publisher of one pod.
pub struct Publisher {
    wanted: watch::Sender<(u64, Arc<PodStatus>)>,
    written: watch::Receiver<Written>,
    task: JoinHandle<()>,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Publisher {
    /// For a pod, whose status in the API is known.
    pub fn new(ctx: Arc<Context>, pod: &Pod) -> Self {
        let api_status = pod.status.clone().unwrap_or_default();
        let (wanted, wanted_rx) = watch::channel((0, Arc::new(api_status.clone())));
        let known = pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
        let (written_tx, written) = watch::channel(Written { number: 0, resource_version: known });
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let target = Target {
            api: Api::namespaced(ctx.client.clone(), &namespace),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
        };
        let task = tokio::spawn(write_all(ctx, target, api_status, wanted_rx, written_tx));
        Self { wanted, written, task }
    }

    /// Hands over a status to be written.
    pub fn publish(&self, status: PodStatus) {
        self.wanted.send_modify(|w| *w = (w.0 + 1, Arc::new(status)));
    }

    /// Everything handed over is written, and the object is not older than what was written then: what it says now
    /// is what others made of it.
    pub fn overtaken_by(&self, pod: &Pod) -> bool {
        let written = self.written.borrow();
        let version = pod.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        written.number == self.wanted.borrow().0 && version > written.resource_version
    }

    /// A future that ends when everything handed over so far is written.
    pub fn flushed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut written = self.written.clone();
        let number = self.wanted.borrow().0;
        async move {
            let _ = written.wait_for(|w| w.number >= number).await;
        }
    }
}

struct Target {
    api: Api<Pod>,
    name: String,
    uid: String,
}

async fn write_all(
    ctx: Arc<Context>,
    target: Target,
    api_status: PodStatus,
    mut wanted: watch::Receiver<(u64, Arc<PodStatus>)>,
    written: watch::Sender<Written>,
) {
    let mut known = serde_json::to_value(&api_status).unwrap_or_default();
    let mut delay = FIRST_RETRY;
    while wanted.changed().await.is_ok() {
        loop {
            let (number, status) = wanted.borrow_and_update().clone();
            let patch = patch(&target.uid, &known, &status);
            let result =
                target.api.patch_status(&target.name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
            let resource_version = match result {
                Ok(answer) => {
                    known = serde_json::to_value(answer.status.unwrap_or_default()).unwrap_or_default();
                    answer.metadata.resource_version.and_then(|v| v.parse().ok()).unwrap_or(0)
                }
                // The pod is gone, or another one has its name: nobody is left to be told.
                Err(kube::Error::Api(s)) if s.is_not_found() || s.is_conflict() => u64::MAX,
                Err(error) => {
                    tracing::debug!(pod = target.name, %error, "status not written yet");
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        _ = wanted.changed() => {}
                    }
                    delay = (delay * 2).min(LONGEST_RETRY);
                    continue;
                }
            };
            delay = FIRST_RETRY;
            ctx.metrics.status_updates.fetch_add(1, Ordering::Relaxed);
            written.send_replace(Written { number, resource_version });
            break;
        }
    }
}

/// A strategic merge patch from `known` to `status`: conditions of others are left alone, what is gone is nulled.
fn patch(uid: &str, known: &Value, status: &PodStatus) -> Value {
    let mut fields = match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    for key in known.as_object().into_iter().flatten().map(|(k, _)| k) {
        if !fields.contains_key(key) && OWN_FIELDS.contains(&key.as_str()) {
            fields.insert(key.clone(), Value::Null);
        }
    }
    // Lists that merge by their key keep what is missing from the patch; these never change once they are set.
    for key in ["podIPs", "hostIPs"] {
        if fields.get(key).is_some() && fields.get(key) == known.get(key) {
            fields.remove(key);
        }
    }
    if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
        conditions.retain(|c| {
            let own = |t: &str| OWN_CONDITIONS.contains(&t) || t == "PodScheduled";
            c.get("type").and_then(Value::as_str).is_some_and(own)
        });
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            for key in ["reason", "message"] {
                condition.entry(key).or_insert(Value::Null);
            }
        }
    }
    json!({"metadata": {"uid": uid}, "status": fields})
}

const OWN_FIELDS: [&str; 8] =
    ["message", "reason", "podIP", "podIPs", "containerStatuses", "initContainerStatuses", "startTime", "qosClass"];

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodCondition;

    #[test]
    fn patches_leave_others_alone() {
        let condition =
            |t: &str| PodCondition { type_: t.to_owned(), status: "True".to_owned(), ..PodCondition::default() };
        let status = PodStatus {
            phase: Some("Running".to_owned()),
            conditions: Some(vec![condition("Ready"), condition("DisruptionTarget")]),
            ..PodStatus::default()
        };
        let known = json!({"reason": "Old", "resize": "x"});
        let p = patch("u", &known, &status);
        assert_eq!(p["status"]["reason"], Value::Null);
        assert!(p["status"].get("resize").is_none());
        assert_eq!(p["status"]["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(p["status"]["conditions"][0]["message"], Value::Null);
    }
}
