//! CustomResourceDefinitions: names, versions, one storage version, structural schemas.

use crate::field::{FieldErrors, Path, dns_1035_label, dns_subdomain};
use crate::json::{at, existing, has, list, same, text, truth};
use serde_json::Value;
use std::collections::HashSet;

pub(crate) fn definition(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    let group = text(spec, "group");
    if group.is_empty() {
        errors.required(&path.child("group"), "");
    } else if let Err(why) = dns_subdomain(group) {
        errors.invalid(&path.child("group"), group, why);
    } else if !group.contains('.') {
        errors.invalid(&path.child("group"), group, "should be a domain with at least one dot");
    }
    let wanted = format!("{}.{group}", text(spec, "names.plural"));
    let name = text(o, "metadata.name");
    if name != wanted {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.invalid(&Path::new("metadata").child("name"), name, detail);
    }
    match text(spec, "scope") {
        "Cluster" | "Namespaced" => {}
        "" => errors.required(&path.child("scope"), ""),
        other => errors.not_supported(&path.child("scope"), other, &["Cluster", "Namespaced"]),
    }
    names(at(spec, "names"), &path.child("names"), errors);
    versions(o, &path.child("versions"), errors);
    let conversion = text(spec, "conversion.strategy");
    if !matches!(conversion, "" | "None") {
        // A webhook would have to be called on every read; a definition that needs one is refused, not half served.
        errors.not_supported(&path.child("conversion").child("strategy"), conversion, &["None"]);
    }
}

fn names(names: &Value, path: &Path, errors: &mut FieldErrors) {
    for key in ["plural", "singular", "kind", "listKind"] {
        let value = text(names, key);
        if value.is_empty() {
            errors.required(&path.child(key), "");
        } else if let Err(why) = dns_1035_label(&value.to_lowercase()) {
            errors.invalid(&path.child(key), value, format!("may have mixed case, but should otherwise match: {why}"));
        } else if matches!(key, "plural" | "singular") && value.to_lowercase() != value {
            let why = dns_1035_label(value).err().unwrap_or_default();
            errors.invalid(&path.child(key), value, why);
        }
    }
    for key in ["shortNames", "categories"] {
        for (i, value) in list(names, key).iter().enumerate() {
            if let Err(why) = dns_1035_label(value.as_str().unwrap_or("")) {
                errors.invalid(&path.child(key).index(i), value.clone(), why);
            }
        }
    }
    if !text(names, "kind").is_empty() && text(names, "kind") == text(names, "listKind") {
        let detail = "kind and listKind may not be the same";
        errors.invalid(&path.child("listKind"), text(names, "listKind"), detail);
    }
}

fn versions(o: &Value, path: &Path, errors: &mut FieldErrors) {
    let all = list(o, "spec.versions");
    let mut seen = HashSet::new();
    for (i, v) in all.iter().enumerate() {
        let path = path.index(i);
        let name = text(v, "name");
        if let Err(why) = dns_1035_label(name) {
            errors.invalid(&path.child("name"), name, why);
        } else if !seen.insert(name) {
            errors.invalid(&path.child("name"), name, "must be unique");
        }
        if !existing(at(v, "schema"), "openAPIV3Schema") {
            let path = path.child("schema").child("openAPIV3Schema");
            errors.required(&path, "schemas are required");
            continue;
        }
        if let Err(problems) = crate::custom_resource(o, name) {
            errors.extend(problems);
        }
    }
    let storage = all.iter().filter(|v| truth(v, "storage")).count();
    if storage != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.invalid(path, at(o, "spec.versions").clone(), detail);
    }
}

/// Group, scope, plural and kind stay as they are; a version that holds stored objects stays listed.
pub(crate) fn definition_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    let keys = [("group", "spec.group"), ("scope", "spec.scope")];
    let names = [("plural", "spec.names.plural"), ("kind", "spec.names.kind")];
    for (key, dotted) in keys {
        if !same(at(new, dotted), at(old, dotted)) {
            errors.invalid(&path.child(key), at(new, dotted).clone(), "field is immutable");
        }
    }
    for (key, dotted) in names {
        if !same(at(new, dotted), at(old, dotted)) {
            errors.invalid(&path.child("names").child(key), at(new, dotted).clone(), "field is immutable");
        }
    }
    if !has(old, "status.storedVersions") {
        return;
    }
    for (i, stored) in list(old, "status.storedVersions").iter().enumerate() {
        if !list(new, "spec.versions").iter().any(|v| &v["name"] == stored) {
            let path = Path::new("status").child("storedVersions").index(i);
            errors.invalid(&path, stored.clone(), "missing from spec.versions; stored objects need it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kubernetes_words() {
        let version = json!({"name": "v1", "served": true, "storage": true,
                             "schema": {"openAPIV3Schema": {"type": "object"}}});
        let mut o = json!({"metadata": {"name": "carts.shop.io"}, "spec": {
            "group": "shop.io", "scope": "Namespaced", "versions": [version],
            "names": {"plural": "carts", "singular": "cart", "kind": "Cart", "listKind": "CartList"}
        }});
        let mut errors = FieldErrors::default();
        definition(&o, &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        o["metadata"]["name"] = json!("cart.shop.io");
        o["spec"]["versions"][0]["storage"] = json!(false);
        o["spec"]["versions"][0]["schema"] = json!({});
        definition(&o, &mut errors);
        let words: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            words[..2],
            [
                "metadata.name: Invalid value: \"cart.shop.io\": must be spec.names.plural+\".\"+spec.group",
                "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required"
            ]
        );
        assert!(words[2].ends_with("must have exactly one version marked as storage version"), "{words:?}");
    }
}
