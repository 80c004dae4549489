//! Every failure the API answers with, as a meta/v1 `Status` in Kubernetes' words.
//!
//! In: what went wrong where. Out: [`ApiError`], which knows its HTTP code, reason, message and details.

use causeway_registry::{FieldErrors, Resource};
use causeway_store::StoreError;
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// The result of everything that serves a request.
pub type ApiResult<T> = Result<T, ApiError>;

/// A failure that becomes a `Status`.
#[derive(Debug, Clone)]
pub struct ApiError(Box<Failure>);

/// The parts of a failure.
#[derive(Debug, Clone)]
pub struct Failure {
    /// HTTP code.
    pub code: u16,
    /// Machine-readable reason.
    pub reason: Cow<'static, str>,
    /// For people.
    pub message: String,
    /// `details` of the Status.
    pub details: Option<Value>,
    /// `Retry-After` in seconds.
    pub retry_after: Option<u32>,
}

/// `pods` for the core group, else `deployments.apps`.
pub fn qualified(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

fn details(group: &str, kind: &str, name: &str) -> Value {
    let mut map = Map::new();
    for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
        if !value.is_empty() {
            map.insert(key.to_owned(), value.into());
        }
    }
    Value::Object(map)
}

impl ApiError {
    /// A failure without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Failure {
            code,
            reason: reason.into(),
            message: message.into(),
            details: None,
            retry_after: None,
        }))
    }

    /// A failure in somebody else's words: an admission webhook's, a policy's.
    pub fn told(code: u16, reason: String, message: String, details: Value) -> Self {
        let details = Some(details).filter(|d| !d.is_null());
        Self(Box::new(Failure { code, reason: reason.into(), message, details, retry_after: None }))
    }

    fn with(mut self, details: Value) -> Self {
        self.0.details = Some(details);
        self
    }

    /// 404: the named object does not exist.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::not_found_in(&resource.group, &resource.plural, name)
    }

    /// 404 by group and plural.
    pub fn not_found_in(group: &str, plural: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", qualified(group, plural)))
            .with(details(group, plural, name))
    }

    /// 404: nothing is served at this path.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with(json!({}))
    }

    /// 409: the name is taken.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(&resource.group, &resource.plural));
        Self::new(409, "AlreadyExists", message).with(details(&resource.group, &resource.plural, name))
    }

    /// 409: the caller's view is stale.
    pub fn conflict(resource: &Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict_because(resource, name, why)
    }

    /// 409 with another reason in words.
    pub fn conflict_because(resource: &Resource, name: &str, why: &str) -> Self {
        let what = qualified(&resource.group, &resource.plural);
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {what} {name:?}: {why}")).with(details(
            &resource.group,
            &resource.plural,
            name,
        ))
    }

    /// 409 of a server-side apply: each cause is (field, message).
    pub fn apply_conflict(message: String, causes: &[(String, String)]) -> Self {
        let causes: Vec<Value> = causes
            .iter()
            .map(|(field, message)| json!({ "reason": "FieldManagerConflict", "message": message, "field": field }))
            .collect();
        Self::new(409, "Conflict", message).with(json!({ "causes": causes }))
    }

    /// 422: the object breaks rules.
    pub fn invalid(resource: &Resource, name: &str, errors: &FieldErrors) -> Self {
        Self::invalid_kind(&resource.group, &resource.kind, name, errors)
    }

    /// 422 by group and kind.
    pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: &FieldErrors) -> Self {
        let mut texts: Vec<String> = Vec::new();
        for error in &errors.0 {
            let text = error.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let text = if texts.len() == 1 { texts.concat() } else { format!("[{}]", texts.join(", ")) };
        let causes: Vec<Value> = errors
            .0
            .iter()
            .map(|e| json!({ "reason": e.kind.reason(), "message": e.body(), "field": e.field }))
            .collect();
        let mut details = details(group, kind, name);
        if let Value::Object(map) = &mut details {
            map.insert("causes".to_owned(), causes.into());
        }
        let kind = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        Self::new(422, "Invalid", format!("{kind} {name:?} is invalid: {text}")).with(details)
    }

    /// 403: a rule of the server (not authorisation) forbids it.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let what = qualified(group, plural);
        let message = if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} {name:?} is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).with(details(group, plural, name))
    }

    /// 403 for a namespace that is going away.
    pub fn namespace_terminating(resource: &Resource, name: &str, namespace: &str) -> Self {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut error = Self::forbidden(&resource.group, &resource.plural, name, &why);
        if let Some(Value::Object(map)) = &mut error.0.details {
            let message = format!("namespace {namespace} is being terminated");
            let cause = json!({ "reason": "NamespaceTerminating", "message": message, "field": "metadata.namespace" });
            map.insert("causes".to_owned(), json!([cause]));
        }
        error
    }

    /// 403 for a path that is no resource.
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        Self::new(403, "Forbidden", format!("forbidden: User {user:?} cannot {verb} path {path:?}")).with(json!({}))
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .with(json!({}))
    }

    /// 406: none of the accepted media types can be produced.
    pub fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json";
        Self::new(406, "NotAcceptable", message)
    }

    /// 415: the body's media type is unknown.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let list = accepted.join(", ");
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {list}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 413.
    pub fn too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// 410 for a resource version that is no longer known.
    pub fn expired(requested: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {requested} ({oldest})"))
    }

    /// 410 for a `continue` token.
    pub fn continue_expired() -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You must start \
                       a new list without the continue parameter.";
        Self::new(410, "Expired", message)
    }

    /// 504: the requested resource version was not reached in time.
    pub fn future_version(requested: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {requested}, current: {current}");
        let cause = json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
        let mut error = Self::new(504, "Timeout", message).with(json!({ "causes": [cause], "retryAfterSeconds": 1 }));
        error.0.retry_after = Some(1);
        error
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>, retry_after: u32, cause: Option<Value>) -> Self {
        let mut error = Self::new(429, "TooManyRequests", message);
        error.0.retry_after = Some(retry_after);
        if let Some(cause) = cause {
            error.0.details = Some(json!({ "causes": [cause], "retryAfterSeconds": retry_after }));
        }
        error
    }

    /// 500.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let text = message.to_string();
        Self::new(500, "InternalError", format!("Internal error occurred: {text}"))
            .with(json!({ "causes": [{ "message": text }] }))
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 501: part of Kubernetes that is not there yet.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(501, "NotImplemented", message)
    }

    /// The parts.
    pub fn failure(&self) -> &Failure {
        &self.0
    }

    /// HTTP code.
    pub fn code(&self) -> u16 {
        self.0.code
    }

    /// The Status object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.0.message,
            "reason": self.0.reason,
        });
        if let Some(details) = &self.0.details {
            status["details"] = details.clone();
        }
        if let Some(seconds) = self.0.retry_after {
            status["details"]["retryAfterSeconds"] = seconds.into();
        }
        status["code"] = self.0.code.into();
        status
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for ApiError {}

impl From<StoreError> for ApiError {
    /// For store errors without a meaning of their own at the place they come up.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Compacted { requested, compacted } => Self::expired(requested, compacted),
            StoreError::FutureRevision { requested, current } => Self::future_version(requested, current),
            StoreError::DiskFull { .. } => {
                let mut full = Self::new(507, "InsufficientStorage", error.to_string());
                full.0.retry_after = Some(10);
                full
            }
            StoreError::TooLarge { .. } => Self::new(413, "RequestEntityTooLarge", error.to_string()),
            StoreError::Overloaded { .. } => {
                let mut busy = Self::new(429, "TooManyRequests", error.to_string());
                busy.0.retry_after = Some(1);
                busy
            }
            // No client may take it for refused and write again without a look.
            StoreError::OutcomeUnknown { .. } => Self::new(504, "Timeout", error.to_string()),
            other => Self::internal(other),
        }
    }
}

/// The `Status` of a success, for example after a delete.
pub fn success(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = details(&resource.group, &resource.plural, name);
    if let Value::Object(map) = &mut details
        && !uid.is_empty()
    {
        map.insert("uid".to_owned(), uid.into());
    }
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

#[cfg(test)]
mod tests {
    use super::*;
    use causeway_registry::Path;

    #[test]
    fn words_are_those_of_kubernetes() {
        let mut errors = FieldErrors::default();
        errors.required(&Path::new("spec").child("containers"), "");
        let one = ApiError::invalid_kind("", "Pod", "web", &errors);
        assert_eq!(one.to_string(), "Pod \"web\" is invalid: spec.containers: Required value");
        assert_eq!(one.status()["details"]["causes"][0]["reason"], "FieldValueRequired");
        errors.invalid(&Path::new("metadata").child("name"), "X", "bad");
        let two = ApiError::invalid_kind("apps", "Deployment", "web", &errors);
        assert!(two.to_string().starts_with("Deployment.apps \"web\" is invalid: [spec.containers: Required value, "));
        assert_eq!(ApiError::not_found_in("apps", "deployments", "x").to_string(), "deployments.apps \"x\" not found");
    }
}
