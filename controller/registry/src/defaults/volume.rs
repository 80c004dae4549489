//! Defaults of volumes in pods, and of claims and persistent volumes.

use super::pod::{field_refs, pull_policy};
use crate::json::{existing_mut, fill, fill_zero, items_mut, object_mut, text};
use serde_json::{Value, json};

/// Files are readable by everyone: 0644.
const MODE: i64 = 0o644;

/// Defaults of one volume of a pod. A volume without a source is an `emptyDir`.
pub(crate) fn volume(v: &mut Value) {
    let bare = v.as_object().is_some_and(|o| o.iter().all(|(k, source)| k == "name" || source.is_null()));
    if bare {
        object_mut(v, "emptyDir");
    }
    for source in ["secret", "configMap"] {
        if let Some(s) = existing_mut(v, source) {
            fill(s, "defaultMode", MODE);
        }
    }
    if let Some(s) = existing_mut(v, "downwardAPI") {
        fill(s, "defaultMode", MODE);
        items_mut(s, "items").for_each(field_refs);
    }
    if let Some(s) = existing_mut(v, "projected") {
        projected(s);
    }
    if let Some(s) = existing_mut(v, "hostPath") {
        fill(s, "type", "");
    }
    if let Some(s) = existing_mut(v, "image") {
        let policy = pull_policy(text(s, "reference"));
        fill_zero(s, "pullPolicy", policy);
    }
    if let Some(template) = existing_mut(v, "ephemeral").and_then(|e| existing_mut(e, "volumeClaimTemplate"))
        && let Some(spec) = existing_mut(template, "spec")
    {
        claim_spec(spec);
    }
}

fn projected(s: &mut Value) {
    fill(s, "defaultMode", MODE);
    for source in items_mut(s, "sources") {
        if let Some(token) = existing_mut(source, "serviceAccountToken") {
            fill(token, "expirationSeconds", 3600);
        }
        if let Some(downward) = existing_mut(source, "downwardAPI") {
            items_mut(downward, "items").for_each(field_refs);
        }
    }
}

/// Defaults of a PersistentVolumeClaim's spec.
pub(crate) fn claim_spec(spec: &mut Value) {
    fill_zero(spec, "volumeMode", "Filesystem");
}

/// Defaults of a claim template in a StatefulSet.
pub(crate) fn claim_template(claim: &mut Value) {
    fill_zero(claim, "apiVersion", "v1");
    fill_zero(claim, "kind", "PersistentVolumeClaim");
    if let Some(spec) = object_mut(claim, "spec") {
        claim_spec(spec);
    }
    fill(claim, "status", json!({"phase": "Pending"}));
}
