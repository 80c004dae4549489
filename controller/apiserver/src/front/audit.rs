//! What is recorded of requests: the filter around [`causeway_audit`].
//!
//! In: requests as they pass. Out: one record of each that the policy asks for, finished when its response is.

use super::held::Held;
use crate::authz::Decision;
use crate::exchange::{BODY_LIMIT, Peer, Reply};
use crate::request::RequestInfo;
use axum::body::Body;
use bytes::Bytes;
use causeway_api::identity::UserInfo;
use causeway_audit::{AuditError, Auditor, Record, RequestFacts, Resource, User};
use futures::{StreamExt, TryStreamExt};
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, Request, StatusCode};
use serde_json::Value;
use std::net::IpAddr;
use std::sync::Arc;

/// Addresses that are recorded of one request.
const MAX_SOURCES: usize = 16;

/// A request before its body is read.
pub struct Arrival {
    /// The value of the header `Audit-ID` of its answer.
    pub id: String,
    uri: String,
    user_agent: String,
    sources: Vec<IpAddr>,
    received: jiff::Timestamp,
}

impl Arrival {
    /// Of a request that has just come.
    pub fn new(request: &Request<Body>) -> Self {
        let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
        Self {
            id: causeway_audit::audit_id(header("audit-id")),
            uri: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
            user_agent: header(USER_AGENT.as_str()).unwrap_or("").to_owned(),
            sources: sources(request.headers(), peer),
            received: jiff::Timestamp::now(),
        }
    }

    fn facts<'a>(&'a self, info: &'a RequestInfo, user: Option<&'a UserInfo>) -> RequestFacts<'a> {
        let resource = info.target.as_ref().map(|target| Resource {
            group: &target.group,
            version: &target.version,
            resource: &target.resource,
            subresource: target.subresource.as_deref().unwrap_or(""),
            namespace: target.scope(),
            name: target.name.as_deref().unwrap_or(""),
        });
        RequestFacts {
            audit_id: &self.id,
            uri: &self.uri,
            path: &info.path,
            verb: &info.verb,
            user: user.map(of_user),
            source_ips: &self.sources,
            user_agent: &self.user_agent,
            resource,
            received: self.received,
            long_running: info.long_running(),
        }
    }

    /// The record of a request whose caller is known, if there is to be one.
    pub fn begin(
        &self,
        auditor: &Auditor,
        info: &RequestInfo,
        user: &UserInfo,
    ) -> Result<Option<Arc<Record>>, AuditError> {
        Ok(auditor.begin(&self.facts(info, Some(user)))?.map(Arc::new))
    }

    /// For a request whose caller could not be found out.
    pub fn refused(&self, auditor: &Auditor, info: &RequestInfo, code: u16, bearer: bool) {
        auditor.authentication_failed(&self.facts(info, None), code, if bearer { "bearer" } else { "" });
    }
}

fn of_user(user: &UserInfo) -> User<'_> {
    User { name: &user.username, uid: &user.uid, groups: &user.groups, extra: &user.extra }
}

/// As whom the request is served.
pub fn impersonated(record: &Record, user: &UserInfo) {
    record.impersonated(&of_user(user));
}

/// What authorisation said.
pub fn decided(record: &Record, decision: &Decision) {
    let (word, why) = match decision {
        Decision::Allow(why) => ("allow", why),
        Decision::Deny(why) | Decision::NoOpinion(why) => ("forbid", why),
    };
    record.annotate("authorization.k8s.io/decision", word);
    record.annotate("authorization.k8s.io/reason", why);
}

/// Where a request came from, as upstream lists it: what proxies say, then the other end of the connection.
fn sources(headers: &HeaderMap, peer: Option<IpAddr>) -> Vec<IpAddr> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
    let forwarded = text("x-forwarded-for").split(',').chain([text("x-real-ip")]);
    let said = forwarded.filter_map(|ip| ip.trim().parse().ok()).take(MAX_SOURCES);
    let mut all: Vec<IpAddr> = said.collect();
    all.extend(peer.map(|ip| ip.to_canonical()));
    all.dedup();
    all
}

/// Finishes a record when the response is over, whoever ends it.
struct Finish(Arc<Record>, u16);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.complete(self.1, None);
    }
}

/// Finishes the record of a response: at once, when its body has been sent, or with its body where that is asked for.
pub async fn answered(record: Arc<Record>, info: &RequestInfo, reply: Reply) -> Reply {
    let code = reply.0.status();
    let (parts, body) = reply.0.into_parts();
    if code == StatusCode::SWITCHING_PROTOCOLS || info.long_running() {
        record.response_started(code.as_u16());
        if code == StatusCode::SWITCHING_PROTOCOLS {
            record.complete(code.as_u16(), None);
            return Reply(http::Response::from_parts(parts, body));
        }
        let body = Held::new(body, Finish(record, code.as_u16()));
        return Reply(http::Response::from_parts(parts, Body::new(body)));
    }
    let json = parts.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if !json || !(record.wants_response() || code.is_client_error() || code.is_server_error()) {
        record.complete(code.as_u16(), None);
        return Reply(http::Response::from_parts(parts, body));
    }
    // What was made already is kept, so that the client gets it also where it is too long to be recorded.
    let mut stream = body.into_data_stream();
    let mut kept: Vec<Bytes> = Vec::new();
    let mut size = 0;
    while size <= BODY_LIMIT
        && let Ok(Some(piece)) = stream.try_next().await
    {
        size += piece.len();
        kept.push(piece);
    }
    let (object, body) = if size <= BODY_LIMIT {
        let whole = kept.concat();
        (serde_json::from_slice::<Value>(&whole).ok(), Body::from(whole))
    } else {
        (None, Body::from_stream(futures::stream::iter(kept.into_iter().map(Ok)).chain(stream)))
    };
    record.complete(code.as_u16(), object.as_ref());
    Reply(http::Response::from_parts(parts, body))
}
