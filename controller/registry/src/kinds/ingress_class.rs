//! networking.k8s.io/v1 IngressClass: which controller serves an Ingress.

use crate::field::{FieldErrors, Path};
use crate::json::{existing_mut, fill, has, object_mut, same, text};
use crate::rules::{Kind, Rules};
use crate::{Resource, age, cell};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("networking.k8s.io", "v1", "IngressClass", "ingressclasses")
        .cluster()
        .columns(&[
            ("Name", "string", 0),
            ("Controller", "string", 0),
            ("Parameters", "string", 0),
            ("Age", "string", 0),
        ])
        .rules(Rules { default, generation: true, validate, validate_update, cells, ..Rules::default() })
}

fn default(o: &mut Value) {
    if let Some(parameters) = object_mut(o, "spec").and_then(|s| existing_mut(s, "parameters")) {
        fill(parameters, "scope", "Cluster");
    }
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    let spec = Path::new("spec");
    let controller = text(o, "spec.controller");
    if controller.is_empty() {
        errors.required(&spec.child("controller"), "");
    } else if !controller.split_once('/').is_some_and(|(domain, path)| domain.contains('.') && !path.is_empty()) {
        let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        errors.invalid(&spec.child("controller"), controller, detail);
    }
    if has(o, "spec.parameters") {
        for key in ["kind", "name"] {
            if text(&o["spec"]["parameters"], key).is_empty() {
                errors.required(&spec.child("parameters").child(key), "");
            }
        }
        let scope = text(o, "spec.parameters.scope");
        if !matches!(scope, "Cluster" | "Namespace") {
            errors.not_supported(&spec.child("parameters").child("scope"), scope, &["Cluster", "Namespace"]);
        }
    }
}

fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if !same(&new["spec"]["controller"], &old["spec"]["controller"]) {
        let path = Path::new("spec").child("controller");
        errors.invalid(&path, new["spec"]["controller"].clone(), "field is immutable");
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let p = &o["spec"]["parameters"];
    let parameters = match (p.is_object(), text(p, "apiGroup")) {
        (false, _) => "<none>".to_owned(),
        (true, "") => format!("{}/{}", text(p, "kind"), text(p, "name")),
        (true, group) => format!("{}.{group}/{}", text(p, "kind"), text(p, "name")),
    };
    vec![cell::name(o), json!(text(o, "spec.controller")), json!(parameters), age::age(o, now)]
}
