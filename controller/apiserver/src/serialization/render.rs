//! Bodies out: JSON, YAML, tables and metadata-only forms of objects, lists and watch events.
//!
//! In: `Accept`, objects and pages. Out: bytes. Tables are what `kubectl get` shows; the cells come from the registry.

use crate::catalog::Served;
use crate::engine::{Engine, Event, Page};
use crate::object::Object;
use crate::status::{ApiError, ApiResult};
use axum::body::Body;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// What is shown of each object of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// Only the cells.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As stored.
    Json,
    /// As stored, in YAML.
    Yaml,
    /// meta.k8s.io/v1 Table.
    Table(Include),
    /// meta.k8s.io/v1 PartialObjectMetadata.
    Partial,
}

/// One clause of an `Accept` header: media type and parameters.
pub fn accept_clauses(accept: &str) -> Vec<(String, Vec<(String, String)>)> {
    accept
        .split(',')
        .map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or("").to_ascii_lowercase();
            let parameters = parts
                .filter_map(|p| p.split_once('='))
                .map(|(k, v)| (k.trim().to_owned(), v.trim().trim_matches('"').to_owned()))
                .collect();
            (media, parameters)
        })
        .filter(|(media, _)| !media.is_empty())
        .collect()
}

impl Form {
    /// The first form of `Accept` that can be produced. A client that only knows protobuf gets JSON.
    pub fn negotiate(accept: &str, include: Option<&str>) -> ApiResult<Self> {
        let clauses = accept_clauses(accept);
        if clauses.is_empty() {
            return Ok(Self::Json);
        }
        let mut protobuf = false;
        for (media, parameters) in &clauses {
            let parameter = |key: &str| parameters.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
            match media.as_str() {
                "application/json" | "application/*" | "*/*" => match (parameter("as"), parameter("v")) {
                    (None, _) => return Ok(Self::Json),
                    (Some("Table"), Some("v1")) => return Ok(Self::Table(include_of(include)?)),
                    (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("v1")) => {
                        return Ok(Self::Partial);
                    }
                    _ => {}
                },
                "application/yaml" if parameter("as").is_none() => return Ok(Self::Yaml),
                "application/vnd.kubernetes.protobuf" => match parameter("as") {
                    None => protobuf = true,
                    Some("Table") if parameter("v") == Some("v1") => return Ok(Self::Table(include_of(include)?)),
                    Some("PartialObjectMetadata" | "PartialObjectMetadataList") => return Ok(Self::Partial),
                    Some(_) => {}
                },
                _ => {}
            }
        }
        if protobuf { Ok(Self::Json) } else { Err(ApiError::not_acceptable()) }
    }

    /// Media type of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Yaml => "application/yaml",
            _ => "application/json",
        }
    }
}

fn include_of(parameter: Option<&str>) -> ApiResult<Include> {
    match parameter {
        None | Some("Metadata") => Ok(Include::Metadata),
        Some("None") => Ok(Include::None),
        Some("Object") => Ok(Include::Object),
        Some(other) => Err(ApiError::bad_request(format!("unrecognized includeObject value: {other:?}"))),
    }
}

/// Only identity and metadata.
fn partial(value: &Value) -> Value {
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"] })
}

fn column_definitions(served: &Served) -> Value {
    let columns = served.resource.columns.iter().map(|c| {
        json!({ "name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority })
    });
    columns.collect::<Vec<_>>().into()
}

fn row(served: &Served, value: Value, include: Include, now: i64) -> Value {
    let cells = served.resource.strategy.cells(&value, now);
    match include {
        Include::None => json!({ "cells": cells }),
        Include::Metadata => json!({ "cells": cells, "object": partial(&value) }),
        Include::Object => json!({ "cells": cells, "object": value }),
    }
}

fn table(served: &Served, columns: bool, metadata: Value, rows: Vec<Value>) -> Value {
    let columns = if columns { column_definitions(served) } else { json!([]) };
    json!({ "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": columns, "rows": rows })
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn encode(form: Form, value: &Value) -> Bytes {
    let text = match form {
        Form::Yaml => serde_yaml_ng::to_string(value).unwrap_or_default().into_bytes(),
        _ => serde_json::to_vec(value).unwrap_or_default(),
    };
    text.into()
}

/// An object that was just written.
pub fn value(served: &Served, form: Form, object: Value) -> Bytes {
    match form {
        Form::Json | Form::Yaml => encode(form, &object),
        Form::Partial => encode(form, &partial(&object)),
        Form::Table(include) => {
            let metadata = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
            encode(form, &table(served, true, metadata, vec![row(served, object, include, now())]))
        }
    }
}

/// An object from the cache.
pub fn object(served: &Served, form: Form, object: &Object) -> Bytes {
    match form {
        Form::Json => Engine::show(served, object),
        _ => value(served, form, Engine::show_value(served, object)),
    }
}

/// Bytes of a list that are made and sent at a time.
const CHUNK: usize = 256 * 1024;

/// A list. A long one is made while it is sent: no more than [`CHUNK`] of it (or one object) is in memory beside the
/// objects, which the cache has anyway.
pub fn list(served: &Arc<Served>, form: Form, page: Page) -> Body {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), page.revision.to_string().into());
    if !page.continue_token.is_empty() {
        metadata.insert("continue".to_owned(), page.continue_token.as_str().into());
    }
    if let Some(remaining) = page.remaining {
        metadata.insert("remainingItemCount".to_owned(), remaining.into());
    }
    let metadata = Value::Object(metadata);
    if form == Form::Yaml {
        let items: Vec<Value> = page.objects.iter().map(|o| Engine::show_value(served, o)).collect();
        let r = &served.resource;
        let list =
            json!({ "kind": r.list_kind, "apiVersion": served.api_version, "metadata": metadata, "items": items });
        return Body::from(encode(form, &list));
    }
    let (head, served) = (list_head(served, form, metadata), served.clone());
    let mut chunks = Chunks { served, form, objects: page.objects.into_iter(), now: now(), open: Some(head) };
    let first = chunks.next().unwrap_or_default();
    if chunks.open.is_none() {
        return Body::from(first);
    }
    let all = std::iter::once(first).chain(chunks).map(Ok::<_, std::convert::Infallible>);
    Body::from_stream(futures::stream::iter(all))
}

/// A list up to its first item.
fn list_head(served: &Served, form: Form, metadata: Value) -> Vec<u8> {
    let (mut frame, items) = match form {
        Form::Table(_) => (table(served, true, metadata, Vec::new()), "rows"),
        Form::Partial => {
            let (kind, version) = ("PartialObjectMetadataList", "meta.k8s.io/v1");
            (json!({ "kind": kind, "apiVersion": version, "metadata": metadata }), "items")
        }
        Form::Json | Form::Yaml => {
            let (kind, version) = (&served.resource.list_kind, &served.api_version);
            (json!({ "kind": kind, "apiVersion": version, "metadata": metadata }), "items")
        }
    };
    if let Some(frame) = frame.as_object_mut() {
        frame.shift_remove(items);
    }
    let mut head = serde_json::to_vec(&frame).unwrap_or_default();
    head.pop();
    head.extend_from_slice(format!(",\"{items}\":[").as_bytes());
    head
}

/// A list in pieces.
struct Chunks {
    served: Arc<Served>,
    form: Form,
    objects: std::vec::IntoIter<Arc<Object>>,
    now: i64,
    /// What the next piece begins with; `None` when the list is closed.
    open: Option<Vec<u8>>,
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = self.open.take()?;
        while let Some(object) = self.objects.next() {
            match self.form {
                // Every object is encoded already.
                Form::Json | Form::Yaml => out.extend_from_slice(&Engine::show(&self.served, &object)),
                Form::Partial => {
                    out.extend_from_slice(&encode(self.form, &partial(&Engine::show_value(&self.served, &object))));
                }
                Form::Table(include) => {
                    let value = Engine::show_value(&self.served, &object);
                    out.extend_from_slice(&encode(self.form, &row(&self.served, value, include, self.now)));
                }
            }
            if self.objects.as_slice().is_empty() {
                break;
            }
            out.push(b',');
            if out.len() >= CHUNK {
                self.open = Some(Vec::new());
                return Some(out.into());
            }
        }
        out.extend_from_slice(b"]}\n");
        Some(out.into())
    }
}

/// Encodes watch events, one a line.
pub struct EventEncoder {
    form: Form,
    columns_sent: bool,
}

impl EventEncoder {
    /// For one watch.
    pub fn new(form: Form) -> Self {
        Self { form, columns_sent: false }
    }

    /// One event with its newline.
    pub fn encode(&mut self, served: &Served, event: &Event, out: &mut Vec<u8>) {
        let (kind, object) = match event {
            Event::Added(object) => ("ADDED", object),
            Event::Modified(object) => ("MODIFIED", object),
            Event::Deleted(object) => ("DELETED", object),
            Event::Bookmark(revision, initial_end) => {
                let bookmark = self.bookmark(served, *revision, *initial_end);
                return line("BOOKMARK", &encode(Form::Json, &bookmark), out);
            }
        };
        let body = match self.form {
            Form::Json | Form::Yaml => Engine::show(served, object),
            Form::Partial => encode(Form::Json, &partial(&Engine::show_value(served, object))),
            Form::Table(include) => {
                let value = Engine::show_value(served, object);
                let metadata = json!({ "resourceVersion": value["metadata"]["resourceVersion"] });
                let first = !std::mem::replace(&mut self.columns_sent, true);
                encode(Form::Json, &table(served, first, metadata, vec![row(served, value, include, now())]))
            }
        };
        line(kind, &body, out);
    }

    fn bookmark(&self, served: &Served, revision: u64, initial_end: bool) -> Value {
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        match self.form {
            Form::Table(_) => table(served, !self.columns_sent, metadata, Vec::new()),
            Form::Partial => {
                json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
            }
            _ => json!({ "kind": served.resource.kind, "apiVersion": served.api_version, "metadata": metadata }),
        }
    }
}

/// The event that ends a watch with an error.
pub fn error_event(error: &ApiError) -> Vec<u8> {
    let mut out = Vec::new();
    line("ERROR", &encode(Form::Json, &error.status()), &mut out);
    out
}

fn line(kind: &str, object: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiation() {
        let form = |accept: &str| Form::negotiate(accept, None);
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(form(kubectl).unwrap(), Form::Table(Include::Metadata));
        assert_eq!(form("").unwrap(), Form::Json);
        assert_eq!(form("application/vnd.kubernetes.protobuf").unwrap(), Form::Json);
        assert_eq!(form("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").unwrap(), Form::Partial);
        assert_eq!(form("text/html").unwrap_err().code(), 406);
        assert_eq!(form("text/html, */*").unwrap(), Form::Json);
    }
}
