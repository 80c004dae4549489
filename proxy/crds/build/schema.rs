//! Makes structural schemas of the types that were read. In: types, and the name of the one that a kind is. Out: its
//! definition (apiextensions.k8s.io/v1), with one version.

use crate::read::{Body, Type, Types};
use serde_json::{Map, Value, json};

/// The definition of the kind whose `spec` is the type `spec`.
pub fn definition(types: &Types, spec: &str) -> Result<Value, String> {
    let kind = known(types, spec)?;
    let says = |key: &str| kind.kube.get(key).cloned().ok_or_else(|| format!("{spec} does not say its {key}"));
    let (group, version, plural, name) = (says("group")?, says("version")?, says("plural")?, says("kind")?);
    let mut properties = Map::new();
    properties.insert("spec".to_owned(), object(types, kind)?);
    let mut served = json!({ "name": version, "served": true, "storage": true });
    if let Some(status) = kind.kube.get("status") {
        let mut schema = object(types, known(types, status)?)?;
        schema["nullable"] = json!(true);
        properties.insert("status".to_owned(), schema);
        served["subresources"] = json!({ "status": {} });
    }
    served["schema"] = json!({ "openAPIV3Schema": {
        "type": "object", "required": ["spec"], "properties": properties,
        "description": format!("{name} of the Gateway API."),
    } });
    let cluster = name == "GatewayClass";
    Ok(json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group,
            "names": { "kind": name, "plural": plural, "singular": name.to_lowercase() },
            "scope": if cluster { "Cluster" } else { "Namespaced" },
            "versions": [served],
        },
    }))
}

fn known<'a>(types: &'a Types, name: &str) -> Result<&'a Type, String> {
    types.get(name).ok_or_else(|| format!("there is no type {name}"))
}

fn object(types: &Types, of: &Type) -> Result<Value, String> {
    let fields = match &of.body {
        Body::Fields(fields) => fields,
        Body::Variants(all) => return Ok(described(json!({ "type": "string", "enum": all }), &of.about)),
    };
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in fields {
        let (inner, optional) = match argument(&field.of, "Option") {
            Some(inner) => (inner, true),
            None => (field.of.as_str(), false),
        };
        let mut schema = value(types, inner)?;
        if optional {
            schema["nullable"] = json!(true);
            // What may be absent may be null, also where only some words are allowed.
            if let Some(all) = schema.get_mut("enum").and_then(Value::as_array_mut) {
                all.push(Value::Null);
            }
        } else {
            required.push(field.name.clone());
        }
        properties.insert(field.name.clone(), described(schema, &field.about));
    }
    let mut schema = json!({ "type": "object" });
    if !properties.is_empty() {
        schema["properties"] = json!(properties);
    }
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    Ok(described(schema, &of.about))
}

/// The nearest comment is the one that counts.
fn described(mut schema: Value, about: &str) -> Value {
    if !about.is_empty() {
        schema["description"] = json!(about);
    }
    schema
}

/// `T` of `Wrapper<T>`.
fn argument<'a>(of: &'a str, wrapper: &str) -> Option<&'a str> {
    of.strip_prefix(wrapper)?.strip_prefix('<')?.strip_suffix('>')
}

fn value(types: &Types, of: &str) -> Result<Value, String> {
    if let Some(item) = argument(of, "Vec") {
        return Ok(json!({ "type": "array", "items": value(types, item)? }));
    }
    if let Some(arguments) = argument(of, "BTreeMap") {
        let item = arguments.strip_prefix("String, ").ok_or_else(|| format!("a map by something else: {of}"))?;
        return Ok(json!({ "type": "object", "additionalProperties": value(types, item)? }));
    }
    Ok(match of {
        "String" => json!({ "type": "string" }),
        "bool" => json!({ "type": "boolean" }),
        "i32" => json!({ "type": "integer", "format": "int32" }),
        "i64" => json!({ "type": "integer", "format": "int64" }),
        "Condition" => condition(),
        name => return object(types, known(types, name)?),
    })
}

/// Condition of meta/v1, which the crate has from elsewhere.
fn condition() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let mut since = text("When the status last changed.");
    since["format"] = json!("date-time");
    json!({
        "type": "object",
        "description": "One aspect of the object's state.",
        "required": ["lastTransitionTime", "message", "reason", "status", "type"],
        "properties": {
            "lastTransitionTime": since,
            "message": text("What is the case, for people."),
            "observedGeneration": {
                "type": "integer", "format": "int64",
                "description": "The generation of the object that this was said of.",
            },
            "reason": text("Why, in one word in CamelCase."),
            "status": text("True, False or Unknown."),
            "type": text("Which aspect, in CamelCase."),
        },
    })
}
