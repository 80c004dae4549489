//! Finding what a request is for: at the ingress' own sockets in the Ingress table, at a Gateway's port in the routes
//! of the listener that the request's host belongs to, and of no other.

use super::http::{HttpApp, authority};
use super::tls;
use crate::route::front::{Front, FrontKey, FrontService, HttpListener, TlsMode, most_specific};
use crate::route::rule::{Candidate, Conditions};
use crate::route::{Action, Route, host, path};
use http::{StatusCode, Version};
use percent_encoding::percent_decode_str;
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use std::borrow::Cow;
use std::sync::Arc;

/// What is known about a request before anything is sent.
pub(super) enum Verdict {
    /// It has a route.
    Forward(Arc<Route>),
    /// It is answered with this.
    Refuse(StatusCode, String),
}

impl HttpApp {
    /// The route of a request, or why it has none; and the Gateway's port it came by.
    pub(super) fn judge(&self, session: &Session) -> (Verdict, Option<FrontKey>) {
        let request = session.req_header();
        let sockets = self.shared().sockets.load();
        let socket = if sockets.is_empty() {
            None
        } else {
            session.server_addr().and_then(|a| a.as_inet()).and_then(|a| sockets.get(a))
        };
        let (host, path) = match destination(request) {
            Ok(destination) => destination,
            Err((status, text)) => return (Verdict::Refuse(status, text), None),
        };
        match socket {
            None => match self.local(session, host.as_deref(), &path) {
                Some((route, key)) => (Verdict::Forward(route), Some(key)),
                None => (self.ingress(host.as_deref(), &path), None),
            },
            Some(socket) => {
                let front = socket.front.load();
                let name = session.digest().and_then(|d| d.ssl_digest.as_ref()).and_then(|d| tls::server_name(d));
                let verdict = self.gateway(&front, request, name, host.as_deref(), &path);
                (verdict, Some(front.key.clone()))
            }
        }
    }

    /// The route of a Gateway that is served at the ingress' sockets too, where no Ingress has one.
    fn local(&self, session: &Session, host: Option<&str>, path: &[u8]) -> Option<(Arc<Route>, FrontKey)> {
        let local = self.shared().local.load();
        if local.is_empty() || self.shared().table.load().lookup(host, path).is_some() {
            return None;
        }
        let encrypted = session.digest().and_then(|d| d.ssl_digest.as_ref());
        local.iter().find_map(|front| {
            let listener = match (&front.service, encrypted) {
                (FrontService::Http(listeners), None) => most_specific(listeners, |l| &l.host, host)?,
                (FrontService::Tls(listeners), Some(digest)) => {
                    let own = most_specific(listeners, |l| &l.host, tls::server_name(digest))?;
                    let asked = most_specific(listeners, |l| &l.host, host)?;
                    match &own.mode {
                        TlsMode::Https(_, listener) if Arc::ptr_eq(own, asked) => listener,
                        _ => return None,
                    }
                }
                _ => return None,
            };
            Some((Arc::clone(matching(listener, session.req_header(), host, path)?), front.key.clone()))
        })
    }

    fn ingress(&self, host: Option<&str>, path: &[u8]) -> Verdict {
        let table = self.shared().table.load();
        match table.lookup(host, path) {
            None => {
                self.shared().metrics.no_route.inc();
                let host = host.unwrap_or("(none)");
                Verdict::Refuse(StatusCode::NOT_FOUND, format!("No Ingress has a rule for host {host} and this path."))
            }
            Some(route) => match &route.action {
                Action::Forward(_) | Action::Split(_) => Verdict::Forward(Arc::clone(route)),
                Action::Unavailable(why) => {
                    self.shared().metrics.no_endpoint.inc();
                    Verdict::Refuse(StatusCode::SERVICE_UNAVAILABLE, format!("Ingress {}: {why}.", route.owner))
                }
            },
        }
    }

    fn gateway(
        &self,
        front: &Front,
        request: &RequestHeader,
        name: Option<&str>,
        host: Option<&str>,
        path: &[u8],
    ) -> Verdict {
        let found = match &front.service {
            FrontService::Http(listeners) => most_specific(listeners, |l| &l.host, host),
            FrontService::Tls(listeners) => {
                let own = most_specific(listeners, |l| &l.host, name);
                let asked = most_specific(listeners, |l| &l.host, host);
                match (own, asked) {
                    (Some(own), Some(asked)) if Arc::ptr_eq(own, asked) => match &own.mode {
                        TlsMode::Https(_, listener) => Some(listener),
                        _ => None,
                    },
                    // The connection was made for another listener: the client is to make one for this host.
                    _ => {
                        let text = "This connection was made for another host (SNI); make one for this host.";
                        return Verdict::Refuse(StatusCode::MISDIRECTED_REQUEST, text.to_owned());
                    }
                }
            }
            FrontService::Tcp(_) | FrontService::Udp(_) => None,
        };
        match found.and_then(|listener| matching(listener, request, host, path)) {
            Some(route) => Verdict::Forward(Arc::clone(route)),
            None => {
                self.shared().metrics.no_route.inc();
                let host = host.unwrap_or("(none)");
                Verdict::Refuse(
                    StatusCode::NOT_FOUND,
                    format!("{} has no route for host {host} and this request.", front.key),
                )
            }
        }
    }
}

/// A request's host and path in their comparable forms.
type Destination<'a> = (Option<Cow<'a, str>>, Cow<'a, [u8]>);

fn destination(request: &RequestHeader) -> Result<Destination<'_>, (StatusCode, String)> {
    let bad = |text: String| (StatusCode::BAD_REQUEST, text);
    let host = authority(request).map(host::normalize).transpose().map_err(|e| bad(e.to_string()))?;
    if host.is_none() && request.version >= Version::HTTP_11 {
        return Err(bad("the request has no Host header".to_owned()));
    }
    let path = match request.uri.path() {
        // `OPTIONS *` is about the server as a whole; let the root's owner answer.
        "*" => Cow::Borrowed(&b"/"[..]),
        text => path::canonical(text).map_err(|e| bad(e.to_string()))?,
    };
    Ok((host, path))
}

fn matching<'a>(
    listener: &'a HttpListener,
    request: &RequestHeader,
    host: Option<&str>,
    path: &[u8],
) -> Option<&'a Arc<Route>> {
    listener.rules.find(host, path, &mut |row: &'a Vec<Candidate>| {
        row.iter().find(|c| fits(&c.conditions, request)).map(|c| &c.route)
    })
}

/// Whether a request has all that a match asks for.
fn fits(conditions: &Conditions, request: &RequestHeader) -> bool {
    conditions.method.as_ref().is_none_or(|m| *m == request.method)
        && conditions.headers.iter().all(|(name, want)| {
            let mut values = request.headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
            let Some(first) = values.next() else { return false };
            match values.next() {
                None => want.matches(first),
                Some(second) => {
                    let mut all = format!("{first},{second}");
                    for more in values {
                        all.push(',');
                        all.push_str(more);
                    }
                    want.matches(&all)
                }
            }
        })
        && (conditions.query.is_empty() || {
            let query = request.uri.query().unwrap_or("");
            conditions.query.iter().all(|(name, want)| parameter(query, name).is_some_and(|v| want.matches(&v)))
        })
}

/// The first value of a query parameter.
fn parameter(query: &str, name: &str) -> Option<String> {
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key) == name).then(|| decoded(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::rule::TextMatch;
    use http::{HeaderName, Method};

    fn request(method: &str, target: &str, headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build(method, target.as_bytes(), None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn all_conditions_must_fit() {
        let exact = |text: &str| TextMatch::Exact(text.into());
        let conditions = Conditions {
            method: Some(Method::PUT),
            headers: vec![(HeaderName::from_static("x-a"), exact("1,2"))],
            query: vec![("q".into(), exact("a b")), ("r".into(), TextMatch::regex("x+").unwrap())],
        };
        let headers = [("x-a", "1"), ("x-a", "2")];
        assert!(fits(&conditions, &request("PUT", "/?q=a%20b&r=xx&q=other", &headers)));
        assert!(fits(&conditions, &request("PUT", "/?r=x&q=a+b", &headers)));
        assert!(!fits(&conditions, &request("GET", "/?q=a%20b&r=xx", &headers)));
        assert!(!fits(&conditions, &request("PUT", "/?q=other&q=a%20b&r=xx", &headers)));
        assert!(!fits(&conditions, &request("PUT", "/?q=a%20b&r=xx", &headers[..1])));
        assert!(!fits(&conditions, &request("PUT", "/?q=a%20b", &headers)));
        assert!(fits(&Conditions::default(), &request("GET", "/", &[])));
    }
}
