//! The only part that writes: bindings, the condition of a pod that cannot be placed, the node chosen for claims.

use crate::pod::PodInfo;
use crate::volume::SELECTED_NODE;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use serde_json::json;

/// Binds a pod to a node through the `binding` subresource.
pub async fn bind(client: &Client, pod: &PodInfo, node: &str) -> Result<(), Error> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let _: serde_json::Value = pods.create_subresource("binding", &pod.name, &PostParams::default(), &binding).await?;
    Ok(())
}

/// Tells the provisioner of every waiting claim which node was chosen.
pub async fn select_node(client: &Client, pod: &PodInfo, claims: &[String], node: &str) -> Result<(), Error> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &pod.namespace);
    for claim in claims {
        let patch = json!({ "metadata": { "annotations": { SELECTED_NODE: node } } });
        api.patch(claim, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    Ok(())
}

/// Writes `PodScheduled=False`.
pub async fn mark_unschedulable(client: &Client, pod: &PodInfo, reason: &str, message: &str) -> Result<(), Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    // The uid: a pod of the same name that has come since is another one.
    let patch = json!({ "metadata": { "uid": pod.uid }, "status": { "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
        "lastProbeTime": null, "lastTransitionTime": Time(Timestamp::now()),
    }] } });
    pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(&patch)).await.map(drop)
}
