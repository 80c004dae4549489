//! Custom resources: a [`Resource`] made of a CustomResourceDefinition and one of its versions.
//!
//! In: the definition as JSON. Out: the same [`Strategy`] as built-in kinds have, driven by the structural schema,
//! printer columns and subresources of the definition.

use crate::field::{FieldErrorType, FieldErrors, Path};
use crate::json::{at, has, list, put, remove, text};
use crate::jsonpath::JsonPath;
use crate::rules::{VERBS, raise_generation};
use crate::{Column, Resource, ScalePaths, Scope, Strategy, age, cell};
use causeway_schema::Schema;
use causeway_schema::crd::{self, CrdError, CrdErrorKind};
use serde_json::{Value, json};
use std::sync::Arc;

/// The resource that a definition's version describes. Fails with the definition's field errors when the version is
/// unknown or its schema or paths cannot be compiled.
pub fn custom_resource(definition: &Value, version: &str) -> Result<Resource, FieldErrors> {
    let mut errors = FieldErrors::default();
    let versions = Path::new("spec").child("versions");
    let all = list(definition, "spec.versions");
    let Some((i, described)) = all.iter().enumerate().find(|(_, v)| text(v, "name") == version) else {
        errors.push(FieldErrorType::NotFound, &versions, Some(json!(version)), "");
        return Err(errors);
    };
    let path = versions.index(i);
    let schema = schema(described, &path, &mut errors);
    let mut columns = vec![column("Name", "string", "name", "Name of the object.", 0)];
    let printers = printers(described, &path, &mut columns, &mut errors);
    let selectable = selectable(described, &path, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let status = has(described, "subresources.status");
    let names = at(definition, "spec.names");
    let strings = |key: &str| list(names, key).iter().filter_map(|v| v.as_str().map(str::to_owned)).collect();
    let or = |value: &str, other: String| if value.is_empty() { other } else { value.to_owned() };
    let kind = text(names, "kind");
    Ok(Resource {
        group: text(definition, "spec.group").to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        list_kind: or(text(names, "listKind"), format!("{kind}List")),
        plural: text(names, "plural").to_owned(),
        singular: or(text(names, "singular"), kind.to_lowercase()),
        short_names: strings("shortNames"),
        categories: strings("categories"),
        scope: if text(definition, "spec.scope") == "Cluster" { Scope::Cluster } else { Scope::Namespaced },
        verbs: VERBS.map(str::to_owned).to_vec(),
        status,
        scale: scale(described),
        columns,
        strategy: Arc::new(Custom { schema, status, printers, selectable }),
    })
}

/// Compiles the schema of a version; without one, anything goes.
fn schema(described: &Value, path: &Path, errors: &mut FieldErrors) -> Arc<Schema> {
    let raw = at(described, "schema.openAPIV3Schema");
    if raw.is_null() {
        return causeway_schema::anything();
    }
    crd::structural(raw).unwrap_or_else(|problems| {
        let path = path.child("schema").child("openAPIV3Schema");
        for (field, problem) in problems {
            let path = if field.is_empty() { path.clone() } else { path.child(&field) };
            errors.push(FieldErrorType::Invalid, &path, None, problem);
        }
        causeway_schema::anything()
    })
}

fn scale(described: &Value) -> Option<ScalePaths> {
    let scale = at(described, "subresources.scale");
    let path = |key: &str| Some(text(scale, key)).filter(|p| !p.is_empty()).map(str::to_owned);
    Some(ScalePaths {
        spec_replicas: path("specReplicasPath")?,
        status_replicas: path("statusReplicasPath")?,
        selector: path("labelSelectorPath"),
    })
}

fn column(name: &str, kind: &str, format: &str, description: &str, priority: i64) -> Column {
    Column {
        name: name.to_owned(),
        kind: kind.to_owned(),
        format: format.to_owned(),
        description: description.to_owned(),
        priority: i32::try_from(priority).unwrap_or(0),
    }
}

/// The additional printer columns; when there are none, the age.
fn printers(described: &Value, path: &Path, columns: &mut Vec<Column>, errors: &mut FieldErrors) -> Vec<Printer> {
    let wanted = list(described, "additionalPrinterColumns");
    if wanted.is_empty() {
        columns.push(column("Age", "date", "", "Time since the object was created.", 0));
        return vec![Printer { path: JsonPath::parse(".metadata.creationTimestamp").ok(), kind: "date".to_owned() }];
    }
    let mut printers = Vec::new();
    for (i, c) in wanted.iter().enumerate() {
        let kind = text(c, "type");
        let priority = at(c, "priority").as_i64().unwrap_or(0);
        columns.push(column(text(c, "name"), kind, text(c, "format"), text(c, "description"), priority));
        let parsed = JsonPath::parse(text(c, "jsonPath"));
        if let Err(why) = &parsed {
            let path = path.child("additionalPrinterColumns").index(i).child("jsonPath");
            errors.invalid(&path, text(c, "jsonPath"), why.as_str());
        }
        printers.push(Printer { path: parsed.ok(), kind: kind.to_owned() });
    }
    printers
}

fn selectable(described: &Value, path: &Path, errors: &mut FieldErrors) -> Vec<(String, JsonPath)> {
    let mut all = Vec::new();
    for (i, field) in list(described, "selectableFields").iter().enumerate() {
        let raw = text(field, "jsonPath");
        match JsonPath::parse(raw) {
            Ok(parsed) => all.push((raw.trim_start_matches('.').to_owned(), parsed)),
            Err(why) => errors.invalid(&path.child("selectableFields").index(i).child("jsonPath"), raw, why),
        }
    }
    all
}

/// One printer column.
struct Printer {
    path: Option<JsonPath>,
    kind: String,
}

impl Printer {
    fn cell(&self, object: &Value, now: i64) -> Value {
        let found = self.path.as_ref().map(|p| p.find(object)).unwrap_or_default();
        let Some(first) = found.first() else {
            return if self.kind == "date" { json!("<unknown>") } else { Value::Null };
        };
        match self.kind.as_str() {
            "integer" => first.as_i64().map_or(Value::Null, |n| json!(n)),
            "number" => first.as_f64().map_or(Value::Null, |n| json!(n)),
            "boolean" => first.as_bool().map_or(Value::Null, |b| json!(b)),
            "date" => json!(age::since(first, now)),
            _ => json!(found.iter().map(|v| plain(v)).collect::<Vec<_>>().join(",")),
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The rules of a custom resource.
struct Custom {
    schema: Arc<Schema>,
    status: bool,
    printers: Vec<Printer>,
    selectable: Vec<(String, JsonPath)>,
}

impl Custom {
    fn check(&self, object: &Value, old: Option<&Value>) -> FieldErrors {
        FieldErrors(crd::validate(object, old, &self.schema).into_iter().map(field_error).collect())
    }
}

fn field_error(e: CrdError) -> crate::FieldError {
    let kind = match e.kind {
        CrdErrorKind::Required => FieldErrorType::Required,
        CrdErrorKind::Invalid => FieldErrorType::Invalid,
        CrdErrorKind::NotSupported => FieldErrorType::NotSupported,
        CrdErrorKind::TypeInvalid => FieldErrorType::TypeInvalid,
        CrdErrorKind::Duplicate => FieldErrorType::Duplicate,
        CrdErrorKind::Forbidden => FieldErrorType::Forbidden,
        CrdErrorKind::TooLong => FieldErrorType::TooLong,
        CrdErrorKind::TooMany => FieldErrorType::TooMany,
    };
    let value = Some(e.value).filter(|_| kind != FieldErrorType::Required);
    crate::FieldError { kind, field: e.path, value, detail: e.detail }
}

impl Strategy for Custom {
    fn default(&self, object: &mut Value) {
        crd::default(object, &self.schema);
    }

    fn prepare_create(&self, object: &mut Value) {
        if self.status {
            remove(object, "status");
        }
        if let Some(metadata) = object.get_mut("metadata") {
            put(metadata, "generation", json!(1));
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        if self.status {
            put(new, "status", old["status"].clone());
        }
        raise_generation(new, old, !self.status);
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        let mut result = old.clone();
        put(&mut result, "status", new["status"].clone());
        if let Some(metadata) = result.get_mut("metadata") {
            for key in ["managedFields", "resourceVersion"] {
                put(metadata, key, new["metadata"][key].clone());
            }
        }
        *new = result;
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        self.check(object, None)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> FieldErrors {
        self.check(new, Some(old))
    }

    fn validate_status(&self, new: &Value, old: &Value) -> FieldErrors {
        self.check(new, Some(old))
    }

    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        std::iter::once(cell::name(object)).chain(self.printers.iter().map(|p| p.cell(object, now))).collect()
    }

    fn select_field(&self, object: &Value, field: &str) -> Option<String> {
        let (_, path) = self.selectable.iter().find(|(name, _)| name == field)?;
        Some(path.first(object).map(plain).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({"spec": {
            "group": "shop.io", "scope": "Namespaced",
            "names": {"kind": "Cart", "plural": "carts", "shortNames": ["ct"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"items": {"type": "integer"}, "owner": {"type": "string"}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
                }}},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.items", "statusReplicasPath": ".status.items"
                }},
                "additionalPrinterColumns": [
                    {"name": "Items", "type": "integer", "jsonPath": ".spec.items"},
                    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp", "priority": 1}
                ],
                "selectableFields": [{"jsonPath": ".spec.owner"}]
            }]
        }})
    }

    #[test]
    fn a_definition_becomes_a_resource() {
        let r = custom_resource(&definition(), "v1").unwrap();
        assert_eq!((r.plural.as_str(), r.singular.as_str(), r.list_kind.as_str()), ("carts", "cart", "CartList"));
        assert!(r.status && r.scale.is_some());
        let mut o = json!({
            "metadata": {"name": "c", "creationTimestamp": "1970-01-01T00:00:00Z"}, "spec": {"items": 3, "owner": "eve"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}
        });
        assert_eq!(json!(r.strategy.cells(&o, 60)), json!(["c", 3, "True", "60s"]));
        assert_eq!(r.columns.len(), 4);
        assert_eq!(r.strategy.select_field(&o, "spec.owner").as_deref(), Some("eve"));
        assert_eq!(r.strategy.select_field(&o, "spec.items"), None);
        let old = o.clone();
        r.strategy.prepare_create(&mut o);
        assert_eq!((&o["status"], &o["metadata"]["generation"]), (&Value::Null, &json!(1)));
        let mut new = old.clone();
        new["spec"]["items"] = json!(4);
        new["status"] = json!({});
        r.strategy.prepare_update(&mut new, &old);
        assert_eq!((&new["status"], &new["metadata"]["generation"]), (&old["status"], &json!(2)));
    }

    #[test]
    fn bad_paths_and_versions_are_named() {
        assert!(custom_resource(&definition(), "v9").is_err());
        let mut bad = definition();
        bad["spec"]["versions"][0]["additionalPrinterColumns"][0]["jsonPath"] = json!(".a..b");
        let errors = custom_resource(&bad, "v1").map(|_| ()).unwrap_err();
        assert_eq!(errors.0[0].field, "spec.versions[0].additionalPrinterColumns[0].jsonPath");
    }
}
