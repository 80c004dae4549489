//! What a rule of a Gateway's route decides about a request before it is sent on: a redirect, which of several backends
//! it goes to, who gets a copy, whether an answer is asked for again. In: the route and the request. Out: an answer of
//! our own, or what is noted in the request's state.

use super::http::{HttpApp, RequestState, authority};
use super::mirror::Copies;
use super::{filters, pages, policy};
use crate::route::rule::{Session as Sticky, Share, Split};
use crate::route::{Action, Endpoint, Route};
use http::StatusCode;
use http::header::SET_COOKIE;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use rand::Rng as _;
use std::sync::Arc;
use std::time::Duration;

impl HttpApp {
    /// Answers a request where its rule says so; then `true`.
    pub(super) async fn rule(&self, session: &mut Session, route: &Route, ctx: &mut RequestState) -> Result<bool> {
        if let Some(to) = route.filters.as_ref().and_then(|f| f.redirect.as_ref()) {
            let request = session.req_header();
            let https = session.digest().is_some_and(|d| d.ssl_digest.is_some());
            let host = authority(request).and_then(|a| std::str::from_utf8(a).ok()).unwrap_or_default();
            let host = without_port(host).to_owned();
            let port = ctx.front.as_ref().map_or(80, |f| f.port);
            let location = filters::location(to, &request.uri, &host, port, https);
            let text = "See the Location header.";
            pages::send_with(session.as_downstream_mut(), to.status, text, &[("Location", location)]).await?;
            return Ok(true);
        }
        let Action::Split(split) = &route.action else { return Ok(false) };
        match choose(split, route.session.as_ref(), session.req_header()) {
            Some(Share { target: Ok(upstream), filters, .. }) => {
                ctx.share = Some((Arc::clone(upstream), filters.clone()));
            }
            other => {
                let why = match other {
                    Some(Share { target: Err(why), .. }) => why.to_string(),
                    _ => "the rule has no backend".to_owned(),
                };
                self.shared().metrics.no_endpoint.inc();
                let text = format!("Route {}: {why}.", route.owner);
                pages::send(session.as_downstream_mut(), StatusCode::INTERNAL_SERVER_ERROR, &text).await?;
                return Ok(true);
            }
        }
        let of_share = ctx.share.as_ref().and_then(|(_, f)| f.as_deref()).map(|f| f.mirrors.as_slice());
        let mirrors = route.filters.iter().flat_map(|f| &f.mirrors).chain(of_share.into_iter().flatten());
        let mirrors: Vec<_> = mirrors.cloned().collect();
        ctx.copies = if mirrors.is_empty() { None } else { Copies::of(&mirrors) };
        Ok(false)
    }
}

/// The backend of a request: the one of its session while that lives, else one by weight.
fn choose<'a>(split: &'a Split, sticky: Option<&Sticky>, request: &RequestHeader) -> Option<&'a Share> {
    if let Some(tag) = sticky.and_then(|s| token(s, request)) {
        let known = split.backends.iter().filter(|b| b.weight > 0);
        let mut known = known.filter(|b| b.target.as_ref().is_ok_and(|u| u.find(tag, &[]).is_some()));
        if let Some(share) = known.next() {
            return Some(share);
        }
    }
    match split.total() {
        0 => None,
        total => split.choose(rand::rng().random_range(0..total)),
    }
}

/// What a client says of its session.
pub(super) fn token<'a>(sticky: &Sticky, request: &'a RequestHeader) -> Option<&'a str> {
    if sticky.header {
        return request.headers.get(&*sticky.name).and_then(|v| v.to_str().ok());
    }
    policy::cookie_of(request, &sticky.name)
}

/// Tells a client of its session.
pub(super) fn remember(sticky: &Sticky, endpoint: &Endpoint, answer: &mut ResponseHeader) -> Result<()> {
    let tag = format!("{:016x}", endpoint.tag);
    if sticky.header {
        return answer.insert_header(sticky.name.to_string(), tag);
    }
    let age = match sticky.absolute {
        Some(absolute) if sticky.permanent => format!("; Max-Age={}", absolute.as_secs()),
        _ => String::new(),
    };
    answer.append_header(SET_COOKIE, format!("{}={tag}; Path=/; HttpOnly{age}", sticky.name)).map(drop)
}

/// Whether an answer is thrown away for another try: then the error that leads to it.
pub(super) fn again(route: &Route, answer: &ResponseHeader, tries: u32) -> Option<pingora::BError> {
    let retry = route.retry.as_ref()?;
    if tries >= retry.attempts || !retry.codes.contains(&answer.status.as_u16()) {
        return None;
    }
    let mut error = Error::explain(ErrorType::Custom(AGAIN), "the route asks for another try");
    error.set_retry(true);
    Some(error)
}

/// The error of an answer that is thrown away.
pub(super) const AGAIN: &str = "AnotherTry";

/// The pause before try number `tries` (the first has 0).
pub(super) fn pause(route: &Route, tries: u32) -> Option<Duration> {
    (tries > 0).then(|| route.retry.as_ref().map(|r| r.backoff)).flatten()
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}
