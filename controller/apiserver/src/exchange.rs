//! A request on its way through the server, and its response: what every endpoint takes and gives.
//!
//! In: an HTTP request whose caller is known. Out: a response in one of the forms clients ask for.

use crate::authz::Authorizer;
use crate::catalog::Served;
use crate::request::RequestInfo;
use crate::serialization::codec;
use crate::serialization::render::{self, Form};
use crate::status::{ApiError, ApiResult};
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use causeway_api::identity::UserInfo;
use causeway_audit::Record;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;
use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// The largest request body, in bytes.
pub const BODY_LIMIT: usize = causeway_schema::bounds::MAX_SIZE;
/// A body's first bytes, and every [`BODY_PIECE`] of it, must come within this time: who sends a byte now and then holds a
/// request, its memory, and a place that others wait for.
const BODY_TIME: Duration = Duration::from_secs(10);
/// In bytes.
const BODY_PIECE: usize = 64 * 1024;
/// `Warning` headers of one response.
const MAX_WARNINGS: usize = 32;

/// The other end of a request's connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// A request that may go on to its endpoint.
pub struct Incoming {
    /// What is asked for.
    pub info: Arc<RequestInfo>,
    /// Who asks.
    pub user: UserInfo,
    /// The address it came from; none for clients of the same process.
    pub peer: Option<IpAddr>,
    /// Answers whether the caller may do what the request turns out to do.
    pub authorizer: Arc<dyn Authorizer>,
    /// Headers.
    pub headers: HeaderMap,
    /// `Content-Type`, or nothing.
    pub content_type: String,
    /// `User-Agent`, or nothing.
    pub user_agent: String,
    /// What is recorded of it, if it is.
    pub record: Option<Arc<Record>>,
    body: tokio::sync::Mutex<Option<Body>>,
    /// What is to be held as long as an upgraded connection lasts.
    pub lasting: parking_lot::Mutex<Option<Box<dyn Any + Send + Sync>>>,
    /// The connection after an upgrade.
    pub upgrade: parking_lot::Mutex<Option<hyper::upgrade::OnUpgrade>>,
}

impl Incoming {
    /// From the request itself.
    pub fn new(
        request: Request<Body>,
        info: Arc<RequestInfo>,
        user: UserInfo,
        authorizer: Arc<dyn Authorizer>,
        record: Option<Arc<Record>>,
    ) -> Self {
        let (mut parts, body) = request.into_parts();
        let header =
            |name| parts.headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok()).unwrap_or("").to_owned();
        Self {
            info,
            user,
            peer: parts.extensions.get::<Peer>().map(|peer| peer.0.ip()),
            authorizer,
            record,
            content_type: header(CONTENT_TYPE),
            user_agent: header(http::header::USER_AGENT),
            lasting: parking_lot::Mutex::default(),
            body: tokio::sync::Mutex::new(Some(body)),
            upgrade: parking_lot::Mutex::new(parts.extensions.remove::<hyper::upgrade::OnUpgrade>()),
            headers: parts.headers,
        }
    }

    /// A header as text; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }

    /// The whole body, bounded in size and time. Can be taken once.
    pub async fn body(&self) -> ApiResult<Bytes> {
        let Some(body) = self.body.lock().await.take() else { return Ok(Bytes::new()) };
        let mut body = Limited::new(body, BODY_LIMIT);
        let mut whole = BytesMut::new();
        let mut deadline = tokio::time::Instant::now() + BODY_TIME;
        let mut piece = 0;
        loop {
            let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
                Ok(None) => return Ok(whole.freeze()),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) if error.is::<LengthLimitError>() => return Err(ApiError::too_large(BODY_LIMIT)),
                Ok(Some(Err(error))) => {
                    let why = format!("the request's body could not be read: {error}");
                    return Err(ApiError::bad_request(why));
                }
                Err(_) => {
                    let why =
                        format!("the request's body came too slowly: {BODY_PIECE} bytes in {} s", BODY_TIME.as_secs());
                    return Err(ApiError::new(408, "Timeout", why));
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            whole.extend_from_slice(&data);
            piece += data.len();
            if piece >= BODY_PIECE {
                (piece, deadline) = (0, tokio::time::Instant::now() + BODY_TIME);
            }
        }
    }

    /// The body as an object, and its duplicate fields.
    pub async fn object(&self) -> ApiResult<(Value, Vec<String>)> {
        self.decoded(&self.body().await?)
    }

    fn decoded(&self, body: &[u8]) -> ApiResult<(Value, Vec<String>)> {
        let (object, problems) = codec::decode(&self.content_type, body)?;
        if let Some(record) = &self.record {
            record.request_object(&object);
        }
        Ok((object, problems))
    }

    /// The body as an object, or null where there is none.
    pub async fn object_or_nothing(&self) -> ApiResult<Value> {
        let body = self.body().await?;
        if body.is_empty() { Ok(Value::Null) } else { Ok(self.decoded(&body)?.0) }
    }

    /// What the body turned out to be, where it is no object of its resource.
    pub fn patch_is(&self, patch: &Value) {
        if let Some(record) = &self.record {
            record.request_patch(patch);
        }
    }

    /// The form of the answer.
    pub fn form(&self) -> ApiResult<Form> {
        Form::negotiate(self.header("accept"), self.info.query.get("includeObject"))
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
            if seen.contains(&warning) || seen.len() > MAX_WARNINGS {
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

    /// With a failure.
    pub fn error(error: &ApiError) -> Self {
        let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut reply = Self::json(code, &error.status());
        if let Some(seconds) = error.failure().retry_after {
            reply.0.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        reply
    }
}
