//! Annotations of a Service that say how its endpoints are chosen and watched over. In: a Service. Out: a [`Balance`],
//! and a problem for every annotation that cannot be followed; it counts as if it were not there.

use super::annotations::PREFIX;
use crate::route::balance::{Algorithm, Balance, Check, HashBy, ProxyVersion};
use http::HeaderName;
use k8s_openapi::api::core::v1::Service;
use std::time::Duration;

/// How often endpoints are checked where the Service does not say.
const INTERVAL: Duration = Duration::from_secs(5);

struct Reader<'a> {
    service: &'a Service,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        let all = self.service.metadata.annotations.as_ref()?;
        all.get(&format!("{PREFIX}{name}")).map(|v| v.trim()).filter(|v| !v.is_empty())
    }

    fn parsed<T>(&mut self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = self.text(name)?;
        let parsed = parse(value);
        if parsed.is_none() {
            self.problems.push(format!("annotation {PREFIX}{name}: {value:?} is not {expected}; it is passed over"));
        }
        parsed
    }

    fn number(&mut self, name: &str) -> Option<u32> {
        self.parsed(name, "a number above 0", |v| v.parse().ok().filter(|n| *n > 0))
    }

    fn time(&mut self, name: &str) -> Option<Duration> {
        self.parsed(name, "a time such as 500ms, 30s or 2m", duration)
    }
}

/// `500ms`, `30s`, `2m`; a plain number is seconds. Not zero, at most an hour.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let millis = match &text[digits..] {
        "ms" => number,
        "s" | "" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60_000)?,
        _ => return None,
    };
    (1..=3_600_000).contains(&millis).then(|| Duration::from_millis(millis))
}

/// `client-ip`, `uri`, `header NAME`, `cookie NAME`.
fn hash_by(text: &str) -> Option<HashBy> {
    let (kind, name) = text.split_once(' ').map_or((text, ""), |(k, n)| (k, n.trim()));
    match (kind, name) {
        ("client-ip", "") => Some(HashBy::Client),
        ("uri", "") => Some(HashBy::Uri),
        ("header", name) => name.parse::<HeaderName>().ok().map(HashBy::Header),
        ("cookie", name) if !name.is_empty() && !name.contains([' ', ';', '=', ',']) => {
            Some(HashBy::Cookie(name.into()))
        }
        _ => None,
    }
}

/// Reads a Service's annotations.
pub fn read(service: &Service) -> (Balance, Vec<String>) {
    let mut r = Reader { service, problems: Vec::new() };
    if service.metadata.annotations.as_ref().is_none_or(|a| !a.keys().any(|k| k.starts_with(PREFIX))) {
        return (Balance::default(), r.problems);
    }
    let by = r.parsed("hash-by", "one of client-ip, uri, header NAME, cookie NAME", hash_by);
    let known = "one of least-request, round-robin, ewma, ring-hash";
    let algorithm = r.parsed("load-balance", known, |text| match text {
        "least-request" => Some(Algorithm::LeastRequest),
        "round-robin" => Some(Algorithm::RoundRobin),
        "ewma" => Some(Algorithm::Ewma),
        "ring-hash" => Some(Algorithm::RingHash(by.clone().unwrap_or(HashBy::Client))),
        _ => None,
    });
    let path = r.parsed("health-check-path", "a path that begins with /", |v| {
        (v.starts_with('/') && v.parse::<http::uri::PathAndQuery>().is_ok()).then(|| Box::from(v))
    });
    let interval = r.time("health-check-interval");
    let balance = Balance {
        // What a request is known by is of no use but for the ring.
        algorithm: algorithm.or(by.map(Algorithm::RingHash)).unwrap_or_default(),
        slow_start: r.time("slow-start"),
        max_requests: r.number("max-requests"),
        eject_after: r.number("eject-after"),
        retry_budget: r
            .parsed("retry-budget", "a percentage from 0 to 100", |v| v.parse().ok().filter(|n| *n <= 100))
            .unwrap_or(Balance::default().retry_budget),
        check: path.map(|path| Check { path, interval: interval.unwrap_or(INTERVAL) }),
        announce: r.parsed("proxy-protocol", "v1 or v2", |v| match v {
            "v1" => Some(ProxyVersion::V1),
            "v2" => Some(ProxyVersion::V2),
            _ => None,
        }),
    };
    (balance, r.problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(pairs: serde_json::Value) -> (Balance, Vec<String>) {
        read(&serde_json::from_value(json!({"metadata": {"annotations": pairs}})).unwrap())
    }

    #[test]
    fn what_is_read() {
        let (all, problems) = of(json!({
            "causeway.dev/load-balance": "ring-hash", "causeway.dev/hash-by": "header X-User",
            "causeway.dev/slow-start": "30s", "causeway.dev/max-requests": "100", "causeway.dev/eject-after": "5",
            "causeway.dev/retry-budget": "0", "causeway.dev/health-check-path": "/healthz?full=1",
            "causeway.dev/health-check-interval": "500ms", "causeway.dev/proxy-protocol": "v2",
        }));
        assert_eq!(problems, Vec::<String>::new());
        let check = Check { path: "/healthz?full=1".into(), interval: Duration::from_millis(500) };
        assert_eq!(
            all,
            Balance {
                algorithm: Algorithm::RingHash(HashBy::Header(HeaderName::from_static("x-user"))),
                slow_start: Some(Duration::from_secs(30)),
                max_requests: Some(100),
                eject_after: Some(5),
                retry_budget: 0,
                check: Some(check),
                announce: Some(ProxyVersion::V2),
            }
        );
        assert_eq!(of(json!({"a": "b"})), (Balance::default(), Vec::new()));
        let cookie = of(json!({"causeway.dev/hash-by": "cookie sid"})).0.algorithm;
        assert_eq!(cookie, Algorithm::RingHash(HashBy::Cookie("sid".into())));
    }

    #[test]
    fn mistakes_are_told_and_passed_over() {
        for (name, value) in [
            ("load-balance", "best"),
            ("hash-by", "header"),
            ("hash-by", "cookie a=b"),
            ("slow-start", "0s"),
            ("slow-start", "2h"),
            ("max-requests", "-1"),
            ("eject-after", "0"),
            ("retry-budget", "101"),
            ("health-check-path", "healthz"),
            ("health-check-interval", "soon"),
            ("proxy-protocol", "v3"),
        ] {
            let (balance, problems) = of(json!({format!("causeway.dev/{name}"): value}));
            assert_eq!(balance, Balance::default(), "{name}");
            assert!(problems.len() == 1 && problems[0].contains(name) && problems[0].contains(value), "{problems:?}");
        }
    }
}
