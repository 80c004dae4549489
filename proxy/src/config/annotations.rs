//! Annotations of an Ingress: what everybody uses, under our prefix `causeway.dev/`, and under that of ingress-nginx
//! where it means the same; ours counts where both are there.
//!
//! In: an Ingress' annotations, and a way to the Secret that one of them names. Out: a [`Policy`] for its routes, and a
//! problem for every annotation that cannot be followed. Such a one never makes a route more open than was asked for:
//! where a list of sources or a password file is broken, nobody is let in.

use super::model::Problem;
use crate::route::auth::BasicAuth;
use crate::route::policy::{Affinity, CanaryChoice, Cors, Policy, Redirect, Sources};
use crate::route::rate::RateLimit;
use crate::route::upstream::Protocol;
use governor::Quota;
use http::StatusCode;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

/// Our prefix.
pub const PREFIX: &str = "causeway.dev/";
/// The prefix that manifests for ingress-nginx have.
pub const NGINX_PREFIX: &str = "nginx.ingress.kubernetes.io/";

const DEFAULT_METHODS: &str = "GET, PUT, POST, DELETE, PATCH, OPTIONS";
const DEFAULT_HEADERS: &str = "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type,\
                               Range,Authorization";

/// All that an Ingress' annotations ask for.
#[derive(Debug, Default)]
pub struct Asked {
    /// For its routes; none when they ask for nothing.
    pub policy: Option<Arc<Policy>>,
    /// Paths of type ImplementationSpecific are regular expressions.
    pub regex: bool,
    /// The path that is sent on.
    pub rewrite: Option<Box<str>>,
    /// What its backends speak, where the Services do not say.
    pub protocol: Option<Protocol>,
    /// It is another backend for rules of an older Ingress.
    pub canary: Option<CanaryChoice>,
}

/// Reads annotations and notes what is wrong with them.
struct Reader<'a> {
    all: &'a BTreeMap<String, String>,
    problems: &'a mut Vec<Problem>,
}

/// Reads an Ingress' annotations. `secret` gives the password file of a Secret of the Ingress' namespace.
pub fn read(
    all: &BTreeMap<String, String>,
    has_tls: bool,
    secret: impl Fn(&str) -> Result<String, String>,
    problems: &mut Vec<Problem>,
) -> Asked {
    if !all.keys().any(|k| k.starts_with(PREFIX) || k.starts_with(NGINX_PREFIX)) {
        return Asked::default();
    }
    let mut r = Reader { all, problems };
    let mut policy = Policy {
        sources: r.sources(),
        https_only: r.https_only(has_tls),
        redirect: r.redirect(),
        app_root: r.path("app-root"),
        rate: r.rate(),
        auth: r.auth(secret),
        cors: r.cors(),
        max_body: r.size("proxy-body-size"),
        connect_timeout: r.seconds("proxy-connect-timeout"),
        read_timeout: r.seconds("proxy-read-timeout"),
        send_timeout: r.seconds("proxy-send-timeout"),
        affinity: r.affinity(),
    };
    let rewrite = r.text("rewrite-target").filter(|t| !t.is_empty()).map(Box::from);
    if policy.auth.is_none() && r.text("auth-type").is_some() {
        // Asked for a password, but there is no file to check it with: better closed than open.
        policy.sources.deny = everybody();
    }
    Asked {
        regex: r.flag("use-regex").unwrap_or(false) || rewrite.is_some(),
        rewrite,
        protocol: r.protocol(),
        canary: r.canary(),
        policy: policy.asks_for_anything().then(|| Arc::new(policy)),
    }
}

fn everybody() -> Vec<IpNet> {
    [IpAddr::from([0_u8; 4]), IpAddr::from([0_u8; 16])].into_iter().filter_map(|ip| IpNet::new(ip, 0).ok()).collect()
}

impl Policy {
    fn asks_for_anything(&self) -> bool {
        self.sources != Sources::default()
            || self.https_only.is_some()
            || self.redirect.is_some()
            || self.app_root.is_some()
            || self.rate.is_some()
            || self.auth.is_some()
            || self.cors.is_some()
            || self.max_body.is_some()
            || self.connect_timeout.is_some()
            || self.read_timeout.is_some()
            || self.send_timeout.is_some()
            || self.affinity.is_some()
    }
}

impl<'a> Reader<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        let of = |prefix: &str| self.all.get(&format!("{prefix}{name}"));
        of(PREFIX).or_else(|| of(NGINX_PREFIX)).map(|v| v.trim())
    }

    fn wrong(&mut self, name: &str, value: &str, what: &str) {
        let message = format!("annotation {name}: {value:?} {what}");
        self.problems.push(Problem { reason: "InvalidAnnotation", message });
    }

    /// A value that `parse` understands; a problem and nothing where it does not.
    fn parsed<T>(&mut self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let value = parse(text);
        if value.is_none() {
            self.wrong(name, text, &format!("is not {expected}"));
        }
        value
    }

    fn flag(&mut self, name: &str) -> Option<bool> {
        self.parsed(name, "true or false", |t| t.parse().ok())
    }

    fn number(&mut self, name: &str) -> Option<u32> {
        self.parsed(name, "a whole number", |t| t.parse().ok())
    }

    fn seconds(&mut self, name: &str) -> Option<Duration> {
        let seconds = |t: &str| t.strip_suffix('s').unwrap_or(t).parse().ok().filter(|s| (1..=86_400 * 7).contains(s));
        self.parsed(name, "a number of seconds above zero", seconds).map(Duration::from_secs)
    }

    /// `8m`, `512k`, `1g` or bytes; zero stands for no limit.
    fn size(&mut self, name: &str) -> Option<u64> {
        let size = |text: &str| -> Option<u64> {
            let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
                "" => 1,
                "k" => 1 << 10,
                "m" => 1 << 20,
                "g" => 1 << 30,
                _ => return None,
            };
            digits.parse::<u64>().ok()?.checked_mul(unit)
        };
        self.parsed(name, "a size such as 8m, 512k or 0", size).filter(|s| *s > 0)
    }

    fn path(&mut self, name: &str) -> Option<Box<str>> {
        let fits = |t: &str| t.starts_with('/') && !t.starts_with("//") && http::HeaderValue::from_str(t).is_ok();
        self.parsed(name, "a path", |t| fits(t).then(|| Box::from(t)))
    }

    fn nets(&mut self, names: &[&str]) -> Option<Vec<IpNet>> {
        let name = names.iter().find(|n| self.text(n).is_some())?;
        let net = |t: &str| t.parse::<IpNet>().ok().or_else(|| t.parse::<IpAddr>().ok().map(IpNet::from));
        let all = |text: &str| -> Option<Vec<IpNet>> {
            text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(net).collect()
        };
        Some(self.parsed(name, "a list of addresses and ranges; nobody is let in", all).unwrap_or_default())
    }

    fn sources(&mut self) -> Sources {
        let before = self.problems.len();
        let allow = self.nets(&["allowlist-source-range", "whitelist-source-range"]).unwrap_or_default();
        let mut deny = self.nets(&["denylist-source-range"]).unwrap_or_default();
        if self.problems.len() > before {
            deny = everybody();
        }
        Sources { allow, deny }
    }

    /// As with ingress-nginx, an Ingress with TLS sends clear text to HTTPS once it says so; one without only by force.
    fn https_only(&mut self, has_tls: bool) -> Option<StatusCode> {
        let asked = self.flag("ssl-redirect").unwrap_or(false) && has_tls;
        let forced = self.flag("force-ssl-redirect").unwrap_or(false);
        (asked || forced).then_some(StatusCode::PERMANENT_REDIRECT)
    }

    fn redirect(&mut self) -> Option<Redirect> {
        let fits = |t: &str| {
            let absolute = t.parse::<http::Uri>().is_ok_and(|u| u.host().is_some() && u.scheme().is_some());
            (absolute || (t.starts_with('/') && !t.starts_with("//"))) && http::HeaderValue::from_str(t).is_ok()
        };
        for (name, code, default) in [
            ("temporal-redirect", "temporal-redirect-code", StatusCode::FOUND),
            ("permanent-redirect", "permanent-redirect-code", StatusCode::MOVED_PERMANENTLY),
        ] {
            let to = self.parsed(name, "an absolute URL or a path", |t| fits(t).then(|| Box::from(t)));
            let status = |t: &str| {
                let code: u16 = t.parse().ok()?;
                [301, 302, 303, 307, 308].contains(&code).then(|| StatusCode::from_u16(code).ok()).flatten()
            };
            if let Some(to) = to {
                let status = self.parsed(code, "301, 302, 303, 307 or 308", status).unwrap_or(default);
                return Some(Redirect { to, status });
            }
        }
        None
    }

    fn rate(&mut self) -> Option<RateLimit> {
        let burst = self.number("limit-burst-multiplier").unwrap_or(5).max(1);
        let spared = self.nets(&["limit-allowlist", "limit-whitelist"]).unwrap_or_default();
        let per_second = self.number("limit-rps").and_then(NonZeroU32::new);
        let per_minute = self.number("limit-rpm").and_then(NonZeroU32::new);
        let (quota, rate) = match (per_second, per_minute) {
            (Some(rate), _) => (Quota::per_second(rate), rate),
            (None, Some(rate)) => (Quota::per_minute(rate), rate),
            (None, None) => return None,
        };
        let burst = NonZeroU32::new(rate.get().saturating_mul(burst)).unwrap_or(rate);
        Some(RateLimit::new(quota.allow_burst(burst), spared))
    }

    fn auth(&mut self, secret: impl Fn(&str) -> Result<String, String>) -> Option<Arc<BasicAuth>> {
        let kind = self.text("auth-type")?;
        if kind != "basic" {
            self.wrong("auth-type", kind, "is not supported; only basic is");
            return None;
        }
        let realm = self.text("auth-realm").unwrap_or("Authentication Required");
        let name = self.text("auth-secret").unwrap_or("");
        let read = secret(name).and_then(|file| BasicAuth::parse(&file, realm).map_err(|e| e.to_string()));
        match read {
            Ok(auth) => Some(Arc::new(auth)),
            Err(why) => {
                self.wrong("auth-secret", name, &format!("cannot be used: {why}; nobody is let in"));
                None
            }
        }
    }

    fn cors(&mut self) -> Option<Cors> {
        if !self.flag("enable-cors").unwrap_or(false) {
            return None;
        }
        let list = |t: &str| -> Vec<String> {
            t.split(',').map(|o| o.trim().trim_end_matches('/').to_owned()).filter(|o| !o.is_empty()).collect()
        };
        let header = |t: &str| http::HeaderValue::from_str(t).is_ok().then(|| t.to_owned());
        Some(Cors {
            wide: false,
            origins: self.text("cors-allow-origin").map_or_else(|| vec!["*".to_owned()], list),
            methods: self.parsed("cors-allow-methods", "a list", header).unwrap_or_else(|| DEFAULT_METHODS.to_owned()),
            headers: self.parsed("cors-allow-headers", "a list", header).unwrap_or_else(|| DEFAULT_HEADERS.to_owned()),
            expose: self.parsed("cors-expose-headers", "a list", header),
            credentials: self.flag("cors-allow-credentials").unwrap_or(true),
            max_age: Duration::from_secs(self.number("cors-max-age").unwrap_or(1_728_000).into()),
        })
    }

    fn affinity(&mut self) -> Option<Affinity> {
        let kind = self.text("affinity")?;
        if kind != "cookie" {
            self.wrong("affinity", kind, "is not supported; only cookie is");
            return None;
        }
        let token = |t: &str| http::HeaderName::from_bytes(t.as_bytes()).is_ok().then(|| Box::from(t));
        let cookie = self.parsed("session-cookie-name", "the name of a cookie", token);
        let plain = |t: &str| (http::HeaderValue::from_str(t).is_ok() && !t.contains(';')).then(|| t.to_owned());
        let path = self.parsed("session-cookie-path", "a path", plain).unwrap_or_else(|| "/".to_owned());
        let mut attributes = format!("; Path={path}; HttpOnly");
        let max_age = self.number("session-cookie-max-age").or_else(|| self.number("session-cookie-expires"));
        if let Some(seconds) = max_age {
            attributes.push_str(&format!("; Max-Age={seconds}"));
        }
        let site = |t: &str| ["None", "Lax", "Strict"].into_iter().find(|s| s.eq_ignore_ascii_case(t));
        if let Some(site) = self.parsed("session-cookie-samesite", "None, Lax or Strict", site) {
            attributes.push_str(&format!("; SameSite={site}"));
        }
        if self.flag("session-cookie-secure").unwrap_or(false) {
            attributes.push_str("; Secure");
        }
        Some(Affinity { cookie: cookie.unwrap_or_else(|| "INGRESSCOOKIE".into()), attributes: attributes.into() })
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let known = |t: &str| match t.to_ascii_uppercase().as_str() {
            "HTTP" | "AUTO_HTTP" => Some(Protocol::Http1),
            "HTTPS" => Some(Protocol::Https),
            "GRPC" => Some(Protocol::H2c),
            "GRPCS" => Some(Protocol::H2),
            _ => None,
        };
        self.parsed("backend-protocol", "HTTP, HTTPS, GRPC or GRPCS", known)
    }

    fn canary(&mut self) -> Option<CanaryChoice> {
        if !self.flag("canary").unwrap_or(false) {
            return None;
        }
        let name = |t: &str| http::HeaderName::from_bytes(t.as_bytes()).ok();
        let header = self.parsed("canary-by-header", "the name of a header", name);
        let pattern = |t: &str| regex::Regex::new(t).ok();
        let total = self.number("canary-weight-total").unwrap_or(100).max(1);
        Some(CanaryChoice {
            header,
            value: self.text("canary-by-header-value").map(Box::from),
            pattern: self.parsed("canary-by-header-pattern", "a regular expression", pattern),
            cookie: self.text("canary-by-cookie").map(Box::from),
            weight: self.number("canary-weight").unwrap_or(0).min(total),
            total,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(pairs: &[(&str, &str)]) -> (Asked, Vec<String>) {
        let all = pairs.iter().map(|(k, v)| (format!("{NGINX_PREFIX}{k}"), (*v).to_owned())).collect();
        let mut problems = Vec::new();
        let file = |name: &str| if name == "users" { Ok("a:{SHA}x".to_owned()) } else { Err("it is not there".into()) };
        let asked = read(&all, true, file, &mut problems);
        (asked, problems.into_iter().map(|p| p.message).collect())
    }

    #[test]
    fn what_is_read() {
        let (asked, problems) = ask(&[
            ("rewrite-target", "/$2"),
            ("ssl-redirect", "true"),
            ("proxy-body-size", "8m"),
            ("proxy-read-timeout", "30"),
            ("whitelist-source-range", "10.0.0.0/8, 192.168.7.1"),
            ("auth-type", "basic"),
            ("auth-secret", "users"),
            ("enable-cors", "true"),
            ("limit-rps", "5"),
            ("affinity", "cookie"),
            ("session-cookie-max-age", "60"),
            ("backend-protocol", "GRPCS"),
            ("canary", "true"),
            ("canary-weight", "20"),
        ]);
        assert_eq!(problems, Vec::<String>::new());
        assert!(asked.regex && asked.rewrite.as_deref() == Some("/$2") && asked.protocol == Some(Protocol::H2));
        assert_eq!(asked.canary.unwrap().weight, 20);
        let policy = asked.policy.unwrap();
        assert_eq!(policy.max_body, Some(8 << 20));
        assert_eq!(policy.read_timeout, Some(Duration::from_secs(30)));
        assert_eq!(policy.sources.allow.len(), 2);
        assert_eq!(policy.https_only, Some(StatusCode::PERMANENT_REDIRECT));
        assert!(policy.auth.is_some() && policy.rate.is_some() && policy.cors.is_some());
        let affinity = policy.affinity.as_ref().unwrap();
        assert_eq!((&*affinity.cookie, &*affinity.attributes), ("INGRESSCOOKIE", "; Path=/; HttpOnly; Max-Age=60"));
        assert!(ask(&[]).0.policy.is_none());
    }

    #[test]
    fn ours_counts_before_the_other() {
        let all = [("causeway.dev/proxy-body-size", "1k"), ("nginx.ingress.kubernetes.io/proxy-body-size", "2k")];
        let all = all.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let asked = read(&all, false, |_| Err(String::new()), &mut Vec::new());
        assert_eq!(asked.policy.unwrap().max_body, Some(1024));
    }

    #[test]
    fn mistakes_are_told_and_open_nothing() {
        for (pairs, word) in [
            (&[("whitelist-source-range", "10.0.0.0/40")][..], "nobody"),
            (&[("denylist-source-range", "x")], "nobody"),
            (&[("auth-type", "basic"), ("auth-secret", "none")], "not there"),
            (&[("auth-type", "digest")], "only basic"),
        ] {
            let (asked, problems) = ask(pairs);
            assert!(problems.iter().any(|p| p.contains(word)), "{problems:?}");
            let sources = &asked.policy.as_ref().unwrap().sources;
            assert!(!sources.permit("10.1.1.1".parse().ok()) && !sources.permit("fd12::1".parse().ok()), "{pairs:?}");
        }
        for (pair, word) in [
            (("proxy-body-size", "8x"), "8m"),
            (("proxy-read-timeout", "0"), "above zero"),
            (("permanent-redirect", "javascript:x"), "absolute"),
            (("permanent-redirect", "//evil.example"), "absolute"),
            (("affinity", "ip"), "only cookie"),
            (("backend-protocol", "AJP"), "GRPCS"),
            (("ssl-redirect", "yes"), "true or false"),
        ] {
            let (asked, problems) = ask(&[pair]);
            assert!(problems.len() == 1 && problems[0].contains(word) && problems[0].contains(pair.0), "{problems:?}");
            assert!(asked.policy.is_none());
        }
    }
}
