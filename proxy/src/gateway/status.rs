//! Writes what the objects of the Gateway API are told: only where it differs from what is there, never over what
//! another controller says, and guarded by the version it was found out from. An event goes along where a person must
//! act.

use super::report::{Report, Wanted, is_ours};
use super::types::GROUP;
use crate::route::ObjectKey;
use causeway_api::events::{EventType, Recorder};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The pause after a write that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Reasons that pass by themselves: no event.
const PASSING: [&str; 3] = ["Pending", "AddressNotAssigned", "NoConflicts"];

/// Writes reports until shutdown.
pub async fn run(
    client: Client,
    recorder: Recorder,
    mut reports: watch::Receiver<Arc<Vec<Arc<Report>>>>,
    shutdown: CancellationToken,
) {
    // Reports that have been dealt with: most are the same from one change to the next.
    let mut done: HashMap<(&'static str, ObjectKey), Arc<Report>> = HashMap::new();
    loop {
        let current = Arc::clone(&reports.borrow_and_update());
        let mut failed = false;
        let mut before = std::mem::take(&mut done);
        for report in current.iter() {
            let id = (report.kind.kind, report.key.clone());
            if before.remove(&id).is_some_and(|old| Arc::ptr_eq(&old, report)) {
                done.insert(id, Arc::clone(report));
                continue;
            }
            // What has changed meanwhile is written from the newer reports.
            if shutdown.is_cancelled() {
                return;
            }
            let Some(status) = status(&report.current, &report.wanted, &now()) else {
                done.insert(id, Arc::clone(report));
                continue;
            };
            match write(&client, report, &status).await {
                Ok(true) => {
                    announce(&recorder, report, &status);
                    done.insert(id, Arc::clone(report));
                }
                // A newer version exists: its own report follows.
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, kind = report.kind.kind, object = %report.key, "status not written; trying again");
                    failed = true;
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = reports.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn write(client: &Client, report: &Report, status: &Value) -> Result<bool, kube::Error> {
    let resource = ApiResource {
        group: GROUP.to_owned(),
        version: "v1".to_owned(),
        api_version: format!("{GROUP}/v1"),
        kind: report.kind.kind.to_owned(),
        plural: report.kind.plural.to_owned(),
    };
    let api: Api<DynamicObject> = if report.key.namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), &report.key.namespace, &resource)
    };
    let patch = json!({ "metadata": { "resourceVersion": report.resource_version }, "status": status });
    match api.patch_status(&report.key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The fields of a status that are to be written, with times; none when all is said already.
pub fn status(current: &Value, wanted: &Wanted, now: &str) -> Option<Value> {
    let fields = match wanted {
        Wanted::Fields(fields) => fields.clone(),
        Wanted::Entries { field, ours } => {
            let before = current[*field].as_array().map(Vec::as_slice).unwrap_or_default();
            let mut all: Vec<Value> = before.iter().filter(|e| !is_ours(e)).cloned().collect();
            all.extend(ours.iter().cloned());
            json!({ *field: all })
        }
    };
    let mut changed = Map::new();
    for (name, mut value) in fields.as_object().cloned().unwrap_or_default() {
        let before = &current[&name];
        stamp(&mut value, before, now);
        let both_empty = before.is_null() && value.as_array().is_some_and(Vec::is_empty);
        if value != *before && !both_empty {
            changed.insert(name, value);
        }
    }
    (!changed.is_empty()).then(|| Value::Object(changed))
}

/// Gives conditions the time of their last transition: that of the condition before it, unless its status differs.
fn stamp(value: &mut Value, before: &Value, now: &str) {
    let Value::Array(all) = value else { return };
    for entry in all {
        let same = |other: &&Value| {
            ["type", "name", "parentRef", "ancestorRef", "controllerName"].iter().all(|k| other[*k] == entry[*k])
        };
        let earlier = before.as_array().and_then(|all| all.iter().find(same)).cloned().unwrap_or(Value::Null);
        if entry["type"].is_string() && entry["status"].is_string() {
            let kept = earlier["lastTransitionTime"].as_str().filter(|_| earlier["status"] == entry["status"]);
            entry["lastTransitionTime"] = kept.unwrap_or(now).into();
        } else if entry["conditions"].is_array() {
            let before = &earlier["conditions"];
            stamp(&mut entry["conditions"], before, now);
        }
    }
}

/// Tells about conditions that have become false, once each.
fn announce(recorder: &Recorder, report: &Report, status: &Value) {
    for (place, condition) in conditions(status) {
        let reason = condition["reason"].as_str().unwrap_or_default();
        let bad = condition["status"] == "False" && !PASSING.contains(&reason);
        let known = conditions(&report.current)
            .into_iter()
            .any(|(p, c)| p == place && ["type", "status", "reason", "message"].iter().all(|k| c[*k] == condition[*k]));
        if bad && !known && matches!(condition["type"].as_str(), Some("Accepted" | "ResolvedRefs")) {
            let message = format!("{place}{}", condition["message"].as_str().unwrap_or_default());
            recorder.record_ref(report.about.clone(), EventType::Warning, reason, message);
        }
    }
}

/// All conditions of a status, each with where it stands.
fn conditions(status: &Value) -> Vec<(String, &Value)> {
    let list = |value: &'static str| status[value].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut all: Vec<(String, &Value)> = list("conditions").iter().map(|c| (String::new(), c)).collect();
    for (field, of) in [("listeners", "listener"), ("parents", "parent"), ("ancestors", "Gateway")] {
        for entry in list(field) {
            let named = [&entry["name"], &entry["parentRef"]["name"], &entry["ancestorRef"]["name"]];
            let name = named.iter().find_map(|n| n.as_str()).unwrap_or_default();
            let own = entry["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            all.extend(own.iter().map(|c| (format!("{of} {name}: "), c)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::CONTROLLER;
    use super::*;

    fn condition(status: &str, time: Option<&str>) -> Value {
        let mut condition = json!({ "type": "Accepted", "status": status, "reason": "R", "message": "" });
        if let Some(time) = time {
            condition["lastTransitionTime"] = time.into();
        }
        condition
    }

    #[test]
    fn a_time_changes_only_with_the_status() {
        let wanted = Wanted::Fields(json!({ "conditions": [condition("True", None)], "listeners": [] }));
        let written = status(&Value::Null, &wanted, "t1").unwrap();
        assert_eq!(written, json!({ "conditions": [condition("True", Some("t1"))] }));
        assert_eq!(status(&written, &wanted, "t2"), None);
        let mut other = condition("True", None);
        other["message"] = "new".into();
        let again = status(&written, &Wanted::Fields(json!({ "conditions": [other] })), "t2").unwrap();
        assert_eq!(again["conditions"][0]["lastTransitionTime"], "t1");
        let wanted = Wanted::Fields(json!({ "conditions": [condition("False", None)] }));
        assert_eq!(status(&written, &wanted, "t2").unwrap()["conditions"][0]["lastTransitionTime"], "t2");
    }

    #[test]
    fn what_others_say_about_a_route_stays() {
        let entry = |controller: &str, parent: &str, time: Option<&str>| json!({ "controllerName": controller, "parentRef": { "name": parent }, "conditions": [condition("True", time)] });
        let current = json!({ "parents": [
            entry("other", "a", Some("t0")), entry(CONTROLLER, "a", Some("t0")), entry(CONTROLLER, "gone", Some("t0"))] });
        let ours = vec![entry(CONTROLLER, "a", None), entry(CONTROLLER, "b", None)];
        let written = status(&current, &Wanted::Entries { field: "parents", ours: ours.clone() }, "t1").unwrap();
        let wanted = json!([
            entry("other", "a", Some("t0")),
            entry(CONTROLLER, "a", Some("t0")),
            entry(CONTROLLER, "b", Some("t1"))
        ]);
        assert_eq!(written["parents"], wanted);
        assert_eq!(status(&written, &Wanted::Entries { field: "parents", ours }, "t2"), None);
        let none = status(&written, &Wanted::Entries { field: "parents", ours: Vec::new() }, "t2").unwrap();
        assert_eq!(none["parents"], json!([entry("other", "a", Some("t0"))]));
    }
}
