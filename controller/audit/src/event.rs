//! Events as they are written: `audit.k8s.io/v1` Event, one line of JSON. In: what a record has gathered, already
//! bounded. Out: bytes that the backends share.

use crate::auditor::{Resource, User};
use crate::policy::Level;
use crate::text::cut;
use bytes::Bytes;
use serde::Serialize;
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// When in the life of a request an event is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Stage {
    /// The request has come; nothing is done yet.
    RequestReceived,
    /// The response's head is sent, its body follows; only for long-running requests, and for failed authentication.
    ResponseStarted,
    /// The response is complete.
    ResponseComplete,
    /// The handler panicked.
    Panic,
}

impl Stage {
    pub(crate) const ALL: [Self; 4] =
        [Self::RequestReceived, Self::ResponseStarted, Self::ResponseComplete, Self::Panic];

    /// The name in policies and events.
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// A set of stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Stages(u8);

impl Stages {
    /// The set with one more stage.
    #[must_use]
    pub fn with(self, stage: Stage) -> Self {
        Self(self.0 | 1 << stage as u8)
    }

    /// Whether a stage is in the set.
    pub fn contains(self, stage: Stage) -> bool {
        self.0 & 1 << stage as u8 != 0
    }

    /// The stages of both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A name (of a user, an object, a resource, …) in bytes.
const MAX_NAME: usize = 1024;
/// All groups of a user together, and so all its extras, in bytes.
const MAX_USER_LISTS: usize = 16 << 10;
/// The message of a status, in bytes.
const MAX_MESSAGE: usize = 4 << 10;
/// `details` of a status, in bytes of JSON; larger ones are left out.
const MAX_DETAILS: usize = 16 << 10;
/// Marks events of which something was left out, as upstream does.
pub const TRUNCATED: &str = "audit.k8s.io/truncated";

/// What an event says of a user (`authentication.k8s.io/v1` UserInfo).
#[derive(Debug, Clone, Default, Serialize)]
pub struct UserInfo {
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A bounded copy, and whether groups or extras were left out of it.
    pub fn of(user: &User<'_>) -> (Self, bool) {
        let mut room = MAX_USER_LISTS;
        let mut fits = |bytes: usize| {
            // Two quotes and a comma, so that empty entries have their price, too.
            let whole = room.checked_sub(bytes + 3);
            room = whole.unwrap_or(0);
            whole.is_some()
        };
        let groups: Vec<String> = user.groups.iter().take_while(|g| fits(g.len())).cloned().collect();
        let mut room = MAX_USER_LISTS;
        let mut fits = |key: &str, values: &[String]| {
            let bytes = key.len() + 6 + values.iter().map(|v| v.len() + 3).sum::<usize>();
            let whole = room.checked_sub(bytes);
            room = whole.unwrap_or(0);
            whole.is_some()
        };
        let extra: BTreeMap<String, Vec<String>> =
            user.extra.iter().take_while(|(k, v)| fits(k, v)).map(|(k, v)| (k.clone(), v.clone())).collect();
        let cut_short = groups.len() < user.groups.len() || extra.len() < user.extra.len();
        (Self { username: name(user.name), uid: name(user.uid), groups, extra }, cut_short)
    }
}

/// What the request is about (`audit.k8s.io/v1` ObjectReference).
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    #[serde(skip_serializing_if = "String::is_empty")]
    resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    subresource: String,
}

impl ObjectRef {
    pub fn of(resource: &Resource<'_>) -> Self {
        Self {
            resource: name(resource.resource),
            namespace: name(resource.namespace),
            name: name(resource.name),
            api_group: name(resource.group),
            api_version: name(resource.version),
            subresource: name(resource.subresource),
            ..Self::default()
        }
    }

    /// Takes from an object what the URL did not tell: a created object's name, and so on.
    pub fn fill_from(&mut self, object: &Value) {
        let Some(Value::Object(metadata)) = object.get("metadata") else { return };
        let fields = [
            ("namespace", &mut self.namespace),
            ("name", &mut self.name),
            ("uid", &mut self.uid),
            ("resourceVersion", &mut self.resource_version),
        ];
        for (key, field) in fields {
            if let (true, Some(Value::String(text))) = (field.is_empty(), metadata.get(key)) {
                *field = name(text);
            }
        }
    }
}

/// The outcome (`meta/v1` Status).
#[derive(Debug, Clone, Default, Serialize)]
pub struct ResponseStatus {
    /// Upstream writes the empty ListMeta of a Status.
    metadata: Empty,
    #[serde(skip_serializing_if = "String::is_empty")]
    status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "is_zero")]
    code: u16,
}

#[derive(Debug, Clone, Default, Serialize)]
struct Empty {}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(code: &u16) -> bool {
    *code == 0
}

impl ResponseStatus {
    /// Takes over what a response's Status object says; of other objects nothing.
    pub fn fill_from(&mut self, object: &Value) {
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("kind") != "Status" || text("apiVersion") != "v1" {
            return;
        }
        self.status = name(text("status"));
        self.message = cut(text("message"), MAX_MESSAGE).into_owned();
        self.reason = name(text("reason"));
        self.details = object.get("details").filter(|d| d.is_object()).and_then(|d| body(d, false, MAX_DETAILS));
    }

    pub fn of(code: u16, status: &str, reason: &str, message: &str) -> Self {
        Self {
            code,
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: cut(message, MAX_MESSAGE).into_owned(),
            ..Self::default()
        }
    }
}

/// One event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event<'a> {
    pub kind: &'static str,
    pub api_version: &'static str,
    pub level: Level,
    #[serde(rename = "auditID")]
    pub audit_id: &'a str,
    pub stage: Stage,
    #[serde(rename = "requestURI")]
    pub request_uri: &'a str,
    pub verb: &'a str,
    pub user: &'a UserInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<&'a UserInfo>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "<[_]>::is_empty")]
    pub source_ips: &'a [std::net::IpAddr],
    #[serde(skip_serializing_if = "str::is_empty")]
    pub user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<&'a ObjectRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_status: Option<&'a ResponseStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_object: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_object: Option<&'a RawValue>,
    #[serde(serialize_with = "micro_time")]
    pub request_received_timestamp: jiff::Timestamp,
    #[serde(serialize_with = "micro_time")]
    pub stage_timestamp: jiff::Timestamp,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: &'a BTreeMap<String, String>,
}

/// What every event begins with; items of a list do without.
const TYPE: &str = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;

impl Event<'_> {
    pub const KIND: &'static str = "Event";
    pub const VERSION: &'static str = "audit.k8s.io/v1";

    /// The event as one line of JSON, with its newline.
    pub fn line(&self) -> Result<Bytes, serde_json::Error> {
        let bodies = [self.request_object, self.response_object].iter().flatten().map(|b| b.get().len()).sum::<usize>();
        let mut line = Vec::with_capacity(1024 + bodies);
        serde_json::to_writer(&mut line, self)?;
        line.push(b'\n');
        Ok(line.into())
    }
}

impl<'a> Event<'a> {
    pub fn new(level: Level, stage: Stage, user: &'a UserInfo, annotations: &'a BTreeMap<String, String>) -> Self {
        Self {
            kind: Self::KIND,
            api_version: Self::VERSION,
            level,
            stage,
            user,
            annotations,
            audit_id: "",
            request_uri: "",
            verb: "",
            impersonated_user: None,
            source_ips: &[],
            user_agent: "",
            object_ref: None,
            response_status: None,
            request_object: None,
            response_object: None,
            request_received_timestamp: jiff::Timestamp::UNIX_EPOCH,
            stage_timestamp: jiff::Timestamp::UNIX_EPOCH,
        }
    }
}

/// An EventList of events that were written by [`Event::line`].
pub fn list(lines: &[Bytes]) -> Bytes {
    let size = lines.iter().map(Bytes::len).sum::<usize>();
    let mut list = Vec::with_capacity(size + 128);
    list.extend_from_slice(br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#);
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            list.push(b',');
        }
        match line.strip_prefix(TYPE.as_bytes()) {
            Some(rest) => {
                list.push(b'{');
                list.extend_from_slice(rest);
            }
            None => list.extend_from_slice(line),
        }
    }
    list.extend_from_slice(b"]}");
    list.into()
}

fn micro_time<S: Serializer>(time: &jiff::Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

fn name(text: &str) -> String {
    cut(text, MAX_NAME).into_owned()
}

/// A request's or response's object as JSON of at most `max` bytes; `None` when it is larger.
pub fn body(object: &Value, omit_managed_fields: bool, max: usize) -> Option<Box<RawValue>> {
    let mut out = Bounded { bytes: Vec::new(), max };
    let written = match omit_managed_fields {
        true => serde_json::to_writer(&mut out, &Lean { value: object, lists: true }),
        false => serde_json::to_writer(&mut out, object),
    };
    written.ok()?;
    RawValue::from_string(String::from_utf8(out.bytes).ok()?).ok()
}

/// Refuses to grow further than `max` bytes, so that a huge list is not written out first to be thrown away.
struct Bounded {
    bytes: Vec<u8>,
    max: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.max {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An object, or a list or a table of objects, without their `metadata.managedFields`, and without copying it.
struct Lean<'a> {
    value: &'a Value,
    /// Whether `items` and `rows` hold objects.
    lists: bool,
}

impl Serialize for Lean<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Value::Object(object) = self.value else { return self.value.serialize(serializer) };
        let mut map = serializer.serialize_map(Some(object.len()))?;
        for (key, value) in object {
            match (key.as_str(), value) {
                ("metadata", Value::Object(metadata)) => map.serialize_entry(key, &LeanMetadata(metadata))?,
                ("items", Value::Array(items)) if self.lists => map.serialize_entry(key, &LeanItems(items, false))?,
                ("rows", Value::Array(rows)) if self.lists => map.serialize_entry(key, &LeanItems(rows, true))?,
                _ => map.serialize_entry(key, value)?,
            }
        }
        map.end()
    }
}

struct LeanMetadata<'a>(&'a Map<String, Value>);

impl Serialize for LeanMetadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter(|(key, _)| *key != "managedFields"))
    }
}

/// Items of a list, or rows of a table.
struct LeanItems<'a>(&'a [Value], bool);

impl Serialize for LeanItems<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.0.len()))?;
        for value in self.0 {
            if self.1 {
                seq.serialize_element(&LeanRow(value))?
            } else {
                seq.serialize_element(&Lean { value, lists: false })?
            }
        }
        seq.end()
    }
}

/// A row of a table: its `object` is an object.
struct LeanRow<'a>(&'a Value);

impl Serialize for LeanRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Value::Object(row) = self.0 else { return self.0.serialize(serializer) };
        let mut map = serializer.serialize_map(Some(row.len()))?;
        for (key, value) in row {
            if key == "object" {
                map.serialize_entry(key, &Lean { value, lists: false })?;
            } else {
                map.serialize_entry(key, value)?;
            }
        }
        map.end()
    }
}
