//! Ingress: hosts, paths, backends, TLS.

use super::{names, service};
use crate::field::{FieldErrors, Path, dns_subdomain};
use crate::json::{at, existing, has, int, list, text};
use serde_json::Value;
use std::net::IpAddr;

const PATH_TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];
const BAD_SEQUENCES: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const BAD_ENDS: [&str; 2] = ["/..", "/."];

pub(crate) fn ingress(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    if list(spec, "rules").is_empty() && !has(spec, "defaultBackend") {
        errors.invalid(&path, spec.clone(), "either `defaultBackend` or `rules` must be specified");
    }
    let class = text(spec, "ingressClassName");
    if !class.is_empty()
        && let Err(why) = dns_subdomain(class)
    {
        errors.invalid(&path.child("ingressClassName"), class, why);
    }
    if has(spec, "defaultBackend") {
        backend(at(spec, "defaultBackend"), &path.child("defaultBackend"), errors);
    }
    for (i, tls) in list(spec, "tls").iter().enumerate() {
        let path = path.child("tls").index(i);
        for (j, host) in list(tls, "hosts").iter().enumerate() {
            host_name(host.as_str().unwrap_or(""), &path.child("hosts").index(j), errors);
        }
        let secret = text(tls, "secretName");
        if !secret.is_empty()
            && let Err(why) = dns_subdomain(secret)
        {
            errors.invalid(&path.child("secretName"), secret, why);
        }
    }
    for (i, rule) in list(spec, "rules").iter().enumerate() {
        self::rule(rule, &path.child("rules").index(i), errors);
    }
}

/// A new Ingress names its class once.
pub(crate) fn new_ingress(o: &Value, errors: &mut FieldErrors) {
    let annotation = &o["metadata"]["annotations"]["kubernetes.io/ingress.class"];
    if !text(o, "spec.ingressClassName").is_empty() && !annotation.is_null() {
        let path = Path::new("annotations").child("kubernetes.io/ingress.class");
        errors.invalid(&path, annotation.clone(), "can not be set when the class field is also set");
    }
}

fn host_name(host: &str, path: &Path, errors: &mut FieldErrors) {
    let checked = if host.contains('*') { names::wildcard_dns_subdomain(host) } else { dns_subdomain(host) };
    if let Err(why) = checked {
        errors.invalid(path, host, why);
    }
}

fn rule(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    let host = text(rule, "host");
    if host.parse::<IpAddr>().is_ok() {
        errors.invalid(&path.child("host"), host, "must be a DNS name, not an IP address");
    } else if !host.is_empty() {
        host_name(host, &path.child("host"), errors);
    }
    if !existing(rule, "http") {
        return;
    }
    let path = path.child("http").child("paths");
    if list(rule, "http.paths").is_empty() {
        errors.required(&path, "");
    }
    for (i, p) in list(rule, "http.paths").iter().enumerate() {
        one_path(p, &path.index(i), errors);
    }
}

fn one_path(p: &Value, path: &Path, errors: &mut FieldErrors) {
    let (target, at_target) = (text(p, "path"), path.child("path"));
    match text(p, "pathType") {
        "" => errors.required(&path.child("pathType"), "pathType must be specified"),
        "Exact" | "Prefix" => {
            if !target.starts_with('/') {
                errors.invalid(&at_target, target, "must be an absolute path");
            }
            for bad in BAD_SEQUENCES.iter().filter(|b| target.contains(**b)) {
                errors.invalid(&at_target, target, format!("must not contain '{bad}'"));
            }
            for bad in BAD_ENDS.iter().filter(|b| target.ends_with(**b)) {
                errors.invalid(&at_target, target, format!("cannot end with '{bad}'"));
            }
        }
        "ImplementationSpecific" => {
            if !target.is_empty() && !target.starts_with('/') {
                errors.invalid(&at_target, target, "must be an absolute path");
            }
        }
        other => errors.not_supported(&path.child("pathType"), other, &PATH_TYPES),
    }
    backend(at(p, "backend"), &path.child("backend"), errors);
}

fn backend(backend: &Value, path: &Path, errors: &mut FieldErrors) {
    match (existing(backend, "service"), existing(backend, "resource")) {
        (true, true) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (false, false) => errors.required(path, "resource or service backend is required"),
        (false, true) => {
            for key in ["kind", "name"] {
                if text(at(backend, "resource"), key).is_empty() {
                    errors.required(&path.child("resource").child(key), "");
                }
            }
        }
        (true, false) => {
            let (to, path) = (at(backend, "service"), path.child("service"));
            service::name(text(to, "name"), &path.child("name"), errors);
            let (name, number) = (text(to, "port.name"), int(to, "port.number").unwrap_or(0));
            let path = path.child("port");
            if name.is_empty() && number == 0 {
                errors.required(&path, "port name or number is required");
            } else if !name.is_empty() && number != 0 {
                errors.invalid(&path, "", "cannot set both port name & port number");
            } else if !name.is_empty() {
                if let Err(why) = names::port_name(name) {
                    errors.invalid(&path.child("name"), name, why);
                }
            } else if let Err(why) = names::port_number(number) {
                errors.invalid(&path.child("number"), number, why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn words(spec: Value) -> Vec<String> {
        let mut errors = FieldErrors::default();
        ingress(&json!({"spec": spec}), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn kubernetes_words() {
        let to = json!({"service": {"name": "web", "port": {"number": 80}}});
        let good = json!({"rules": [{"host": "*.shop.localhost", "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": to}, {"pathType": "ImplementationSpecific", "backend": to}
        ]}}], "tls": [{"hosts": ["shop.localhost"], "secretName": "tls"}]});
        assert_eq!(words(good), Vec::<String>::new());
        let empty = "spec: Invalid value: {}: either `defaultBackend` or `rules` must be specified";
        assert_eq!(words(json!({})), [empty]);
        let bad = json!({"rules": [{"host": "10.0.0.1", "http": {"paths": [
            {"path": "x", "pathType": "Exact", "backend": {"service": {"name": "web", "port": {}}}},
            {"path": "/a//b", "pathType": "Glob", "backend": {}},
            {"path": "/a"}
        ]}}]});
        assert_eq!(
            words(bad),
            [
                "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
                "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
                "spec.rules[0].http.paths[0].backend.service.port: Required value: port name or number is required",
                "spec.rules[0].http.paths[1].pathType: Unsupported value: \"Glob\": supported values: \"Exact\", \
                 \"ImplementationSpecific\", \"Prefix\"",
                "spec.rules[0].http.paths[1].backend: Required value: resource or service backend is required",
                "spec.rules[0].http.paths[2].pathType: Required value: pathType must be specified",
                "spec.rules[0].http.paths[2].backend: Required value: resource or service backend is required"
            ]
        );
    }
}
