//! The plugin's part of the server's admission configuration: `PodSecurityConfiguration` of
//! `pod-security.admission.config.k8s.io/v1`. In: the object. Out: the plugin, or everything that is wrong.

use super::{Exemptions, LabelError, Level, LevelVersion, PodSecurity, Policy, Version};
use crate::read::{at, entries, text};
use serde_json::Value;

const API_VERSION: &str = "pod-security.admission.config.k8s.io/v1";
/// Exempted names of one sort.
const MOST_EXEMPTIONS: usize = 1000;

impl PodSecurity {
    /// Reads the configuration; what is left out is privileged, of the latest version, and exempts nobody. Fields that
    /// are not known are errors.
    pub fn from_configuration(object: &Value) -> Result<Self, Vec<LabelError>> {
        let mut errors = Vec::new();
        for (field, wanted) in [("apiVersion", API_VERSION), ("kind", "PodSecurityConfiguration")] {
            if text(object, field) != wanted {
                push(&mut errors, field, at(object, field), &format!("must be {wanted}"));
            }
        }
        known(object, "", &["apiVersion", "kind", "defaults", "exemptions"], &mut errors);
        let modes = ["enforce", "enforce-version", "audit", "audit-version", "warn", "warn-version"];
        known(at(object, "defaults"), "defaults.", &modes, &mut errors);
        known(at(object, "exemptions"), "exemptions.", &["usernames", "runtimeClasses", "namespaces"], &mut errors);
        let mut level_version = |mode: &str| LevelVersion {
            level: one(object, mode, Level::parse, &mut errors).unwrap_or(Level::Privileged),
            version: one(object, &format!("{mode}-version"), Version::parse, &mut errors).unwrap_or(Version::Latest),
        };
        let enforce = level_version("enforce");
        let defaults = Policy { enforce, audit: level_version("audit"), warn: level_version("warn") };
        let exemptions = Exemptions {
            usernames: names(object, "usernames", &mut errors),
            runtime_classes: names(object, "runtimeClasses", &mut errors),
            namespaces: names(object, "namespaces", &mut errors),
        };
        if errors.is_empty() { Ok(Self::new(defaults, exemptions)) } else { Err(errors) }
    }
}

fn push(errors: &mut Vec<LabelError>, field: &str, value: &Value, detail: &str) {
    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned).chars().take(253).collect();
    errors.push(LabelError { field: field.to_owned(), value, detail: detail.to_owned() });
}

fn known(object: &Value, prefix: &str, fields: &[&str], errors: &mut Vec<LabelError>) {
    for (key, value) in entries(object, "").filter(|(key, _)| !fields.contains(&key.as_str())) {
        push(errors, &format!("{prefix}{key}"), value, "unknown field");
    }
}

/// A level or version among the defaults; `None` when it is left open or wrong.
fn one<T>(
    object: &Value,
    field: &str,
    parse: fn(&str) -> Result<T, String>,
    errors: &mut Vec<LabelError>,
) -> Option<T> {
    let value = at(object, "defaults").get(field).filter(|v| !v.is_null() && *v != "")?;
    match parse(value.as_str().unwrap_or("")) {
        Ok(parsed) => Some(parsed),
        Err(why) => {
            push(errors, &format!("defaults.{field}"), value, &why);
            None
        }
    }
}

fn names(object: &Value, field: &str, errors: &mut Vec<LabelError>) -> Vec<String> {
    let all = at(at(object, "exemptions"), field);
    let mut names: Vec<String> = Vec::new();
    if !all.is_null() && all.as_array().is_none_or(|all| all.len() > MOST_EXEMPTIONS) {
        push(errors, &format!("exemptions.{field}"), &Value::Null, "must be a list of at most 1000 names");
        return names;
    }
    for (i, value) in all.as_array().into_iter().flatten().enumerate() {
        let path = format!("exemptions.{field}[{i}]");
        match value.as_str() {
            None | Some("") => push(errors, &path, value, "must not be empty"),
            Some(name) if names.iter().any(|n| n == name) => push(errors, &path, value, "duplicate"),
            Some(name) => names.push(name.to_owned()),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn read_or_refused() {
        let with = |defaults: Value, exemptions: Value| {
            json!({"apiVersion": API_VERSION, "kind": "PodSecurityConfiguration", "defaults": defaults,
                "exemptions": exemptions})
        };
        let full = with(
            json!({"enforce": "baseline", "enforce-version": "v1.30", "audit": "restricted", "warn": ""}),
            json!({"namespaces": ["kube-system"], "usernames": ["a", "b"]}),
        );
        let plugin = PodSecurity::from_configuration(&full).unwrap();
        let baseline = LevelVersion { level: Level::Baseline, version: Version::V1(30) };
        assert_eq!((plugin.defaults.enforce, plugin.defaults.warn), (baseline, LevelVersion::PRIVILEGED));
        assert_eq!(plugin.exemptions.namespaces, ["kube-system"]);
        assert_eq!(plugin.exemptions.usernames, ["a", "b"]);
        for (wrong, want) in [
            (with(json!({"enforce": "strict"}), json!({})), "defaults.enforce"),
            (with(json!({"audit-version": "1.30"}), json!({})), "defaults.audit-version"),
            (with(json!({"enforce": 1}), json!({})), "defaults.enforce"),
            (with(json!({"enforced": "baseline"}), json!({})), "defaults.enforced"),
            (with(json!({}), json!({"namespaces": [""]})), "exemptions.namespaces[0]"),
            (with(json!({}), json!({"usernames": ["a", "a"]})), "exemptions.usernames[1]"),
            (with(json!({}), json!({"usernames": "a"})), "exemptions.usernames"),
            (with(json!({}), json!({"user": []})), "exemptions.user"),
            (json!({"apiVersion": "v1", "kind": "PodSecurityConfiguration"}), "apiVersion"),
        ] {
            let fields: Vec<String> =
                PodSecurity::from_configuration(&wrong).unwrap_err().into_iter().map(|e| e.field).collect();
            assert_eq!(fields, [want], "{wrong}");
        }
    }
}
