//! What a route does to a request besides forwarding it. Pure: values that the configuration made, and the decisions
//! they lead to, on plain text and numbers. [`crate::traffic`] asks and acts.

use super::auth::BasicAuth;
use super::path::canonical;
use super::rate::RateLimit;
use super::upstream::Upstream;
use http::StatusCode;
use ipnet::IpNet;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// What must be written as `%xx` in a path; `/` and `%` are left alone by those who call.
const ESCAPED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'`').add(b'{').add(b'}');

/// All that a route asks for. The default asks for nothing.
#[derive(Debug, Default)]
pub struct Policy {
    /// Who may send requests.
    pub sources: Sources,
    /// Requests in clear text are sent to HTTPS, with this status.
    pub https_only: Option<StatusCode>,
    /// All requests are sent elsewhere.
    pub redirect: Option<Redirect>,
    /// Requests for `/` are sent to this path.
    pub app_root: Option<Box<str>>,
    /// Requests of one client in a time.
    pub rate: Option<RateLimit>,
    /// User and password.
    pub auth: Option<Arc<BasicAuth>>,
    /// Cross-origin requests of browsers.
    pub cors: Option<Cors>,
    /// Bytes of a request's body; more gets 413.
    pub max_body: Option<u64>,
    /// For a connection to an endpoint.
    pub connect_timeout: Option<Duration>,
    /// Between two reads of an answer.
    pub read_timeout: Option<Duration>,
    /// For each write to an endpoint.
    pub send_timeout: Option<Duration>,
    /// Clients keep their endpoint.
    pub affinity: Option<Affinity>,
}

/// Which clients may send requests: denied ones may not; where anyone is allowed by name, nobody else is.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Sources {
    /// Empty: everyone.
    pub allow: Vec<IpNet>,
    /// These not.
    pub deny: Vec<IpNet>,
}

/// To another place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// An absolute URL, or a path.
    pub to: Box<str>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// A path in place of the one that came.
#[derive(Debug, Clone)]
pub struct Rewrite {
    /// What the path was matched with; its groups are `$1`, `$2` … in `to`.
    pub from: Option<regex::bytes::Regex>,
    /// The new path.
    pub to: Box<str>,
}

/// Which pages of other origins may read answers (the Fetch standard's CORS protocol).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Origins, or one `*` for all; `https://*.example.org` stands for every label in that place.
    pub origins: Vec<String>,
    /// It stands for several labels too, as in the Gateway API.
    pub wide: bool,
    /// `Access-Control-Allow-Methods`.
    pub methods: String,
    /// `Access-Control-Allow-Headers`.
    pub headers: String,
    /// `Access-Control-Expose-Headers`.
    pub expose: Option<String>,
    /// Cookies and authorisation may be sent along.
    pub credentials: bool,
    /// How long a browser may remember the answer to its question.
    pub max_age: Duration,
}

/// A cookie that leads a client back to its endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affinity {
    /// The cookie's name.
    pub cookie: Box<str>,
    /// What stands after the value: `; Path=/; …`.
    pub attributes: Box<str>,
}

/// Another backend for some of a route's requests.
#[derive(Debug, Clone)]
pub struct Canary {
    /// Which requests.
    pub choice: CanaryChoice,
    /// Where they go.
    pub upstream: Arc<Upstream>,
}

/// Which requests go to a canary: the header decides first, then the cookie, then the weight.
#[derive(Debug, Default, Clone)]
pub struct CanaryChoice {
    /// A header: `always` and `never` decide, or the value or pattern below does.
    pub header: Option<http::HeaderName>,
    /// The header's value that leads to the canary.
    pub value: Option<Box<str>>,
    /// The same as a pattern.
    pub pattern: Option<regex::Regex>,
    /// A cookie whose `always` and `never` decide.
    pub cookie: Option<Box<str>>,
    /// So many of `total` requests.
    pub weight: u32,
    /// What `weight` is a part of.
    pub total: u32,
}

impl Sources {
    /// Whether a client may send requests.
    pub fn permit(&self, client: Option<IpAddr>) -> bool {
        let Some(client) = client.map(|c| c.to_canonical()) else { return self.allow.is_empty() };
        let within = |nets: &[IpNet]| nets.iter().any(|n| n.contains(&client));
        !within(&self.deny) && (self.allow.is_empty() || within(&self.allow))
    }
}

impl Rewrite {
    /// The target to send on for a request's path and query. The path is matched as rules are: in its canonical form.
    /// None where the path has none, which no rule would have matched.
    pub fn target(&self, path: &str, query: Option<&str>) -> Option<String> {
        let path = canonical(path).ok()?;
        let mut new = Vec::new();
        match self.from.as_ref().and_then(|f| f.captures(&path)) {
            Some(groups) => groups.expand(self.to.as_bytes(), &mut new),
            None => new.extend(strip_groups(&self.to).as_bytes()),
        }
        if new.first() != Some(&b'/') {
            new.insert(0, b'/');
        }
        // Two slashes at the start would be read as a host by some.
        while new.starts_with(b"//") {
            new.remove(0);
        }
        let text = String::from_utf8_lossy(&new);
        let (path, own) = match self.to.contains('?') {
            true => text.split_once('?').map_or((text.as_ref(), None), |(p, q)| (p, Some(q))),
            false => (text.as_ref(), None),
        };
        let mut target = utf8_percent_encode(path, ESCAPED).to_string();
        let queries: Vec<&str> = own.into_iter().chain(query).filter(|q| !q.is_empty()).collect();
        if !queries.is_empty() {
            target.push('?');
            target.push_str(&queries.join("&"));
        }
        Some(target)
    }
}

/// A target whose groups nothing fills.
fn strip_groups(to: &str) -> String {
    let mut out = String::with_capacity(to.len());
    let mut chars = to.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '$' && chars.peek().is_some_and(char::is_ascii_digit) {
            while chars.peek().is_some_and(char::is_ascii_digit) {
                chars.next();
            }
        } else {
            out.push(c);
        }
    }
    out
}

impl Cors {
    /// What `Access-Control-Allow-Origin` says to a page of this origin; none: nothing is said, and browsers refuse.
    pub fn allow_origin<'a>(&self, origin: &'a str) -> Option<&'a str> {
        let fits = |pattern: &str| match pattern.split_once('*') {
            None => pattern.eq_ignore_ascii_case(origin),
            Some(("", "")) => true,
            Some((head, tail)) => {
                let name = origin.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail));
                name.is_some_and(|n| !n.is_empty() && !n.contains(['/', ':']) && (self.wide || !n.contains('.')))
            }
        };
        if !self.origins.iter().any(|o| fits(o)) {
            return None;
        }
        // With credentials a browser takes no "*".
        let all = self.origins.iter().any(|o| o == "*") && !self.credentials;
        Some(if all { "*" } else { origin })
    }

    /// The headers of an answer to a page of an origin that is allowed. `preflight` is what a browser asks about before
    /// it sends: the method, and headers. Where all are allowed it is answered with just these, which holds with
    /// credentials too.
    pub fn headers(&self, origin: &str, preflight: Option<(&str, Option<&str>)>) -> Vec<(&'static str, String)> {
        let mut all = vec![("Access-Control-Allow-Origin", origin.to_owned())];
        if origin != "*" {
            all.push(("Vary", "Origin".to_owned()));
        }
        if self.credentials {
            all.push(("Access-Control-Allow-Credentials", "true".to_owned()));
        }
        if let Some((method, headers)) = preflight {
            let or_asked = |own: &str, asked: &str| if own == "*" { asked.to_owned() } else { own.to_owned() };
            let methods = or_asked(&self.methods, method);
            let headers = or_asked(&self.headers, headers.unwrap_or_default());
            all.push(("Access-Control-Allow-Methods", methods));
            all.push(("Access-Control-Allow-Headers", headers));
            all.push(("Access-Control-Max-Age", self.max_age.as_secs().to_string()));
        }
        if let Some(expose) = self.expose.as_ref().filter(|_| preflight.is_none() || self.wide) {
            all.push(("Access-Control-Expose-Headers", expose.clone()));
        }
        all.retain(|(_, value)| !value.is_empty());
        all
    }
}

impl CanaryChoice {
    /// Whether a request goes to the canary. `header` and `cookie` are what the request has, `dice` is below `total`.
    pub fn takes(&self, header: Option<&str>, cookie: Option<&str>, dice: u32) -> bool {
        if self.header.is_some()
            && let Some(sent) = header
        {
            match (&self.value, &self.pattern) {
                (Some(value), _) if **value == *sent => return true,
                (None, Some(pattern)) if pattern.is_match(sent) => return true,
                (None, None) if sent == "always" => return true,
                (None, None) if sent == "never" => return false,
                _ => {}
            }
        }
        match (self.cookie.is_some(), cookie) {
            (true, Some("always")) => true,
            (true, Some("never")) => false,
            _ => dice < self.weight,
        }
    }
}

/// The value of a cookie in a `Cookie` header.
pub fn cookie<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    header.split(';').filter_map(|pair| pair.trim().split_once('=')).find(|(n, _)| *n == name).map(|(_, v)| v)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(from: Option<&str>, to: &str) -> Rewrite {
        Rewrite { from: from.map(|f| regex::bytes::Regex::new(f).unwrap()), to: to.into() }
    }

    #[test]
    fn rewriting() {
        for (from, to, path, query, want) in [
            (Some("^/api(/|$)(.*)"), "/$2", "/api/v1/things", Some("a=1"), "/v1/things?a=1"),
            (Some("^/api(/|$)(.*)"), "/$2", "/api", None, "/"),
            (Some("^/x/(.*)"), "$1", "/x/y", None, "/y"),
            (Some("^/x/(.*)"), "/$1", "/x//evil.example/a", None, "/evil.example/a"),
            (Some("^/x/(.*)"), "/q?p=${1}&z=1", "/x/y", Some("b=2"), "/q?p=y&z=1&b=2"),
            (Some("^/x/(.*)"), "/$1", "/x/a%20b%3Fc", None, "/a%20b%3Fc"),
            (None, "/", "/anything", Some("q"), "/?q"),
            (None, "/fixed/$1", "/anything", None, "/fixed/"),
        ] {
            assert_eq!(rewrite(from, to).target(path, query).as_deref(), Some(want), "{path} -> {to}");
        }
    }

    #[test]
    fn sources() {
        let nets = |all: &[&str]| all.iter().map(|n| n.parse().unwrap()).collect::<Vec<IpNet>>();
        let s = Sources { allow: nets(&["10.0.0.0/8", "fd12::/16"]), deny: nets(&["10.1.0.0/16"]) };
        for (ip, want) in
            [("10.2.0.1", true), ("10.1.0.1", false), ("11.0.0.1", false), ("fd12::1", true), ("::ffff:10.2.0.1", true)]
        {
            assert_eq!(s.permit(ip.parse().ok()), want, "{ip}");
        }
        assert!(!s.permit(None), "nobody knows who it is");
        assert!(Sources::default().permit(None));
    }

    #[test]
    fn origins() {
        let cors = |origins: &[&str], credentials| Cors {
            wide: false,
            origins: origins.iter().map(|o| (*o).to_owned()).collect(),
            methods: String::new(),
            headers: String::new(),
            expose: None,
            credentials,
            max_age: Duration::ZERO,
        };
        let a = "https://a.example.org";
        assert_eq!(cors(&["*"], false).allow_origin(a), Some("*"));
        assert_eq!(cors(&["*"], true).allow_origin(a), Some(a));
        assert_eq!(cors(&["https://b.example.org", a], true).allow_origin(a), Some(a));
        assert_eq!(cors(&["https://*.example.org"], true).allow_origin(a), Some(a));
        for evil in
            ["https://example.org", "https://a.b.example.org", "http://a.example.org", "https://x.example.org:1"]
        {
            assert_eq!(cors(&["https://*.example.org"], true).allow_origin(evil), None, "{evil}");
        }
    }

    #[test]
    fn canaries() {
        let by_header = CanaryChoice {
            header: Some(http::HeaderName::from_static("x-canary")),
            cookie: Some("c".into()),
            weight: 0,
            total: 100,
            ..CanaryChoice::default()
        };
        assert!(by_header.takes(Some("always"), Some("never"), 50));
        assert!(!by_header.takes(Some("never"), Some("always"), 0));
        assert!(by_header.takes(Some("other"), Some("always"), 50));
        assert!(!by_header.takes(None, None, 0));
        let by_value = CanaryChoice { value: Some("beta".into()), weight: 30, ..by_header.clone() };
        assert!(by_value.takes(Some("beta"), None, 99));
        assert!(!by_value.takes(Some("always"), None, 99));
        assert!(by_value.takes(None, None, 29) && !by_value.takes(None, None, 30));
    }

    #[test]
    fn cookies() {
        assert_eq!(cookie("a=1; route=xyz;b=2", "route"), Some("xyz"));
        assert_eq!(cookie("aroute=1; xroute=2", "route"), None);
    }
}
