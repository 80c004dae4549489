//! OpenAPI: made once for each state of the table of what is served, however often it is asked for.
//!
//! In: the table. Out: the index and the documents of OpenAPI v3, each with an entity tag, and an empty v2.

use super::discovery::{VIRTUAL, groups, singular};
use crate::catalog::{Document, Table};
use crate::exchange::{Incoming, Reply};
use crate::serialization::render::{Form, accept_clauses};
use crate::status::{ApiError, ApiResult};
use causeway_schema::openapi::ServedResource;
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Serves a path below `/openapi`.
pub fn serve(table: &Table, parts: &[&str], incoming: &Incoming) -> ApiResult<Reply> {
    match parts {
        ["openapi", "v2"] => openapi_v2(incoming),
        ["openapi", "v3"] => {
            let made = table.document("", || Ok(encoded("", &index(table))))?;
            Ok(Reply::new(StatusCode::OK, Form::Json, made.body.clone()))
        }
        ["openapi", "v3", "api", version] => of_version(table, "", version, incoming),
        ["openapi", "v3", "apis", group, version] => of_version(table, group, version, incoming),
        _ => Err(ApiError::no_such_path()),
    }
}

fn encoded(hash: &str, document: &Value) -> Document {
    Document { hash: hash.to_owned(), body: serde_json::to_vec(document).unwrap_or_default().into() }
}

fn of_version(table: &Table, group: &str, version: &str, incoming: &Incoming) -> ApiResult<Reply> {
    let made = table.document(&format!("{group}/{version}"), || {
        let document = document(table, group, version)?;
        Ok(encoded(&hash_of(table, group, version), &document))
    })?;
    let etag = format!("\"{}\"", made.hash);
    if incoming.header("if-none-match") == etag {
        return Ok(Reply::text(StatusCode::NOT_MODIFIED, ""));
    }
    let mut reply = Reply::new(StatusCode::OK, Form::Json, made.body.clone());
    if let Ok(value) = HeaderValue::from_str(&etag) {
        reply.0.headers_mut().insert(http::header::ETAG, value);
    }
    if incoming.info.query.get("hash") == Some(made.hash.as_str()) {
        reply.0.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    Ok(reply)
}

/// The documents there are, with their hashes.
fn index(table: &Table) -> Value {
    let mut paths = Map::new();
    for (group, versions) in groups(table) {
        for version in versions {
            let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            let hash = hash_of(table, &group, &version);
            paths.insert(path.clone(), json!({ "serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}") }));
        }
    }
    json!({ "paths": paths })
}

/// Changes whenever the document may change.
fn hash_of(table: &Table, group: &str, version: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(causeway_api::version::GIT_VERSION);
    for served in table.in_version(group, version) {
        let r = &served.resource;
        hash.update(format!("{}/{}/{}/{:?}", r.plural, r.kind, r.status, r.scale));
        if let Some(custom) = &served.custom {
            hash.update(custom.openapi.to_string());
        }
    }
    hash.finalize().iter().map(|b| format!("{b:02X}")).collect()
}

/// The OpenAPI v3 document of one group and version.
fn document(table: &Table, group: &str, version: &str) -> ApiResult<Value> {
    let mut resources: Vec<ServedResource> = table
        .in_version(group, version)
        .map(|served| {
            let r = &served.resource;
            ServedResource {
                group: r.group.clone(),
                version: r.version.clone(),
                kind: r.kind.clone(),
                plural: r.plural.clone(),
                singular: r.singular.clone(),
                namespaced: served.namespaced(),
                verbs: r.verbs.clone(),
                status: r.status,
                scale: r.scale.is_some(),
                schema: served.custom.as_ref().map(|c| c.openapi.clone()),
            }
        })
        .collect();
    for (g, v, e) in VIRTUAL.iter().filter(|(g, v, _)| *g == group && *v == version) {
        resources.push(ServedResource {
            group: (*g).to_owned(),
            version: (*v).to_owned(),
            kind: e.kind.to_owned(),
            plural: e.name.to_owned(),
            singular: singular(e.kind),
            namespaced: e.namespaced,
            verbs: vec!["create".to_owned()],
            status: false,
            scale: false,
            schema: None,
        });
    }
    if resources.is_empty() {
        return Err(ApiError::no_such_path());
    }
    Ok(causeway_schema::openapi::v3_document(group, version, &resources))
}

/// OpenAPI v2 without content: kubectl asks for it when v3 does not know a kind, and then looks the kind up.
fn openapi_v2(incoming: &Incoming) -> ApiResult<Reply> {
    let protobuf = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    if !accept_clauses(incoming.header("accept")).iter().any(|(media, _)| media == protobuf) {
        let info = json!({ "title": "Kubernetes", "version": causeway_api::version::GIT_VERSION });
        return Ok(Reply::json(StatusCode::OK, &json!({ "swagger": "2.0", "info": info, "paths": {} })));
    }
    // Document { swagger = 1, info = 2 { title = 1, version = 2 }, paths = 8 {} }
    let field = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8], bytes].concat();
    let info = [field(1, b"Kubernetes"), field(2, causeway_api::version::GIT_VERSION.as_bytes())].concat();
    let body = [field(1, b"2.0"), field(2, &info), field(8, b"")].concat();
    let mut response = http::Response::new(axum::body::Body::from(body));
    // What is asked for with "@" is no valid media type: the answer has a dot there, as upstream's.
    let kind = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(Reply(response))
}
