//! Probes and lifecycle handlers: exactly one way to act, and sensible numbers.

use super::names;
use crate::field::{FieldErrors, Path};
use crate::json::{at, existing, int, list, text};
use serde_json::Value;

const PROBE_HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];
const LIFECYCLE_HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "sleep"];

/// A probe of a container; `once` demands a success threshold of 1 (liveness and startup).
pub(crate) fn probe(probe: &Value, once: bool, path: &Path, errors: &mut FieldErrors) {
    if probe.is_null() {
        return;
    }
    handler(probe, &PROBE_HANDLERS, path, errors);
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        if let Some(n) = int(probe, key).filter(|n| *n < 0) {
            errors.invalid(&path.child(key), n, "must be greater than or equal to 0");
        }
    }
    if let Some(n) = int(probe, "successThreshold").filter(|n| once && *n != 1) {
        errors.invalid(&path.child("successThreshold"), n, "must be 1");
    }
    match int(probe, "terminationGracePeriodSeconds") {
        Some(n) if !once => {
            errors.invalid(&path.child("terminationGracePeriodSeconds"), n, "must not be set for readinessProbes");
        }
        Some(n) if n <= 0 => errors.invalid(&path.child("terminationGracePeriodSeconds"), n, "must be greater than 0"),
        _ => {}
    }
}

/// `postStart` and `preStop` of a container.
pub(crate) fn lifecycle(lifecycle: &Value, path: &Path, errors: &mut FieldErrors) {
    for key in ["postStart", "preStop"] {
        if existing(lifecycle, key) {
            handler(at(lifecycle, key), &LIFECYCLE_HANDLERS, &path.child(key), errors);
        }
    }
}

fn handler(holder: &Value, kinds: &[&str], path: &Path, errors: &mut FieldErrors) {
    let mut found = 0;
    for kind in kinds.iter().filter(|k| existing(holder, k)) {
        let path = path.child(kind);
        found += 1;
        if found > 1 {
            errors.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        let action = at(holder, kind);
        match *kind {
            "exec" if list(action, "command").is_empty() => errors.required(&path.child("command"), ""),
            "httpGet" => http_get(action, &path, errors),
            "tcpSocket" => port(at(action, "port"), &path.child("port"), errors),
            "grpc" => port(at(action, "port"), &path.child("port"), errors),
            _ => {}
        }
    }
    if found == 0 {
        errors.required(path, "must specify a handler type");
    }
}

fn http_get(action: &Value, path: &Path, errors: &mut FieldErrors) {
    if text(action, "path").is_empty() {
        errors.required(&path.child("path"), "");
    }
    port(at(action, "port"), &path.child("port"), errors);
    let scheme = text(action, "scheme");
    if !matches!(scheme, "HTTP" | "HTTPS") {
        errors.not_supported(&path.child("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for (i, header) in list(action, "httpHeaders").iter().enumerate() {
        if let Err(why) = names::header_name(text(header, "name")) {
            errors.invalid(&path.child("httpHeaders").index(i), text(header, "name"), why);
        }
    }
}

/// A port by number or name.
pub(crate) fn port(value: &Value, path: &Path, errors: &mut FieldErrors) {
    let checked = match value {
        Value::String(name) => names::port_name(name),
        other => names::port_number(other.as_i64().unwrap_or(0)),
    };
    if let Err(why) = checked {
        errors.invalid(path, if value.is_null() { 0.into() } else { value.clone() }, why);
    }
}
