//! Names of resources that are counted: `cpu`, `limits.memory`, `hugepages-2Mi`, `example.com/gpu`.
//!
//! In: a name. Out: nothing, or field errors. Which names are good depends on where they stand: in a quota, or among
//! what a container asks for.

use super::{names, resources};
use crate::field::{FieldErrors, Path};
use serde_json::Value;

const COUNTED: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

const MEASURED: [&str; 10] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "requests.storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];

/// Known to quotas by a short name.
pub(crate) fn standard_in_quota(name: &str) -> bool {
    COUNTED.contains(&name)
        || MEASURED.contains(&name)
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

/// Of Kubernetes' own, which need no prefix.
fn native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn extended(name: &str) -> bool {
    !native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_ok()
}

/// What may be asked for and used up at the same time by more than there is.
pub(crate) fn overcommit_allowed(name: &str) -> bool {
    native(name) && !name.starts_with("hugepages-")
}

/// A name anywhere. `false` when there was an error.
pub(crate) fn any(name: &str, path: &Path, errors: &mut FieldErrors) -> bool {
    if let Err(why) = names::qualified_name(name) {
        errors.invalid(path, name, why);
        return false;
    }
    let ok = name.contains('/') || standard_in_quota(name) || name == "storage";
    if !ok {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
    }
    ok
}

/// A name in a quota.
pub(crate) fn in_quota(name: &str, path: &Path, errors: &mut FieldErrors) {
    any(name, path, errors);
    if !name.contains('/') && !standard_in_quota(name) {
        errors.invalid(path, name, "must be a standard resource for quota");
    }
}

/// A name among a container's requests and limits.
pub(crate) fn of_container(name: &str, path: &Path, errors: &mut FieldErrors) {
    any(name, path, errors);
    if !name.contains('/') {
        if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with("hugepages-") {
            errors.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !native(name) && !extended(name) {
        errors.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

/// An amount: not negative, and whole for what comes in pieces.
pub(crate) fn amount(name: &str, value: &Value, path: &Path, errors: &mut FieldErrors) {
    let amount = resources::quantity(value, path, errors);
    if (COUNTED.contains(&name) || extended(name)) && amount.is_some_and(|a| a % 1000 != 0) {
        errors.invalid(path, value.clone(), "must be an integer");
    }
}
