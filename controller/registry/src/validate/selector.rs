//! Label selectors and node selectors.

use super::names;
use crate::field::{FieldErrors, Path};
use crate::json::{at, entries, list, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A LabelSelector object; `null` is fine.
pub(crate) fn label_selector(selector: &Value, path: &Path, errors: &mut FieldErrors) {
    super::meta::labels(at(selector, "matchLabels"), &path.child("matchLabels"), errors);
    for (i, e) in list(selector, "matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let (key, operator, values) = (text(e, "key"), text(e, "operator"), list(e, "values"));
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&path.child("values"), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        if let Err(why) = names::qualified_name(key) {
            errors.invalid(&path.child("key"), key, why);
        }
        for (j, value) in values.iter().enumerate() {
            if let Err(why) = names::label_value(value.as_str().unwrap_or("")) {
                errors.invalid(&path.child("values").index(j), value.clone(), why);
            }
        }
    }
}

/// A NodeSelector object of an affinity or a volume.
pub(crate) fn node_selector(selector: &Value, path: &Path, errors: &mut FieldErrors) {
    let terms = list(selector, "nodeSelectorTerms");
    let path = path.child("nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(&path, "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        node_selector_term(term, &path.index(i), errors);
    }
}

/// One term of a node selector.
pub(crate) fn node_selector_term(term: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, e) in list(term, "matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let values = list(e, "values");
        match text(e, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&path.child("values"), detail);
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.required(&path.child("values"), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        if let Err(why) = names::qualified_name(text(e, "key")) {
            errors.invalid(&path.child("key"), text(e, "key"), why);
        }
    }
    for (i, e) in list(term, "matchFields").iter().enumerate() {
        if text(e, "key") != "metadata.name" {
            let path = path.child("matchFields").index(i).child("key");
            errors.invalid(&path, text(e, "key"), "not a valid field selector key");
        }
    }
}

/// Whether a LabelSelector object selects a label map; malformed selectors select nothing.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    let map: BTreeMap<&str, &str> = entries(labels, "").map(|(k, v)| (k.as_str(), v.as_str().unwrap_or(""))).collect();
    entries(selector, "matchLabels").all(|(k, v)| map.get(k.as_str()).copied() == v.as_str())
        && list(selector, "matchExpressions").iter().all(|e| {
            let value = map.get(text(e, "key")).copied();
            let among = value.is_some_and(|v| list(e, "values").contains(&json!(v)));
            match text(e, "operator") {
                "In" => among,
                "NotIn" => !among,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// No labels and no expressions: would select everything.
pub(crate) fn is_empty(selector: &Value) -> bool {
    entries(selector, "matchLabels").next().is_none() && list(selector, "matchExpressions").is_empty()
}
