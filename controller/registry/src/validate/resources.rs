//! Amounts of resources: quantities, and requests that must not exceed limits.

use super::names;
use crate::field::{FieldErrors, Path};
use crate::json::{at, entries, text};
use causeway_api::quantity;
use serde_json::Value;

const MALFORMED: &str = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// One quantity that must not be negative; its amount in thousandths.
pub(crate) fn quantity(value: &Value, path: &Path, errors: &mut FieldErrors) -> Option<i128> {
    let words = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match quantity::milli(&words) {
        None => errors.invalid(path, value.clone(), MALFORMED),
        Some(amount) if amount < 0 => {
            errors.invalid(path, value.clone(), "must be greater than or equal to 0");
        }
        Some(amount) => return Some(amount),
    }
    None
}

/// `resources` of a container.
pub(crate) fn requirements(resources: &Value, path: &Path, errors: &mut FieldErrors) {
    for kind in ["limits", "requests"] {
        for (name, value) in entries(resources, kind) {
            let path = path.child(kind).key(name);
            resource_name(name, &path, errors);
            let amount = quantity(value, &path, errors);
            let whole = !matches!(name.as_str(), "cpu");
            if whole && !name.contains('/') && amount.is_some_and(|a| a % 1000 != 0) && name.starts_with("hugepages-") {
                errors.invalid(&path, value.clone(), "must be an integer");
            }
        }
    }
    for (name, value) in entries(resources, "requests") {
        let limit = &resources["limits"][name.as_str()];
        let extended = name.contains('/') && !name.starts_with("kubernetes.io/") || name.starts_with("hugepages-");
        let (asked, allowed) = (amount(value), amount(limit));
        let path = path.child("requests");
        match (asked, allowed) {
            (Some(asked), Some(allowed)) if extended && asked != allowed => {
                let detail = format!("must be equal to {name} limit of {}", words(limit));
                errors.invalid(&path, value.clone(), detail);
            }
            (Some(asked), Some(allowed)) if asked > allowed => {
                let detail = format!("must be less than or equal to {name} limit of {}", words(limit));
                errors.invalid(&path, value.clone(), detail);
            }
            (Some(_), None) if extended && limit.is_null() => {
                errors.required(&path, "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
}

/// `resources.requests.storage` of a claim.
pub(crate) fn storage_request(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("resources").key("storage");
    match at(spec, "resources.requests.storage") {
        Value::Null => errors.required(&path, ""),
        value => {
            if quantity(value, &path, errors) == Some(0) {
                errors.invalid(&path, value.clone(), "must be greater than zero");
            }
        }
    }
}

fn resource_name(name: &str, path: &Path, errors: &mut FieldErrors) {
    if let Err(why) = names::qualified_name(name) {
        errors.invalid(path, name, why);
    } else if !name.contains('/')
        && !matches!(name, "cpu" | "memory" | "ephemeral-storage")
        && !name.starts_with("hugepages-")
    {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
    }
}

fn amount(value: &Value) -> Option<i128> {
    quantity::milli(value.as_str()?)
}

fn words(value: &Value) -> &str {
    text(value, "")
}
