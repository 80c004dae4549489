//! Filters of routes as the data plane does them. In: what stands in an HTTPRoute or GRPCRoute. Out: merged
//! [`Filters`] and a policy for what the data plane has already (CORS), or what is wrong.

use super::refs::Problem;
use super::types::{CorsFilter, Filter, HeaderFilter, PathModifier, Reference};
use crate::route::filter::{Filters, HeaderChange, Mirror, PathChange, RedirectTo};
use crate::route::path::PathPattern;
use crate::route::policy::Cors;
use http::{HeaderName, HeaderValue, StatusCode};
use std::time::Duration;

/// What the filters of one rule or backend come to.
#[derive(Debug)]
pub struct Read<U> {
    /// What is done to requests and answers.
    pub filters: Filters<U>,
    /// `cors`.
    pub cors: Option<Cors>,
}

/// Reads filters. `matched` is the path of the match they are for: a prefix is replaced by what was matched. `mirror`
/// leads from a reference to a backend, or nowhere when that cannot be followed (and says so by itself).
///
/// # Errors
/// `UnsupportedValue` for a filter we do not have, or one that asks for what cannot be.
pub fn read<U>(
    all: &[Filter],
    matched: Option<&PathPattern>,
    mirror: &mut impl FnMut(&Reference) -> Option<U>,
) -> Result<Read<U>, Problem> {
    let mut filters = Filters::default();
    let mut cors = None;
    for filter in all {
        match filter.kind.as_str() {
            "RequestHeaderModifier" => headers(filter.request_header_modifier.as_ref(), &mut filters.request)?,
            "ResponseHeaderModifier" => headers(filter.response_header_modifier.as_ref(), &mut filters.response)?,
            "RequestMirror" => {
                let Some(asked) = &filter.request_mirror else { return Err(empty("requestMirror")) };
                let (numerator, denominator) = match (&asked.fraction, asked.percent) {
                    (Some(part), _) => (part.numerator, part.denominator.unwrap_or(100).max(1)),
                    (None, Some(percent)) => (percent, 100),
                    (None, None) => (1, 1),
                };
                if let Some(to) = mirror(&asked.backend_ref) {
                    filters.mirrors.push(Mirror { to, numerator, denominator });
                }
            }
            "RequestRedirect" => {
                let Some(asked) = &filter.request_redirect else { return Err(empty("requestRedirect")) };
                let status = asked.status_code.unwrap_or(302);
                filters.redirect = Some(RedirectTo {
                    scheme: asked.scheme.as_deref().map(Into::into),
                    host: asked.hostname.as_deref().map(Into::into),
                    port: asked.port,
                    path: asked.path.as_ref().map(|p| path(p, matched)).transpose()?,
                    status: StatusCode::from_u16(status)
                        .ok()
                        .filter(StatusCode::is_redirection)
                        .ok_or_else(|| unsupported(format!("requestRedirect.statusCode {status} is no redirect")))?,
                });
            }
            "URLRewrite" => {
                let Some(asked) = &filter.url_rewrite else { return Err(empty("urlRewrite")) };
                filters.host = asked.hostname.as_deref().map(Into::into);
                filters.path = asked.path.as_ref().map(|p| path(p, matched)).transpose()?;
            }
            "CORS" => cors = Some(cross_origin(filter.cors.as_ref().ok_or_else(|| empty("cors"))?)),
            other => return Err(unsupported(format!("filter type {other:?} is not there"))),
        }
    }
    Ok(Read { filters, cors })
}

fn unsupported(message: String) -> Problem {
    Problem::new("UnsupportedValue", message)
}

fn empty(field: &str) -> Problem {
    unsupported(format!("a filter's field {field} is missing"))
}

fn headers(asked: Option<&HeaderFilter>, change: &mut HeaderChange) -> Result<(), Problem> {
    let Some(asked) = asked else { return Err(empty("requestHeaderModifier or responseHeaderModifier")) };
    let name = |text: &str| {
        HeaderName::try_from(text).map_err(|_| unsupported(format!("{text:?} is not the name of a header")))
    };
    let value = |text: &str| {
        HeaderValue::try_from(text).map_err(|_| unsupported(format!("{text:?} cannot be the value of a header")))
    };
    for header in &asked.set {
        change.set.push((name(&header.name)?, value(&header.value)?));
    }
    for header in &asked.add {
        change.add.push((name(&header.name)?, value(&header.value)?));
    }
    for header in &asked.remove {
        change.remove.push(name(header)?);
    }
    Ok(())
}

fn path(asked: &PathModifier, matched: Option<&PathPattern>) -> Result<PathChange, Problem> {
    match (asked.kind.as_str(), &asked.replace_full_path, &asked.replace_prefix_match) {
        ("ReplaceFullPath", Some(to), _) => Ok(PathChange::Full(to.as_str().into())),
        ("ReplacePrefixMatch", _, Some(to)) => match matched {
            Some(PathPattern::Prefix(from)) => {
                let from = String::from_utf8_lossy(from);
                Ok(PathChange::Prefix { from: from.as_ref().into(), to: to.as_str().into() })
            }
            _ => Err(unsupported("ReplacePrefixMatch needs a match of type PathPrefix".to_owned())),
        },
        (kind, ..) => Err(unsupported(format!("path modifier {kind:?} lacks its value"))),
    }
}

fn cross_origin(asked: &CorsFilter) -> Cors {
    Cors {
        origins: asked.allow_origins.clone(),
        wide: true,
        methods: asked.allow_methods.join(", "),
        headers: asked.allow_headers.join(", "),
        expose: (!asked.expose_headers.is_empty()).then(|| asked.expose_headers.join(", ")),
        credentials: asked.allow_credentials.unwrap_or(false),
        max_age: Duration::from_secs(asked.max_age.unwrap_or(5).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read_all(filters: Value, matched: &str) -> Result<Read<String>, Problem> {
        let filters: Vec<Filter> = serde_json::from_value(filters).unwrap();
        let matched = PathPattern::prefix(matched).unwrap();
        read(&filters, Some(&matched), &mut |to: &Reference| (to.name != "gone").then(|| to.name.clone()))
    }

    #[test]
    fn all_kinds() {
        let got = read_all(
            json!([
                { "type": "RequestHeaderModifier", "requestHeaderModifier": {
                    "set": [{ "name": "X-A", "value": "1" }], "add": [{ "name": "X-B", "value": "2" }], "remove": ["X-C"] } },
                { "type": "ResponseHeaderModifier", "responseHeaderModifier": { "remove": ["Server"] } },
                { "type": "RequestMirror", "requestMirror": { "backendRef": { "name": "m" }, "percent": 20 } },
                { "type": "RequestMirror", "requestMirror": { "backendRef": { "name": "gone" } } },
                { "type": "RequestMirror", "requestMirror": { "backendRef": { "name": "n" },
                    "fraction": { "numerator": 1, "denominator": 3 } } },
                { "type": "URLRewrite", "urlRewrite": { "hostname": "h.example",
                    "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/new" } } },
                { "type": "CORS", "cors": { "allowOrigins": ["https://a.example"], "allowMethods": ["GET", "PUT"] } },
            ]),
            "/old/",
        )
        .unwrap();
        assert_eq!(got.filters.request.set[0].0, "x-a");
        assert_eq!(got.filters.response.remove[0], "server");
        let mirrors: Vec<_> = got.filters.mirrors.iter().map(|m| (m.to.as_str(), m.numerator, m.denominator)).collect();
        assert_eq!(mirrors, [("m", 20, 100), ("n", 1, 3)]);
        assert_eq!(got.filters.host.as_deref(), Some("h.example"));
        assert_eq!(got.filters.path, Some(PathChange::Prefix { from: "/old".into(), to: "/new".into() }));
        let cors = got.cors.unwrap();
        assert_eq!((cors.methods.as_str(), cors.max_age), ("GET, PUT", Duration::from_secs(5)));
        let redirect =
            json!([{ "type": "RequestRedirect", "requestRedirect": { "hostname": "x", "statusCode": 308 } }]);
        assert_eq!(read_all(redirect, "/").unwrap().filters.redirect.unwrap().status, 308);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for filters in [
            json!([{ "type": "ExternalAuth" }]),
            json!([{ "type": "RequestRedirect" }]),
            json!([{ "type": "RequestRedirect", "requestRedirect": { "statusCode": 200 } }]),
            json!([{ "type": "RequestHeaderModifier", "requestHeaderModifier": { "remove": ["a b"] } }]),
            json!([{ "type": "URLRewrite", "urlRewrite": { "path": { "type": "ReplaceFullPath" } } }]),
        ] {
            assert_eq!(read_all(filters.clone(), "/").unwrap_err().reason, "UnsupportedValue", "{filters}");
        }
    }
}
