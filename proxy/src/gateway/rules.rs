//! Rules of HTTPRoutes and GRPCRoutes, as rows for the tables of the listeners they are attached to. Pure, but for the
//! upstreams that it asks for by their keys.

use super::filters;
use super::refs::{From, Problem, Refs};
use super::types::{BackendRef, Filter, GrpcMatch, GrpcRule, HttpMatch, HttpRule, NamedMatch, SessionPersistence};
use crate::route::path::PathPattern;
use crate::route::policy::Policy;
use crate::route::rule::{Candidate, Conditions, Order, Retry, RuleTable, Session, Share, Split, TextMatch, Timeouts};
use crate::route::upstream::{BackendKey, Protocol};
use crate::route::{Action, HostPattern, ObjectKey, Route, Upstream};
use http::{HeaderName, Method};
use k8s_openapi::jiff::SignedDuration;
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

/// The name of the cookie or header of a session that names none.
const SESSION: &str = "causeway-session";
/// The pause before a request is sent again, where a route gives none.
const BACKOFF: Duration = Duration::from_millis(50);

/// What rules need to be read.
pub struct Reader<'a, 'v> {
    /// Where references lead.
    pub refs: &'a Refs<'v>,
    /// Who refers.
    pub from: From<'a>,
    /// The route.
    pub owner: ObjectKey,
    /// What the Gateway shows to backends.
    pub client: Option<&'a (String, String)>,
    /// The upstream of a key.
    pub upstream: &'a mut dyn FnMut(&BackendKey) -> Arc<Upstream>,
    /// What is wrong with references: the first counts.
    pub unresolved: Option<Problem>,
    /// What is wrong with rules: the first counts.
    pub invalid: Option<Problem>,
    /// Rules that are served.
    pub valid: usize,
    /// The place of the route's next row.
    pub order: Order,
}

/// One row: goes into a table once for each host.
#[derive(Debug)]
pub struct Row {
    path: PathPattern,
    candidate: Candidate,
}

/// Enters rows for some hosts. Of rows that fit a request alike the one with more conditions counts, then by their order.
pub fn enter(table: &mut RuleTable, hosts: &[HostPattern], rows: &[Row]) {
    fn rank(c: &Candidate) -> (Reverse<(bool, usize, usize)>, &Order) {
        let conditions = &c.conditions;
        (Reverse((conditions.method.is_some(), conditions.headers.len(), conditions.query.len())), &c.order)
    }
    for host in hosts {
        for row in rows {
            table.join(host, &row.path, vec![row.candidate.clone()], |all, new| {
                for candidate in new {
                    let at = all.partition_point(|c| rank(c) <= rank(&candidate));
                    all.insert(at, candidate);
                }
            });
        }
    }
}

/// Takes rows out that were entered.
pub fn leave(table: &mut RuleTable, hosts: &[HostPattern], rows: &[Row]) {
    for host in hosts {
        for row in rows {
            table.update(host, &row.path, |all| {
                all.retain(|c| !Arc::ptr_eq(&c.route, &row.candidate.route));
                !all.is_empty()
            });
        }
    }
}

/// A rule without its matches.
struct Body<'r> {
    filters: &'r [Filter],
    backends: &'r [BackendRef],
    timeouts: Timeouts,
    retry: Option<Retry>,
    session: Option<Session>,
    speaks: Protocol,
}

impl Reader<'_, '_> {
    /// Rows of an HTTPRoute's rule.
    pub fn http(&mut self, rule: &HttpRule) -> Vec<Row> {
        let mut duration = |text: &Option<String>, field: &str| {
            text.as_deref().and_then(|t| match duration(t) {
                Some(d) => (!d.is_zero()).then_some(d),
                None => {
                    let message = format!("{field} {t:?} is not a duration such as 10s or 1m30s");
                    self.invalid.get_or_insert(Problem::new("UnsupportedValue", message));
                    None
                }
            })
        };
        let timeouts = rule.timeouts.clone().unwrap_or_default();
        let timeouts = Timeouts {
            request: duration(&timeouts.request, "timeouts.request"),
            backend: duration(&timeouts.backend_request, "timeouts.backendRequest"),
        };
        let retry = rule.retry.as_ref().map(|r| Retry {
            codes: r.codes.clone(),
            attempts: r.attempts.unwrap_or(1),
            backoff: duration(&r.backoff, "retry.backoff").unwrap_or(BACKOFF),
        });
        let session = rule.session_persistence.as_ref().map(session);
        let (filters, backends) = (rule.filters.as_slice(), rule.backend_refs.as_slice());
        let body = Body { filters, backends, timeouts, retry, session, speaks: Protocol::Http1 };
        let every = [HttpMatch::default()];
        let matches = if rule.matches.is_empty() { &every[..] } else { &rule.matches };
        let matches: Vec<_> = matches.iter().map(http_match).collect();
        self.rows(&body, matches)
    }

    /// Rows of a GRPCRoute's rule.
    pub fn grpc(&mut self, rule: &GrpcRule) -> Vec<Row> {
        let session = rule.session_persistence.as_ref().map(session);
        let (filters, backends) = (rule.filters.as_slice(), rule.backend_refs.as_slice());
        let timeouts = Timeouts::default();
        let body = Body { filters, backends, timeouts, retry: None, session, speaks: Protocol::H2c };
        let every = [GrpcMatch::default()];
        let matches = if rule.matches.is_empty() { &every[..] } else { &rule.matches };
        let matches: Vec<_> = matches.iter().map(grpc_match).collect();
        self.rows(&body, matches)
    }

    fn rows(&mut self, body: &Body<'_>, matches: Vec<Result<(PathPattern, Conditions), Problem>>) -> Vec<Row> {
        let mut rows = Vec::new();
        // What backends say is the same for all matches, unless a filter replaces what was matched.
        let split = self.split(body.backends, body.speaks);
        for one in matches {
            let (path, conditions) = match one {
                Ok(one) => one,
                Err(problem) => {
                    self.invalid.get_or_insert(problem);
                    continue;
                }
            };
            let mut route = Route::plain(self.owner.clone(), Action::Split(split.clone()));
            match self.filters(body.filters, Some(&path), body.speaks) {
                Ok(read) => {
                    route.filters = Some(Arc::new(read.filters));
                    route.policy = read.cors.map(|cors| Arc::new(Policy { cors: Some(cors), ..Policy::default() }));
                    self.valid += 1;
                }
                // A filter that cannot be kept must not be passed over: such requests fail.
                Err(problem) => {
                    self.invalid.get_or_insert(problem);
                    route.action = Action::Split(Split { backends: Vec::new() });
                }
            }
            route.timeouts = body.timeouts;
            route.retry = body.retry.clone();
            route.session = body.session.clone();
            let order = self.order.clone();
            self.order.at += 1;
            rows.push(Row { path, candidate: Candidate { conditions, route: Arc::new(route), order } });
        }
        rows
    }

    fn filters(
        &mut self,
        all: &[Filter],
        matched: Option<&PathPattern>,
        speaks: Protocol,
    ) -> Result<filters::Read<Arc<Upstream>>, Problem> {
        filters::read(all, matched, &mut |to| match self.refs.backend(self.from, to, speaks, self.client) {
            Ok(key) => Some((self.upstream)(&key)),
            Err(problem) => {
                self.note(problem);
                None
            }
        })
    }

    /// The backends of a rule. Those whose reference leads nowhere keep their share, and fail it.
    pub fn split(&mut self, backends: &[BackendRef], speaks: Protocol) -> Split {
        let mut shares = Vec::with_capacity(backends.len());
        for backend in backends {
            let target = match self.refs.backend(self.from, &backend.to, speaks, self.client) {
                Ok(key) => Ok((self.upstream)(&key)),
                Err(problem) => {
                    let why = problem.message.as_str().into();
                    self.note(problem);
                    Err(why)
                }
            };
            let (filters, target) = match self.filters(&backend.filters, None, speaks) {
                Ok(_) if backend.filters.is_empty() => (None, target),
                Ok(read) => (Some(Arc::new(read.filters)), target),
                Err(problem) => {
                    let why = problem.message.as_str().into();
                    self.invalid.get_or_insert(problem);
                    (None, Err(why))
                }
            };
            shares.push(Share { weight: backend.weight.unwrap_or(1), target, filters });
        }
        Split { backends: shares }
    }

    fn note(&mut self, problem: Problem) {
        // A policy that cannot be kept is told about at the policy.
        if !problem.reason.is_empty() {
            self.unresolved.get_or_insert(problem);
        }
    }
}

/// A GEP-2257 duration.
fn duration(text: &str) -> Option<Duration> {
    text.parse::<SignedDuration>().ok().and_then(|d| d.try_into().ok())
}

fn session(asked: &SessionPersistence) -> Session {
    let cookie = asked.cookie_config.as_ref().and_then(|c| c.lifetime_type.as_deref());
    Session {
        name: asked.session_name.as_deref().unwrap_or(SESSION).into(),
        header: asked.kind.as_deref() == Some("Header"),
        absolute: asked.absolute_timeout.as_deref().and_then(duration).filter(|d| !d.is_zero()),
        permanent: cookie == Some("Permanent"),
    }
}

fn unsupported(message: String) -> Problem {
    Problem::new("UnsupportedValue", message)
}

fn text_match(asked: &NamedMatch) -> Result<TextMatch, Problem> {
    match asked.kind.as_deref().unwrap_or("Exact") {
        "Exact" => Ok(TextMatch::Exact(asked.value.as_str().into())),
        "RegularExpression" => {
            TextMatch::regex(&asked.value).map_err(|error| unsupported(format!("match of {}: {error}", asked.name)))
        }
        other => Err(unsupported(format!("match of {}: type {other:?} is not there", asked.name))),
    }
}

fn header_matches(all: &[NamedMatch]) -> Result<Vec<(HeaderName, TextMatch)>, Problem> {
    let mut found: Vec<(HeaderName, TextMatch)> = Vec::new();
    for one in all {
        let name = HeaderName::try_from(one.name.as_str())
            .map_err(|_| unsupported(format!("{:?} is not the name of a header", one.name)))?;
        // Of several with one name the first counts.
        if found.iter().all(|(n, _)| *n != name) {
            found.push((name, text_match(one)?));
        }
    }
    Ok(found)
}

fn http_match(asked: &HttpMatch) -> Result<(PathPattern, Conditions), Problem> {
    let path = asked.path.clone().unwrap_or_default();
    let text = path.value.as_deref().unwrap_or("/");
    let pattern = match path.kind.as_deref().unwrap_or("PathPrefix") {
        "Exact" => PathPattern::exact(text),
        "PathPrefix" => PathPattern::prefix(text),
        "RegularExpression" => whole_regex(text),
        other => return Err(unsupported(format!("path type {other:?} is not there"))),
    };
    let path = pattern.map_err(|error| unsupported(format!("path {text:?}: {error}")))?;
    let method = asked.method.as_deref().map(|m| Method::from_bytes(m.as_bytes()));
    let method = method.transpose().map_err(|_| unsupported(format!("method {:?} is none", asked.method)))?;
    let mut query: Vec<(Box<str>, TextMatch)> = Vec::new();
    for one in &asked.query_params {
        if query.iter().all(|(name, _)| **name != *one.name) {
            query.push((one.name.as_str().into(), text_match(one)?));
        }
    }
    Ok((path, Conditions { method, headers: header_matches(&asked.headers)?, query }))
}

/// An expression for the whole path, with the case of letters kept: other than in an Ingress.
fn whole_regex(text: &str) -> Result<PathPattern, crate::route::path::BadPath> {
    PathPattern::regex(&format!("(?-i:{text})$"))
}

fn grpc_match(asked: &GrpcMatch) -> Result<(PathPattern, Conditions), Problem> {
    let method = asked.method.clone().unwrap_or_default();
    let given = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
    let (service, name) = (given(&method.service), given(&method.method));
    let pattern = match (method.kind.as_deref().unwrap_or("Exact"), service, name) {
        (_, None, None) => PathPattern::prefix("/"),
        ("Exact", Some(service), Some(name)) => PathPattern::exact(&format!("/{service}/{name}")),
        ("Exact", Some(service), None) => PathPattern::prefix(&format!("/{service}")),
        ("Exact", None, Some(name)) => whole_regex(&format!("/[^/]+/{}", regex::escape(&name))),
        ("RegularExpression", service, name) => {
            let any = || "[^/]+".to_owned();
            whole_regex(&format!("/(?:{})/(?:{})", service.unwrap_or_else(any), name.unwrap_or_else(any)))
        }
        (other, ..) => return Err(unsupported(format!("method type {other:?} is not there"))),
    };
    let path = pattern.map_err(|error| unsupported(format!("method {:?}: {error}", asked.method)))?;
    Ok((path, Conditions { method: None, headers: header_matches(&asked.headers)?, query: Vec::new() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn grpc(method: Value) -> String {
        let asked: GrpcMatch = serde_json::from_value(json!({ "method": method })).unwrap();
        grpc_match(&asked).unwrap().0.to_string()
    }

    #[test]
    fn methods_are_paths() {
        assert_eq!(grpc(json!({ "service": "a.B", "method": "C" })), "= /a.B/C");
        assert_eq!(grpc(json!({ "service": "a.B" })), "/a.B/");
        assert_eq!(grpc(json!({ "method": "C.D" })), r"~ (?-i:/[^/]+/C\.D)$");
        assert_eq!(grpc(json!({ "type": "RegularExpression", "service": "a|b" })), "~ (?-i:/(?:a|b)/(?:[^/]+))$");
        assert_eq!(grpc(json!(null)), "/");
    }

    #[test]
    fn the_more_conditions_the_earlier_then_the_older() {
        let mut table = RuleTable::with_wide_wildcards();
        let mut at = 0;
        let mut add = |name: &str, asked: Value| {
            let (path, conditions) = http_match(&serde_json::from_value(asked).unwrap()).unwrap();
            let action = Action::Unavailable("x".into());
            let route = Arc::new(Route::plain(ObjectKey::new("ns", name), action));
            at += 1;
            let order = Order { is_grpc: false, rank: (None, ObjectKey::new("ns", "r")), at };
            let rows = [Row { path, candidate: Candidate { conditions, route, order } }];
            enter(&mut table, &[HostPattern::Any], &rows);
            // Whatever comes and goes between.
            enter(&mut table, &[HostPattern::Any], &rows);
            leave(&mut table, &[HostPattern::Any], &rows);
            enter(&mut table, &[HostPattern::Any], &rows);
        };
        let header = |name: &str| json!({ "name": name, "value": "1" });
        add("plain", json!({}));
        add("younger", json!({}));
        add("two", json!({ "headers": [header("a"), header("b"), header("A")] }));
        add("query", json!({ "queryParams": [header("q")] }));
        add("one", json!({ "headers": [header("a")] }));
        add("method", json!({ "method": "PUT" }));
        let rows = table.lookup(None, b"/").unwrap();
        let names: Vec<_> = rows.iter().map(|c| &*c.route.owner.name).collect();
        assert_eq!(names, ["method", "two", "one", "query", "plain", "younger"]);
    }

    #[test]
    fn durations() {
        assert_eq!(duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("0s"), Some(Duration::ZERO));
        assert_eq!(duration("soon"), None);
    }
}
