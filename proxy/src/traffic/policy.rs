//! What a route asks for besides forwarding, done to requests and answers. In: a [`Policy`] and a request. Out: an answer
//! of our own, or nothing, and then the request goes on; headers of the answer that came.

use super::http::{HttpApp, RequestState, authority};
use super::pages;
use crate::route::Route;
use crate::route::auth::BasicAuth;
use crate::route::policy::{Affinity, Canary, Cors, Policy, cookie};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::{Error, ErrorType, OrErr, Result};
use rand::Rng as _;
use std::net::IpAddr;
use std::sync::Arc;

/// What is answered without asking a backend.
struct Answer {
    status: StatusCode,
    text: &'static str,
    headers: Vec<(&'static str, String)>,
}

impl Answer {
    fn page(status: StatusCode, text: &'static str) -> Self {
        Self { status, text, headers: Vec::new() }
    }

    fn to(status: StatusCode, location: String) -> Self {
        Self { status, text: "See the Location header.", headers: vec![("Location", location)] }
    }
}

impl HttpApp {
    /// Answers a request where its route's policy says so; then `true`.
    pub(super) async fn enforce(&self, session: &mut Session, route: &Route, ctx: &mut RequestState) -> Result<bool> {
        ctx.canary = route.canary.as_ref().filter(|c| takes(c, session.req_header())).map(|c| Arc::clone(&c.upstream));
        let Some(policy) = &route.policy else { return Ok(false) };
        let answer = match self.answer(session, policy, ctx) {
            Some(answer) => Some(answer),
            None => match &policy.auth {
                Some(auth) => unauthorized(session.req_header(), auth).await,
                None => None,
            },
        };
        let Some(answer) = answer else { return Ok(false) };
        if answer.status == StatusCode::PAYLOAD_TOO_LARGE {
            // The body is not going to be read.
            session.set_keepalive(None);
        }
        pages::send_with(session.as_downstream_mut(), answer.status, answer.text, &answer.headers).await?;
        Ok(true)
    }

    fn answer(&self, session: &Session, policy: &Policy, ctx: &mut RequestState) -> Option<Answer> {
        let request = session.req_header();
        let client = self.client(session);
        if !policy.sources.permit(client) {
            return Some(Answer::page(StatusCode::FORBIDDEN, "This address may not send requests here."));
        }
        if let Some(status) = policy.https_only
            && !self.is_https(session)
            && let Some(location) = self.https_location(request)
        {
            return Some(Answer::to(status, location));
        }
        if let Some(redirect) = &policy.redirect {
            return Some(Answer::to(redirect.status, redirect.to.to_string()));
        }
        if let Some(root) = policy.app_root.as_ref().filter(|_| request.uri.path() == "/") {
            return Some(Answer::to(StatusCode::FOUND, root.to_string()));
        }
        if policy.rate.as_ref().is_some_and(|rate| !rate.permit(client)) {
            let mut answer = Answer::page(StatusCode::TOO_MANY_REQUESTS, "Too many requests from this address.");
            answer.headers.push(("Retry-After", "1".to_owned()));
            return Some(answer);
        }
        if let Some(answer) = policy.cors.as_ref().and_then(|cors| preflight(cors, request)) {
            return Some(answer);
        }
        if let Some(most) = policy.max_body {
            if body_length(request).is_some_and(|length| length > most) {
                return Some(Answer::page(StatusCode::PAYLOAD_TOO_LARGE, pages::TOO_LARGE));
            }
            ctx.body_left = Some(most);
        }
        None
    }

    /// The client's address: the peer's, or what trusted proxies say it is.
    pub(super) fn client(&self, session: &Session) -> Option<IpAddr> {
        let peer = session.client_addr()?.as_inet()?.ip();
        if !self.trusted(peer) {
            return Some(peer);
        }
        let chain = session.req_header().headers.get("X-Forwarded-For").and_then(|v| v.to_str().ok()).unwrap_or("");
        let hops = chain.rsplit(',').map_while(|hop| hop.trim().parse::<IpAddr>().ok());
        let mut last = peer;
        for hop in hops {
            last = hop;
            if !self.trusted(hop) {
                break;
            }
        }
        Some(last)
    }

    fn is_https(&self, session: &Session) -> bool {
        if session.digest().is_some_and(|d| d.ssl_digest.is_some()) {
            return true;
        }
        let peer = session.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip());
        let said = session.req_header().headers.get("X-Forwarded-Proto");
        peer.is_some_and(|p| self.trusted(p)) && said.is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"https"))
    }

    fn https_location(&self, request: &RequestHeader) -> Option<String> {
        let authority = std::str::from_utf8(authority(request)?).ok()?;
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse::<u16>().ok()),
            _ => (authority, None),
        };
        // Where ours are not the usual ports, a client that knows the one knows the other.
        let port = match self.limits().public_ports {
            Some((http, https)) if port == Some(http) => format!(":{https}"),
            _ => String::new(),
        };
        let target = request.uri.path_and_query().map_or("/", |p| p.as_str());
        Some(format!("https://{host}{port}{target}"))
    }
}

/// Asks for user and password where those of the request are not right.
async fn unauthorized(request: &RequestHeader, auth: &Arc<BasicAuth>) -> Option<Answer> {
    let sent = request.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let right = match sent {
        None => false,
        Some(sent) if auth.is_remembered(sent) => true,
        Some(sent) => {
            let (auth, sent) = (Arc::clone(auth), sent.to_owned());
            // A hash takes long on purpose: other requests should not wait for it.
            tokio::task::spawn_blocking(move || auth.check(&sent)).await.unwrap_or(false)
        }
    };
    (!right).then(|| {
        let mut answer = Answer::page(StatusCode::UNAUTHORIZED, "User and password are needed.");
        answer.headers.push(("WWW-Authenticate", format!("Basic realm=\"{}\", charset=\"UTF-8\"", auth.realm)));
        answer
    })
}

fn header_text<'a>(request: &'a RequestHeader, name: &HeaderName) -> Option<&'a str> {
    request.headers.get(name).and_then(|v| v.to_str().ok())
}

/// The answer to a browser that asks before it sends (the Fetch standard's preflight).
fn preflight(cors: &Cors, request: &RequestHeader) -> Option<Answer> {
    let asks = request.method == Method::OPTIONS && request.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let origin = header_text(request, &header::ORIGIN).filter(|_| asks)?;
    let method = header_text(request, &header::ACCESS_CONTROL_REQUEST_METHOD).unwrap_or_default();
    let headers = header_text(request, &header::ACCESS_CONTROL_REQUEST_HEADERS);
    // An origin that is not allowed gets no such headers, and the browser refuses by itself.
    let headers = cors.allow_origin(origin).map(|o| cors.headers(o, Some((method, headers)))).unwrap_or_default();
    Some(Answer { status: StatusCode::NO_CONTENT, text: "", headers })
}

fn takes(canary: &Canary, request: &RequestHeader) -> bool {
    let choice = &canary.choice;
    let header = choice.header.as_ref().and_then(|name| header_text(request, name));
    let sent = choice.cookie.as_ref().and_then(|name| cookie_of(request, name));
    // A canary without endpoints takes nobody with it.
    choice.takes(header, sent, rand::rng().random_range(0..choice.total.max(1)))
        && !canary.upstream.endpoints().is_empty()
}

/// The value of a request's cookie; HTTP/2 may spread cookies over several headers.
pub(super) fn cookie_of<'a>(request: &'a RequestHeader, name: &str) -> Option<&'a str> {
    let all = request.headers.get_all(header::COOKIE);
    all.iter().filter_map(|v| v.to_str().ok()).find_map(|text| cookie(text, name))
}

/// Whether the connection is to become one of HTTP/2 (`Upgrade: h2c`). No backend hears of that: RFC 9113 has given it up,
/// and what came afterwards would go past all routes.
pub fn asks_for_http2(request: &RequestHeader) -> bool {
    let words = request.headers.get_all(header::UPGRADE).into_iter().flat_map(|v| v.as_bytes().split(|b| *b == b','));
    words.map(<[u8]>::trim_ascii).any(|word| word.eq_ignore_ascii_case(b"h2c") || word.eq_ignore_ascii_case(b"h2"))
}

/// Puts the cookies of several headers into one, as HTTP/1.1 has them (RFC 9113 section 8.2.3).
pub(super) fn join_cookies(request: &mut RequestHeader) -> Result<()> {
    let all: Vec<&[u8]> = request.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if all.len() < 2 {
        return Ok(());
    }
    let joined = HeaderValue::from_bytes(&all.join(&b"; "[..])).or_err(ErrorType::InternalError, "joining cookies")?;
    request.insert_header(header::COOKIE, joined)
}

/// Puts the path in that is to be sent on.
pub(super) fn rewrite(route: &Route, request: &mut RequestHeader) -> Result<()> {
    let Some(rewrite) = &route.rewrite else { return Ok(()) };
    let Some(target) = rewrite.target(request.uri.path(), request.uri.query()) else { return Ok(()) };
    let mut parts = request.uri.clone().into_parts();
    parts.path_and_query = Some(target.parse().or_err(ErrorType::InternalError, "rewriting the path")?);
    request.set_uri(http::Uri::from_parts(parts).or_err(ErrorType::InternalError, "rewriting the path")?);
    Ok(())
}

/// Adds what the policy has to say to an answer.
pub(super) fn answered(
    policy: &Policy,
    request: &RequestHeader,
    tag: Option<u64>,
    answer: &mut ResponseHeader,
) -> Result<()> {
    if let (Some(Affinity { cookie, attributes }), Some(tag)) = (&policy.affinity, tag) {
        answer.append_header(header::SET_COOKIE, format!("{cookie}={tag:016x}{attributes}"))?;
    }
    if let Some(cors) = &policy.cors
        && let Some(origin) = header_text(request, &header::ORIGIN).and_then(|o| cors.allow_origin(o))
    {
        for (name, value) in cors.headers(origin, None) {
            if name == "Vary" {
                answer.append_header(name, value)?;
            } else {
                answer.insert_header(name, value)?;
            }
        }
    }
    Ok(())
}

/// How long the body is, in bytes, as the request's head says.
pub(super) fn body_length(request: &RequestHeader) -> Option<u64> {
    header_text(request, &header::CONTENT_LENGTH)?.parse().ok()
}

/// Counts a part of a request's body; too many bytes end the request.
pub(super) fn count_body(ctx: &mut RequestState, bytes: usize) -> Result<()> {
    if let Some(left) = &mut ctx.body_left {
        match left.checked_sub(bytes as u64) {
            Some(rest) => *left = rest,
            None => return Error::e_explain(ErrorType::HTTPStatus(413), "the body is larger than the route allows"),
        }
    }
    Ok(())
}
