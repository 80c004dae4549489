//! apiextensions.k8s.io/v1 CustomResourceDefinition: a kind that users bring along. Its conditions are the engine's.

use crate::json::{fill, fill_zero, object_mut, text};
use crate::rules::{Kind, Rules, Status};
use crate::validate::definition;
use crate::{Resource, cell};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions")
        .cluster()
        .short(&["crd", "crds"])
        .in_api_extensions()
        .columns(&[("Name", "string", 0), ("Created At", "date", 0)])
        .rules(Rules {
            default,
            status: Status::Cleared(|_| Value::Null),
            generation: true,
            validate: definition::definition,
            validate_update: definition::definition_update,
            cells,
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    let Some(spec) = object_mut(o, "spec") else { return };
    if let Some(names) = object_mut(spec, "names") {
        let kind = text(names, "kind").to_owned();
        if !kind.is_empty() {
            fill_zero(names, "singular", kind.to_lowercase());
            fill_zero(names, "listKind", format!("{kind}List"));
        }
    }
    fill(spec, "conversion", json!({"strategy": "None"}));
}

fn cells(o: &Value, _now: i64) -> Vec<Value> {
    vec![cell::name(o), json!(text(o, "metadata.creationTimestamp"))]
}
