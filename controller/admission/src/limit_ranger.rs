//! LimitRanges: amounts that containers get when they say none, and bounds for containers, pods and claims.
//!
//! In: the LimitRanges of a namespace, a pod or claim. Out: the pod with defaults; what is out of bounds.

use crate::amounts::{self, Amounts};
use crate::pod_resources::{self, Kind};
use crate::quantity::Quantity;
use crate::read::{at, has, list, text};
use crate::request::{Facts, Operation};
use serde_json::{Map, Value, json};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Whether a request is to be defaulted and checked: new pods, resized pods, new and changed claims, unless the object
/// is being deleted.
pub fn concerns(facts: &Facts<'_>, old: Option<&Value>) -> bool {
    if !facts.group.is_empty() || old.is_some_and(|o| has(o, "metadata.deletionTimestamp")) {
        return false;
    }
    matches!(
        (facts.resource, facts.subresource, facts.operation),
        ("pods", "resize", Operation::Update)
            | ("pods", "", Operation::Create)
            | ("persistentvolumeclaims", "", Operation::Create | Operation::Update)
    )
}

/// Fills requests and limits that containers leave open, and notes in an annotation what was filled. Other objects than
/// pods are left alone.
pub fn default(limit_ranges: &[&Value], facts: &Facts<'_>, object: &mut Value) {
    if facts.resource != "pods" {
        return;
    }
    for range in sorted(limit_ranges) {
        let (mut requests, mut limits) = (Map::new(), Map::new());
        for item in list(range, "spec.limits").iter().filter(|i| text(i, "type") == "Container") {
            for (into, key) in [(&mut requests, "defaultRequest"), (&mut limits, "default")] {
                into.extend(at(item, key).as_object().cloned().unwrap_or_default());
            }
        }
        let mut notes = Vec::new();
        for (kind, words) in [("containers", "container"), ("initContainers", "init container")] {
            let containers = object.pointer_mut(&format!("/spec/{kind}")).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                for (key, word, defaults) in [("requests", "request", &requests), ("limits", "limit", &limits)] {
                    let set = fill(container, key, defaults);
                    if !set.is_empty() {
                        notes.push(format!("{} {word} for {words} {}", set.join(", "), text(container, "name")));
                    }
                }
            }
        }
        if !notes.is_empty() {
            annotate(object, &format!("LimitRanger plugin set: {}", notes.join("; ")));
        }
    }
}

/// Fills the amounts that a container lacks; the names of those, sorted.
fn fill(container: &mut Value, key: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let given = at(at(container, "resources"), key);
    let mut missing: Vec<String> = defaults.keys().filter(|name| !has_key(given, name)).cloned().collect();
    missing.sort();
    let Some(resources) = (!missing.is_empty()).then(|| object_at(container, "resources")).flatten() else {
        return Vec::new();
    };
    let Some(amounts) = object_at(resources, key).and_then(Value::as_object_mut) else { return Vec::new() };
    for name in &missing {
        amounts.insert(name.clone(), defaults[name].clone());
    }
    missing
}

fn has_key(map: &Value, key: &str) -> bool {
    map.get(key).is_some_and(|v| !v.is_null())
}

/// The object at a key, made when there is none.
fn object_at<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let map = value.as_object_mut()?;
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.to_owned(), json!({}));
    }
    map.get_mut(key).filter(|v| v.is_object())
}

fn annotate(object: &mut Value, note: &str) {
    let annotations = object_at(object, "metadata").and_then(|m| object_at(m, "annotations"));
    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
        annotations.insert(ANNOTATION.to_owned(), json!(note));
    }
}

/// What a pod or claim violates, in upstream's words; the engine writes `… is forbidden: ` before it.
pub fn validate(limit_ranges: &[&Value], facts: &Facts<'_>, object: &Value) -> Result<(), String> {
    for range in sorted(limit_ranges) {
        let mut wrong = Vec::new();
        for item in list(range, "spec.limits") {
            let bounds = Bounds::read(item)?;
            match (facts.resource, bounds.type_) {
                ("pods", "Container") => {
                    let containers = ["spec.containers", "spec.initContainers"].into_iter();
                    for c in containers.flat_map(|path| list(object, path)) {
                        let requests = amounts::read(at(c, "resources.requests"))?;
                        bounds.check(&requests, &amounts::read(at(c, "resources.limits"))?, &mut wrong);
                    }
                }
                ("pods", "Pod") => {
                    let requests = pod_resources::of_spec(object, Kind::Requests)?;
                    bounds.check(&requests, &pod_resources::of_spec(object, Kind::Limits)?, &mut wrong);
                }
                ("persistentvolumeclaims", "PersistentVolumeClaim") => {
                    bounds.check_claim(&amounts::read(at(object, "spec.resources.requests"))?, &mut wrong);
                }
                _ => {}
            }
        }
        let mut seen = Vec::new();
        wrong.retain(|w| {
            !seen.contains(w) && {
                seen.push(w.clone());
                true
            }
        });
        match wrong.as_slice() {
            [] => {}
            [one] => return Err(one.clone()),
            many => return Err(format!("[{}]", many.join(", "))),
        }
    }
    Ok(())
}

/// By name, so that the same request always meets them in the same order.
fn sorted<'a>(limit_ranges: &[&'a Value]) -> Vec<&'a Value> {
    let mut sorted = limit_ranges.to_vec();
    sorted.sort_by_key(|range| text(range, "metadata.name"));
    sorted
}

/// One item of a LimitRange.
struct Bounds<'a> {
    type_: &'a str,
    min: Amounts,
    max: Amounts,
    ratio: Amounts,
}

impl<'a> Bounds<'a> {
    fn read(item: &'a Value) -> Result<Self, String> {
        let amounts = |key| amounts::read(at(item, key));
        let (min, max) = (amounts("min")?, amounts("max")?);
        Ok(Self { type_: text(item, "type"), min, max, ratio: amounts("maxLimitRequestRatio")? })
    }

    fn check(&self, requests: &Amounts, limits: &Amounts, wrong: &mut Vec<String>) {
        for (name, min) in &self.min {
            wrong.extend(self.below(name, *min, requests.get(name), limits.get(name)));
        }
        for (name, max) in &self.max {
            wrong.extend(self.above(name, *max, requests.get(name), limits.get(name)));
        }
        for (name, ratio) in &self.ratio {
            wrong.extend(self.too_far_apart(name, *ratio, requests.get(name), limits.get(name)));
        }
    }

    /// Claims have requests only.
    fn check_claim(&self, requests: &Amounts, wrong: &mut Vec<String>) {
        for (name, min) in &self.min {
            wrong.extend(self.below(name, *min, requests.get(name), None));
        }
        for (name, max) in &self.max {
            let head = self.head("maximum", name, *max);
            match requests.get(name) {
                None => wrong.push(format!("{head}.  No request is specified")),
                Some(r) if r.milli() > max.milli() => wrong.push(format!("{head}, but request is {r}")),
                Some(_) => {}
            }
        }
    }

    fn head(&self, which: &str, name: &str, bound: Quantity) -> String {
        format!("{which} {name} usage per {} is {bound}", self.type_)
    }

    fn below(&self, name: &str, min: Quantity, request: Option<&Quantity>, limit: Option<&Quantity>) -> Option<String> {
        let (head, least) = (self.head("minimum", name, min), min.milli());
        match (request, limit) {
            (None, _) => Some(format!("{head}.  No request is specified")),
            (Some(r), _) if r.milli() < least => Some(format!("{head}, but request is {r}")),
            (_, Some(l)) if l.milli() < least => Some(format!("{head}, but limit is {l}")),
            _ => None,
        }
    }

    fn above(&self, name: &str, max: Quantity, request: Option<&Quantity>, limit: Option<&Quantity>) -> Option<String> {
        let (head, most) = (self.head("maximum", name, max), max.milli());
        match (request, limit) {
            (_, None) => Some(format!("{head}.  No limit is specified")),
            (_, Some(l)) if l.milli() > most => Some(format!("{head}, but limit is {l}")),
            (Some(r), _) if r.milli() > most => Some(format!("{head}, but request is {r}")),
            _ => None,
        }
    }

    fn too_far_apart(
        &self,
        name: &str,
        ratio: Quantity,
        request: Option<&Quantity>,
        limit: Option<&Quantity>,
    ) -> Option<String> {
        let head = format!("{name} max limit to request ratio per {} is {ratio}", self.type_);
        let Some(request) = request.filter(|r| !r.is_zero()) else {
            return Some(format!("{head}, but no request is specified or request is 0"));
        };
        let Some(limit) = limit.filter(|l| !l.is_zero()) else {
            return Some(format!("{head}, but no limit is specified or limit is 0"));
        };
        // Whole numbers, since floats would let a ratio just above pass. A limit has at most 28 digits of billionths.
        let (request, limit) = (request.milli(), limit.milli());
        let most = ratio.milli().saturating_mul(request);
        #[expect(clippy::cast_precision_loss, reason = "only shown")]
        let shown = limit as f64 / request as f64;
        (limit.saturating_mul(1000) > most).then(|| format!("{head}, but provided ratio is {shown:.6}"))
    }
}

#[cfg(test)]
mod tests;
