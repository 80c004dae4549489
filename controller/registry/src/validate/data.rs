//! ConfigMaps and Secrets: keys, sizes, what each type of Secret must hold, and immutability.

use super::names;
use crate::field::{FieldErrorType, FieldErrors, Path};
use crate::json::{entries, same, text, truth};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// All values of one object together.
const LIMIT: usize = 1 << 20;

pub(crate) fn config_map(o: &Value, errors: &mut FieldErrors) {
    let mut size = 0;
    for field in ["data", "binaryData"] {
        let path = Path::new(field);
        for (key, value) in entries(o, field) {
            check_key(key, &path, errors);
            let value = value.as_str().unwrap_or("");
            size += if field == "data" { value.len() } else { decoded(value, &path.key(key), errors) };
        }
    }
    for (key, _) in entries(o, "binaryData") {
        if o["data"].get(key).is_some() {
            let path = Path::new("data").key(key);
            errors.invalid(&path, key.as_str(), "duplicate of key present in binaryData");
        }
    }
    too_long(size, &Path::default(), errors);
}

pub(crate) fn secret(o: &Value, errors: &mut FieldErrors) {
    let path = Path::new("data");
    let mut size = 0;
    for (key, value) in entries(o, "data") {
        check_key(key, &path, errors);
        size += decoded(value.as_str().unwrap_or(""), &path.key(key), errors);
    }
    too_long(size, &path, errors);
    let needs = |keys: &[&str], errors: &mut FieldErrors| {
        for key in keys.iter().filter(|k| o["data"].get(**k).is_none()) {
            errors.required(&path.key(key), "");
        }
    };
    match text(o, "type") {
        "kubernetes.io/tls" => needs(&["tls.crt", "tls.key"], errors),
        "kubernetes.io/dockercfg" => holds_json(o, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => holds_json(o, ".dockerconfigjson", errors),
        "kubernetes.io/ssh-auth" => needs(&["ssh-privatekey"], errors),
        "kubernetes.io/basic-auth" if o["data"].get("username").is_none() && o["data"].get("password").is_none() => {
            errors.required(&path.key("username"), "");
            errors.required(&path.key("password"), "");
        }
        "kubernetes.io/service-account-token" => {
            let account = "kubernetes.io/service-account.name";
            if o["metadata"]["annotations"][account].as_str().unwrap_or("").is_empty() {
                errors.required(&Path::new("metadata").child("annotations").key(account), "");
            }
        }
        _ => {}
    }
}

fn holds_json(o: &Value, key: &str, errors: &mut FieldErrors) {
    let path = Path::new("data").key(key);
    let Some(value) = o["data"].get(key).and_then(Value::as_str) else {
        errors.required(&path, "");
        return;
    };
    let bytes = STANDARD.decode(value).unwrap_or_default();
    if let Err(why) = serde_json::from_slice::<Value>(&bytes) {
        errors.invalid(&path, "<secret contents redacted>", why.to_string());
    }
}

/// What an immutable ConfigMap allows.
pub(crate) fn immutable(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if !truth(old, "immutable") {
        return;
    }
    if !truth(new, "immutable") {
        errors.forbidden(&Path::new("immutable"), "field is immutable when `immutable` is set");
    }
    for field in ["data", "binaryData"] {
        if !same(&new[field], &old[field]) {
            errors.forbidden(&Path::new(field), "field is immutable when `immutable` is set");
        }
    }
}

pub(crate) fn secret_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if !same(&new["type"], &old["type"]) {
        errors.invalid(&Path::new("type"), new["type"].clone(), "field is immutable");
    }
    immutable(new, old, errors);
}

fn check_key(key: &str, path: &Path, errors: &mut FieldErrors) {
    if let Err(why) = names::config_map_key(key) {
        errors.invalid(&path.key(key), key, why);
    }
}

fn decoded(value: &str, path: &Path, errors: &mut FieldErrors) -> usize {
    match STANDARD.decode(value) {
        Ok(bytes) => bytes.len(),
        Err(_) => {
            errors.invalid(path, json!("<redacted>"), "must be base64");
            0
        }
    }
}

fn too_long(size: usize, path: &Path, errors: &mut FieldErrors) {
    if size > LIMIT {
        errors.push(FieldErrorType::TooLong, path, None, format!("may not be more than {LIMIT} bytes"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(check: fn(&Value, &mut FieldErrors), o: Value) -> Vec<String> {
        let mut errors = FieldErrors::default();
        check(&o, &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_types_and_immutability() {
        let tls = words(secret, json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}));
        assert_eq!(tls, ["data[tls.key]: Required value"]);
        let key = words(config_map, json!({"data": {"a/b": "x"}}));
        assert!(key[0].starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key must consist"), "{key:?}");
        let mut errors = FieldErrors::default();
        let old = json!({"immutable": true, "data": {"a": "1"}});
        immutable(&json!({"immutable": true, "data": {"a": "2"}}), &old, &mut errors);
        assert_eq!(errors.0[0].to_string(), "data: Forbidden: field is immutable when `immutable` is set");
    }
}
