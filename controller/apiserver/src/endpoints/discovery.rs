//! What is served, as clients discover it: groups, resources, aggregated documents.

use crate::catalog::{Served, Table, api_version};
use crate::endpoints::Endpoints;
use crate::exchange::{Incoming, Reply};
use crate::serialization::render::accept_clauses;
use crate::status::{ApiError, ApiResult};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A subresource or a resource without objects, as discovery lists it.
pub(super) struct Entry {
    pub(super) name: &'static str,
    group: &'static str,
    version: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespaced: bool,
    verbs: &'static [&'static str],
}

const fn entry(
    name: &'static str,
    gvk: (&'static str, &'static str, &'static str),
    namespaced: bool,
    verbs: &'static [&'static str],
) -> Entry {
    Entry { name, group: gvk.0, version: gvk.1, kind: gvk.2, namespaced, verbs }
}

/// Subresources beyond `status` and `scale`: (group, plural) and what hangs below.
const SUBRESOURCES: &[(&str, &str, Entry)] = &[
    ("", "namespaces", entry("finalize", ("", "v1", "Namespace"), false, &["update"])),
    ("", "pods", entry("attach", ("", "v1", "PodAttachOptions"), true, &["create", "get"])),
    ("", "pods", entry("binding", ("", "v1", "Binding"), true, &["create"])),
    ("", "pods", entry("ephemeralcontainers", ("", "v1", "Pod"), true, &["get", "patch", "update"])),
    ("", "pods", entry("eviction", ("policy", "v1", "Eviction"), true, &["create"])),
    ("", "pods", entry("exec", ("", "v1", "PodExecOptions"), true, &["create", "get"])),
    ("", "pods", entry("log", ("", "v1", "Pod"), true, &["get"])),
    ("", "pods", entry("portforward", ("", "v1", "PodPortForwardOptions"), true, &["create", "get"])),
    (
        "certificates.k8s.io",
        "certificatesigningrequests",
        entry(
            "approval",
            ("certificates.k8s.io", "v1", "CertificateSigningRequest"),
            false,
            &["get", "patch", "update"],
        ),
    ),
    ("", "serviceaccounts", entry("token", ("authentication.k8s.io", "v1", "TokenRequest"), true, &["create"])),
];

/// Resources that are only asked, never stored: their group, version and entry.
pub(super) const VIRTUAL: &[(&str, &str, Entry)] = &[
    ("", "v1", entry("bindings", ("", "v1", "Binding"), true, &["create"])),
    (
        "authentication.k8s.io",
        "v1",
        entry("tokenreviews", ("authentication.k8s.io", "v1", "TokenReview"), false, &["create"]),
    ),
    (
        "authentication.k8s.io",
        "v1",
        entry("selfsubjectreviews", ("authentication.k8s.io", "v1", "SelfSubjectReview"), false, &["create"]),
    ),
    (
        "authorization.k8s.io",
        "v1",
        entry("subjectaccessreviews", ("authorization.k8s.io", "v1", "SubjectAccessReview"), false, &["create"]),
    ),
    (
        "authorization.k8s.io",
        "v1",
        entry(
            "selfsubjectaccessreviews",
            ("authorization.k8s.io", "v1", "SelfSubjectAccessReview"),
            false,
            &["create"],
        ),
    ),
    (
        "authorization.k8s.io",
        "v1",
        entry(
            "localsubjectaccessreviews",
            ("authorization.k8s.io", "v1", "LocalSubjectAccessReview"),
            true,
            &["create"],
        ),
    ),
    (
        "authorization.k8s.io",
        "v1",
        entry("selfsubjectrulesreviews", ("authorization.k8s.io", "v1", "SelfSubjectRulesReview"), false, &["create"]),
    ),
];

pub(super) fn groups(table: &Table) -> Vec<(String, Vec<String>)> {
    let mut groups = table.groups();
    for (group, version, _) in VIRTUAL {
        match groups.iter_mut().find(|(g, _)| g == group) {
            Some((_, versions)) if versions.iter().any(|v| v == version) => {}
            Some((_, versions)) => versions.push((*version).to_owned()),
            None => groups.push(((*group).to_owned(), vec![(*version).to_owned()])),
        }
    }
    groups
}

/// Everything below one resource: name, group, version, kind, verbs.
fn subresources(served: &Served) -> Vec<(String, String, String, String, Vec<String>)> {
    let r = &served.resource;
    let own = |verbs: &[&str]| verbs.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
    let mut all = Vec::new();
    if r.status {
        let entry =
            ("status".to_owned(), r.group.clone(), r.version.clone(), r.kind.clone(), own(&["get", "patch", "update"]));
        all.push(entry);
    }
    if r.scale.is_some() {
        let verbs = own(&["get", "patch", "update"]);
        all.push(("scale".to_owned(), "autoscaling".to_owned(), "v1".to_owned(), "Scale".to_owned(), verbs));
    }
    for (_, _, e) in SUBRESOURCES.iter().filter(|(group, plural, _)| served.is(group, plural)) {
        all.push((e.name.to_owned(), e.group.to_owned(), e.version.to_owned(), e.kind.to_owned(), own(e.verbs)));
    }
    all
}

fn resource_list(table: &Table, group: &str, version: &str) -> Value {
    let mut resources = Vec::new();
    for served in table.in_version(group, version) {
        let r = &served.resource;
        let mut item = json!({
            "name": r.plural, "singularName": r.singular, "namespaced": served.namespaced(), "kind": r.kind, "verbs": r.verbs,
        });
        if !r.short_names.is_empty() {
            item["shortNames"] = json!(r.short_names);
        }
        if !r.categories.is_empty() {
            item["categories"] = json!(r.categories);
        }
        let hash = Sha256::digest(served.prefix.as_bytes());
        item["storageVersionHash"] = base64_of(&hash[..8]).into();
        resources.push(item);
        for (name, g, v, kind, verbs) in subresources(served) {
            let mut item = json!({
                "name": format!("{}/{name}", r.plural), "singularName": "", "namespaced": served.namespaced(), "kind": kind, "verbs": verbs,
            });
            if (g.as_str(), v.as_str()) != (group, version) {
                item["group"] = g.into();
                item["version"] = v.into();
            }
            resources.push(item);
        }
    }
    for (_, _, e) in VIRTUAL.iter().filter(|(g, v, _)| *g == group && *v == version) {
        resources.push(json!({
            "name": e.name, "singularName": singular(e.kind), "namespaced": e.namespaced, "kind": e.kind, "verbs": e.verbs,
        }));
    }
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version), "resources": resources })
}

pub(super) fn singular(kind: &str) -> String {
    kind.to_ascii_lowercase()
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn api_group(group: &str, versions: &[String]) -> Value {
    let list: Vec<Value> =
        versions.iter().map(|v| json!({ "groupVersion": api_version(group, v), "version": v })).collect();
    json!({ "name": group, "versions": list, "preferredVersion": list.first() })
}

/// The aggregated form of one group (apidiscovery.k8s.io).
fn aggregated_group(table: &Table, group: &str, versions: &[String]) -> Value {
    let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
    let gvk = |g: &str, v: &str, k: &str| json!({ "group": g, "version": v, "kind": k });
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            let mut resources = Vec::new();
            for served in table.in_version(group, version) {
                let r = &served.resource;
                let mut item = json!({
                    "resource": r.plural, "responseKind": gvk(&r.group, &r.version, &r.kind),
                    "scope": scope(served.namespaced()), "singularResource": r.singular, "verbs": r.verbs,
                });
                if !r.short_names.is_empty() {
                    item["shortNames"] = json!(r.short_names);
                }
                if !r.categories.is_empty() {
                    item["categories"] = json!(r.categories);
                }
                let below: Vec<Value> = subresources(served)
                    .into_iter()
                    .map(|(name, g, v, kind, verbs)| {
                        json!({ "subresource": name, "responseKind": gvk(&g, &v, &kind), "verbs": verbs })
                    })
                    .collect();
                if !below.is_empty() {
                    item["subresources"] = below.into();
                }
                resources.push(item);
            }
            for (g, _, e) in VIRTUAL.iter().filter(|(g, v, _)| *g == group && v == version) {
                resources.push(json!({
                    "resource": e.name, "responseKind": gvk(g, version, e.kind), "scope": scope(e.namespaced),
                    "singularResource": singular(e.kind), "verbs": e.verbs,
                }));
            }
            json!({ "version": version, "resources": resources, "freshness": "Current" })
        })
        .collect();
    let metadata = if group.is_empty() { json!({}) } else { json!({ "name": group }) };
    json!({ "metadata": metadata, "versions": versions })
}

/// The version of the aggregated form that the client asks for, if it does.
fn aggregated_version(accept: &str) -> Option<&'static str> {
    accept_clauses(accept).into_iter().find_map(|(media, parameters)| {
        let parameter = |key: &str| parameters.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        let wanted = media == "application/json"
            && parameter("g") == Some("apidiscovery.k8s.io")
            && parameter("as") == Some("APIGroupDiscoveryList");
        match parameter("v").filter(|_| wanted) {
            Some("v2") => Some("v2"),
            Some("v2beta1") => Some("v2beta1"),
            _ => None,
        }
    })
}

fn aggregated(version: &str, items: Vec<Value>) -> Reply {
    let body = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items,
    });
    let mut reply = Reply::json(StatusCode::OK, &body);
    let text = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let Ok(value) = HeaderValue::from_str(&text) {
        reply.0.headers_mut().insert(http::header::CONTENT_TYPE, value);
    }
    reply.0.headers_mut().insert(http::header::VARY, HeaderValue::from_static("Accept"));
    reply
}

impl Endpoints {
    /// Discovery paths, and OpenAPI's; everything else is 404.
    pub(crate) fn discovery(&self, parts: &[&str], incoming: &Incoming) -> ApiResult<Reply> {
        let table = self.engine.catalog.table();
        let asked = aggregated_version(incoming.header("accept"));
        let ok = |value: Value| Ok(Reply::json(StatusCode::OK, &value));
        match (parts, asked) {
            ([], _) => {
                let mut paths = vec!["/api".to_owned(), "/apis".to_owned(), "/healthz".to_owned(), "/livez".to_owned()];
                paths.extend(["/metrics", "/openapi/v3", "/readyz", "/version"].map(str::to_owned));
                ok(json!({ "paths": paths }))
            }
            (["api"], Some(version)) => Ok(aggregated(version, vec![aggregated_group(&table, "", &["v1".to_owned()])])),
            (["api"], None) => {
                ok(json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }))
            }
            (["apis"], Some(version)) => {
                let all = groups(&table);
                let items =
                    all.iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| aggregated_group(&table, g, v)).collect();
                Ok(aggregated(version, items))
            }
            (["apis"], None) => {
                let all = groups(&table);
                let list: Vec<Value> =
                    all.iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| api_group(g, v)).collect();
                ok(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": list }))
            }
            (["api", "v1"], _) => ok(resource_list(&table, "", "v1")),
            (["apis", group], _) => {
                let all = groups(&table);
                let (group, versions) =
                    all.iter().find(|(g, _)| g == group && !g.is_empty()).ok_or_else(ApiError::no_such_path)?;
                let mut body = json!({ "kind": "APIGroup", "apiVersion": "v1" });
                if let (Value::Object(body), Value::Object(mut fields)) = (&mut body, api_group(group, versions)) {
                    body.append(&mut fields);
                }
                ok(body)
            }
            (["apis", group, version], _) => {
                let all = groups(&table);
                let known = all.iter().any(|(g, v)| g == group && !g.is_empty() && v.iter().any(|v| v == version));
                if !known {
                    return Err(ApiError::no_such_path());
                }
                ok(resource_list(&table, group, version))
            }
            (["openapi", ..], _) => super::openapi::serve(&table, parts, incoming),
            _ => Err(ApiError::no_such_path()),
        }
    }
}
