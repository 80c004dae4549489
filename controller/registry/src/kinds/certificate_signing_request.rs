//! certificates.k8s.io/v1 CertificateSigningRequest: somebody asks for a certificate, somebody approves, somebody signs.
//! Who asks is written by the API server at admission; the rest of the spec never changes.

use crate::field::{FieldErrors, Path};
use crate::json::{fill_zero, int, list, put, same, text};
use crate::rules::{Kind, Rules, Status};
use crate::{Resource, age, cell};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use causeway_api::certificates;
use serde_json::{Value, json};

/// Usages that certificates can have, as the API names them.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// Kubernetes' shortest life of a requested certificate.
const SHORTEST: i64 = 600;

pub(super) fn resource() -> Resource {
    Kind::new("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests")
        .cluster()
        .short(&["csr"])
        .columns(&[
            ("Name", "string", 0),
            ("Age", "string", 0),
            ("SignerName", "string", 0),
            ("Requestor", "string", 0),
            ("RequestedDuration", "string", 0),
            ("Condition", "string", 0),
        ])
        .rules(Rules {
            default,
            prepare,
            status: Status::Cleared(|_| json!({})),
            validate,
            validate_status,
            cells,
            fields: &["spec.signerName"],
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    for condition in o.get_mut("status").into_iter().flat_map(|s| crate::json::items_mut(s, "conditions")) {
        fill_zero(condition, "status", "True");
    }
}

/// The spec stays what it was.
fn prepare(new: &mut Value, old: Option<&Value>) {
    if let Some(old) = old {
        put(new, "spec", old["spec"].clone());
    }
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    let spec = Path::new("spec");
    let request = spec.child("request");
    match STANDARD.decode(text(o, "spec.request")) {
        Ok(bytes) if bytes.is_empty() => errors.required(&request, ""),
        Ok(bytes) => {
            if let Err(why) = certificates::parse(&bytes) {
                errors.invalid(&request, o["spec"]["request"].clone(), why);
            }
        }
        Err(_) => errors.invalid(&request, o["spec"]["request"].clone(), "must be base64"),
    }
    let usages = list(o, "spec.usages");
    if usages.is_empty() {
        errors.required(&spec.child("usages"), "");
    }
    for (i, usage) in usages.iter().enumerate() {
        let at = spec.child("usages").index(i);
        match usage.as_str() {
            Some(usage) if USAGES.contains(&usage) => {
                if usages[..i].iter().any(|u| u == usage) {
                    errors.duplicate(&at, usage);
                }
            }
            _ => errors.not_supported(&at, usage.as_str().unwrap_or(""), USAGES),
        }
    }
    let signer = text(o, "spec.signerName");
    let whole = signer.split_once('/').is_some_and(|(domain, path)| {
        domain.contains('.') && crate::field::dns_subdomain(domain).is_ok() && !path.is_empty() && !path.contains('/')
    });
    if signer.is_empty() {
        errors.required(&spec.child("signerName"), "");
    } else if !whole {
        errors.invalid(
            &spec.child("signerName"),
            signer,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        );
    } else if signer == "kubernetes.io/legacy-unknown" {
        errors.invalid(&spec.child("signerName"), signer, "the legacy signerName is not allowed via this API version");
    }
    if let Some(seconds) = int(o, "spec.expirationSeconds")
        && seconds < SHORTEST
    {
        let why = format!("may not specify a duration less than {SHORTEST} seconds (10 minutes)");
        errors.invalid(&spec.child("expirationSeconds"), seconds, why);
    }
}

fn has(o: &Value, type_: &str) -> bool {
    list(o, "status.conditions").iter().any(|c| text(c, "type") == type_)
}

/// Decisions are final, and a certificate that was issued stays.
fn validate_status(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let status = Path::new("status");
    let conditions = status.child("conditions");
    let mut seen = Vec::new();
    for (i, condition) in list(new, "status.conditions").iter().enumerate() {
        let type_ = text(condition, "type");
        let at = conditions.index(i);
        if type_.is_empty() {
            errors.required(&at.child("type"), "");
        } else if seen.contains(&type_) {
            errors.duplicate(&at.child("type"), type_);
        }
        if matches!(type_, "Approved" | "Denied" | "Failed") && text(condition, "status") != "True" {
            errors.not_supported(&at.child("status"), text(condition, "status"), &["True"]);
        }
        seen.push(type_);
    }
    for type_ in ["Approved", "Denied", "Failed"] {
        if has(old, type_) && !has(new, type_) {
            errors.forbidden(&conditions, format!("updates may not remove a condition of type {type_:?}"));
        }
    }
    if has(new, "Approved") && has(new, "Denied") {
        errors.invalid(&conditions, "Denied", "Approved and Denied conditions are mutually exclusive");
    }
    let issued = &old["status"]["certificate"];
    if issued.as_str().is_some_and(|c| !c.is_empty()) && !same(issued, &new["status"]["certificate"]) {
        errors.invalid(
            &status.child("certificate"),
            "<certificate data>",
            "updates may not change or remove a certificate",
        );
    }
}

fn condition(o: &Value) -> String {
    let mut shown = match (has(o, "Denied"), has(o, "Approved")) {
        (true, _) => "Denied",
        (_, true) => "Approved",
        _ => "Pending",
    }
    .to_owned();
    if has(o, "Failed") {
        shown.push_str(",Failed");
    }
    if !text(o, "status.certificate").is_empty() {
        shown.push_str(",Issued");
    }
    shown
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let duration = int(o, "spec.expirationSeconds").map_or("<none>".to_owned(), crate::human_duration);
    vec![
        cell::name(o),
        age::age(o, now),
        cell::or_none(o, "spec.signerName"),
        json!(text(o, "spec.username")),
        json!(duration),
        json!(condition(o)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(o: &Value) -> Vec<String> {
        let mut errors = FieldErrors::default();
        validate(o, &mut errors);
        errors.0.iter().map(|e| e.field.clone()).collect()
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let all = ["spec.request", "spec.usages", "spec.signerName"];
        assert_eq!(errors(&json!({"spec": {}})), all);
        let bad = json!({"spec": {"request": "eA==", "usages": ["client auth", "client auth", "magic"],
            "signerName": "me", "expirationSeconds": 10}});
        let all = ["spec.request", "spec.usages[1]", "spec.usages[2]", "spec.signerName", "spec.expirationSeconds"];
        assert_eq!(errors(&bad), all);
    }

    #[test]
    fn decisions_are_final() {
        let with = |types: &[&str], certificate: &str| {
            let conditions: Vec<_> = types.iter().map(|t| json!({"type": t, "status": "True"})).collect();
            json!({"status": {"conditions": conditions, "certificate": certificate}})
        };
        let check = |new: &Value, old: &Value| {
            let mut errors = FieldErrors::default();
            validate_status(new, old, &mut errors);
            errors.is_empty()
        };
        assert!(check(&with(&["Approved"], ""), &json!({})));
        assert!(check(&with(&["Approved"], "YQ=="), &with(&["Approved"], "")));
        assert!(!check(&with(&["Denied"], ""), &with(&["Approved"], "")));
        assert!(!check(&with(&["Approved", "Denied"], ""), &with(&["Approved"], "")));
        assert!(!check(&with(&["Approved"], "Yg=="), &with(&["Approved"], "YQ==")));
        assert_eq!(condition(&with(&["Approved"], "YQ==")), "Approved,Issued");
        assert_eq!(condition(&json!({})), "Pending");
    }
}
