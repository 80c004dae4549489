//! One request's record. In: what becomes of the request, from whatever part of the server knows it. Out: its events.

use crate::auditor::{RequestFacts, Shared, User};
use crate::event::{Event, ObjectRef, ResponseStatus, Stage, TRUNCATED, UserInfo, body};
use crate::policy::{Decision, Level};
use crate::text::cut;
use parking_lot::Mutex;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A request's URI, in bytes.
const MAX_URI: usize = 8 << 10;
/// Upstream's limit of a user agent, in bytes.
const MAX_USER_AGENT: usize = 1024;
/// A verb, in bytes: HTTP methods are the client's to invent.
const MAX_VERB: usize = 64;
/// Addresses a request came through; the last one, which the client cannot choose, is always among them.
const MAX_SOURCE_IPS: usize = 32;
const MAX_ANNOTATIONS: usize = 64;
const MAX_ANNOTATION_KEY: usize = 256;
const MAX_ANNOTATION_VALUE: usize = 4 << 10;
/// All annotations together, in bytes.
const MAX_ANNOTATION_BYTES: usize = 32 << 10;

/// A request that is recorded. Clones are handles of the same record.
///
/// When the last handle is dropped before [`Record::complete`], the request ended otherwise: with an event of stage
/// `Panic` (code 500) when the thread is unwinding, else (the client went away, and with it the handler or a watch)
/// with `ResponseComplete` and the code of [`Record::response_started`], or, before any response, as upstream has it,
/// with code 200 and the message `Connection closed early`.
#[derive(Clone)]
pub struct Record(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    decision: Decision,
    audit_id: String,
    request_uri: String,
    verb: String,
    user: UserInfo,
    source_ips: Vec<IpAddr>,
    user_agent: String,
    received: jiff::Timestamp,
    long_running: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    impersonated: Option<UserInfo>,
    object_ref: Option<ObjectRef>,
    status: Option<ResponseStatus>,
    request_object: Option<Box<RawValue>>,
    response_object: Option<Box<RawValue>>,
    annotations: BTreeMap<String, String>,
    annotation_bytes: usize,
    done: bool,
}

impl Record {
    pub(crate) fn new(shared: Arc<Shared>, facts: &RequestFacts<'_>, decision: Decision) -> Self {
        let (user, cut_short) = facts.user.map(|u| UserInfo::of(&u)).unwrap_or_default();
        let skipped = facts.source_ips.len().saturating_sub(MAX_SOURCE_IPS);
        let mut state = State { object_ref: facts.resource.map(|r| ObjectRef::of(&r)), ..State::default() };
        if cut_short || skipped > 0 {
            state.truncated();
        }
        Self(Arc::new(Inner {
            shared,
            decision,
            audit_id: crate::auditor::audit_id(Some(facts.audit_id)),
            request_uri: cut(facts.uri, MAX_URI).into_owned(),
            verb: cut(facts.verb, MAX_VERB).into_owned(),
            user,
            source_ips: facts.source_ips.get(skipped..).unwrap_or_default().to_vec(),
            user_agent: cut(facts.user_agent, MAX_USER_AGENT).into_owned(),
            received: facts.received,
            long_running: facts.long_running,
            state: Mutex::new(state),
        }))
    }

    /// The value of the response's `Audit-ID` header.
    pub fn audit_id(&self) -> &str {
        &self.0.audit_id
    }

    /// In how much detail the request is recorded.
    pub fn level(&self) -> Level {
        self.0.decision.level
    }

    /// Whether the request's object itself is recorded. [`Record::request_object`] is worth a call in any case.
    pub fn wants_request(&self) -> bool {
        self.level() >= Level::Request
    }

    /// Whether the response's object is recorded.
    pub fn wants_response(&self) -> bool {
        self.level() >= Level::RequestResponse
    }

    /// The request's object as it came, before defaults and admission. At every level the event takes the object's
    /// name, namespace, uid and resourceVersion from it where the URL does not tell them.
    pub fn request_object(&self, object: &Value) {
        let mut state = self.0.state.lock();
        if let Some(object_ref) = &mut state.object_ref {
            object_ref.fill_from(object);
        }
        if self.wants_request() {
            let body = self.0.body(object);
            state.keep(body, |state| &mut state.request_object);
        }
    }

    /// The request's patch as it came (a JSON patch, a merge patch, an applied configuration).
    pub fn request_patch(&self, patch: &Value) {
        if self.wants_request() {
            let body = self.0.body(patch);
            self.0.state.lock().keep(body, |state| &mut state.request_object);
        }
    }

    /// As whom the request is served.
    pub fn impersonated(&self, user: &User<'_>) {
        let (user, cut_short) = UserInfo::of(user);
        let mut state = self.0.state.lock();
        state.impersonated = Some(user);
        if cut_short {
            state.truncated();
        }
    }

    /// Adds an annotation, for example `authorization.k8s.io/decision`: `allow`. The first value of a key stays.
    /// At most 64 of 32 KiB together; values are cut at 4 KiB, keys at 256 bytes.
    pub fn annotate(&self, key: &str, value: &str) {
        let mut state = self.0.state.lock();
        let (key, value) = (cut(key, MAX_ANNOTATION_KEY), cut(value, MAX_ANNOTATION_VALUE));
        if state.annotations.contains_key(&*key) {
            return;
        }
        let bytes = state.annotation_bytes + key.len() + value.len();
        if state.annotations.len() >= MAX_ANNOTATIONS || bytes > MAX_ANNOTATION_BYTES {
            state.truncated();
            return;
        }
        state.annotation_bytes = bytes;
        state.annotations.insert(key.into_owned(), value.into_owned());
    }

    /// The response's head is sent. Long-running requests have an event of it.
    pub fn response_started(&self, code: u16) {
        let mut state = self.0.state.lock();
        if state.done || state.status.is_some() {
            return;
        }
        state.status = Some(ResponseStatus::of(code, "", "", ""));
        if self.0.long_running {
            self.0.emit(Stage::ResponseStarted, &state);
        }
    }

    /// The response is complete, with its object where there is one. A Status tells reason and message at every level.
    pub fn complete(&self, code: u16, response: Option<&Value>) {
        let body = response.filter(|_| self.wants_response()).map(|r| self.0.body(r));
        let mut state = self.0.state.lock();
        if state.done {
            return;
        }
        let started = state.status.is_some();
        let mut status = ResponseStatus::of(code, "", "", "");
        if let Some(response) = response {
            status.fill_from(response);
        }
        state.status = Some(status);
        if let Some(body) = body {
            state.keep(body, |state| &mut state.response_object);
        }
        if self.0.long_running && !started {
            self.0.emit(Stage::ResponseStarted, &state);
        }
        self.0.finish(Stage::ResponseComplete, &mut state);
    }

    /// The handler panicked; the client has got a 500 or nothing.
    pub fn panic(&self) {
        let mut state = self.0.state.lock();
        if !state.done {
            state.status = Some(panicked());
            self.0.finish(Stage::Panic, &mut state);
        }
    }

    pub(crate) fn received(&self) -> bool {
        self.0.emit(Stage::RequestReceived, &self.0.state.lock())
    }

    /// The request is refused: no more events.
    pub(crate) fn forget(&self) {
        self.0.state.lock().done = true;
    }

    pub(crate) fn authentication_failed(&self, code: u16, message: &str) {
        let mut state = self.0.state.lock();
        state.status = Some(ResponseStatus::of(code, "", "", message));
        self.0.finish(Stage::ResponseStarted, &mut state);
    }
}

fn panicked() -> ResponseStatus {
    ResponseStatus::of(500, "Failure", "InternalError", "APIServer panic'd: the request's handler panicked")
}

impl State {
    fn truncated(&mut self) {
        self.annotations.insert(TRUNCATED.to_owned(), "true".to_owned());
    }

    fn keep(&mut self, body: Option<Box<RawValue>>, place: impl Fn(&mut Self) -> &mut Option<Box<RawValue>>) {
        if body.is_none() {
            self.truncated();
        }
        *place(self) = body;
    }
}

impl Inner {
    fn body(&self, object: &Value) -> Option<Box<RawValue>> {
        body(object, self.decision.omit_managed_fields, self.shared.max_body_bytes)
    }

    fn finish(&self, stage: Stage, state: &mut State) {
        self.emit(stage, state);
        state.done = true;
    }

    /// Hands an event to the backends; false when one that must have it has not.
    fn emit(&self, stage: Stage, state: &State) -> bool {
        if self.decision.omit_stages.contains(stage) {
            return true;
        }
        let at = if stage == Stage::RequestReceived { self.received } else { jiff::Timestamp::now() };
        let event = Event {
            audit_id: &self.audit_id,
            request_uri: &self.request_uri,
            verb: &self.verb,
            impersonated_user: state.impersonated.as_ref(),
            source_ips: &self.source_ips,
            user_agent: &self.user_agent,
            object_ref: state.object_ref.as_ref(),
            response_status: state.status.as_ref(),
            request_object: state.request_object.as_deref(),
            response_object: state.response_object.as_deref(),
            request_received_timestamp: self.received,
            stage_timestamp: at,
            ..Event::new(self.decision.level, stage, &self.user, &state.annotations)
        };
        self.shared.take(&event)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut state = std::mem::take(self.state.get_mut());
        if state.done {
            return;
        }
        if std::thread::panicking() {
            state.status = Some(panicked());
            self.finish(Stage::Panic, &mut state);
            return;
        }
        if state.status.is_none() {
            state.status = Some(ResponseStatus::of(200, "Success", "", "Connection closed early"));
            if self.long_running {
                self.emit(Stage::ResponseStarted, &state);
            }
        }
        self.finish(Stage::ResponseComplete, &mut state);
    }
}
