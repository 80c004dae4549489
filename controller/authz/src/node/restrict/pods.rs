//! Pods: mirror pods are created, what is bound to the node is deleted, evicted, reported on, and gets tokens.

use super::{Lookup, Operation, Write, refuse, same};
use crate::node::references::{self, Kind, MIRROR, account, is_mirror, text};
use serde_json::Value;

pub(super) fn pod(node: &str, write: &Write<'_>, lookup: &dyn Lookup) -> Result<(), String> {
    match write.operation {
        Operation::Create => mirror(node, write.object()?, lookup),
        Operation::Delete => {
            if bound_to(write, lookup)? != node {
                return refuse(format!("node {node:?} can only delete pods with spec.nodeName set to itself"));
            }
            Ok(())
        }
        Operation::Update => refuse(format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            write.operation.word()
        )),
    }
}

/// The node of the pod that is written.
fn bound_to(write: &Write<'_>, lookup: &dyn Lookup) -> Result<String, String> {
    if let Some(old) = write.old {
        return Ok(text(old, "/spec/nodeName").to_owned());
    }
    let found = lookup.get("", "pods", write.namespace, write.name);
    let found = found.ok_or_else(|| format!("pods {:?} not found", write.name))?;
    Ok(text(&found, "/spec/nodeName").to_owned())
}

fn mirror(node: &str, pod: &Value, lookup: &dyn Lookup) -> Result<(), String> {
    if !is_mirror(pod) {
        return refuse(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
    }
    if text(pod, "/spec/nodeName") != node {
        return refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let none = Vec::new();
    let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array).unwrap_or(&none);
    let [owner] = owners.as_slice() else {
        let which = if owners.is_empty() { "an owner reference" } else { "a single owner reference" };
        return refuse(format!("node {node:?} can only create pods with {which} set to itself"));
    };
    if text(owner, "/apiVersion") != "v1" || text(owner, "/kind") != "Node" || text(owner, "/name") != node {
        return refuse(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if owner["controller"] != true {
        return refuse(format!("node {node:?} can only create pods with a controller owner reference set to itself"));
    }
    if owner["blockOwnerDeletion"] == true {
        return refuse(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let object = lookup.get("", "nodes", "", node).ok_or_else(|| format!("nodes {node:?} not found"))?;
    let (expected, got) = (text(owner, "/uid"), text(&object, "/metadata/uid"));
    if expected != got || got.is_empty() {
        return refuse(format!("node {node} UID mismatch: expected {expected} got {got}"));
    }
    without_references(node, pod)
}

/// A mirror pod refers to nothing in the API.
fn without_references(node: &str, pod: &Value) -> Result<(), String> {
    if !account(pod).is_empty() {
        return refuse(format!("node {node:?} can not create pods that reference a service account"));
    }
    let volumes = || pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
    let sources = || volumes().filter_map(|v| v.pointer("/projected/sources")?.as_array()).flatten();
    let references = references::of_pod(pod);
    let refers = |kind: Kind| references.iter().any(|(k, _)| *k == kind);
    let devices = pod.pointer("/spec/resourceClaims").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    let projects = |source: &str| sources().any(|s| s.get(source).is_some_and(|v| !v.is_null()));
    for (found, what) in [
        (refers(Kind::Secret), "secrets"),
        (refers(Kind::ConfigMap), "configmaps"),
        (projects("clusterTrustBundle"), "clustertrustbundles"),
        (projects("serviceAccountToken") || projects("podCertificate"), "service account tokens"),
        (refers(Kind::Claim), "persistentvolumeclaims"),
        (devices || refers(Kind::ResourceClaim), "resourceclaims"),
    ] {
        if found {
            return refuse(format!("node {node:?} can not create pods that reference {what}"));
        }
    }
    Ok(())
}

pub(super) fn status(node: &str, write: &Write<'_>) -> Result<(), String> {
    if write.operation != Operation::Update {
        return refuse(format!("unexpected operation {:?}", write.operation.word()));
    }
    let (old, new) = (write.old()?, write.object()?);
    if text(old, "/spec/nodeName") != node {
        return refuse(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"));
    }
    if !same(old, new, "/metadata/labels") {
        return refuse(format!("node {node:?} cannot update labels through pod status"));
    }
    // What makes a pod a mirror pod keeps it from giving reach.
    if is_mirror(old) != is_mirror(new) {
        return refuse(format!("node {node:?} cannot update the annotation {MIRROR} through pod status"));
    }
    for field in ["/status/resourceClaimStatuses", "/status/extendedResourceClaimStatus"] {
        if !same(old, new, field) {
            return refuse(format!("node {node:?} cannot update resource claim statues"));
        }
    }
    Ok(())
}

pub(super) fn eviction(node: &str, write: &Write<'_>, lookup: &dyn Lookup) -> Result<(), String> {
    if write.operation != Operation::Create {
        return refuse(format!("unexpected operation {}", write.operation.word()));
    }
    if write.name.is_empty() {
        return refuse("could not determine pod from request data");
    }
    if bound_to(write, lookup)? != node {
        return refuse(format!("node {node} can only evict pods with spec.nodeName set to itself"));
    }
    Ok(())
}

/// Tokens are bound to a pod of the node, by uid; the account is that pod's, and the audience one that its volumes ask for.
pub(super) fn token(node: &str, write: &Write<'_>, lookup: &dyn Lookup) -> Result<(), String> {
    if write.operation != Operation::Create {
        return Ok(());
    }
    let request = write.object()?;
    let of = |field: &str| text(request, &format!("/spec/boundObjectRef/{field}"));
    if of("apiVersion") != "v1" || of("kind") != "Pod" || of("name").is_empty() {
        return refuse("node requested token not bound to a pod");
    }
    if of("uid").is_empty() {
        return refuse("node requested token with a pod binding without a uid");
    }
    let pod = lookup.get("", "pods", write.namespace, of("name"));
    let pod = pod.ok_or_else(|| format!("pods {:?} not found", of("name")))?;
    if of("uid") != text(&pod, "/metadata/uid") {
        return refuse(format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been \
             deleted and then recreated",
            of("uid")
        ));
    }
    if text(&pod, "/spec/nodeName") != node {
        return refuse("node requested token bound to a pod scheduled on a different node");
    }
    // The token's issuer checks the account too; here it does not depend on that.
    if is_mirror(&pod) || account(&pod) != write.name {
        return refuse(format!(
            "node requested token of service account {:?} for a pod that does not use it",
            write.name
        ));
    }
    audience(write, request, &pod, lookup)
}

/// One audience at most, and one that the pod refers to (ServiceAccountNodeAudienceRestriction).
fn audience(write: &Write<'_>, request: &Value, pod: &Value, lookup: &dyn Lookup) -> Result<(), String> {
    let none = Vec::new();
    let asked = request.pointer("/spec/audiences").and_then(Value::as_array).unwrap_or(&none);
    let wanted = match asked.as_slice() {
        [] => "",
        [one] => one.as_str().unwrap_or("\0"),
        _ => return refuse("node may only request 0 or 1 audiences"),
    };
    if references::audiences(pod).any(|a| a == wanted) || drivers(write.namespace, pod, lookup, wanted) {
        return Ok(());
    }
    if lookup.may_request_audience(write.namespace, write.name, wanted) {
        return Ok(());
    }
    refuse(format!("audience {wanted:?} not found in pod spec volume"))
}

/// Whether a CSI driver of a volume of the pod, given in the pod or behind a claim, is handed tokens for the audience.
fn drivers(namespace: &str, pod: &Value, lookup: &dyn Lookup, wanted: &str) -> bool {
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
    let of_claim = |claim: &str| {
        let claim = lookup.get("", "persistentvolumeclaims", namespace, claim).filter(|_| !claim.is_empty())?;
        let name = text(&claim, "/spec/volumeName");
        let volume = lookup.get("", "persistentvolumes", "", name).filter(|_| !name.is_empty())?;
        Some(text(&volume, "/spec/csi/driver").to_owned())
    };
    let driver = |volume: &Value| match text(volume, "/csi/driver") {
        "" if volume.get("ephemeral").is_some() => {
            of_claim(&format!("{}-{}", text(pod, "/metadata/name"), text(volume, "/name")))
        }
        "" => of_claim(text(volume, "/persistentVolumeClaim/claimName")),
        inline => Some(inline.to_owned()),
    };
    volumes.filter_map(driver).filter(|d| !d.is_empty()).any(|name| {
        let driver = lookup.get("storage.k8s.io", "csidrivers", "", &name).unwrap_or(Value::Null);
        let requests = driver.pointer("/spec/tokenRequests").and_then(Value::as_array);
        requests.into_iter().flatten().any(|r| text(r, "/audience") == wanted)
    })
}
