//! core/v1 LimitRange: what containers, pods and claims of a namespace get and may ask for one by one.

use crate::field::{FieldErrors, Path};
use crate::json::{at, entries, has, items_mut, list, object_mut, text};
use crate::rules::{Kind, Rules};
use crate::validate::{names, resource_names};
use crate::{Resource, cell};
use causeway_api::quantity;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashSet};

const LISTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

pub(super) fn resource() -> Resource {
    Kind::new("", "v1", "LimitRange", "limitranges")
        .short(&["limits"])
        .columns(&[("Name", "string", 0), ("Created At", "date", 0)])
        .rules(Rules { default, validate, cells, ..Rules::default() })
}

/// A limit is at most the maximum, a request as much as the limit or at least the minimum.
fn default(o: &mut Value) {
    let Some(spec) = o.get_mut("spec") else { return };
    for item in items_mut(spec, "limits").filter(|i| text(i, "type") == "Container") {
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            let from = at(item, from).as_object().cloned().unwrap_or_default();
            let missing: Map<String, Value> = from.into_iter().filter(|(name, _)| item[to][name].is_null()).collect();
            if missing.is_empty() {
                continue;
            }
            if let Some(to) = object_mut(item, to).and_then(Value::as_object_mut) {
                to.extend(missing);
            }
        }
    }
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    let mut types = HashSet::new();
    for (i, item) in list(o, "spec.limits").iter().enumerate() {
        let path = Path::new("spec").child("limits").index(i);
        let type_ = text(item, "type");
        item_type(type_, &path.child("type"), errors);
        if !types.insert(type_) {
            errors.duplicate(&path.child("type"), type_);
        }
        validate_item(item, &path, errors);
    }
}

fn item_type(type_: &str, path: &Path, errors: &mut FieldErrors) {
    if let Err(why) = names::qualified_name(type_) {
        errors.invalid(path, type_, why);
    } else if !type_.contains('/') && !matches!(type_, "Pod" | "Container" | "PersistentVolumeClaim") {
        errors.invalid(path, type_, "must be a standard limit type or fully qualified");
    }
}

fn validate_item(item: &Value, path: &Path, errors: &mut FieldErrors) {
    let type_ = text(item, "type");
    let mut all = BTreeSet::new();
    for key in LISTS {
        if type_ == "Pod" && matches!(key, "default" | "defaultRequest") {
            if entries(item, key).next().is_some() {
                errors.forbidden(&path.child(key), "may not be specified when `type` is 'Pod'");
            }
            continue;
        }
        for (name, _) in entries(item, key) {
            let path = path.child(key).key(name);
            match type_ {
                "Pod" | "Container" => resource_names::of_container(name, &path, errors),
                _ => {
                    resource_names::any(name, &path, errors);
                }
            }
            all.insert(name.as_str());
        }
    }
    if type_ == "PersistentVolumeClaim" && !has(item, "min.storage") && !has(item, "max.storage") {
        let detail = "either minimum or maximum storage value is required, but neither was provided";
        errors.required(&path.child("limits"), detail);
    }
    for name in all {
        bounds(item, name, path, errors);
    }
}

/// That the amounts of one resource do not contradict each other.
fn bounds(item: &Value, name: &str, path: &Path, errors: &mut FieldErrors) {
    let of_pod = text(item, "type") == "Pod";
    let value = |key: &str| if of_pod && key.starts_with("default") { &Value::Null } else { &item[key][name] };
    let words = |key: &str| value(key).as_str().unwrap_or("").to_owned();
    let amount = |key: &str| quantity::milli(value(key).as_str()?);
    // Smaller, greater, which field is wrong, which value is shown, and the words.
    for (small, great, wrong, shown, small_words, great_words) in [
        ("min", "max", "min", "min", "min value", "max value"),
        ("min", "defaultRequest", "defaultRequest", "defaultRequest", "min value", "default request value"),
        ("defaultRequest", "max", "defaultRequest", "defaultRequest", "default request value", "max value"),
        (
            "defaultRequest",
            "default",
            "defaultRequest",
            "defaultRequest",
            "default request value",
            "default limit value",
        ),
        ("min", "default", "default", "min", "min value", "default value"),
        ("default", "max", "default", "max", "default value", "max value"),
    ] {
        if let (Some(a), Some(b)) = (amount(small), amount(great))
            && a > b
        {
            let detail = format!("{small_words} {} is greater than {great_words} {}", words(small), words(great));
            errors.invalid(&path.child(wrong).key(name), value(shown).clone(), detail);
        }
    }
    ratio(item, name, path, errors);
    if !resource_names::overcommit_allowed(name)
        && let (Some(limit), Some(request)) = (amount("default"), amount("defaultRequest"))
        && limit != request
    {
        let (limit, request) = (words("default"), words("defaultRequest"));
        let detail = format!("default value {limit} must equal to defaultRequest value {request} in {name}");
        errors.invalid(&path.child("defaultRequest").key(name), value("defaultRequest").clone(), detail);
    }
}

fn ratio(item: &Value, name: &str, path: &Path, errors: &mut FieldErrors) {
    let amount = |key: &str| quantity::milli(item[key][name].as_str()?);
    let value = &item["maxLimitRequestRatio"][name];
    let (Some(ratio), words) = (amount("maxLimitRequestRatio"), value.as_str().unwrap_or("")) else { return };
    let path = path.child("maxLimitRequestRatio").key(name);
    if ratio < 1000 {
        errors.invalid(&path, value.clone(), format!("ratio {words} is less than 1"));
    }
    if let (Some(min), Some(max)) = (amount("min"), amount("max"))
        && ratio.saturating_mul(min) > max.saturating_mul(1000)
    {
        #[expect(clippy::cast_precision_loss, reason = "only shown")]
        let most = max as f64 / min as f64;
        errors.invalid(&path, value.clone(), format!("ratio {words} is greater than max/min = {most:.6}"));
    }
}

fn cells(o: &Value, _: i64) -> Vec<Value> {
    vec![cell::name(o), json!(text(o, "metadata.creationTimestamp"))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(limits: Value) -> Vec<String> {
        let mut errors = FieldErrors::default();
        validate(&json!({"spec": {"limits": limits}}), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_follow_from_bounds() {
        let mut o = json!({"spec": {"limits": [
            {"type": "Container", "max": {"cpu": "2", "memory": "1Gi"}, "min": {"cpu": "1m", "x.io/y": "1"},
             "default": {"cpu": "1"}},
            {"type": "Pod", "max": {"cpu": "2"}}, {"type": "Container"}
        ]}});
        default(&mut o);
        let item = &o["spec"]["limits"][0];
        assert_eq!(item["default"], json!({"cpu": "1", "memory": "1Gi"}));
        assert_eq!(item["defaultRequest"], json!({"cpu": "1", "memory": "1Gi", "x.io/y": "1"}));
        assert_eq!(o["spec"]["limits"][1], json!({"type": "Pod", "max": {"cpu": "2"}}));
        assert_eq!(o["spec"]["limits"][2], json!({"type": "Container"}));
        let before = o.clone();
        default(&mut o);
        assert_eq!(o, before);
    }

    #[test]
    fn contradictions() {
        let fine = json!([
            {"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "100m"}, "default": {"cpu": "1"},
             "defaultRequest": {"cpu": "500m"}, "maxLimitRequestRatio": {"cpu": "20"}},
            {"type": "Pod", "max": {"memory": "1Gi", "example.com/gpu": "1"}},
            {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}}
        ]);
        assert_eq!(said(fine), [""; 0]);
        let head = "spec.limits[0]";
        for (item, want) in [
            (
                json!({"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}}),
                "min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            ),
            (
                json!({"type": "Container", "min": {"cpu": "2"}, "default": {"cpu": "1"}}),
                "default[cpu]: Invalid value: \"2\": min value 2 is greater than default value 1",
            ),
            (
                json!({"type": "Container", "max": {"cpu": "2"}, "default": {"cpu": "3"}}),
                "default[cpu]: Invalid value: \"2\": default value 3 is greater than max value 2",
            ),
            (
                json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "1001m"}}),
                "defaultRequest[cpu]: Invalid value: \"1001m\": default request value 1001m is greater than default \
                 limit value 1",
            ),
            (
                json!({"type": "Container", "default": {"x.io/y": "2"}, "defaultRequest": {"x.io/y": "1"}}),
                "defaultRequest[x.io/y]: Invalid value: \"1\": default value 2 must equal to defaultRequest value 1 in \
                 x.io/y",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "0.8"}}),
                "maxLimitRequestRatio[cpu]: Invalid value: \"0.8\": ratio 0.8 is less than 1",
            ),
            (
                json!({"type": "Pod", "min": {"cpu": "1"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "3"}}),
                "maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000",
            ),
            (
                json!({"type": "Pod", "default": {"cpu": "1"}}),
                "default: Forbidden: may not be specified when `type` is 'Pod'",
            ),
            (
                json!({"type": "PersistentVolumeClaim"}),
                "limits: Required value: either minimum or maximum storage value is required, but neither was provided",
            ),
            (
                json!({"type": "Container", "max": {"pods": "1"}}),
                "max[pods]: Invalid value: \"pods\": must be a standard resource for containers",
            ),
            (
                json!({"type": "Node"}),
                "type: Invalid value: \"Node\": must be a standard limit type or fully qualified",
            ),
        ] {
            assert_eq!(said(json!([item])), [format!("{head}.{want}")]);
        }
        let twice = said(json!([{"type": "Pod"}, {"type": "Pod"}]));
        assert_eq!(twice, ["spec.limits[1].type: Duplicate value: \"Pod\""]);
    }
}
