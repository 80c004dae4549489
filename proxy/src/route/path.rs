//! Request paths: the canonical form that is compared, and the patterns of rules.
//!
//! A canonical path has its percent-encoding undone (except for `/`, `\` and `%`, which would change its meaning), no
//! empty segments in its middle, and no `.` or `..`. Only matching uses it: what is forwarded is what the client sent.
//! So a path can be matched by what a backend will make of it (`/public/../admin` is `/admin`), and a path that
//! backends read differently (`/public/..%2fadmin`) is refused.

use regex::bytes::{Regex, RegexBuilder};
use std::borrow::Cow;
use std::fmt;

/// Why a path was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// Not `/…`.
    #[error("the path does not start with '/'")]
    NotAbsolute,
    /// `%` without two hexadecimal digits, or an encoded NUL.
    #[error("the path has a malformed percent-encoding")]
    Encoding,
    /// Not a regular expression, or one that takes too much memory.
    #[error("the path is not a regular expression")]
    Regex,
    /// More `..` than segments, or `..` next to an encoded slash.
    #[error("the path leaves its root")]
    Escape,
}

/// What paths a rule is for; exact ones and prefixes hold canonical paths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathPattern {
    /// This path, a trailing slash makes a difference.
    Exact(Box<[u8]>),
    /// Whole segments from the start; kept without a trailing slash, so the root is empty.
    Prefix(Box<[u8]>),
    /// A regular expression that fits from the start, in whatever case.
    Regex(Box<str>),
}

impl PathPattern {
    /// An exact pattern.
    pub fn exact(text: &str) -> Result<Self, BadPath> {
        Ok(Self::Exact(canonical(text)?.into_owned().into()))
    }

    /// A prefix pattern; the empty text is the root.
    pub fn prefix(text: &str) -> Result<Self, BadPath> {
        let path = if text.is_empty() { Cow::Borrowed(&b"/"[..]) } else { canonical(text)? };
        Ok(Self::Prefix(path.strip_suffix(b"/").unwrap_or(&path).into()))
    }

    /// A regular expression (RE2's syntax, without look-around).
    pub fn regex(text: &str) -> Result<Self, BadPath> {
        compile(text).map(|_| Self::Regex(text.into()))
    }

    /// The expression of one, ready to match canonical paths with.
    pub fn compiled(&self) -> Option<Regex> {
        match self {
            Self::Regex(text) => compile(text).ok(),
            Self::Exact(_) | Self::Prefix(_) => None,
        }
    }

    /// Whether a canonical path matches: the definition the table is tested against.
    pub fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(want) => **want == *path,
            Self::Prefix(want) => {
                path.strip_prefix(&**want).is_some_and(|rest| rest.first().is_none_or(|&b| b == b'/'))
            }
            Self::Regex(_) => self.compiled().is_some_and(|r| r.is_match(path)),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(p) => write!(f, "= {}", String::from_utf8_lossy(p)),
            Self::Prefix(p) => write!(f, "{}/", String::from_utf8_lossy(p)),
            Self::Regex(text) => write!(f, "~ {text}"),
        }
    }
}

fn compile(text: &str) -> Result<Regex, BadPath> {
    /// Bytes of a compiled expression.
    const LIMIT: usize = 1 << 20;
    let anchored = format!("^(?:{text})");
    RegexBuilder::new(&anchored).case_insensitive(true).size_limit(LIMIT).build().map_err(|_| BadPath::Regex)
}

/// The canonical form of a path (without query). Borrows when it already is.
pub fn canonical(path: &str) -> Result<Cow<'_, [u8]>, BadPath> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(BadPath::NotAbsolute);
    }
    let mut last = 0u8;
    let mut plain = true;
    for &b in bytes {
        // Only these can begin something that must be rewritten.
        plain &= !(b == b'%' || b == b'\\' || (last == b'/' && (b == b'/' || b == b'.')));
        last = b;
    }
    if plain { Ok(Cow::Borrowed(bytes)) } else { rewrite(bytes).map(Cow::Owned) }
}

fn rewrite(bytes: &[u8]) -> Result<Vec<u8>, BadPath> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut segment = Vec::new();
    let mut segments = bytes[1..].split(|&b| b == b'/').peekable();
    while let Some(raw) = segments.next() {
        let last = segments.peek().is_none();
        segment.clear();
        decode(raw, &mut segment)?;
        match segment.as_slice() {
            b"." | b"" => {
                if last {
                    out.push(b'/');
                }
            }
            b".." => {
                let parent = out.iter().rposition(|&b| b == b'/').ok_or(BadPath::Escape)?;
                out.truncate(parent);
                if last {
                    out.push(b'/');
                }
            }
            other => {
                out.push(b'/');
                out.extend_from_slice(other);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    Ok(out)
}

/// Undoes the percent-encoding of one segment, except where it would change the path's structure.
fn decode(raw: &[u8], out: &mut Vec<u8>) -> Result<(), BadPath> {
    let mut hidden_separator = false;
    let mut i = 0;
    while i < raw.len() {
        if raw[i] != b'%' {
            hidden_separator |= raw[i] == b'\\';
            out.push(raw[i]);
            i += 1;
            continue;
        }
        let digit = |at: usize| raw.get(at).and_then(|&b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(i + 1), digit(i + 2)) else { return Err(BadPath::Encoding) };
        let value = u8::try_from(high * 16 + low).map_err(|_| BadPath::Encoding)?;
        match value {
            0 => return Err(BadPath::Encoding),
            b'/' | b'\\' | b'%' => {
                hidden_separator |= value != b'%';
                out.push(b'%');
                out.extend(raw[i + 1..i + 3].iter().map(u8::to_ascii_uppercase));
            }
            other => out.push(other),
        }
        i += 3;
    }
    if hidden_separator && dots_between_hidden_separators(out) {
        return Err(BadPath::Escape);
    }
    Ok(())
}

/// Some servers take `%2F` and `\` for a separator; then these dots would climb.
fn dots_between_hidden_separators(segment: &[u8]) -> bool {
    let text = String::from_utf8_lossy(segment).replace("%2F", "/").replace("%5C", "/").replace('\\', "/");
    text.split('/').any(|part| part == ".." || part == ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(text: &str) -> Result<String, BadPath> {
        canonical(text).map(|c| String::from_utf8(c.into_owned()).unwrap())
    }

    #[test]
    fn canonical_paths() {
        for (text, want) in [
            ("/", Ok("/")),
            ("/foo/bar", Ok("/foo/bar")),
            ("/foo/", Ok("/foo/")),
            ("//", Ok("/")),
            ("//foo///bar", Ok("/foo/bar")),
            ("/foo//", Ok("/foo/")),
            ("/.", Ok("/")),
            ("/foo/.", Ok("/foo/")),
            ("/foo/..", Ok("/")),
            ("/foo/bar/..", Ok("/foo/")),
            ("/foo/../admin", Ok("/admin")),
            ("/foo/%2e%2E/admin", Ok("/admin")),
            ("/.well-known/x", Ok("/.well-known/x")),
            ("/..foo", Ok("/..foo")),
            ("/a%20b", Ok("/a b")),
            ("/f%C3%B6", Ok("/fö")),
            ("/fö", Ok("/fö")),
            ("/a%2fb", Ok("/a%2Fb")),
            ("/a%252fb", Ok("/a%252fb")),
            ("/%61dmin", Ok("/admin")),
            ("/..", Err(BadPath::Escape)),
            ("/a/../..", Err(BadPath::Escape)),
            ("/a/..%2fb", Err(BadPath::Escape)),
            ("/a/%2e%2e%2Fb", Err(BadPath::Escape)),
            ("/a/..\\b", Err(BadPath::Escape)),
            ("/a/..%5cb", Err(BadPath::Escape)),
            ("/%", Err(BadPath::Encoding)),
            ("/%zz", Err(BadPath::Encoding)),
            ("/%00", Err(BadPath::Encoding)),
            ("", Err(BadPath::NotAbsolute)),
            ("foo", Err(BadPath::NotAbsolute)),
            ("*", Err(BadPath::NotAbsolute)),
        ] {
            assert_eq!(form(text), want.map(str::to_owned), "{text}");
        }
    }

    /// The table in the Kubernetes documentation of `pathType`.
    #[test]
    fn the_tables_of_the_api() {
        for (prefix, path, want) in [
            ("/", "/any", true),
            ("/foo", "/foo", true),
            ("/foo", "/foo/", true),
            ("/foo/", "/foo", true),
            ("/foo/", "/foo/", true),
            ("/aaa/bb", "/aaa/bbb", false),
            ("/aaa/bbb", "/aaa/bbb", true),
            ("/aaa/bbb/", "/aaa/bbb", true),
            ("/aaa/bbb", "/aaa/bbb/", true),
            ("/aaa/bbb", "/aaa/bbb/ccc", true),
            ("/aaa/bbb", "/aaa/bbbxyz", false),
            ("/foo", "/foobar", false),
        ] {
            let pattern = PathPattern::prefix(prefix).unwrap();
            assert_eq!(pattern.matches(&canonical(path).unwrap()), want, "{prefix} {path}");
        }
        for (exact, path, want) in
            [("/foo", "/foo", true), ("/foo", "/bar", false), ("/foo", "/foo/", false), ("/foo/", "/foo", false)]
        {
            let pattern = PathPattern::exact(exact).unwrap();
            assert_eq!(pattern.matches(&canonical(path).unwrap()), want, "{exact} {path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn canonical_is_a_fixed_point_without_dots(path in "/([a-c./%25\\\\]|%2[efEF]|%5c){0,24}") {
            // A path need not be text: %ab is a byte of its own.
            if let Ok(once) = canonical(&path).map(|c| String::from_utf8_lossy(&c).into_owned()) {
                assert!(once.starts_with('/'));
                assert!(!once.split('/').any(|s| s == "." || s == ".."), "{path} -> {once}");
                assert!(!once.contains("//"), "{path} -> {once}");
            }
        }
    }
}
