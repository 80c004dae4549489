//! Kubernetes' protobuf bodies (`application/vnd.kubernetes.protobuf`) to JSON objects.
//!
//! In: the four bytes `k8s\0` and a `runtime.Unknown`. Out: the object as Go's JSON encoder would have written it:
//! values that Go omits when empty are left out, inlined structs are flattened, and the types with a JSON form of
//! their own (times, quantities, raw JSON, …) have it.

use crate::bounds::{MAX_DEPTH, is_deeper, too_deep};
use crate::builtin;
use crate::table::{FieldDef, Form, Label, Message, Table, Type};
use base64::Engine as _;
use serde_json::{Map, Value};
use thiserror::Error;

const MAGIC: &[u8] = b"k8s\0";
/// The one message whose bytes may be an enveloped object again.
const RAW_EXTENSION: &str = "apimachinery.pkg.runtime.RawExtension";

/// Why a body could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProtobufError {
    /// The four bytes in front are missing.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    /// The bytes end in the middle of something, or make no sense.
    #[error("proto: {message}: the message is cut short or malformed")]
    Malformed {
        /// Which message was being read.
        message: &'static str,
    },
    /// A kind we have no definition of (custom resources have no protobuf form).
    #[error("no kind {kind:?} is registered for version {api_version:?} in protobuf: send it as JSON")]
    UnknownKind {
        /// From the envelope.
        api_version: String,
        /// From the envelope.
        kind: String,
    },
    /// The body is in an encoding we do not read.
    #[error("the content type {0:?} inside the protobuf envelope is not supported")]
    ContentType(String),
    /// JSON inside the body is broken.
    #[error("reading the JSON in field {field:?}: {problem}")]
    Json {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Deeper than any real object.
    #[error("{}", too_deep())]
    TooDeep,
}

type Result<T> = std::result::Result<T, ProtobufError>;

/// Reads an enveloped body. The object is at most [`MAX_DEPTH`] levels deep.
pub fn decode(body: &[u8]) -> Result<Value> {
    let value = enveloped(body, 0)?;
    // A message can be two levels of JSON, and ends in JSON that was parsed for itself.
    if is_deeper(&value, MAX_DEPTH) { Err(ProtobufError::TooDeep) } else { Ok(value) }
}

/// Reads an envelope that is itself so many messages deep in others: one bound for everything that is nested.
fn enveloped(body: &[u8], depth: usize) -> Result<Value> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::TooDeep);
    }
    let body = body.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let (mut type_meta, mut raw, mut encoding, mut content_type) = (&b""[..], &b""[..], &b""[..], &b""[..]);
    let mut reader = Reader { bytes: body, message: "runtime.Unknown" };
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => type_meta = bytes,
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3, Wire::Bytes(bytes)) => encoding = bytes,
            (4, Wire::Bytes(bytes)) => content_type = bytes,
            _ => {}
        }
    }
    if !encoding.is_empty() {
        return Err(ProtobufError::ContentType(String::from_utf8_lossy(encoding).into_owned()));
    }
    let (api_version, kind) = read_type_meta(type_meta)?;
    match content_type {
        b"application/json" => json_object(raw, "raw", api_version, kind),
        b"" | b"application/vnd.kubernetes.protobuf" => typed_object(raw, api_version, kind, depth),
        other => Err(ProtobufError::ContentType(String::from_utf8_lossy(other).into_owned())),
    }
}

fn read_type_meta(bytes: &[u8]) -> Result<(String, String)> {
    let (mut api_version, mut kind) = (String::new(), String::new());
    let mut reader = Reader { bytes, message: "runtime.TypeMeta" };
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => api_version = text(bytes, "runtime.TypeMeta")?,
            (2, Wire::Bytes(bytes)) => kind = text(bytes, "runtime.TypeMeta")?,
            _ => {}
        }
    }
    Ok((api_version, kind))
}

fn json_object(raw: &[u8], field: &'static str, api_version: String, kind: String) -> Result<Value> {
    let mut value: Value =
        serde_json::from_slice(raw).map_err(|e| ProtobufError::Json { field, problem: e.to_string() })?;
    if let Some(object) = value.as_object_mut() {
        for (key, text) in [("apiVersion", api_version), ("kind", kind)] {
            if !object.contains_key(key) && !text.is_empty() {
                object.insert(key.to_owned(), text.into());
            }
        }
    }
    Ok(value)
}

fn typed_object(raw: &[u8], api_version: String, kind: String, depth: usize) -> Result<Value> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let index = builtin::message_index(group, version, &kind);
    let Some(message) = index.and_then(|i| Table::get().messages.get(i)) else {
        return Err(ProtobufError::UnknownKind { api_version, kind });
    };
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    plain(raw, message, &mut object, depth)?;
    Ok(Value::Object(object))
}

/// One value on the wire.
#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

/// Walks over the fields of a message.
struct Reader<'a> {
    bytes: &'a [u8],
    message: &'static str,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| self.malformed())?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes: [u8; 8] = self.take(8)?.try_into().map_err(|_| self.malformed())?;
                Wire::Fixed64(u64::from_le_bytes(bytes))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| self.malformed())?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err(self.malformed()),
        };
        Ok(Some((number, wire)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(length).ok_or_else(|| self.malformed())?;
        self.bytes = tail;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed())
    }

    fn malformed(&self) -> ProtobufError {
        ProtobufError::Malformed { message: self.message }
    }
}

/// Adds the fields of a message with an ordinary JSON form to an object.
fn plain(bytes: &[u8], message: &'static Message, object: &mut Map<String, Value>, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::TooDeep);
    }
    let mut reader = Reader { bytes, message: message.name };
    while let Some((number, wire)) = reader.next()? {
        let Ok(at) = message.fields.binary_search_by_key(&number, |f| f.number) else {
            continue; // a field of a newer version
        };
        let field = &message.fields[at];
        match (field.label, field.kind, wire) {
            (Label::Optional, Type::Message(inner), Wire::Bytes(bytes)) if field.inline => {
                plain(bytes, &Table::get().messages[inner], object, depth + 1)?;
            }
            (Label::Optional, _, _) => {
                let value = value(field, wire, message.name, depth)?;
                if let Some(value) = value.filter(|v| field.keep_zero || !is_omitted(v, field.kind)) {
                    object.insert(field.name.to_owned(), value);
                }
            }
            (Label::Repeated, Type::Int32 | Type::Int64, Wire::Bytes(packed)) => {
                let mut packed = Reader { bytes: packed, message: message.name };
                while !packed.bytes.is_empty() {
                    let item = integer(field.kind, packed.varint()?);
                    push(object, field.name, item);
                }
            }
            (Label::Repeated, _, _) => {
                let item = value(field, wire, message.name, depth)?;
                push(object, field.name, item.unwrap_or(Value::Null));
            }
            (Label::Map, _, Wire::Bytes(entry)) => {
                let (key, value) = map_entry(entry, field, message.name, depth)?;
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key, value);
                }
            }
            (Label::Map, ..) => return Err(reader.malformed()),
        }
    }
    Ok(())
}

fn push(object: &mut Map<String, Value>, name: &str, item: Value) {
    let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

fn map_entry(bytes: &[u8], field: &'static FieldDef, within: &'static str, depth: usize) -> Result<(String, Value)> {
    let mut key = String::new();
    let mut found = None;
    let mut reader = Reader { bytes, message: within };
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => key = text(bytes, within)?,
            (2, wire) => found = value(field, wire, within, depth)?,
            _ => {}
        }
    }
    let missing = || match field.kind {
        Type::String | Type::Bytes => Value::from(""),
        Type::Bool => Value::from(false),
        Type::Int32 | Type::Int64 | Type::Double => Value::from(0),
        Type::Message(_) => Value::Null,
    };
    Ok((key, found.unwrap_or_else(missing)))
}

/// One value; `None` is Go's nil.
fn value(field: &'static FieldDef, wire: Wire<'_>, within: &'static str, depth: usize) -> Result<Option<Value>> {
    Ok(Some(match (field.kind, wire) {
        (Type::String, Wire::Bytes(bytes)) => text(bytes, within)?.into(),
        (Type::Bytes, Wire::Bytes(bytes)) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
        (Type::Bool, Wire::Varint(n)) => (n != 0).into(),
        (Type::Int32 | Type::Int64, Wire::Varint(n)) => integer(field.kind, n),
        (Type::Double, Wire::Fixed64(bits)) => number(f64::from_bits(bits)),
        (Type::Message(index), Wire::Bytes(bytes)) => {
            return message(bytes, &Table::get().messages[index], field.name, depth + 1);
        }
        _ => return Err(ProtobufError::Malformed { message: within }),
    }))
}

fn message(bytes: &[u8], message: &'static Message, field: &'static str, depth: usize) -> Result<Option<Value>> {
    // The types with a form of their own are small; reading them as plain objects first keeps one reader.
    let mut object = Map::new();
    match message.form {
        Form::Raw => return raw_json(bytes, message.name, field, depth),
        Form::Time | Form::MicroTime => return time(bytes, message),
        _ => plain(bytes, message, &mut object, depth)?,
    }
    let mut take = |key: &str| object.shift_remove(key);
    Ok(Some(match message.form {
        Form::Quantity => take("string").unwrap_or_else(|| "0".into()),
        Form::IntOrString if take("type").is_some() => take("strVal").unwrap_or_else(|| "".into()),
        Form::IntOrString => take("intVal").unwrap_or_else(|| 0.into()),
        Form::Duration => go_duration(take("duration").and_then(|n| n.as_i64()).unwrap_or_default()).into(),
        Form::Items => take("items").unwrap_or_else(|| Value::Array(Vec::new())),
        Form::SchemaOrArray => take("schema").or_else(|| take("jSONSchemas")).unwrap_or(Value::Null),
        Form::SchemaOrBool => take("schema").or_else(|| take("allows")).unwrap_or(Value::Bool(false)),
        Form::SchemaOrStrings => take("schema").or_else(|| take("property")).unwrap_or(Value::Null),
        Form::Plain | Form::Raw | Form::Time | Form::MicroTime => Value::Object(object),
    }))
}

/// The bytes in a RawExtension, FieldsV1 or JSON (field 1 in all of them). Only the first may hold an envelope.
fn raw_json(bytes: &[u8], within: &'static str, field: &'static str, depth: usize) -> Result<Option<Value>> {
    let mut raw = &b""[..];
    let mut reader = Reader { bytes, message: within };
    while let Some((number, wire)) = reader.next()? {
        if let (1, Wire::Bytes(bytes)) = (number, wire) {
            raw = bytes;
        }
    }
    if raw.is_empty() {
        return Ok(None);
    }
    if within == RAW_EXTENSION && raw.starts_with(MAGIC) {
        return enveloped(raw, depth + 1).map(Some);
    }
    serde_json::from_slice(raw).map(Some).map_err(|e| ProtobufError::Json { field, problem: e.to_string() })
}

/// A time; without any bytes it is Go's zero time, which JSON shows as null.
fn time(bytes: &[u8], message: &'static Message) -> Result<Option<Value>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let malformed = || ProtobufError::Malformed { message: message.name };
    let (mut seconds, mut nanos) = (0i64, 0i32);
    let mut reader = Reader { bytes, message: message.name };
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Varint(n)) => seconds = n.cast_signed(),
            (2, Wire::Varint(n)) => nanos = i32::try_from(n.cast_signed()).map_err(|_| malformed())?,
            _ => {}
        }
    }
    let micros = message.form == Form::MicroTime;
    let stamp = jiff::Timestamp::new(seconds, if micros { nanos } else { 0 }).map_err(|_| malformed())?;
    Ok(Some(if micros { format!("{stamp:.6}") } else { stamp.to_string() }.into()))
}

fn text(bytes: &[u8], message: &'static str) -> Result<String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| ProtobufError::Malformed { message })
}

fn integer(kind: Type, varint: u64) -> Value {
    let number = varint.cast_signed();
    // A negative int32 travels as ten bytes; cutting it to 32 bits is what protobuf prescribes.
    #[allow(clippy::cast_possible_truncation)]
    let number = if kind == Type::Int32 { i64::from(number as i32) } else { number };
    number.into()
}

/// Go writes whole floats without a fraction.
fn number(value: f64) -> Value {
    #[allow(clippy::cast_possible_truncation)]
    if value.fract() == 0.0 && value.abs() < 1e15 { Value::from(value as i64) } else { Value::from(value) }
}

/// Go's `omitempty` leaves it out.
fn is_omitted(value: &Value, kind: Type) -> bool {
    if let Type::Message(index) = kind {
        return Table::get().messages[index].form == Form::IntOrString && (value == 0 || value == "");
    }
    match value {
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Go's `time.Duration.String` of nanoseconds.
fn go_duration(nanos: i64) -> String {
    let (sign, total) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let fraction = |n: u64, unit: u64| {
        let digits = format!("{:0width$}", n % unit, width = unit.ilog10() as usize);
        let digits = digits.trim_end_matches('0');
        if digits.is_empty() { (n / unit).to_string() } else { format!("{}.{digits}", n / unit) }
    };
    let second = 1_000_000_000;
    let text = match total {
        0 => return "0s".to_owned(),
        n if n < 1_000 => format!("{n}ns"),
        n if n < 1_000_000 => format!("{}µs", fraction(n, 1_000)),
        n if n < second => format!("{}ms", fraction(n, 1_000_000)),
        n => {
            let (hours, minutes) = (n / second / 3600, n / second / 60 % 60);
            let seconds = fraction(n % (60 * second), second);
            match (hours, minutes) {
                (0, 0) => format!("{seconds}s"),
                (0, m) => format!("{m}m{seconds}s"),
                (h, m) => format!("{h}h{m}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests;
