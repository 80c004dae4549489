//! Field errors as Kubernetes words them (upstream: `apimachinery/pkg/util/validation/field`).

use serde_json::Value;
use std::fmt;

/// A path to a field, rendered as `spec.containers[0].name`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// A path that starts at a top-level field.
    pub fn new(field: &str) -> Self {
        Self(field.to_owned())
    }

    /// The path of a field below.
    pub fn child(&self, field: &str) -> Self {
        if self.0.is_empty() { Self(field.to_owned()) } else { Self(format!("{}.{field}", self.0)) }
    }

    /// The path of a list item.
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// The path of a map value.
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The class of a field error; its `reason` goes into `Status.details.causes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldErrorType {
    /// Not found.
    NotFound,
    /// A needed value is missing.
    Required,
    /// The same key twice.
    Duplicate,
    /// A malformed or out-of-range value.
    Invalid,
    /// Not one of the supported values.
    NotSupported,
    /// Not allowed here.
    Forbidden,
    /// Too long.
    TooLong,
    /// Too many items.
    TooMany,
    /// Of the wrong type.
    TypeInvalid,
    /// Our own fault.
    Internal,
}

impl FieldErrorType {
    /// `FieldValueRequired` and so on: the cause's machine-readable reason.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

/// One thing that is wrong with one field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// The class.
    pub kind: FieldErrorType,
    /// The field's path.
    pub field: String,
    /// The offending value, where there is one to show.
    pub value: Option<Value>,
    /// What to do about it.
    pub detail: String,
}

impl FieldError {
    /// The message without the field, as it stands in `causes[].message`.
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        let shows_value = !matches!(
            self.kind,
            FieldErrorType::Required | FieldErrorType::Forbidden | FieldErrorType::TooLong | FieldErrorType::Internal
        );
        if shows_value && let Some(value) = &self.value {
            text.push_str(": ");
            text.push_str(&value.to_string());
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// Everything that is wrong with an object; empty when nothing is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FieldErrors(pub Vec<FieldError>);

impl FieldErrors {
    /// Adds an error of any class.
    pub fn push(&mut self, kind: FieldErrorType, field: &Path, value: Option<Value>, detail: impl Into<String>) {
        self.0.push(FieldError { kind, field: field.to_string(), value, detail: detail.into() });
    }

    /// Adds "Required value".
    pub fn required(&mut self, field: &Path, detail: impl Into<String>) {
        self.push(FieldErrorType::Required, field, None, detail);
    }

    /// Adds "Invalid value".
    pub fn invalid(&mut self, field: &Path, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(FieldErrorType::Invalid, field, Some(value.into()), detail);
    }

    /// Adds "Duplicate value".
    pub fn duplicate(&mut self, field: &Path, value: impl Into<Value>) {
        self.push(FieldErrorType::Duplicate, field, Some(value.into()), "");
    }

    /// Adds "Forbidden".
    pub fn forbidden(&mut self, field: &Path, detail: impl Into<String>) {
        self.push(FieldErrorType::Forbidden, field, None, detail);
    }

    /// Adds "Unsupported value" with the list of supported ones.
    pub fn not_supported(&mut self, field: &Path, value: impl Into<Value>, supported: &[&str]) {
        let list = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
        self.push(FieldErrorType::NotSupported, field, Some(value.into()), format!("supported values: {list}"));
    }

    /// Takes another list in.
    pub fn extend(&mut self, other: FieldErrors) {
        self.0.extend(other.0);
    }

    /// Nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// RFC 1123 subdomain: lower-case labels joined by dots, at most 253 characters.
pub fn dns_subdomain(name: &str) -> Result<(), String> {
    if name.len() > 253 {
        return Err("must be no more than 253 characters".to_owned());
    }
    (!name.is_empty() && name.split('.').all(is_label_body)).then_some(()).ok_or_else(|| {
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
         start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            .to_owned()
    })
}

/// RFC 1123 label: lower-case alphanumerics and dashes, at most 63 characters.
pub fn dns_label(name: &str) -> Result<(), String> {
    if name.len() > 63 {
        return Err("must be no more than 63 characters".to_owned());
    }
    is_label_body(name).then_some(()).ok_or_else(|| {
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
         end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            .to_owned()
    })
}

/// RFC 1035 label, as Service names are: as [`dns_label`], but it starts with a letter.
pub fn dns_1035_label(name: &str) -> Result<(), String> {
    if name.len() > 63 {
        return Err("must be no more than 63 characters".to_owned());
    }
    let ok = is_label_body(name) && name.starts_with(|c: char| c.is_ascii_lowercase());
    ok.then_some(()).ok_or_else(|| {
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
         character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation \
         is '[a-z]([-a-z0-9]*[a-z0-9])?')"
            .to_owned()
    })
}

/// Anything that may stand between two slashes of a URL, as RBAC names are.
pub fn path_segment(name: &str) -> Result<(), String> {
    match name {
        "." | ".." => Err(format!("may not be '{name}'")),
        _ if name.contains('/') => Err("may not contain '/'".to_owned()),
        _ if name.contains('%') => Err("may not contain '%'".to_owned()),
        _ => Ok(()),
    }
}

/// An IP address in its canonical form, as the names of IPAddress objects are.
pub fn canonical_ip(name: &str) -> Result<(), String> {
    match name.parse::<std::net::IpAddr>() {
        Err(_) => Err("must be a valid IP address".to_owned()),
        Ok(ip) if ip.to_string() != name => Err("must be a canonical form IP address".to_owned()),
        Ok(_) => Ok(()),
    }
}

fn is_label_body(label: &str) -> bool {
    let bytes = label.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}
