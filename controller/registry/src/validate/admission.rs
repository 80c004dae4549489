//! What webhook configurations and admission policies share: rules, selectors, expressions.

use super::{names, selector};
use crate::field::{self, FieldErrorType, FieldErrors, Path};
use crate::json::{existing, has, list, text};
use causeway_schema::cel::{Expression, Names, admission_names};
use serde_json::Value;
use std::collections::HashSet;

/// Match conditions of one webhook or policy.
const MAX_CONDITIONS: usize = 64;
/// Expressions of one object: each has to be compiled.
const MAX_EXPRESSIONS: usize = 1000;
/// Bytes of all of them together.
const MAX_TEXT: usize = 256 << 10;

fn texts<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    list(value, key).iter().map(|v| v.as_str().unwrap_or("")).collect()
}

/// One of the supported words; nothing at all is fine.
pub(crate) fn one_of(value: &Value, key: &str, supported: &[&str], path: &Path, errors: &mut FieldErrors) {
    let word = text(value, key);
    if has(value, key) && !supported.contains(&word) {
        errors.not_supported(&path.child(key), word, supported);
    }
}

/// A `RuleWithOperations`.
pub(crate) fn rule(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    let supported = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    for (key, what) in [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let (path, all) = (path.child(key), texts(rule, key));
        if all.is_empty() {
            errors.required(&path, "");
        }
        if all.len() > 1 && all.contains(&"*") {
            let detail = format!("if '*' is present, must not specify other {what}");
            errors.invalid(&path, rule[key].clone(), detail);
        }
        for (i, value) in all.iter().enumerate() {
            match key {
                "operations" if !supported.contains(value) => errors.not_supported(&path.index(i), *value, &supported),
                "apiVersions" if value.is_empty() => errors.required(&path.index(i), ""),
                _ => {}
            }
        }
    }
    resources(rule, &path.child("resources"), errors);
    one_of(rule, "scope", &["*", "Cluster", "Namespaced"], path, errors);
}

fn resources(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    let all = texts(rule, "resources");
    if all.is_empty() {
        errors.required(path, "");
    }
    // Resources of which all subresources are named, and subresources that are named of all resources.
    let (mut whole, mut everywhere) = (HashSet::new(), HashSet::new());
    for (i, name) in all.iter().enumerate() {
        if name.is_empty() {
            errors.required(&path.index(i), "");
        }
        let Some((resource, sub)) = name.split_once('/') else { continue };
        if whole.contains(resource) {
            let detail = format!("if '{resource}/*' is present, must not specify {name}");
            errors.invalid(&path.index(i), *name, detail);
        }
        if everywhere.contains(sub) {
            errors.invalid(&path.index(i), *name, format!("if '*/{sub}' is present, must not specify {name}"));
        }
        if sub == "*" {
            whole.insert(resource);
        }
        if resource == "*" {
            everywhere.insert(sub);
        }
    }
    if all.len() > 1 && all.contains(&"*/*") {
        errors.invalid(path, rule["resources"].clone(), "if '*/*' is present, must not specify other resources");
    }
    if all.contains(&"*") && all.iter().any(|name| *name != "*" && !name.contains('/')) {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(path, rule["resources"].clone(), detail);
    }
}

/// The two selectors and the match policy.
pub(crate) fn selection(value: &Value, path: &Path, errors: &mut FieldErrors) {
    one_of(value, "matchPolicy", &["Equivalent", "Exact"], path, errors);
    for key in ["namespaceSelector", "objectSelector"] {
        selector::label_selector(&value[key], &path.child(key), errors);
    }
}

/// `MatchResources` of a policy or a binding.
pub(crate) fn match_resources(value: &Value, path: &Path, errors: &mut FieldErrors) {
    for key in ["matchPolicy", "namespaceSelector", "objectSelector"] {
        if !has(value, key) {
            errors.required(&path.child(key), "");
        }
    }
    selection(value, path, errors);
    for key in ["resourceRules", "excludeResourceRules"] {
        for (i, r) in list(value, key).iter().enumerate() {
            let path = path.child(key).index(i);
            let mut seen = HashSet::new();
            for (j, name) in texts(r, "resourceNames").into_iter().enumerate() {
                let path = path.child("resourceNames").index(j);
                if let Err(why) = field::path_segment(name) {
                    errors.invalid(&path, name, why);
                }
                if !seen.insert(name) {
                    errors.duplicate(&path, name);
                }
            }
            rule(r, &path, errors);
        }
    }
}

/// Expressions to be compiled, all at once.
#[derive(Default)]
pub(crate) struct Expressions<'a> {
    all: Vec<(&'a str, Names<'a>)>,
    paths: Vec<Path>,
}

impl<'a> Expressions<'a> {
    /// One that is there; blanks are nothing.
    pub(crate) fn add(&mut self, expression: &'a str, names: Names<'a>, path: Path) {
        self.all.push((expression, names));
        self.paths.push(path);
    }

    /// Says which cannot be compiled.
    pub(crate) fn compile(self, path: &Path, errors: &mut FieldErrors) {
        let bytes: usize = self.all.iter().map(|(expression, _)| expression.len()).sum();
        if self.all.len() > MAX_EXPRESSIONS || bytes > MAX_TEXT {
            let detail = format!("must have at most {MAX_EXPRESSIONS} expressions of {MAX_TEXT} bytes together");
            errors.push(FieldErrorType::TooMany, path, None, detail);
            return;
        }
        if self.all.is_empty() {
            return;
        }
        let compiled = Expression::compile_all(&self.all);
        for ((result, (expression, _)), path) in compiled.into_iter().zip(&self.all).zip(&self.paths) {
            if let Err(why) = result {
                errors.invalid(path, *expression, format!("compilation failed: {why}"));
            }
        }
    }
}

/// `matchConditions`: their names; their expressions are left to be compiled.
pub(crate) fn conditions<'a>(
    value: &'a Value,
    params: bool,
    path: &Path,
    expressions: &mut Expressions<'a>,
    errors: &mut FieldErrors,
) {
    let all = list(value, "matchConditions");
    let path = path.child("matchConditions");
    if all.len() > MAX_CONDITIONS {
        let detail = format!("must have at most {MAX_CONDITIONS} items");
        errors.push(FieldErrorType::TooMany, &path, Some(all.len().into()), detail);
        return;
    }
    let mut seen = HashSet::new();
    for (i, condition) in all.iter().enumerate() {
        let (path, name) = (path.index(i), text(condition, "name"));
        match text(condition, "expression") {
            expression if expression.trim().is_empty() => errors.required(&path.child("expression"), ""),
            expression => expressions.add(expression, admission_names(params, true, &[]), path.child("expression")),
        }
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else if let Err(why) = names::qualified_name(name) {
            errors.invalid(&path.child("name"), name, why);
        } else if !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
    }
}

/// `clientConfig`: an https address or a service.
pub(crate) fn client_config(config: &Value, path: &Path, errors: &mut FieldErrors) {
    match (has(config, "url"), existing(config, "service")) {
        (true, false) => url(text(config, "url"), &path.child("url"), errors),
        (false, true) => service(&config["service"], &path.child("service"), errors),
        _ => errors.required(path, "exactly one of url or service is required"),
    }
}

fn url(url: &str, path: &Path, errors: &mut FieldErrors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let Some((scheme, rest)) = url.split_once("://") else {
        errors.invalid(path, url, format!("'https' is the only allowed URL scheme{FORM}"));
        return;
    };
    if scheme != "https" {
        errors.invalid(path, scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if host.is_empty() {
        errors.invalid(path, host, format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        errors.invalid(path, user, "user information is not permitted in the URL");
    }
    if let Some((_, fragment)) = tail.split_once('#') {
        errors.invalid(path, fragment, "fragments are not permitted in the URL");
    }
    if let Some((_, query)) = tail.split('#').next().unwrap_or("").split_once('?') {
        errors.invalid(path, query, "query parameters are not permitted in the URL");
    }
    if url.chars().any(|c| c.is_control() || c.is_whitespace()) {
        errors.invalid(path, url, "url must be a valid URL");
    }
}

fn service(service: &Value, path: &Path, errors: &mut FieldErrors) {
    for key in ["name", "namespace"] {
        if text(service, key).is_empty() {
            errors.required(&path.child(key), format!("service {key} is required"));
        }
    }
    if let Some(port) = service["port"].as_i64()
        && let Err(why) = names::port_number(port)
    {
        errors.invalid(&path.child("port"), port, format!("port is not valid: {why}"));
    }
    let (path, target) = (path.child("path"), text(service, "path"));
    if !has(service, "path") || target == "/" {
        return;
    }
    let Some(rest) = target.strip_prefix('/') else {
        errors.invalid(&path, target, "must start with a '/'");
        return;
    };
    for (i, segment) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if segment.is_empty() {
            errors.invalid(&path, target, format!("segment[{i}] may not be empty"));
        } else if let Err(why) = field::dns_subdomain(segment) {
            errors.invalid(&path, target, format!("segment[{i}]: {why}"));
        }
    }
}
