//! PersistentVolumes and claims: capacity, access modes, one source, and specs that stay.

use super::{resources, selector, volume};
use crate::field::{FieldErrors, Path, dns_subdomain};
use crate::json::{at, entries, existing, has, list, put, same, text};
use causeway_api::quantity;
use serde_json::Value;

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const SOURCES: [&str; 10] =
    ["hostPath", "local", "nfs", "csi", "iscsi", "fc", "cephfs", "rbd", "gcePersistentDisk", "awsElasticBlockStore"];

fn access_modes(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let (modes, path) = (list(spec, "accessModes"), path.child("accessModes"));
    if modes.is_empty() {
        errors.required(&path, "at least 1 access mode is required");
    }
    for mode in modes {
        if !mode.as_str().is_some_and(|m| ACCESS_MODES.contains(&m)) {
            errors.not_supported(&path, mode.clone(), &ACCESS_MODES);
        }
    }
    if modes.len() > 1 && modes.iter().any(|m| m == "ReadWriteOncePod") {
        errors.forbidden(&path, "may not use ReadWriteOncePod with other access modes");
    }
}

fn class_and_mode(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let class = text(spec, "storageClassName");
    if !class.is_empty()
        && let Err(why) = dns_subdomain(class)
    {
        errors.invalid(&path.child("storageClassName"), class, why);
    }
    let mode = text(spec, "volumeMode");
    if !matches!(mode, "" | "Block" | "Filesystem") {
        errors.not_supported(&path.child("volumeMode"), mode, &["Block", "Filesystem"]);
    }
}

pub(crate) fn claim(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    selector::label_selector(at(spec, "selector"), &path.child("selector"), errors);
    access_modes(spec, &path, errors);
    resources::storage_request(spec, &path, errors);
    class_and_mode(spec, &path, errors);
}

/// A claim stays as it is, but for its binding, its class while it has none, and a growing request.
pub(crate) fn claim_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let unbound = text(old, "spec.volumeName").is_empty();
    let fixed = |o: &Value| {
        let mut spec = o["spec"].clone();
        if unbound {
            put(&mut spec, "volumeName", Value::Null);
        }
        if !has(old, "spec.storageClassName") {
            put(&mut spec, "storageClassName", Value::Null);
        }
        put(&mut spec, "resources", Value::Null);
        put(&mut spec, "volumeAttributesClassName", Value::Null);
        spec
    };
    let bound = text(old, "status.phase") == "Bound";
    let storage = |o: &Value| at(o, "spec.resources.requests.storage").clone();
    let (wanted, had) = (storage(new), storage(old));
    let immutable = "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
                     bound claims";
    if !same(&fixed(new), &fixed(old)) || !bound && !same(&wanted, &had) {
        errors.forbidden(&Path::new("spec"), immutable);
    }
    let amount = |v: &Value| v.as_str().and_then(quantity::milli);
    let capacity = amount(at(old, "status.capacity.storage"));
    if bound
        && let (Some(wanted), Some(had)) = (amount(&wanted), amount(&had))
        && wanted < had
        && capacity.is_none_or(|c| wanted <= c)
    {
        let path = Path::new("spec").child("resources").child("requests").child("storage");
        errors.forbidden(&path, "field can not be less than status.capacity");
    }
}

pub(crate) fn volume(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    access_modes(spec, &path, errors);
    class_and_mode(spec, &path, errors);
    let capacity = path.child("capacity");
    if entries(spec, "capacity").next().is_none() {
        errors.required(&capacity, "");
    }
    for (name, value) in entries(spec, "capacity") {
        if name != "storage" {
            errors.not_supported(&capacity, name.as_str(), &["storage"]);
        } else if resources::quantity(value, &capacity.key(name), errors) == Some(0) {
            errors.invalid(&capacity.key(name), value.clone(), "must be greater than zero");
        }
    }
    let policy = text(spec, "persistentVolumeReclaimPolicy");
    if !matches!(policy, "Retain" | "Delete" | "Recycle") {
        let supported = ["Delete", "Recycle", "Retain"];
        errors.not_supported(&path.child("persistentVolumeReclaimPolicy"), policy, &supported);
    }
    sources(spec, &path, errors);
    if has(spec, "nodeAffinity.required") {
        let path = path.child("nodeAffinity").child("required");
        selector::node_selector(at(spec, "nodeAffinity.required"), &path, errors);
    } else if existing(spec, "local") {
        errors.required(&path.child("nodeAffinity"), "Local volume requires node affinity");
    }
}

fn sources(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let given: Vec<_> = SOURCES.iter().filter(|s| existing(spec, s)).collect();
    match given.as_slice() {
        [] => errors.required(path, "must specify a volume type"),
        [first, rest @ ..] => {
            for extra in rest {
                errors.forbidden(&path.child(extra), "may not specify more than 1 volume type");
            }
            let (source, path) = (at(spec, first), path.child(first));
            match **first {
                "hostPath" => volume::host_path(source, &path, errors),
                "local" if text(source, "path").is_empty() => errors.required(&path.child("path"), ""),
                "nfs" if text(source, "server").is_empty() => errors.required(&path.child("server"), ""),
                "csi" if text(source, "driver").is_empty() => errors.required(&path.child("driver"), ""),
                _ => {}
            }
        }
    }
}

pub(crate) fn volume_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    if SOURCES.iter().any(|s| !same(&new["spec"][*s], &old["spec"][*s])) {
        let detail = "spec.persistentvolumesource is immutable after creation";
        errors.forbidden(&path.child("persistentvolumesource"), detail);
    }
    if !same(&new["spec"]["volumeMode"], &old["spec"]["volumeMode"]) {
        errors.invalid(&path.child("volumeMode"), new["spec"]["volumeMode"].clone(), "field is immutable");
    }
    let affinity = (&new["spec"]["nodeAffinity"], &old["spec"]["nodeAffinity"]);
    if !affinity.1.is_null() && !same(affinity.0, affinity.1) {
        let detail = "field is immutable, except for updating from beta label to GA";
        errors.invalid(&path.child("nodeAffinity"), affinity.0.clone(), detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn words(check: impl Fn(&mut FieldErrors)) -> Vec<String> {
        let mut errors = FieldErrors::default();
        check(&mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn claims() {
        assert_eq!(
            words(|e| claim(&json!({"spec": {}}), e)),
            [
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value"
            ]
        );
        let old = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        let mut bound = old.clone();
        bound["spec"]["volumeName"] = json!("pv-1");
        assert!(words(|e| claim_update(&bound, &old, e)).is_empty());
        bound["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        let mut grown = bound.clone();
        grown["spec"]["resources"]["requests"]["storage"] = json!("2Gi");
        assert!(words(|e| claim_update(&grown, &bound, e)).is_empty());
        let mut moved = bound.clone();
        moved["spec"]["volumeName"] = json!("pv-2");
        assert!(words(|e| claim_update(&moved, &bound, e))[0].starts_with("spec: Forbidden: spec is immutable after"));
    }

    #[test]
    fn volumes() {
        let o = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
                                "persistentVolumeReclaimPolicy": "Retain", "local": {"path": "/x"}}});
        assert_eq!(
            words(|e| volume(&o, e)),
            ["spec.nodeAffinity: Required value: Local volume requires node affinity"]
        );
    }
}
