//! `paths` of a document: the operations of each resource with their parameters.

use super::ServedResource;
use super::components::Components;
use serde_json::{Map, Value, json};

const BODIES: [&str; 2] = ["application/json", "application/yaml"];
const PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// What the operations of one resource need.
struct Scope<'a> {
    resource: &'a ServedResource,
    object: Value,
    list: Value,
    status: Value,
    delete_options: Value,
    patch: Value,
}

/// Adds the paths of a resource.
pub(super) fn add(resource: &ServedResource, components: &mut Components<'_>, paths: &mut Map<String, Value>) {
    let (object, list) = components.resource(resource);
    let scope = Scope {
        resource,
        object,
        list,
        status: components.builtin("", "v1", "Status"),
        delete_options: components.builtin("", "v1", "DeleteOptions"),
        patch: json!({"type": "object", "description": "The patch; its media type says which kind it is."}),
    };
    let ServedResource { group, version, plural, .. } = resource;
    let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let base = if resource.namespaced {
        format!("{root}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("{root}/{plural}")
    };
    if resource.namespaced && resource.serves("list") {
        let mut item = Map::new();
        item.insert("get".to_owned(), scope.list_operation("ForAllNamespaces"));
        item.insert("parameters".to_owned(), json!([PRETTY.parameter()]));
        paths.insert(format!("{root}/{plural}"), Value::Object(item));
    }
    paths.insert(base.clone(), scope.collection());
    let gvk = resource.gvk();
    paths.insert(format!("{base}/{{name}}"), scope.single("", &scope.object, &gvk));
    if resource.status {
        paths.insert(format!("{base}/{{name}}/status"), scope.single("Status", &scope.object, &gvk));
    }
    if resource.scale {
        let scale = components.builtin("autoscaling", "v1", "Scale");
        let gvk = json!({"group": "autoscaling", "version": "v1", "kind": "Scale"});
        paths.insert(format!("{base}/{{name}}/scale"), scope.single("Scale", &scale, &gvk));
    }
}

impl ServedResource {
    fn serves(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    fn gvk(&self) -> Value {
        json!({"group": self.group, "version": self.version, "kind": self.kind})
    }

    /// `AppsV1NamespacedDeployment`
    fn operation_name(&self) -> String {
        let group = match self.group.split('.').next() {
            Some("") | None => "core",
            Some(first) => first,
        };
        let scope = if self.namespaced { "Namespaced" } else { "" };
        format!("{}{}{scope}{}", capital(group), capital(&self.version), self.kind)
    }
}

impl Scope<'_> {
    fn collection(&self) -> Value {
        let mut item = Map::new();
        if self.resource.serves("list") {
            item.insert("get".to_owned(), self.list_operation(""));
        }
        if self.resource.serves("create") {
            let mut operation = self.operation("create", "post", "", &self.resource.gvk());
            operation["parameters"] = parameters(&[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION]);
            operation["requestBody"] = body(&BODIES, &self.object);
            operation["responses"] = responses(&["200", "201", "202"], &self.object);
            item.insert("post".to_owned(), operation);
        }
        if self.resource.serves("deletecollection") {
            let mut operation = self.operation("deleteCollection", "deletecollection", "", &self.resource.gvk());
            operation["parameters"] = parameters(&[
                CONTINUE,
                DRY_RUN,
                FIELD_SELECTOR,
                GRACE_PERIOD,
                LABEL_SELECTOR,
                LIMIT,
                ORPHAN,
                PROPAGATION,
                RESOURCE_VERSION,
                VERSION_MATCH,
                INITIAL_EVENTS,
                TIMEOUT,
            ]);
            operation["requestBody"] = body(&BODIES, &self.delete_options);
            operation["responses"] = responses(&["200"], &self.status);
            item.insert("delete".to_owned(), operation);
        }
        item.insert("parameters".to_owned(), self.path_parameters(false));
        Value::Object(item)
    }

    fn list_operation(&self, suffix: &str) -> Value {
        let mut operation = self.operation("list", "list", suffix, &self.resource.gvk());
        operation["parameters"] = parameters(&[
            BOOKMARKS,
            CONTINUE,
            FIELD_SELECTOR,
            LABEL_SELECTOR,
            LIMIT,
            RESOURCE_VERSION,
            VERSION_MATCH,
            INITIAL_EVENTS,
            TIMEOUT,
            WATCH,
        ]);
        operation["responses"] = responses(&["200"], &self.list);
        operation
    }

    /// The operations on one object, or on a subresource of it.
    fn single(&self, subresource: &str, object: &Value, gvk: &Value) -> Value {
        let mut item = Map::new();
        if self.resource.serves("get") {
            let mut operation = self.operation("read", "get", subresource, gvk);
            operation["responses"] = responses(&["200"], object);
            item.insert("get".to_owned(), operation);
        }
        if self.resource.serves("update") {
            let mut operation = self.operation("replace", "put", subresource, gvk);
            operation["parameters"] = parameters(&[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION]);
            operation["requestBody"] = body(&BODIES, object);
            operation["responses"] = responses(&["200", "201"], object);
            item.insert("put".to_owned(), operation);
        }
        if self.resource.serves("patch") {
            let mut operation = self.operation("patch", "patch", subresource, gvk);
            operation["parameters"] = parameters(&[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE]);
            let mut types = PATCHES.to_vec();
            if self.resource.schema.is_none() {
                types.push(STRATEGIC);
            }
            operation["requestBody"] = body(&types, &self.patch);
            operation["responses"] = responses(&["200", "201"], object);
            item.insert("patch".to_owned(), operation);
        }
        if subresource.is_empty() && self.resource.serves("delete") {
            let mut operation = self.operation("delete", "delete", subresource, gvk);
            operation["parameters"] = parameters(&[DRY_RUN, GRACE_PERIOD, ORPHAN, PROPAGATION]);
            operation["requestBody"] = body(&BODIES, &self.delete_options);
            operation["requestBody"]["required"] = false.into();
            operation["responses"] = responses(&["200", "202"], &self.status);
            item.insert("delete".to_owned(), operation);
        }
        item.insert("parameters".to_owned(), self.path_parameters(true));
        Value::Object(item)
    }

    fn operation(&self, verb: &str, action: &str, suffix: &str, gvk: &Value) -> Value {
        let name = self.resource.operation_name();
        json!({
            "operationId": format!("{verb}{name}{suffix}"),
            "description": format!("{verb} {} {}", self.resource.kind, suffix.to_lowercase()).trim_end(),
            "tags": [tag(&self.resource.group, &self.resource.version)],
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        })
    }

    fn path_parameters(&self, named: bool) -> Value {
        let in_path = |name: &str, text: &str| {
            json!({"name": name, "in": "path", "required": true, "description": text,
                "schema": {"type": "string", "uniqueItems": true}})
        };
        let mut all = Vec::new();
        if named {
            all.push(in_path("name", &format!("name of the {}", self.resource.kind)));
        }
        if self.resource.namespaced {
            all.push(in_path("namespace", "object name and auth scope, such as for teams and projects"));
        }
        all.push(PRETTY.parameter());
        Value::Array(all)
    }
}

/// A query parameter: name, type, text.
#[derive(Clone, Copy)]
struct Query(&'static str, &'static str, &'static str);

impl Query {
    fn parameter(self) -> Value {
        let Self(name, kind, text) = self;
        json!({"name": name, "in": "query", "description": text, "schema": {"type": kind, "uniqueItems": true}})
    }
}

const PRETTY: Query = Query("pretty", "string", "If 'true', the output is indented.");
const DRY_RUN: Query = Query("dryRun", "string", "'All': do everything except storing the result.");
const FIELD_MANAGER: Query = Query("fieldManager", "string", "The name of who makes this change; needed for apply.");
const FIELD_VALIDATION: Query =
    Query("fieldValidation", "string", "What unknown or duplicate fields cause: Ignore, Warn (the default) or Strict.");
const FORCE: Query = Query("force", "boolean", "Apply takes over fields that other managers own.");
const BOOKMARKS: Query = Query("allowWatchBookmarks", "boolean", "A watch also sends events of type BOOKMARK.");
const CONTINUE: Query = Query("continue", "string", "Continues a list where the last answer ended.");
const FIELD_SELECTOR: Query = Query("fieldSelector", "string", "Restricts the list by the values of fields.");
const LABEL_SELECTOR: Query = Query("labelSelector", "string", "Restricts the list by labels.");
const LIMIT: Query = Query("limit", "integer", "At most so many objects in one answer.");
const RESOURCE_VERSION: Query = Query("resourceVersion", "string", "Where a list or watch starts.");
const VERSION_MATCH: Query = Query("resourceVersionMatch", "string", "How resourceVersion applies to a list.");
const INITIAL_EVENTS: Query = Query("sendInitialEvents", "boolean", "A watch begins with all existing objects.");
const TIMEOUT: Query = Query("timeoutSeconds", "integer", "Ends a list or watch after so many seconds.");
const WATCH: Query = Query("watch", "boolean", "Answers with a stream of changes.");
const GRACE_PERIOD: Query = Query("gracePeriodSeconds", "integer", "Seconds until the object goes; zero is at once.");
const ORPHAN: Query = Query("orphanDependents", "boolean", "Deprecated: use propagationPolicy.");
const PROPAGATION: Query =
    Query("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground.");

fn parameters(all: &[Query]) -> Value {
    all.iter().map(|q| q.parameter()).collect()
}

fn body(types: &[&str], schema: &Value) -> Value {
    json!({"required": true, "content": content(types, schema)})
}

fn responses(codes: &[&str], schema: &Value) -> Value {
    let text = |code: &str| match code {
        "201" => "Created",
        "202" => "Accepted",
        _ => "OK",
    };
    let mut all: Map<String, Value> = codes
        .iter()
        .map(|code| ((*code).to_owned(), json!({"description": text(code), "content": content(&BODIES, schema)})))
        .collect();
    all.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    Value::Object(all)
}

fn content(types: &[&str], schema: &Value) -> Value {
    types.iter().map(|kind| ((*kind).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
}

fn tag(group: &str, version: &str) -> String {
    let group = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or_default() };
    format!("{group}_{version}")
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
