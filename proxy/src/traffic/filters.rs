//! What a Gateway's route does to requests and answers: redirects, another host or path, headers that change. In: the
//! filters of a rule or backend. Out: a location to send the client to, or a request or answer that has been changed.

use crate::route::filter::{Filters, HeaderChange, PathChange, RedirectTo};
use http::header::{self, HeaderName};
use http::{HeaderValue, Uri};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{ErrorType, OrErr, Result};

/// Where a redirect leads. `host` is that of the request, without port; `port` is the listener's, `https` its scheme.
pub(super) fn location(to: &RedirectTo, uri: &Uri, host: &str, port: u16, https: bool) -> String {
    let scheme = to.scheme.as_deref().unwrap_or(if https { "https" } else { "http" });
    let well_known = match scheme {
        "https" => 443,
        _ => 80,
    };
    let port = to.port.unwrap_or(if to.scheme.is_some() { well_known } else { port });
    let host = to.host.as_deref().unwrap_or(host);
    let path = match &to.path {
        Some(change) => changed(change, uri.path()),
        None => uri.path().to_owned(),
    };
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let port = if port == well_known { String::new() } else { format!(":{port}") };
    format!("{scheme}://{host}{port}{path}{query}")
}

/// A path after a change.
fn changed(change: &PathChange, path: &str) -> String {
    match change {
        PathChange::Full(to) => to.to_string(),
        PathChange::Prefix { from, to } => {
            let rest = path.strip_prefix(&**from).unwrap_or(path);
            let (to, rest) = (to.trim_end_matches('/'), rest.trim_start_matches('/'));
            match (to, rest) {
                ("", rest) => format!("/{rest}"),
                (to, "") => to.to_owned(),
                (to, rest) => format!("{to}/{rest}"),
            }
        }
    }
}

/// Changes a request that is sent on.
pub(super) fn request<U>(filters: &Filters<U>, request: &mut RequestHeader) -> Result<()> {
    if let Some(change) = &filters.path {
        let path = changed(change, request.uri.path());
        let target = match request.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let mut parts = request.uri.clone().into_parts();
        parts.path_and_query = Some(target.parse().or_err(ErrorType::InternalError, "rewriting the path")?);
        request.set_uri(Uri::from_parts(parts).or_err(ErrorType::InternalError, "rewriting the path")?);
    }
    if let Some(host) = &filters.host {
        set_host(request, host)?;
    }
    headers(&filters.request, |change| match change {
        Change::Set(name, value) => request.insert_header(name, value),
        Change::Add(name, value) => request.append_header(name, value).map(drop),
        Change::Remove(name) => {
            request.remove_header(&name);
            Ok(())
        }
    })
}

fn set_host(request: &mut RequestHeader, host: &str) -> Result<()> {
    let value = HeaderValue::from_str(host).or_err(ErrorType::InternalError, "rewriting the host")?;
    request.insert_header(header::HOST, value)?;
    if request.uri.authority().is_some() {
        let mut parts = request.uri.clone().into_parts();
        parts.authority = Some(host.parse().or_err(ErrorType::InternalError, "rewriting the host")?);
        request.set_uri(Uri::from_parts(parts).or_err(ErrorType::InternalError, "rewriting the host")?);
    }
    Ok(())
}

/// Changes an answer.
pub(super) fn response<U>(filters: &Filters<U>, answer: &mut ResponseHeader) -> Result<()> {
    headers(&filters.response, |change| match change {
        Change::Set(name, value) => answer.insert_header(name, value),
        Change::Add(name, value) => answer.append_header(name, value).map(drop),
        Change::Remove(name) => {
            answer.remove_header(&name);
            Ok(())
        }
    })
}

enum Change {
    Set(HeaderName, HeaderValue),
    Add(HeaderName, HeaderValue),
    Remove(HeaderName),
}

fn headers(change: &HeaderChange, mut apply: impl FnMut(Change) -> Result<()>) -> Result<()> {
    for (name, value) in &change.set {
        apply(Change::Set(name.clone(), value.clone()))?;
    }
    for (name, value) in &change.add {
        apply(Change::Add(name.clone(), value.clone()))?;
    }
    for name in &change.remove {
        apply(Change::Remove(name.clone()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    #[test]
    fn prefixes_are_replaced_by_whole_segments() {
        for (from, to, path, want) in [
            ("/foo", "/bar", "/foo/x", "/bar/x"),
            ("/foo", "/bar/", "/foo/x", "/bar/x"),
            ("/foo", "/bar", "/foo", "/bar"),
            ("/foo", "/bar", "/foo/", "/bar"),
            ("/foo", "/", "/foo/x", "/x"),
            ("/foo", "", "/foo", "/"),
            ("", "/bar", "/x", "/bar/x"),
        ] {
            let change = PathChange::Prefix { from: from.into(), to: to.into() };
            assert_eq!(changed(&change, path), want, "{from} {to} {path}");
        }
    }

    #[test]
    fn ports_of_redirects() {
        let base = RedirectTo { scheme: None, host: None, port: None, path: None, status: StatusCode::FOUND };
        let uri: Uri = "/a?b=c".parse().unwrap();
        let at = |to: &RedirectTo, port, https| location(to, &uri, "h", port, https);
        assert_eq!(at(&base, 80, false), "http://h/a?b=c");
        assert_eq!(at(&base, 8080, false), "http://h:8080/a?b=c");
        assert_eq!(at(&base, 443, true), "https://h/a?b=c");
        let scheme = RedirectTo { scheme: Some("https".into()), ..base.clone() };
        assert_eq!(at(&scheme, 8080, false), "https://h/a?b=c");
        let both = RedirectTo { port: Some(80), ..scheme };
        assert_eq!(at(&both, 8080, false), "https://h:80/a?b=c");
        let full = RedirectTo { host: Some("o".into()), path: Some(PathChange::Full("/new".into())), ..base };
        assert_eq!(at(&full, 80, false), "http://o/new?b=c");
    }

    #[test]
    fn a_request_is_changed() {
        let mut head = RequestHeader::build("GET", b"/old/x?q=1", None).unwrap();
        for (name, value) in [("Host", "a"), ("X-Gone", "1"), ("X-More", "1"), ("X-Set", "1")] {
            head.insert_header(name, value).unwrap();
        }
        let pair = |name: &'static str| (HeaderName::from_static(name), HeaderValue::from_static("2"));
        let filters: Filters<()> = Filters {
            request: HeaderChange {
                set: vec![pair("x-set")],
                add: vec![pair("x-more")],
                remove: vec![HeaderName::from_static("x-gone")],
            },
            host: Some("b".into()),
            path: Some(PathChange::Prefix { from: "/old".into(), to: "/new".into() }),
            ..Filters::default()
        };
        request(&filters, &mut head).unwrap();
        assert_eq!(head.uri, "/new/x?q=1");
        assert_eq!(head.headers["host"], "b");
        assert_eq!(head.headers["x-set"], "2");
        assert_eq!(head.headers.get_all("x-more").iter().count(), 2);
        assert!(!head.headers.contains_key("x-gone"));
    }
}
