//! `/eviction`: a delete that asks the disruption budgets first.

use crate::endpoints::Endpoints;
use crate::engine::{Call, DeleteOptions, text};
use crate::exchange::{Incoming, Reply};
use crate::status::{ApiError, ApiResult};
use causeway_api::selector::Selector;
use http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};
use std::sync::Arc;

/// Evicts a pod.
pub async fn serve(server: &Arc<Endpoints>, mut call: Call, name: &str, incoming: Incoming) -> ApiResult<Reply> {
    let (mut eviction, _) = incoming.object().await?;
    server.engine.admission.subresource(&server.engine, &mut call, name, "eviction", &mut eviction).await?;
    let mut options = DeleteOptions::parse(&eviction["deleteOptions"], &incoming.info.query)?;
    options.dry_run |= call.options.dry_run;
    let pod = server.engine.get(&call.served, &call.namespace, name, None).await?.value();
    // Pods that do not run, or are going already, need nobody's leave.
    let free = matches!(text(&pod, "/status/phase"), "Succeeded" | "Failed" | "Pending")
        || pod.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null());
    if !free {
        ask_budgets(server, &call, &pod, options.dry_run).await?;
    }
    server.engine.delete(&mut call, name, &options).await?;
    let body = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
    Ok(Reply::json(StatusCode::CREATED, &body))
}

async fn ask_budgets(server: &Arc<Endpoints>, call: &Call, pod: &Value, dry_run: bool) -> ApiResult<()> {
    let served = server.engine.served("policy", "v1", "poddisruptionbudgets")?;
    let prefix = format!("{}{}/", served.prefix, call.namespace);
    let (budgets, _) = server.engine.feed.cache(&served.prefix).list(&prefix);
    let labels = crate::object::labels(pod);
    let mut covering = Vec::new();
    for budget in budgets.iter().map(|b| b.value()) {
        let selector: Option<LabelSelector> = serde_json::from_value(budget["spec"]["selector"].clone()).ok();
        let Some(selector) = selector else { continue };
        let selector = Selector::from_object(&selector).map_err(ApiError::internal)?;
        if selector.matches(&labels) {
            covering.push(budget);
        }
    }
    let [budget] = covering.as_slice() else {
        return if covering.is_empty() {
            Ok(())
        } else {
            let why =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            Err(ApiError::internal(why))
        };
    };
    if unready_may_go(pod, budget) {
        return Ok(());
    }
    let name = text(budget, "/metadata/name").to_owned();
    let pod_name = text(pod, "/metadata/name").to_owned();
    let mut one = Call::internal(served.clone(), &call.namespace);
    one.options.dry_run = dry_run;
    server
        .engine
        .patch(&mut one, &name, crate::engine::Part::Status, |old| {
            let generation = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
            let observed = old.pointer("/status/observedGeneration").and_then(Value::as_i64).unwrap_or(0);
            if observed < generation {
                let why = "Cannot evict pod as it would violate the pod's disruption budget.";
                return Err(ApiError::too_many_requests(
                    why,
                    10,
                    cause(&format!("The disruption budget {name} is still being processed by the server.")),
                ));
            }
            let allowed = old.pointer("/status/disruptionsAllowed").and_then(Value::as_i64).unwrap_or(0);
            if allowed <= 0 {
                let healthy = old.pointer("/status/currentHealthy").and_then(Value::as_i64).unwrap_or(0);
                let desired = old.pointer("/status/desiredHealthy").and_then(Value::as_i64).unwrap_or(0);
                let text =
                    format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently");
                let why = "Cannot evict pod as it would violate the pod's disruption budget.";
                return Err(ApiError::too_many_requests(why, 10, cause(&text)));
            }
            let mut new = old.clone();
            new["status"]["disruptionsAllowed"] = (allowed - 1).into();
            if !new["status"]["disruptedPods"].is_object() {
                new["status"]["disruptedPods"] = json!({});
            }
            new["status"]["disruptedPods"][&pod_name] = crate::engine::now_text().into();
            Ok(new)
        })
        .await
        .map(drop)
}

/// Whether a pod that is not ready may go without asking: nobody is disrupted, and the others are enough. Otherwise a
/// broken pod would hold a drain up for ever.
fn unready_may_go(pod: &Value, budget: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    if conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True") {
        return false;
    }
    let number = |key: &str| budget["status"][key].as_i64().unwrap_or(0);
    let desired = number("desiredHealthy");
    text(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow"
        || (desired > 0 && number("currentHealthy") >= desired)
}

fn cause(message: &str) -> Option<Value> {
    Some(json!({ "reason": "DisruptionBudget", "message": message }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_are_not_ready_go_when_the_others_are_enough() {
        let pod = |ready: &str| json!({ "status": { "conditions": [{ "type": "Ready", "status": ready }] } });
        let budget = |policy: &str, healthy: i64, desired: i64| {
            json!({ "spec": { "unhealthyPodEvictionPolicy": policy },
                "status": { "currentHealthy": healthy, "desiredHealthy": desired } })
        };
        for (ready, policy, healthy, desired, may) in [
            ("True", "AlwaysAllow", 2, 1, false),
            ("False", "AlwaysAllow", 0, 1, true),
            ("False", "IfHealthyBudget", 1, 1, true),
            ("False", "", 1, 1, true),
            ("False", "", 0, 1, false),
            ("False", "", 1, 0, false),
        ] {
            let got = unready_may_go(&pod(ready), &budget(policy, healthy, desired));
            assert_eq!(got, may, "{ready} {policy:?} {healthy} of {desired}");
        }
    }
}
