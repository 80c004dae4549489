//! Deployment, ReplicaSet, StatefulSet, DaemonSet: selector, template, numbers, strategies.

use super::{meta, pod, selector};
use crate::field::{FieldErrors, Path};
use crate::json::{at, existing, existing_mut, fill, has, int, list, put, same, text};
use serde_json::{Value, json};

const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
                       regex used for validation is '[0-9]+%')";

pub(crate) fn deployment(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    selector_and_template(spec, "deployment", &path, errors);
    not_negative(spec, &["replicas", "minReadySeconds", "revisionHistoryLimit"], &path, errors);
    let strategy = path.child("strategy");
    match text(spec, "strategy.type") {
        "Recreate" if existing(at(spec, "strategy"), "rollingUpdate") => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.forbidden(&strategy.child("rollingUpdate"), detail);
        }
        "Recreate" => {}
        "RollingUpdate" => rolling(at(spec, "strategy.rollingUpdate"), &strategy.child("rollingUpdate"), errors),
        other => errors.not_supported(&strategy.child("type"), other, &["Recreate", "RollingUpdate"]),
    }
    if let Some(deadline) = int(spec, "progressDeadlineSeconds") {
        let path = path.child("progressDeadlineSeconds");
        if deadline < 0 {
            errors.invalid(&path, deadline, "must be greater than or equal to 0");
        }
        if deadline <= int(spec, "minReadySeconds").unwrap_or(0) {
            errors.invalid(&path, deadline, "must be greater than minReadySeconds");
        }
    }
}

pub(crate) fn replica_set(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    selector_and_template(spec, "deployment", &path, errors);
    not_negative(spec, &["replicas", "minReadySeconds"], &path, errors);
}

pub(crate) fn stateful_set(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    selector_and_template(&with_claims(spec), "statefulset", &path, errors);
    not_negative(spec, &["replicas", "minReadySeconds", "revisionHistoryLimit"], &path, errors);
    one_of(spec, "podManagementPolicy", &["OrderedReady", "Parallel"], &path, errors);
    let update = path.child("updateStrategy");
    match text(spec, "updateStrategy.type") {
        "OnDelete" if existing(at(spec, "updateStrategy"), "rollingUpdate") => {
            let detail = "only allowed for updateStrategy 'RollingUpdate'";
            errors.invalid(&update.child("rollingUpdate"), at(spec, "updateStrategy.rollingUpdate").clone(), detail);
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = at(spec, "updateStrategy.rollingUpdate");
            not_negative(rolling, &["partition"], &update.child("rollingUpdate"), errors);
            let path = update.child("rollingUpdate").child("maxUnavailable");
            int_or_percent(&rolling["maxUnavailable"], &path, errors);
            if zero(&rolling["maxUnavailable"]) {
                errors.invalid(&path, rolling["maxUnavailable"].clone(), "cannot be 0");
            }
        }
        other => errors.not_supported(&update.child("type"), other, &["OnDelete", "RollingUpdate"]),
    }
    let retention = path.child("persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        one_of(at(spec, "persistentVolumeClaimRetentionPolicy"), key, &["Delete", "Retain"], &retention, errors);
    }
    if int(spec, "ordinals.start").is_some_and(|n| n < 0) {
        let path = path.child("ordinals").child("start");
        errors.invalid(&path, at(spec, "ordinals.start").clone(), "must be greater than or equal to 0");
    }
}

/// The spec with the claim templates among the template's volumes, since mounts may refer to them.
fn with_claims(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let claims: Vec<Value> = list(&spec, "volumeClaimTemplates")
        .iter()
        .map(|c| json!({"name": text(c, "metadata.name"), "persistentVolumeClaim": {"claimName": "claim"}}))
        .collect();
    if claims.is_empty() {
        return spec;
    }
    if let Some(pods) = existing_mut(&mut spec, "template").and_then(|t| existing_mut(t, "spec")) {
        fill(pods, "volumes", json!([]));
        if let Some(volumes) = pods.get_mut("volumes").and_then(Value::as_array_mut) {
            // The controller puts a claim in the place of a volume of the same name.
            volumes.retain(|v| claims.iter().all(|c| c["name"] != v["name"]));
            volumes.extend(claims);
        }
    }
    spec
}

pub(crate) fn stateful_set_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let fixed = |o: &Value| {
        let mut spec = o["spec"].clone();
        for key in [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
        ] {
            put(&mut spec, key, Value::Null);
        }
        spec
    };
    if !same(&fixed(new), &fixed(old)) {
        let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                      'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                      'minReadySeconds' are forbidden";
        errors.forbidden(&Path::new("spec"), detail);
    }
}

pub(crate) fn daemon_set(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    selector_and_template(spec, "daemonset", &path, errors);
    not_negative(spec, &["minReadySeconds", "revisionHistoryLimit"], &path, errors);
    let update = path.child("updateStrategy");
    match text(spec, "updateStrategy.type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let (rolling, path) = (at(spec, "updateStrategy.rollingUpdate"), update.child("rollingUpdate"));
            for key in ["maxUnavailable", "maxSurge"] {
                int_or_percent(&rolling[key], &path.child(key), errors);
            }
            match (zero(&rolling["maxUnavailable"]), zero(&rolling["maxSurge"])) {
                (true, true) => {
                    let detail = "cannot be 0 when `maxSurge` is 0";
                    errors.invalid(&path.child("maxUnavailable"), rolling["maxUnavailable"].clone(), detail);
                }
                (false, false) => {
                    let detail = "may not be set when `maxUnavailable` is non-zero";
                    errors.invalid(&path.child("maxSurge"), rolling["maxSurge"].clone(), detail);
                }
                _ => {}
            }
        }
        other => errors.not_supported(&update.child("type"), other, &["OnDelete", "RollingUpdate"]),
    }
}

/// `spec.selector` never changes.
pub(crate) fn selector_is_immutable(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if !same(&new["spec"]["selector"], &old["spec"]["selector"]) {
        errors.invalid(&Path::new("spec").child("selector"), new["spec"]["selector"].clone(), "field is immutable");
    }
}

/// A count or a percentage; `null` is fine.
pub(crate) fn int_or_percent(value: &Value, path: &Path, errors: &mut FieldErrors) {
    match value {
        Value::String(s) => {
            let digits = s.strip_suffix('%').unwrap_or("");
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                errors.invalid(path, s.as_str(), PERCENT);
            }
        }
        other => {
            if let Some(n) = other.as_i64().filter(|n| *n < 0) {
                errors.invalid(path, n, "must be greater than or equal to 0");
            }
        }
    }
}

/// None of these fields may be negative.
pub(crate) fn not_negative(holder: &Value, keys: &[&str], path: &Path, errors: &mut FieldErrors) {
    for key in keys {
        if let Some(n) = int(holder, key).filter(|n| *n < 0) {
            errors.invalid(&path.child(key), n, "must be greater than or equal to 0");
        }
    }
}

/// A field with a fixed set of values; unset counts as missing.
pub(crate) fn one_of(holder: &Value, key: &str, supported: &[&str], path: &Path, errors: &mut FieldErrors) {
    let value = text(holder, key);
    if value.is_empty() {
        errors.required(&path.child(key), "");
    } else if !supported.contains(&value) {
        errors.not_supported(&path.child(key), value, supported);
    }
}

/// Metadata and spec of a pod template, without its restart policy.
pub(crate) fn template(template: &Value, path: &Path, errors: &mut FieldErrors) {
    let metadata = path.child("metadata");
    meta::labels(at(template, "metadata.labels"), &metadata.child("labels"), errors);
    meta::annotations(at(template, "metadata.annotations"), &metadata.child("annotations"), errors);
    pod::pod_spec(at(template, "spec"), &path.child("spec"), errors);
    if !list(template, "spec.ephemeralContainers").is_empty() {
        let path = path.child("spec").child("ephemeralContainers");
        errors.forbidden(&path, "ephemeral containers not allowed in pod template");
    }
}

fn selector_and_template(spec: &Value, kind: &str, path: &Path, errors: &mut FieldErrors) {
    let (chosen, at_selector) = (at(spec, "selector"), path.child("selector"));
    if !has(spec, "selector") {
        errors.required(&at_selector, "");
    } else {
        selector::label_selector(chosen, &at_selector, errors);
        if selector::is_empty(chosen) {
            errors.invalid(&at_selector, chosen.clone(), format!("empty selector is invalid for {kind}"));
        }
    }
    let (pods, path) = (at(spec, "template"), path.child("template"));
    let labels = at(pods, "metadata.labels");
    if has(spec, "selector") && !selector::is_empty(chosen) && !selector::selects(chosen, labels) {
        let shown = if labels.is_null() { json!({}) } else { labels.clone() };
        let path = path.child("metadata").child("labels");
        errors.invalid(&path, shown, "`selector` does not match template `labels`");
    }
    template(pods, &path, errors);
    let path = path.child("spec");
    let policy = text(pods, "spec.restartPolicy");
    if matches!(policy, "OnFailure" | "Never") {
        errors.not_supported(&path.child("restartPolicy"), policy, &["Always"]);
    }
    if has(pods, "spec.activeDeadlineSeconds") {
        let detail = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.forbidden(&path.child("activeDeadlineSeconds"), detail);
    }
}

fn rolling(rolling: &Value, path: &Path, errors: &mut FieldErrors) {
    for key in ["maxUnavailable", "maxSurge"] {
        int_or_percent(&rolling[key], &path.child(key), errors);
    }
    let unavailable = &rolling["maxUnavailable"];
    let percent = unavailable.as_str().and_then(|s| s.strip_suffix('%')).and_then(|n| n.parse::<u64>().ok());
    if percent.is_some_and(|n| n > 100) {
        errors.invalid(&path.child("maxUnavailable"), unavailable.clone(), "must not be greater than 100%");
    }
    if zero(unavailable) && zero(&rolling["maxSurge"]) {
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.invalid(&path.child("maxUnavailable"), unavailable.clone(), detail);
    }
}

fn zero(value: &Value) -> bool {
    value.as_i64() == Some(0) || value.as_str().is_some_and(|s| s.trim_end_matches('%').parse() == Ok(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::builtin;

    fn words(plural: &str, mut o: Value) -> Vec<String> {
        let r = builtin().into_iter().find(|r| r.plural == plural).unwrap();
        r.strategy.default(&mut o);
        r.strategy.validate_create(&o).0.iter().map(ToString::to_string).collect()
    }

    fn web(selector: Value) -> Value {
        json!({"spec": {"selector": selector, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}
        }}})
    }

    #[test]
    fn selectors_and_templates() {
        for plural in ["deployments", "replicasets", "statefulsets", "daemonsets"] {
            assert_eq!(words(plural, web(json!({"matchLabels": {"app": "web"}}))), Vec::<String>::new(), "{plural}");
        }
        assert_eq!(
            words("deployments", web(json!({"matchLabels": {"app": "api"}}))),
            [
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`"
            ]
        );
        let mut db = web(json!({"matchLabels": {"app": "web"}}));
        db["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/d"}]);
        assert_eq!(words("statefulsets", db.clone()).len(), 1, "the mount's volume is missing");
        db["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}}]);
        assert_eq!(words("statefulsets", db), Vec::<String>::new());
        assert_eq!(words("daemonsets", web(Value::Null)), ["spec.selector: Required value"]);
        assert_eq!(
            words("statefulsets", web(json!({}))),
            ["spec.selector: Invalid value: {}: empty selector is invalid for statefulset"]
        );
        let mut once = web(json!({"matchLabels": {"app": "web"}}));
        once["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
        once["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}});
        assert_eq!(
            words("deployments", once),
            [
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0"
            ]
        );
    }

    #[test]
    fn what_never_changes() {
        let old = web(json!({"matchLabels": {"app": "web"}}));
        let new = web(json!({"matchLabels": {"app": "api"}}));
        let mut errors = FieldErrors::default();
        selector_is_immutable(&new, &old, &mut errors);
        let want = "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"api\"}}: field is immutable";
        assert_eq!(errors.0[0].to_string(), want);
        let mut renamed = old.clone();
        renamed["spec"]["serviceName"] = json!("other");
        let mut errors = FieldErrors::default();
        stateful_set_update(&renamed, &old, &mut errors);
        assert!(errors.0[0].to_string().starts_with("spec: Forbidden: updates to statefulset spec for fields other"));
    }
}
