//! Scopes: quotas that cover only some pods or claims. In: a quota and an object. Out: whether it covers the object.

use super::evaluator::{Evaluator, attributes_classes};
use super::pods;
use crate::read::{entries, list, text};
use serde_json::{Value, json};

/// Whether a quota covers an object: it limits one of the resource's names, and the object is within all its scopes.
/// What a quota limits is what its `status.hard` says, which the controller copies from the spec.
pub fn matches(quota: &Value, evaluator: &Evaluator, object: &Value) -> Result<bool, String> {
    let limited = entries(quota, "status.hard").any(|(name, _)| evaluator.covers(name));
    Ok(limited && in_scopes(quota, evaluator, object)?)
}

/// Whether an object is within all scopes of a quota.
pub(super) fn in_scopes(quota: &Value, evaluator: &Evaluator, object: &Value) -> Result<bool, String> {
    let plain = list(quota, "spec.scopes").iter().map(|scope| json!({"scopeName": scope, "operator": "Exists"}));
    let selected = list(quota, "spec.scopeSelector.matchExpressions").iter().cloned();
    let mut within = true;
    for term in plain.chain(selected) {
        within &= in_scope(&term, evaluator, object)?;
    }
    Ok(within)
}

fn in_scope(term: &Value, evaluator: &Evaluator, object: &Value) -> Result<bool, String> {
    let class = text(object, "spec.priorityClassName");
    match (evaluator, text(term, "scopeName")) {
        (Evaluator::Pods, "Terminating") => Ok(pods::terminating(object)),
        (Evaluator::Pods, "NotTerminating") => Ok(!pods::terminating(object)),
        (Evaluator::Pods, "BestEffort") => Ok(pods::best_effort(object)),
        (Evaluator::Pods, "NotBestEffort") => Ok(!pods::best_effort(object)),
        (Evaluator::Pods, "CrossNamespacePodAffinity") => Ok(pods::cross_namespace_affinity(object)),
        (Evaluator::Pods, "PriorityClass") => selected(term, Some(class).filter(|c| !c.is_empty())),
        (Evaluator::Claims, "VolumeAttributesClass") => {
            let classes = attributes_classes(object);
            if classes.is_empty() {
                return selected(term, None);
            }
            let mut any = false;
            for class in classes {
                any |= selected(term, Some(class))?;
            }
            Ok(any)
        }
        _ => Ok(false),
    }
}

/// The operator of a term, on the value an object has.
fn selected(term: &Value, value: Option<&str>) -> Result<bool, String> {
    let listed = || value.is_some_and(|value| list(term, "values").iter().any(|v| v == value));
    match text(term, "operator") {
        "In" => Ok(listed()),
        "NotIn" => Ok(!listed()),
        "Exists" => Ok(value.is_some()),
        "DoesNotExist" => Ok(value.is_none()),
        other => Err(format!("{other:?} is not a valid scope selector operator")),
    }
}
