//! Volumes of a pod: a unique name and exactly one source.
//!
//! In: a pod's spec. Out: field errors, and the names that mounts may refer to.

use super::container::{field_ref, relative_path};
use super::{names, resources};
use crate::field::{FieldErrors, Path, dns_label};
use crate::json::{at, existing, int, list, text};
use serde_json::Value;
use std::collections::HashSet;

const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks all volumes of a pod spec.
pub(crate) fn volumes<'a>(spec: &'a Value, path: &Path, errors: &mut FieldErrors) -> HashSet<&'a str> {
    let mut seen = HashSet::new();
    for (i, v) in list(spec, "volumes").iter().enumerate() {
        let path = path.child("volumes").index(i);
        let name = text(v, "name");
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else if let Err(why) = dns_label(name) {
            errors.invalid(&path.child("name"), name, why);
        } else if !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        volume(v, &path, errors);
    }
    seen
}

fn volume(v: &Value, path: &Path, errors: &mut FieldErrors) {
    let sources = v.as_object().into_iter().flatten().filter(|(k, source)| *k != "name" && source.is_object());
    let mut found = 0;
    for (kind, source) in sources {
        let path = path.child(kind);
        found += 1;
        if found > 1 {
            errors.forbidden(&path, "may not specify more than 1 volume type");
            continue;
        }
        one(kind, source, &path, errors);
    }
    if found == 0 {
        errors.required(path, "must specify a volume type");
    }
}

fn one(kind: &str, source: &Value, path: &Path, errors: &mut FieldErrors) {
    let need = |key: &str, errors: &mut FieldErrors| {
        if text(source, key).is_empty() {
            errors.required(&path.child(key), "");
        }
    };
    match kind {
        "hostPath" => host_path(source, path, errors),
        "secret" => {
            need("secretName", errors);
            mode(source, "defaultMode", path, errors);
            key_paths(source, path, errors);
        }
        "configMap" => {
            need("name", errors);
            mode(source, "defaultMode", path, errors);
            key_paths(source, path, errors);
        }
        "persistentVolumeClaim" => need("claimName", errors),
        "emptyDir" => {
            if let Some(limit) = source.get("sizeLimit").filter(|l| !l.is_null()) {
                resources::quantity(limit, &path.child("sizeLimit"), errors);
            }
        }
        "downwardAPI" => {
            mode(source, "defaultMode", path, errors);
            downward(source, path, errors);
        }
        "projected" => projected(source, path, errors),
        "nfs" => {
            need("server", errors);
            need("path", errors);
        }
        "csi" => need("driver", errors),
        _ => {}
    }
}

/// A directory of the node.
pub(crate) fn host_path(source: &Value, path: &Path, errors: &mut FieldErrors) {
    let (target, type_) = (text(source, "path"), text(source, "type"));
    if target.is_empty() {
        errors.required(&path.child("path"), "");
    }
    if target.split('/').any(|part| part == "..") {
        errors.invalid(&path.child("path"), target, "must not contain '..'");
    }
    if !HOST_PATH_TYPES.contains(&type_) {
        errors.not_supported(&path.child("type"), type_, &HOST_PATH_TYPES);
    }
}

fn mode(source: &Value, key: &str, path: &Path, errors: &mut FieldErrors) {
    if let Some(mode) = int(source, key).filter(|m| !(0..=0o777).contains(m)) {
        errors.invalid(&path.child(key), mode, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

fn key_paths(source: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, item) in list(source, "items").iter().enumerate() {
        let path = path.child("items").index(i);
        if text(item, "key").is_empty() {
            errors.required(&path.child("key"), "");
        } else if let Err(why) = names::config_map_key(text(item, "key")) {
            errors.invalid(&path.child("key"), text(item, "key"), why);
        }
        file(item, &path, errors);
        mode(item, "mode", &path, errors);
    }
}

fn file(item: &Value, path: &Path, errors: &mut FieldErrors) {
    if text(item, "path").is_empty() {
        errors.required(&path.child("path"), "");
    }
    relative_path(text(item, "path"), &path.child("path"), errors);
}

fn downward(source: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, item) in list(source, "items").iter().enumerate() {
        let path = path.child("items").index(i);
        file(item, &path, errors);
        mode(item, "mode", &path, errors);
        match (existing(item, "fieldRef"), existing(item, "resourceFieldRef")) {
            (true, true) => {
                errors.invalid(&path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
            }
            (true, false) => field_ref(at(item, "fieldRef"), &VOLUME_FIELDS, &path.child("fieldRef"), errors),
            (false, true) => {}
            (false, false) => errors.required(&path, "one of fieldRef and resourceFieldRef is required"),
        }
    }
}

fn projected(source: &Value, path: &Path, errors: &mut FieldErrors) {
    mode(source, "defaultMode", path, errors);
    for (i, s) in list(source, "sources").iter().enumerate() {
        let path = path.child("sources").index(i);
        let kinds = s.as_object().map_or(0, |m| m.values().filter(|v| v.is_object()).count());
        if kinds != 1 {
            let detail = if kinds == 0 { "must specify a source" } else { "may not specify more than 1 volume type" };
            errors.forbidden(&path, detail);
        }
        for kind in ["secret", "configMap"] {
            if existing(s, kind) {
                let path = path.child(kind);
                if text(at(s, kind), "name").is_empty() {
                    errors.required(&path.child("name"), "");
                }
                key_paths(at(s, kind), &path, errors);
            }
        }
        if existing(s, "downwardAPI") {
            downward(at(s, "downwardAPI"), &path.child("downwardAPI"), errors);
        }
        if existing(s, "serviceAccountToken") {
            let (token, path) = (at(s, "serviceAccountToken"), path.child("serviceAccountToken"));
            file(token, &path, errors);
            let seconds = int(token, "expirationSeconds").unwrap_or(3600);
            if seconds < 600 {
                let detail = "may not specify a duration less than 10 minutes";
                errors.invalid(&path.child("expirationSeconds"), seconds, detail);
            }
        }
    }
}
