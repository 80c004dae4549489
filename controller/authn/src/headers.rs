//! What front proxies and impersonation read from headers in the same way.

use crate::user::AuthnError;
use http::{HeaderMap, HeaderName};
use std::collections::BTreeMap;

/// Values, over all headers that name one user.
pub(crate) const MAX_VALUES: usize = 1024;

/// A value as text. Bytes that are not UTF-8 could read differently to whoever logs or compares them.
pub(crate) fn text(name: &HeaderName, value: &http::HeaderValue) -> Result<String, AuthnError> {
    let text = std::str::from_utf8(value.as_bytes());
    text.map(str::to_owned).map_err(|_| AuthnError::Refused(format!("header {name} is not UTF-8")))
}

/// All values of a header.
pub(crate) fn values(headers: &HeaderMap, name: &HeaderName) -> Result<Vec<String>, AuthnError> {
    let found = headers.get_all(name).iter().map(|value| text(name, value)).collect::<Result<Vec<_>, _>>()?;
    if found.len() > MAX_VALUES { Err(too_many()) } else { Ok(found) }
}

/// The headers that begin with a prefix (lower case): the rest of the name, percent-decoded, with the values. Keys are
/// lower case before they are decoded, since header names have no case.
pub(crate) fn extra(headers: &HeaderMap, prefix: &str) -> Result<BTreeMap<String, Vec<String>>, AuthnError> {
    let (mut found, mut count) = (BTreeMap::<String, Vec<String>>::new(), 0);
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(prefix) else { continue };
        count += 1;
        if count > MAX_VALUES {
            return Err(too_many());
        }
        found.entry(unescape(key)).or_default().push(text(name, value)?);
    }
    Ok(found)
}

/// Removes the headers of these names and those that begin with these prefixes (lower case).
pub(crate) fn remove(headers: &mut HeaderMap, names: &[HeaderName], prefixes: &[String]) {
    for name in names {
        headers.remove(name);
    }
    let begins = |name: &HeaderName| prefixes.iter().any(|prefix| name.as_str().starts_with(prefix.as_str()));
    let matching: Vec<HeaderName> = headers.keys().filter(|name| begins(name)).cloned().collect();
    for name in matching {
        headers.remove(name);
    }
}

fn too_many() -> AuthnError {
    AuthnError::Refused(format!("headers name a user with more than {MAX_VALUES} values"))
}

/// Percent-decodes a key; what cannot be decoded stays as it is.
fn unescape(key: &str) -> String {
    let (bytes, mut out, mut at) = (key.as_bytes(), Vec::with_capacity(key.len()), 0);
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
            let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2)) else { return key.to_owned() };
            out.push((high * 16 + low) as u8);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_decoded_or_left() {
        let table = [
            ("acme.com%2fproject", "acme.com/project"),
            ("a%41b", "aAb"),
            ("plain", "plain"),
            ("bad%", "bad%"),
            ("bad%2", "bad%2"),
            ("bad%zz", "bad%zz"),
            ("%ff", "%ff"),
            ("%c3%bc", "ü"),
        ];
        for (key, want) in table {
            assert_eq!(unescape(key), want, "{key}");
        }
    }

    #[test]
    fn there_is_a_bound_on_values() {
        let mut map = HeaderMap::new();
        for _ in 0..MAX_VALUES {
            map.append("x-a-k", http::HeaderValue::from_static("v"));
        }
        assert_eq!(extra(&map, "x-a-").unwrap()["k"].len(), MAX_VALUES);
        map.append("x-a-k", http::HeaderValue::from_static("v"));
        assert!(extra(&map, "x-a-").is_err());
        assert!(values(&map, &HeaderName::from_static("x-a-k")).is_err());
    }
}
