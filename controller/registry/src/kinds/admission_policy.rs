//! admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy and ValidatingAdmissionPolicyBinding: rules in CEL about
//! what may be stored, and where they hold. (Mutating ones are beta in 1.35, which is not served by default.)

use crate::field::{FieldErrors, Path, dns_1035_label, dns_subdomain, path_segment};
use crate::json::{at, count, existing, existing_mut, fill, has, items_mut, list, text};
use crate::rules::{Kind, Rules, Status};
use crate::validate::admission::{self, Expressions};
use crate::validate::{names, selector};
use crate::{Resource, age, cell};
use causeway_schema::cel::admission_names;
use serde_json::{Value, json};
use std::collections::HashSet;

const GROUP: &str = "admissionregistration.k8s.io";
const MAX_ANNOTATIONS: usize = 20;
/// Bytes of an expression for an audit annotation.
const MAX_ANNOTATION_EXPRESSION: usize = 5 * 1024;

/// The two kinds.
pub(super) fn resources() -> Vec<Resource> {
    let age = ("Age", "string", 0);
    vec![
        Kind::new(GROUP, "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies")
            .cluster()
            .in_api_extensions()
            .columns(&[("Name", "string", 0), ("Validations", "integer", 0), ("ParamKind", "string", 0), age])
            .rules(Rules {
                default: policy_defaults,
                status: Status::Cleared(|_| Value::Null),
                generation: true,
                validate: policy,
                cells: policy_cells,
                ..Rules::default()
            }),
        Kind::new(GROUP, "v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")
            .cluster()
            .in_api_extensions()
            .columns(&[("Name", "string", 0), ("PolicyName", "string", 0), ("ParamRef", "string", 0), age])
            .rules(Rules {
                default: binding_defaults,
                generation: true,
                validate: binding,
                cells: binding_cells,
                ..Rules::default()
            }),
    ]
}

fn match_defaults(resources: &mut Value) {
    fill(resources, "matchPolicy", "Equivalent");
    fill(resources, "namespaceSelector", json!({}));
    fill(resources, "objectSelector", json!({}));
    for key in ["resourceRules", "excludeResourceRules"] {
        for rule in items_mut(resources, key) {
            fill(rule, "scope", "*");
        }
    }
}

fn policy_defaults(o: &mut Value) {
    let Some(spec) = existing_mut(o, "spec") else { return };
    fill(spec, "failurePolicy", "Fail");
    if let Some(resources) = existing_mut(spec, "matchConstraints") {
        match_defaults(resources);
    }
}

fn binding_defaults(o: &mut Value) {
    if let Some(resources) = existing_mut(o, "spec").and_then(|spec| existing_mut(spec, "matchResources")) {
        match_defaults(resources);
    }
}

fn policy(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    admission::one_of(spec, "failurePolicy", &["Fail", "Ignore"], &path, errors);
    let params = existing(spec, "paramKind");
    if params {
        param_kind(&spec["paramKind"], &path.child("paramKind"), errors);
    }
    let constraints = path.child("matchConstraints");
    if existing(spec, "matchConstraints") {
        admission::match_resources(&spec["matchConstraints"], &constraints, errors);
        if count(spec, "matchConstraints.resourceRules") == 0 {
            errors.required(&constraints.child("resourceRules"), "");
        }
    } else {
        errors.required(&constraints, "");
    }
    let variables: Vec<String> = list(spec, "variables").iter().map(|v| text(v, "name").to_owned()).collect();
    let mut expressions = Expressions::default();
    admission::conditions(spec, params, &path, &mut expressions, errors);
    for (i, variable) in list(spec, "variables").iter().enumerate() {
        let path = path.child("variables").index(i);
        let name = text(variable, "name");
        if name.trim().is_empty() {
            errors.required(&path.child("name"), "name is not specified");
        } else if !is_identifier(name) {
            errors.invalid(&path.child("name"), name, "name is not a valid CEL identifier");
        } else if variables[..i].iter().any(|before| before == name) {
            errors.duplicate(&path.child("name"), name);
        }
        match text(variable, "expression") {
            e if e.trim().is_empty() => errors.required(&path.child("expression"), "expression is not specified"),
            // Each may use those before it.
            e => expressions.add(e, admission_names(params, true, &variables[..i]), path.child("expression")),
        }
    }
    if count(spec, "validations") == 0 && count(spec, "auditAnnotations") == 0 {
        for key in ["validations", "auditAnnotations"] {
            let detail = "validations or auditAnnotations must contain at least one item";
            errors.required(&path.child(key), detail);
        }
    }
    for (i, rule) in list(spec, "validations").iter().enumerate() {
        let path = path.child("validations").index(i);
        validation(rule, (params, &variables), &path, &mut expressions, errors);
    }
    annotations(o, (params, &variables), &path.child("auditAnnotations"), &mut expressions, errors);
    expressions.compile(&path, errors);
}

fn validation<'a>(
    rule: &'a Value,
    (params, variables): (bool, &'a [String]),
    path: &Path,
    expressions: &mut Expressions<'a>,
    errors: &mut FieldErrors,
) {
    match text(rule, "expression") {
        e if e.trim().is_empty() => errors.required(&path.child("expression"), "expression is not specified"),
        e => expressions.add(e, admission_names(params, true, variables), path.child("expression")),
    }
    match text(rule, "messageExpression") {
        "" => {}
        e if e.trim().is_empty() => {
            errors.invalid(&path.child("messageExpression"), e, "must be non-empty if specified");
        }
        e => expressions.add(e, admission_names(params, false, variables), path.child("messageExpression")),
    }
    match text(rule, "message") {
        "" => {}
        m if m.trim().is_empty() => errors.invalid(&path.child("message"), m, "message must be non-empty if specified"),
        m if m.trim().contains(['\n', '\r']) => {
            errors.invalid(&path.child("message"), m, "message must not contain line breaks");
        }
        _ => {}
    }
    admission::one_of(rule, "reason", &["Forbidden", "Invalid", "RequestEntityTooLarge"], path, errors);
}

fn annotations<'a>(
    o: &'a Value,
    (params, variables): (bool, &'a [String]),
    path: &Path,
    expressions: &mut Expressions<'a>,
    errors: &mut FieldErrors,
) {
    let (all, name) = (list(o, "spec.auditAnnotations"), text(o, "metadata.name"));
    if all.len() > MAX_ANNOTATIONS {
        let detail = format!("must not have more than {MAX_ANNOTATIONS} auditAnnotations");
        errors.invalid(path, at(o, "spec.auditAnnotations").clone(), detail);
    }
    let mut seen = HashSet::new();
    for (i, annotation) in all.iter().enumerate() {
        let (path, key) = (path.index(i), text(annotation, "key"));
        if let Err(why) = names::qualified_name(&format!("{name}/{key}")) {
            errors.invalid(&path.child("key"), key, why);
        }
        if !seen.insert(key) {
            errors.duplicate(&path.child("key"), key);
        }
        let at = path.child("valueExpression");
        match text(annotation, "valueExpression").trim() {
            "" => errors.required(&at, "valueExpression is not specified"),
            e if e.len() > MAX_ANNOTATION_EXPRESSION => {
                errors.required(&at, format!("must not exceed {MAX_ANNOTATION_EXPRESSION} bytes in length"));
            }
            e => expressions.add(e, admission_names(params, true, variables), at),
        }
    }
}

fn param_kind(kind: &Value, path: &Path, errors: &mut FieldErrors) {
    let (api_version, name) = (text(kind, "apiVersion"), text(kind, "kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let at = path.child("apiVersion");
    if api_version.is_empty() {
        errors.required(&at, "");
    } else if version.contains('/') {
        errors.invalid(&at, api_version, format!("unexpected GroupVersion string: {api_version}"));
    } else if version.is_empty() {
        errors.invalid(&at, api_version, "version must be specified");
    } else {
        if let Err(why) = dns_1035_label(version) {
            errors.invalid(&at, version, why);
        }
        if let Some(Err(why)) = (!group.is_empty()).then(|| dns_subdomain(group)) {
            errors.invalid(&at, group, why);
        }
    }
    if name.is_empty() {
        errors.required(&path.child("kind"), "");
    } else if let Err(why) = dns_1035_label(&name.to_lowercase()) {
        let detail = format!("may have mixed case, but should otherwise match: {why}");
        errors.invalid(&path.child("kind"), name, detail);
    }
}

/// A name that can be written in CEL.
fn is_identifier(name: &str) -> bool {
    const RESERVED: [&str; 21] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ];
    name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && !RESERVED.contains(&name)
}

fn binding(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    match text(spec, "policyName") {
        "" => errors.required(&path.child("policyName"), ""),
        name => {
            if let Err(why) = dns_subdomain(name) {
                errors.invalid(&path.child("policyName"), name, why);
            }
        }
    }
    if existing(spec, "paramRef") {
        param_ref(&spec["paramRef"], &path.child("paramRef"), errors);
    }
    if existing(spec, "matchResources") {
        admission::match_resources(&spec["matchResources"], &path.child("matchResources"), errors);
    }
    let (path, supported) = (path.child("validationActions"), ["Audit", "Deny", "Warn"]);
    let mut seen = HashSet::new();
    for (i, action) in list(spec, "validationActions").iter().enumerate() {
        let action = action.as_str().unwrap_or("");
        if !supported.contains(&action) {
            errors.not_supported(&path.index(i), action, &supported);
        }
        if !seen.insert(action) {
            errors.duplicate(&path.index(i), action);
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the \
                      API response and headers serves no purpose)";
        errors.invalid(&path, spec["validationActions"].clone(), detail);
    }
    if seen.is_empty() {
        errors.required(&path, "at least one validation action is required");
    }
}

fn param_ref(reference: &Value, path: &Path, errors: &mut FieldErrors) {
    let (name, selects) = (text(reference, "name"), existing(reference, "selector"));
    if !name.is_empty()
        && let Err(why) = path_segment(name)
    {
        errors.invalid(&path.child("name"), name, why);
    }
    match (name.is_empty(), selects) {
        (false, true) => {
            for key in ["name", "selector"] {
                errors.forbidden(&path.child(key), "name and selector are mutually exclusive");
            }
        }
        (true, false) => errors.required(path, "one of name or selector must be specified"),
        _ => {}
    }
    selector::label_selector(&reference["selector"], &path.child("selector"), errors);
    if has(reference, "parameterNotFoundAction") && !text(reference, "parameterNotFoundAction").is_empty() {
        admission::one_of(reference, "parameterNotFoundAction", &["Deny", "Allow"], path, errors);
    } else {
        errors.required(&path.child("parameterNotFoundAction"), "");
    }
}

fn policy_cells(o: &Value, now: i64) -> Vec<Value> {
    let kind = match existing(at(o, "spec"), "paramKind") {
        true => format!("{}/{}", text(o, "spec.paramKind.apiVersion"), text(o, "spec.paramKind.kind")),
        false => "<unset>".to_owned(),
    };
    vec![cell::name(o), json!(count(o, "spec.validations")), json!(kind), age::age(o, now)]
}

fn binding_cells(o: &Value, now: i64) -> Vec<Value> {
    let reference = at(o, "spec.paramRef");
    let params = match (text(reference, "namespace"), text(reference, "name")) {
        (_, "") if existing(reference, "selector") => cell::selector(&reference["selector"]),
        (_, "") => "<unset>".to_owned(),
        ("", name) => format!("*/{name}"),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    vec![cell::name(o), json!(text(o, "spec.policyName")), json!(params), age::age(o, now)]
}

#[cfg(test)]
mod tests;
