//! Host names: what a client sends (`Host`, `:authority`) and what a rule says, in one comparable form.

use std::borrow::Cow;
use std::fmt;

/// The longest DNS name in text.
const MAX_HOST: usize = 253;

/// The hosts a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// Exactly this name, lower case.
    Exact(Box<str>),
    /// Exactly one label in front of this suffix (`*.example.org` has the suffix `example.org`).
    Wildcard(Box<str>),
    /// Every host.
    Any,
}

/// Why a host was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHost {
    /// No name at all.
    #[error("the Host header is empty")]
    Empty,
    /// Longer than a DNS name can be.
    #[error("the Host header is longer than a DNS name can be (253 characters)")]
    TooLong,
    /// A character or form that no host has.
    #[error("the Host header is not a host name")]
    Malformed,
}

impl HostPattern {
    /// From `spec.rules[].host` or `spec.tls[].hosts[]`; none and empty mean every host.
    pub fn parse(text: Option<&str>) -> Result<Self, BadHost> {
        match text {
            None | Some("") => Ok(Self::Any),
            Some(text) => match text.strip_prefix("*.") {
                Some(suffix) => Ok(Self::Wildcard(normalize(suffix.as_bytes())?.into())),
                None => Ok(Self::Exact(normalize(text.as_bytes())?.into())),
            },
        }
    }

    /// Whether a normalised host matches.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(name) => **name == *host,
            Self::Wildcard(suffix) => {
                host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && *rest == **suffix)
            }
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// The host of an authority: without port and trailing dot, in lower case. Borrows unless letters must change.
pub fn normalize(authority: &[u8]) -> Result<Cow<'_, str>, BadHost> {
    let host = without_port(authority)?;
    let host = host.strip_suffix(b".").unwrap_or(host);
    if host.is_empty() {
        return Err(BadHost::Empty);
    }
    if host.len() > MAX_HOST {
        return Err(BadHost::TooLong);
    }
    let mut upper = false;
    if host[0] != b'[' {
        let mut last = b'.';
        for &b in host {
            match b {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => {}
                b'A'..=b'Z' => upper = true,
                b'.' if last != b'.' => {}
                _ => return Err(BadHost::Malformed),
            }
            last = b;
        }
        if last == b'.' {
            return Err(BadHost::Malformed);
        }
    }
    let text = std::str::from_utf8(host).map_err(|_| BadHost::Malformed)?;
    Ok(if upper { Cow::Owned(text.to_ascii_lowercase()) } else { Cow::Borrowed(text) })
}

fn without_port(authority: &[u8]) -> Result<&[u8], BadHost> {
    let port_ok = |port: &[u8]| port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
    if authority.first() == Some(&b'[') {
        let end = authority.iter().position(|&b| b == b']').ok_or(BadHost::Malformed)?;
        let inside = std::str::from_utf8(&authority[1..end]).map_err(|_| BadHost::Malformed)?;
        inside.parse::<std::net::Ipv6Addr>().map_err(|_| BadHost::Malformed)?;
        return match authority[end + 1..].split_first() {
            None => Ok(&authority[..=end]),
            Some((b':', port)) if port_ok(port) => Ok(&authority[..=end]),
            Some(_) => Err(BadHost::Malformed),
        };
    }
    match authority.iter().position(|&b| b == b':') {
        None => Ok(authority),
        Some(colon) if port_ok(&authority[colon + 1..]) => Ok(&authority[..colon]),
        Some(_) => Err(BadHost::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_brought_into_one_form() {
        for (text, want) in [
            ("shop.localhost", Ok("shop.localhost")),
            ("Shop.LOCALHOST:8080", Ok("shop.localhost")),
            ("shop.localhost.", Ok("shop.localhost")),
            ("shop.localhost.:80", Ok("shop.localhost")),
            ("127.0.0.1:8080", Ok("127.0.0.1")),
            ("[::1]:8080", Ok("[::1]")),
            ("[::1]", Ok("[::1]")),
            ("a_b.example", Ok("a_b.example")),
            ("a:", Ok("a")),
            ("", Err(BadHost::Empty)),
            (".", Err(BadHost::Empty)),
            (":80", Err(BadHost::Empty)),
            ("a..b", Err(BadHost::Malformed)),
            (".a", Err(BadHost::Malformed)),
            ("a b", Err(BadHost::Malformed)),
            ("a/b", Err(BadHost::Malformed)),
            ("a@b", Err(BadHost::Malformed)),
            ("a:80:80", Err(BadHost::Malformed)),
            ("a:http", Err(BadHost::Malformed)),
            ("[::1", Err(BadHost::Malformed)),
            ("[evil]", Err(BadHost::Malformed)),
            ("[::1]x", Err(BadHost::Malformed)),
            ("bücher.example", Err(BadHost::Malformed)),
        ] {
            assert_eq!(normalize(text.as_bytes()).as_deref(), want.as_ref().map(|s| *s), "{text}");
        }
        assert_eq!(normalize("a".repeat(300).as_bytes()), Err(BadHost::TooLong));
    }

    #[test]
    fn a_wildcard_is_exactly_one_label() {
        let p = HostPattern::parse(Some("*.Foo.com")).unwrap();
        assert_eq!(p.to_string(), "*.foo.com");
        assert!(p.matches("bar.foo.com"));
        assert!(!p.matches("baz.bar.foo.com"));
        assert!(!p.matches("foo.com"));
        assert_eq!(HostPattern::parse(Some("")).unwrap(), HostPattern::Any);
        assert!(HostPattern::parse(Some("*")).is_err());
        assert!(HostPattern::parse(Some("a.*.b")).is_err());
    }
}
