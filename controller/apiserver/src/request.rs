//! What a request asks for: path grammar, query parameters, selectors.
//!
//! In: method, path and query of an HTTP request. Out: [`RequestInfo`] (which resource, object, subresource and verb),
//! [`Query`] and the options that are in it. Pure.

mod info;

pub use info::{RequestInfo, Target, segments};

use crate::status::{ApiError, ApiResult};
use causeway_api::selector::Selector;
use std::collections::BTreeMap;

/// Decoded query parameters; a repeated one keeps all values.
#[derive(Debug, Clone, Default)]
pub struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    /// From the raw query string.
    pub fn parse(raw: &str) -> Self {
        let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, value) in form_urlencoded::parse(raw.as_bytes()) {
            map.entry(key.into_owned()).or_default().push(value.into_owned());
        }
        Self(map)
    }

    /// The first value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.first().map(String::as_str).filter(|v| !v.is_empty())
    }

    /// All values.
    pub fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// `true`, `1` or present without a value.
    pub fn flag(&self, key: &str) -> bool {
        self.0.get(key).and_then(|v| v.first()).is_some_and(|v| v.is_empty() || v == "true" || v == "1")
    }

    /// A number.
    pub fn number(&self, key: &str) -> ApiResult<Option<i64>> {
        self.get(key)
            .map(|v| {
                v.parse::<i64>()
                    .map_err(|_| ApiError::bad_request(format!("strconv.ParseInt: parsing {v:?}: invalid syntax")))
            })
            .transpose()
    }
}

/// One condition of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    /// For example `spec.nodeName`.
    pub field: String,
    /// `=` (true) or `!=`.
    pub equal: bool,
    /// The value compared with.
    pub value: String,
}

/// Reads `a=b,c!=d` (with `\,`, `\=` and `\\` as escapes).
pub fn parse_field_selector(text: &str) -> ApiResult<Vec<FieldTerm>> {
    let mut terms = Vec::new();
    for term in split_escaped(text) {
        if term.is_empty() {
            continue;
        }
        let bad = || ApiError::bad_request(format!("invalid field selector: {term:?}; can't understand {term:?}"));
        let at = unescaped_equals(&term).ok_or_else(bad)?;
        let (mut field, mut value) = (&term[..at], &term[at + 1..]);
        let equal = !field.ends_with('!');
        field = field.strip_suffix('!').unwrap_or(field);
        value = value.strip_prefix('=').unwrap_or(value);
        terms.push(FieldTerm { field: field.trim().to_owned(), equal, value: unescape(value.trim()) });
    }
    Ok(terms)
}

fn split_escaped(text: &str) -> Vec<String> {
    let (mut terms, mut current, mut escaped) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            ',' if !escaped => terms.push(std::mem::take(&mut current)),
            _ => current.push(c),
        }
        escaped = c == '\\' && !escaped;
    }
    terms.push(current);
    terms
}

fn unescaped_equals(term: &str) -> Option<usize> {
    let mut escaped = false;
    for (i, c) in term.char_indices() {
        if c == '=' && !escaped {
            return Some(i);
        }
        escaped = c == '\\' && !escaped;
    }
    None
}

fn unescape(value: &str) -> String {
    let (mut out, mut escaped) = (String::with_capacity(value.len()), false);
    for c in value.chars() {
        if c == '\\' && !escaped {
            escaped = true;
            continue;
        }
        escaped = false;
        out.push(c);
    }
    out
}

/// How `resourceVersion` is meant in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionMatch {
    /// As new as that version, or newer (also the meaning without a match for a version but "").
    NotOlderThan,
    /// Exactly at that version.
    Exact,
}

/// Parameters of list and watch.
#[derive(Debug, Clone)]
pub struct ListOptions {
    /// Label selector.
    pub labels: Selector,
    /// Field selector.
    pub fields: Vec<FieldTerm>,
    /// Page size; 0 is everything.
    pub limit: usize,
    /// Continue token.
    pub continue_token: Option<String>,
    /// Requested resource version; `None` when unset.
    pub version: Option<u64>,
    /// How it is meant; `None` when unset.
    pub version_match: Option<VersionMatch>,
    /// Bookmarks are wanted.
    pub bookmarks: bool,
    /// A watch starts with the state as ADDED events and a bookmark (KEP-3157).
    pub initial_events: Option<bool>,
    /// A watch ends after so many seconds.
    pub timeout_seconds: Option<u64>,
}

impl ListOptions {
    /// From query parameters.
    pub fn parse(query: &Query) -> ApiResult<Self> {
        let labels = Selector::parse(query.get("labelSelector").unwrap_or(""))
            .map_err(|e| ApiError::bad_request(format!("unable to parse requirement: {e}")))?;
        let version = query
            .get("resourceVersion")
            .map(|v| {
                v.parse::<u64>().map_err(|_| {
                    ApiError::bad_request(format!(
                        "Invalid value: {v:?}: strconv.ParseUint: parsing {v:?}: invalid syntax"
                    ))
                })
            })
            .transpose()?;
        let version_match = match query.get("resourceVersionMatch") {
            None => None,
            Some("NotOlderThan") => Some(VersionMatch::NotOlderThan),
            Some("Exact") => Some(VersionMatch::Exact),
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
                )));
            }
        };
        let initial_events = query.get("sendInitialEvents").map(|v| v == "true" || v == "1");
        if version_match.is_some() && version.is_none() && initial_events.is_none() {
            return Err(ApiError::bad_request(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        Ok(Self {
            labels,
            fields: parse_field_selector(query.get("fieldSelector").unwrap_or(""))?,
            limit: query.number("limit")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
            continue_token: query.get("continue").map(str::to_owned),
            version,
            version_match,
            bookmarks: query.flag("allowWatchBookmarks"),
            initial_events,
            timeout_seconds: query.number("timeoutSeconds")?.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0),
        })
    }
}

/// What happens to unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped with a `Warning` header.
    Warn,
    /// Refused.
    Strict,
}

/// Parameters of writes.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Nothing is stored.
    pub dry_run: bool,
    /// Who owns the fields that change.
    pub field_manager: String,
    /// Unknown fields.
    pub validation: FieldValidation,
    /// Server-side apply takes fields from other managers.
    pub force: bool,
}

impl WriteOptions {
    /// From query parameters; the manager's name falls back to the client program's.
    pub fn parse(query: &Query, user_agent: &str) -> ApiResult<Self> {
        let dry_run = match query.get("dryRun") {
            None => false,
            Some("All") => true,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "dryRun: Unsupported value: {other:?}: supported values: \"All\""
                )));
            }
        };
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
                )));
            }
        };
        let program = user_agent.split('/').next().filter(|p| !p.is_empty()).unwrap_or("unknown");
        let field_manager = query.get("fieldManager").unwrap_or(program).chars().take(128).collect();
        Ok(Self { dry_run, field_manager, validation, force: query.flag("force") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_selectors() {
        let terms = parse_field_selector(r"metadata.name=a,spec.x!=b\,c,d==e").unwrap();
        assert_eq!(terms.len(), 3);
        assert_eq!(terms[1], FieldTerm { field: "spec.x".into(), equal: false, value: "b,c".into() });
        assert_eq!(terms[2].value, "e");
        assert!(parse_field_selector("nonsense").is_err());
    }
}
