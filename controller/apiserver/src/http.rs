//! The front: one function from an HTTP request to a response.
//!
//! In: requests of any transport (TLS sockets, in-memory clients), with an identity in their extensions where the
//! transport knows one. Out: responses; every failure is a `Status`, also a panic. Authenticates, authorises,
//! counts, and hands over to resources, discovery or health.

use crate::authz::{Attributes, Authorizer, Decision};
use crate::bootstrap_tokens;
use crate::catalog::Served;
use crate::engine::Engine;
use crate::metrics::Metrics;
use crate::relay::NodeRelay;
use crate::render::{self, Form};
use crate::request::{Query, Target, parse_field_selector, segments};
use crate::status::{ApiError, ApiResult, qualified};
use crate::tokens::Tokens;
use axum::body::Body;
use bytes::Bytes;
use causeway_api::bootstrap_token;
use causeway_api::identity::{GROUP_AUTHENTICATED, GROUP_SERVICE_ACCOUNTS, UserInfo};
use futures::FutureExt;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// The largest request body.
pub const BODY_LIMIT: usize = causeway_schema::bounds::MAX_SIZE;

/// Who the transport says the caller is (in-process clients, client certificates).
#[derive(Debug, Clone)]
pub struct Identity(pub UserInfo);

/// Everything requests are served from.
pub struct Server {
    /// Objects.
    pub engine: Arc<Engine>,
    /// Service-account tokens.
    pub tokens: Arc<Tokens>,
    /// Who may do what.
    pub authorizer: Arc<dyn Authorizer>,
    /// The way to kubelets.
    pub relay: NodeRelay,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The certificate authority's certificate.
    pub ca_pem: String,
    /// Ends watches.
    pub shutdown: CancellationToken,
}

/// A request after authentication.
pub struct Incoming {
    /// Who asks.
    pub user: UserInfo,
    /// HTTP method.
    pub method: Method,
    /// Decoded path.
    pub path: String,
    /// Query as it came.
    pub raw_query: String,
    /// Query parameters.
    pub query: Query,
    /// Headers.
    pub headers: HeaderMap,
    /// `Content-Type`, or nothing.
    pub content_type: String,
    /// `User-Agent`, or nothing.
    pub user_agent: String,
    body: tokio::sync::Mutex<Option<Body>>,
    /// The connection after an upgrade.
    pub upgrade: parking_lot::Mutex<Option<hyper::upgrade::OnUpgrade>>,
}

impl Incoming {
    fn new(request: Request<Body>, user: UserInfo) -> Self {
        let (mut parts, body) = request.into_parts();
        let header =
            |name| parts.headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or("").to_owned();
        let raw_query = parts.uri.query().unwrap_or("").to_owned();
        Self {
            user,
            method: parts.method.clone(),
            path: parts.uri.path().to_owned(),
            query: Query::parse(&raw_query),
            raw_query,
            content_type: header(CONTENT_TYPE),
            user_agent: header(http::header::USER_AGENT),
            body: tokio::sync::Mutex::new(Some(body)),
            upgrade: parking_lot::Mutex::new(parts.extensions.remove::<hyper::upgrade::OnUpgrade>()),
            headers: parts.headers,
        }
    }

    /// A header as text; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }

    /// The whole body, bounded. Can be taken once.
    pub async fn body(&self) -> ApiResult<Bytes> {
        let Some(body) = self.body.lock().await.take() else { return Ok(Bytes::new()) };
        match Limited::new(body, BODY_LIMIT).collect().await {
            Ok(all) => Ok(all.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(BODY_LIMIT)),
            Err(error) => Err(ApiError::bad_request(format!("the request's body could not be read: {error}"))),
        }
    }

    /// The form of the answer.
    pub fn form(&self) -> ApiResult<Form> {
        Form::negotiate(self.header("accept"), self.query.get("includeObject"))
    }
}

/// A response being built.
pub struct Reply(pub Response<Body>);

impl Reply {
    /// With a body in a form.
    pub fn new(code: StatusCode, form: Form, body: Bytes) -> Self {
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = code;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(form.content_type()));
        Self(response)
    }

    /// With an object.
    pub fn value(served: &Served, code: StatusCode, form: Form, object: Value) -> Self {
        Self::new(code, form, render::value(served, form, object))
    }

    /// With any JSON.
    pub fn json(code: StatusCode, value: &Value) -> Self {
        Self::new(code, Form::Json, serde_json::to_vec(value).unwrap_or_default().into())
    }

    /// With plain text.
    pub fn text(code: StatusCode, text: impl Into<String>) -> Self {
        let mut response = Response::new(Body::from(text.into()));
        *response.status_mut() = code;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        Self(response)
    }

    /// A stream of events.
    pub fn stream(form: Form, body: Body) -> Self {
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(form.content_type()));
        Self(response)
    }

    /// Adds `Warning` headers.
    #[must_use]
    pub fn warn(mut self, warnings: Vec<String>) -> Self {
        let mut seen: Vec<String> = Vec::new();
        for warning in warnings {
            if seen.contains(&warning) || seen.len() > 32 {
                continue;
            }
            let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
            if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
                self.0.headers_mut().append(http::header::WARNING, value);
            }
            seen.push(warning);
        }
        self
    }

    fn error(error: &ApiError) -> Self {
        let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut reply = Self::json(code, &error.status());
        if let Some(seconds) = error.failure().retry_after {
            reply.0.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        reply
    }
}

impl Server {
    /// Serves one request. Never fails and never panics.
    pub async fn handle(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let labels = self.metrics.label(request.method(), request.uri());
        let audit = request.headers().get("audit-id").cloned();
        let method = request.method().clone();
        let outcome = AssertUnwindSafe(self.clone().serve_request(request)).catch_unwind().await;
        let reply = match outcome {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => {
                if error.code() >= 500 {
                    tracing::warn!(%error, code = error.code(), "request failed");
                }
                Reply::error(&error)
            }
            Err(_) => {
                tracing::error!("a request handler panicked; the client got a 500");
                Reply::error(&ApiError::internal(
                    "this request caused apiserver to panic. Look in the logs for details",
                ))
            }
        };
        let mut response = reply.0;
        let audit = audit.or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok());
        if let Some(audit) = audit {
            response.headers_mut().insert("audit-id", audit);
        }
        response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        if method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        self.metrics.observe(labels, response.status().as_u16(), started.elapsed());
        response
    }

    async fn serve_request(self: Arc<Self>, request: Request<Body>) -> ApiResult<Reply> {
        let identity = request.extensions().get::<Identity>().cloned();
        let token = bearer(request.headers()).map(str::to_owned);
        let user = self.authenticate(identity, token).await?;
        let user = self.impersonate(user, request.headers())?;
        let incoming = Incoming::new(request, user);
        match Target::parse(&incoming.path) {
            Some(target) => {
                let verb = target.verb(&incoming.method, &incoming.query).ok_or_else(ApiError::method_not_allowed)?;
                let attributes = Attributes {
                    verb: verb.to_owned(),
                    group: target.group.clone(),
                    resource: target.resource.clone(),
                    subresource: target.subresource.clone().unwrap_or_default(),
                    namespace: target.namespace.clone().unwrap_or_default(),
                    name: target.name.clone().or_else(|| named(verb, &incoming.query)).unwrap_or_default(),
                    path: incoming.path.clone(),
                };
                if let Some(connect) = attributes.connect() {
                    self.authorize(&incoming.user, &connect)?;
                }
                self.authorize(&incoming.user, &attributes)?;
                self.resource(target, verb, incoming).await
            }
            None => {
                let verb = incoming.method.as_str().to_ascii_lowercase();
                let attributes = Attributes { verb, path: incoming.path.clone(), ..Attributes::default() };
                self.authorize(&incoming.user, &attributes)?;
                self.other_path(incoming).await
            }
        }
    }

    async fn other_path(self: &Arc<Self>, incoming: Incoming) -> ApiResult<Reply> {
        if !matches!(incoming.method, Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed());
        }
        let all = segments(&incoming.path);
        let parts: Vec<&str> = all.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["healthz" | "livez" | "readyz", check @ ..] => self.health(parts[0], check, &incoming).await,
            ["metrics"] => Ok(Reply::text(StatusCode::OK, self.metrics.render(&self.engine))),
            ["version"] => Ok(Reply::json(StatusCode::OK, &crate::health::version())),
            ["openid", "v1", "jwks"] => Ok(Reply::json(StatusCode::OK, &self.tokens.jwks())),
            [".well-known", "openid-configuration"] => {
                Ok(Reply::json(StatusCode::OK, &self.tokens.openid_configuration()))
            }
            _ => self.discovery(&parts, &incoming),
        }
    }

    async fn authenticate(&self, identity: Option<Identity>, token: Option<String>) -> ApiResult<UserInfo> {
        match (identity, token) {
            (Some(Identity(user)), _) => Ok(user),
            (None, Some(token)) => {
                let mut user = match bootstrap_token::split(&token) {
                    Some((id, secret)) => bootstrap_tokens::authenticate(&self.engine, id, secret).await?,
                    None => self.tokens.authenticate(&self.engine, &token, &[]).await?.user,
                };
                user.groups.push(GROUP_AUTHENTICATED.to_owned());
                Ok(user)
            }
            (None, None) => Ok(UserInfo::anonymous()),
        }
    }

    /// `Impersonate-*` headers, for those who may.
    fn impersonate(&self, user: UserInfo, headers: &HeaderMap) -> ApiResult<UserInfo> {
        let values = |name: &str| -> Vec<String> {
            headers.get_all(name).iter().filter_map(|v| v.to_str().ok().map(str::to_owned)).collect()
        };
        let groups = values("impersonate-group");
        let Some(name) = values("impersonate-user").into_iter().next() else {
            return if groups.is_empty() {
                Ok(user)
            } else {
                Err(ApiError::bad_request("requested groups without impersonating a user"))
            };
        };
        let ask = |resource: &str, name: &str| {
            let (verb, resource, name) = ("impersonate".to_owned(), resource.to_owned(), name.to_owned());
            self.authorize(&user, &Attributes { verb, resource, name, ..Attributes::default() })
        };
        ask("users", &name)?;
        for group in &groups {
            ask("groups", group)?;
        }
        let mut other = UserInfo { username: name, groups, ..UserInfo::default() };
        if let Some((namespace, _)) =
            other.username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
            && other.groups.is_empty()
        {
            other.groups = vec![GROUP_SERVICE_ACCOUNTS.to_owned(), format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}")];
        }
        if !other.groups.iter().any(|g| g == GROUP_AUTHENTICATED) {
            other.groups.push(GROUP_AUTHENTICATED.to_owned());
        }
        Ok(other)
    }

    fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> ApiResult<()> {
        match self.authorizer.authorize(user, attributes) {
            Decision::Allow(_) => Ok(()),
            Decision::NoOpinion => Err(denied(user, attributes)),
        }
    }
}

/// The one object that a list or watch can show, if its field selector says so.
fn named(verb: &str, query: &Query) -> Option<String> {
    let terms = parse_field_selector(query.get("fieldSelector").filter(|_| matches!(verb, "list" | "watch"))?).ok()?;
    terms.into_iter().find(|term| term.equal && term.field == "metadata.name").map(|term| term.value)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// 403 in Kubernetes' words.
fn denied(user: &UserInfo, a: &Attributes) -> ApiError {
    if a.resource.is_empty() {
        return ApiError::forbidden_path(&user.username, &a.verb, &a.path);
    }
    let resource = a.full_resource();
    let place = if a.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", a.namespace)
    };
    let why =
        format!("User {:?} cannot {} resource {resource:?} in API group {:?} {place}", user.username, a.verb, a.group);
    tracing::info!(user = user.username, verb = a.verb, resource = qualified(&a.group, &resource), "request denied");
    ApiError::forbidden(&a.group, &a.resource, &a.name, &why)
}
