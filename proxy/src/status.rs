//! What is told back about Ingresses: `status.loadBalancer`, an annotation while something is wrong, and events.
//!
//! In: the newest report of each Ingress that changed. Out: writes through the API, only where what is there differs. Level-triggered:
//! a write that fails is tried again with the next report or after a pause.

use crate::config::model::{CONTROLLER, DEFAULT_CLASS_ANNOTATION, Report};
use crate::config::outbox::Outbox;
use crate::route::ObjectKey;
use causeway_api::events::{EventType, Recorder};
use k8s_openapi::api::networking::v1::{
    Ingress, IngressClass, IngressClassSpec, IngressLoadBalancerIngress, IngressLoadBalancerStatus,
};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Lists what is wrong with an Ingress, one line each; absent when nothing is.
pub const PROBLEMS_ANNOTATION: &str = "causeway.dev/ingress-problems";
/// The pause after a write that failed.
const RETRY: Duration = Duration::from_secs(2);
/// The longest such pause.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// The uid of an Ingress, and the problems that there are events of.
type Told = (Option<String>, HashSet<String>);

/// Writes reports until shutdown.
pub async fn run(
    client: Client,
    recorder: Recorder,
    addresses: Vec<String>,
    reports: Arc<Outbox<Option<Report>>>,
    shutdown: CancellationToken,
) {
    let mut told: HashMap<ObjectKey, Told> = HashMap::new();
    // What could not be written yet.
    let mut failed: BTreeMap<ObjectKey, Option<Report>> = BTreeMap::new();
    let mut pause = RETRY;
    loop {
        let mut current = std::mem::take(&mut failed);
        tokio::select! {
            () = shutdown.cancelled() => return,
            new = reports.take() => {
                for (key, report) in &new {
                    tell(&recorder, key, report.as_ref(), &mut told);
                }
                current.extend(new);
            }
            () = tokio::time::sleep(pause), if !current.is_empty() => {}
        }
        for (key, report) in current {
            if shutdown.is_cancelled() {
                return;
            }
            let Some(report) = report else { continue };
            if let Err(error) = write(&client, &report, &addresses).await {
                tracing::debug!(%error, ingress = %key, "status not written; trying again");
                failed.insert(key, Some(report));
            }
        }
        pause = if failed.is_empty() { RETRY } else { (pause * 2).min(MAX_RETRY) };
    }
}

/// Creates our IngressClass unless it is there; keeps trying until it is or shutdown.
pub async fn ensure_class(client: Client, name: String, default: bool, shutdown: CancellationToken) {
    let api: Api<IngressClass> = Api::all(client);
    let annotations = default.then(|| [(DEFAULT_CLASS_ANNOTATION.to_owned(), "true".to_owned())].into());
    let class = IngressClass {
        metadata: ObjectMeta { name: Some(name.clone()), annotations, ..ObjectMeta::default() },
        spec: Some(IngressClassSpec { controller: Some(CONTROLLER.to_owned()), parameters: None }),
    };
    let mut pause = RETRY;
    loop {
        match api.create(&PostParams::default(), &class).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 409 => return,
            Err(error) => tracing::warn!(%error, class = name, "cannot create the IngressClass; trying again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(MAX_RETRY),
        }
    }
}

/// Records an event for every problem of an Ingress that was not there before.
fn tell(recorder: &Recorder, key: &ObjectKey, report: Option<&Report>, told: &mut HashMap<ObjectKey, Told>) {
    let before = told.remove(key).unwrap_or_default();
    let Some(report) = report.filter(|report| !report.problems.is_empty()) else { return };
    // Another one of the same name is told anew.
    let uid = &report.ingress.metadata.uid;
    let before = if before.0 == *uid { before.1 } else { HashSet::new() };
    let mut now = HashSet::new();
    for problem in &report.problems {
        if now.insert(problem.message.clone()) && !before.contains(&problem.message) {
            recorder.record(&*report.ingress, EventType::Warning, problem.reason, problem.message.clone());
        }
    }
    told.insert(key.clone(), (uid.clone(), now));
}

async fn write(client: &Client, report: &Report, addresses: &[String]) -> Result<(), kube::Error> {
    let ingress = &report.ingress;
    let api: Api<Ingress> = Api::namespaced(client.clone(), &ingress.namespace().unwrap_or_default());
    let name = ingress.name_any();
    let gone_is_fine = |result: Result<Ingress, kube::Error>| match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    };
    if let Some(patch) = status_patch(ingress, addresses) {
        gone_is_fine(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await)?;
    }
    if let Some(patch) = annotation_patch(report) {
        gone_is_fine(api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await)?;
    }
    Ok(())
}

/// The patch that brings `status.loadBalancer` to our addresses; none when it is there or we have none to tell.
fn status_patch(ingress: &Ingress, addresses: &[String]) -> Option<serde_json::Value> {
    if addresses.is_empty() {
        return None;
    }
    let wanted: Vec<_> = addresses
        .iter()
        .map(|address| match address.parse::<std::net::IpAddr>() {
            Ok(ip) => IngressLoadBalancerIngress { ip: Some(ip.to_string()), ..Default::default() },
            Err(_) => IngressLoadBalancerIngress { hostname: Some(address.clone()), ..Default::default() },
        })
        .collect();
    let current = ingress.status.as_ref().and_then(|s| s.load_balancer.as_ref()).and_then(|l| l.ingress.as_ref());
    (current != Some(&wanted))
        .then(|| json!({ "status": { "loadBalancer": IngressLoadBalancerStatus { ingress: Some(wanted) } } }))
}

/// The patch that brings the problems' annotation up to date.
fn annotation_patch(report: &Report) -> Option<serde_json::Value> {
    let lines: Vec<_> = report.problems.iter().map(|p| format!("{}: {}", p.reason, p.message)).collect();
    let wanted = (!lines.is_empty()).then(|| lines.join("\n"));
    let current = report.ingress.metadata.annotations.as_ref().and_then(|a| a.get(PROBLEMS_ANNOTATION));
    (current != wanted.as_ref()).then(|| json!({ "metadata": { "annotations": { PROBLEMS_ANNOTATION: wanted } } }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Problem;

    #[test]
    fn writes_only_what_differs() {
        let addresses = vec!["127.0.0.1".to_owned(), "lb.example".to_owned()];
        let mut ingress = Ingress::default();
        let patch = status_patch(&ingress, &addresses).unwrap();
        assert_eq!(
            patch,
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}, {"hostname": "lb.example"}]}}})
        );
        ingress.status = serde_json::from_value(patch["status"].clone()).unwrap();
        assert_eq!(status_patch(&ingress, &addresses), None);
        assert_eq!(status_patch(&ingress, &[]), None);

        let problem = Problem { reason: "Conflict", message: "taken".to_owned() };
        let mut report = Report { ingress: Arc::new(ingress.clone()), problems: vec![problem] };
        let patch = annotation_patch(&report).unwrap();
        assert_eq!(patch["metadata"]["annotations"][PROBLEMS_ANNOTATION], "Conflict: taken");
        ingress.metadata.annotations = Some([(PROBLEMS_ANNOTATION.to_owned(), "Conflict: taken".to_owned())].into());
        report.ingress = Arc::new(ingress);
        assert_eq!(annotation_patch(&report), None);
        report.problems.clear();
        assert_eq!(annotation_patch(&report).unwrap()["metadata"]["annotations"][PROBLEMS_ANNOTATION], json!(null));
    }
}
