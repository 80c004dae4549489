//! The short way of a request to a backend and of the answer back: for requests without a body, or with a small one, to
//! backends that speak HTTP/1.1 in clear text, or in TLS on their own terms, which is most of what an ingress does. It reads and writes with Pingora's
//! HTTP/1.1, but needs neither channels between two halves, as nothing goes up while the answer comes down, nor a task for
//! each connection that waits. Where the answer is a change of protocol
//! (WebSocket), it ends in `upgrade.rs`.
//!
//! In: a request whose route has been found. Out: its answer has been sent, or it has to take Pingora's own way, which
//! knows everything else. A request takes the short way only when its head says nothing about the connection but whether
//! it is kept or what it is to become, so that nothing else has to be taken out. Its body has been read as a whole before
//! a backend hears of it.

use super::alarm::Alarm;
use super::conn::Conn;
use super::http::{HttpApp, RequestState, authority};
use super::kept::{Connection, Kept};
use super::link::Link;
use super::policy;
use super::wire::{self, Wire};
use crate::route::upstream::Protocol;
use crate::route::{Endpoint, Route};
use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use http::{HeaderName, HeaderValue, Method, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::proxy::{ProxyHttp, Session};
use pingora::{Error, ErrorType, OrErr as _, Result};
use std::future::poll_fn;

/// Bodies of requests that are read as a whole, in bytes at most: as much as Pingora remembers of one for another try.
const SMALL: u64 = 64 * 1024;

impl HttpApp {
    /// Answers a request by the short way, if it may take it: then `true`.
    pub(super) async fn direct(&self, session: &mut Session, ctx: &mut RequestState) -> Result<bool> {
        if !ctx.route.as_ref().is_some_and(|route| is_simple(route)) || ctx.copies.is_some() {
            return Ok(false);
        }
        let Some(upstream) = ctx.upstream().filter(|u| u.announce().is_none()) else { return Ok(false) };
        match (upstream.key.protocol(), upstream.key.tls()) {
            (Protocol::Http1, _) | (Protocol::Https, Some(_)) => {}
            (Protocol::H2c, _) | (Protocol::H2, Some(_)) if is_call(session.req_header()) => {
                return self.call(session, ctx).await.map(|()| true);
            }
            _ => return Ok(false),
        }
        if !(if ctx.upgrade { is_upgrade(session) } else { is_plain(session.req_header()) }) {
            return Ok(false);
        }
        let length = match policy::body_length(session.req_header()) {
            Some(length) if length <= SMALL => length,
            None if session.is_body_empty() => 0,
            _ => return Ok(false),
        };
        let body = if length == 0 { Bytes::new() } else { body(session, ctx, length).await? };
        loop {
            match self.exchange(session, &body, ctx).await {
                Ok(()) => return Ok(true),
                Err(error) if error.retry() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// One try at one endpoint.
    async fn exchange(&self, session: &mut Session, body: &Bytes, ctx: &mut RequestState) -> Result<()> {
        let endpoint = self.choose(session, ctx)?;
        // A request for another protocol is not repeated: a connection that the endpoint is just closing is not for it.
        let kept = if ctx.upgrade { None } else { endpoint.kept.take() };
        let (Connection { mut link, mut alarm }, reused) = match kept {
            Some(connection) => (connection, true),
            None => match self.connection(&endpoint, ctx).await {
                Ok(connection) => (connection, false),
                Err(error) => return Err(self.not_connected(error, ctx)),
            },
        };
        endpoint.succeeded();
        if !body.is_empty() {
            link.body_follows();
        }
        let mut backend = HttpSession::new(link);
        backend.write_timeout = Some(self.silence(ctx).1);
        match self.relay(session, &mut backend, body, &mut alarm, ctx).await {
            Ok(()) if backend.was_upgraded() => {
                self.hand_over(session, backend.into_inner(), ctx);
                Ok(())
            }
            Ok(()) => {
                backend.respect_keepalive();
                if let Some(link) = backend.reuse().await.and_then(Link::back) {
                    let connection = Connection { link, alarm };
                    Kept::put(&endpoint, connection, self.limits().upstream_pool, self.limits().upstream_idle);
                }
                Ok(())
            }
            Err(error) => Err(self.broken(&endpoint.address, session, error, ctx, reused)),
        }
    }

    async fn connection(&self, endpoint: &Endpoint, ctx: &RequestState) -> Result<Connection> {
        let (terms, time) = (ctx.upstream().and_then(|upstream| upstream.key.tls()), self.connect_timeout(ctx));
        let opening = Wire::open(endpoint.address, terms.map(|terms| &**terms), false);
        let wire = wire::within(time, endpoint.address, opening).await?;
        Ok(Connection { link: Box::new(Link::new(wire)), alarm: Alarm::new(time) })
    }

    /// Sends the request, and passes the answer on as it comes.
    async fn relay(
        &self,
        session: &mut Session,
        backend: &mut HttpSession,
        body: &Bytes,
        alarm: &mut Alarm,
        ctx: &mut RequestState,
    ) -> Result<()> {
        let mut request = session.req_header().clone();
        if let Some(host) = session.req_header().uri.authority() {
            // HTTP/2 says there what HTTP/1.1 says in a header.
            let host = HeaderValue::from_str(host.as_str());
            request
                .insert_header(header::HOST, host.or_err(ErrorType::InvalidHTTPHeader, "the request's authority")?)?;
        }
        request.set_version(Version::HTTP_11);
        request.remove_header(&header::CONNECTION);
        if ctx.upgrade {
            request.insert_header(header::CONNECTION, "Upgrade")?;
        }
        self.upstream_request_filter(session, &mut request, ctx).await?;
        backend.write_request_header(Box::new(request)).await.map_err(|e| e.into_up())?;
        if !body.is_empty() {
            backend.write_body(body).await.map_err(|e| e.into_up())?;
        }
        let silence = self.silence(ctx).0;
        loop {
            alarm.set(silence);
            let task = tokio::select! {
                biased;
                task = backend.read_response_task() => task.map_err(|e| e.into_up())?,
                () = poll_fn(|cx| alarm.poll(cx)) => {
                    return Err(Error::explain(ErrorType::ReadTimedout, "waiting for the answer").into_up());
                }
                // A client that goes takes its request with it.
                gone = session.as_downstream_mut().read_body_or_idle(true) => {
                    gone.map_err(|e| e.into_down())?;
                    return Err(Error::explain(ErrorType::ConnectionClosed, "more than the request came").into_down());
                }
            };
            let is_head = matches!(task, HttpTask::Header(..));
            let mut ended = task.is_end();
            let mut tasks = Vec::with_capacity(2);
            tasks.push(self.filtered(session, task, ctx).await?);
            // The beginning of a body usually comes with the head, and goes on with it.
            if is_head
                && !ended
                && let Some(next) = tokio::task::unconstrained(backend.read_response_task()).now_or_never()
            {
                let next = next.unwrap_or_else(|error| HttpTask::Failed(error.into_up()));
                ended = next.is_end();
                tasks.push(self.filtered(session, next, ctx).await?);
            }
            if session.write_response_tasks(tasks).await? || ended {
                break;
            }
            if backend.was_upgraded() {
                return Ok(());
            }
        }
        session.as_downstream_mut().finish_body().await.map_err(|e| e.into_down())
    }

    /// A part of the answer as the client is to get it.
    pub(super) async fn filtered(
        &self,
        session: &mut Session,
        mut task: HttpTask,
        ctx: &mut RequestState,
    ) -> Result<HttpTask> {
        if let HttpTask::Header(answer, _) = &mut task {
            self.upstream_response_filter(session, answer, ctx).await?;
            frame(answer, &session.req_header().method)?;
            self.response_filter(session, answer, ctx).await?;
        }
        Ok(task)
    }
}

/// All of the body.
async fn body(session: &mut Session, ctx: &mut RequestState, length: u64) -> Result<Bytes> {
    let client = session.as_downstream_mut();
    let mut whole = BytesMut::new();
    // To its very end: HTTP/2 may say behind the last byte that it was the last.
    while let Some(part) = client.read_request_body().await.map_err(|e| e.into_down())? {
        policy::count_body(ctx, part.len())?;
        whole.extend_from_slice(&part);
    }
    if whole.len() as u64 != length {
        let error = Error::explain(ErrorType::ConnectionClosed, "the request's body is not as long as it says");
        return Err(error.into_down());
    }
    Ok(whole.freeze())
}

/// Nothing in the route is about time or further tries.
fn is_simple(route: &Route) -> bool {
    route.retry.is_none() && route.timeouts.request.is_none() && route.timeouts.backend.is_none()
}

/// A request that can be passed on as it is: its target is a path, and it says nothing about the connection (RFC 9110
/// section 7.6.1) and of a body no more than its length.
fn is_plain(request: &RequestHeader) -> bool {
    is_understood(request, 0, kept_or_not)
}

/// A request that can be passed on by HTTP/2. Of trailers it may say that they are welcome, as gRPC does.
fn is_call(request: &RequestHeader) -> bool {
    let welcome = |name: &HeaderName, value: &[u8]| {
        *name == header::TE && request.version == Version::HTTP_2 && value == b"trailers"
    };
    is_understood(request, 0, |name, value| kept_or_not(name, value) || welcome(name, value))
        && request.raw_path_is_utf8()
        && request.uri.path().starts_with('/')
}

/// Which of the two it is has been heeded, and is not passed on.
fn kept_or_not(name: &HeaderName, value: &[u8]) -> bool {
    *name == header::CONNECTION && [&b"keep-alive"[..], b"close"].iter().any(|known| value.eq_ignore_ascii_case(known))
}

/// A request to speak something else on this connection (RFC 9110 section 7.8), and nothing else about the connection.
/// Nothing has come behind it yet.
fn is_upgrade(session: &Session) -> bool {
    let (request, client) = (session.req_header(), session.as_downstream().as_http1());
    let to_be_upgraded = |name: &HeaderName, value: &[u8]| {
        let mut words = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let known = words.clone().all(|w| w.eq_ignore_ascii_case(b"upgrade") || w.eq_ignore_ascii_case(b"keep-alive"));
        *name == header::CONNECTION && known && words.any(|word| word.eq_ignore_ascii_case(b"upgrade"))
    };
    is_understood(request, 1, to_be_upgraded)
        && request.headers.contains_key(header::CONNECTION)
        && !request.headers.contains_key(header::CONTENT_LENGTH)
        && client.is_some_and(|client| {
            let head = client.get_headers_raw_bytes().len();
            Conn::of(client.stream()).is_some_and(|conn| conn.has_read_only(head))
        })
}

/// Every header is one to be passed on, but for those about the connection, which are `accepted`. There are so many
/// protocols to upgrade to.
fn is_understood(request: &RequestHeader, protocols: usize, accepted: impl Fn(&HeaderName, &[u8]) -> bool) -> bool {
    let by_header = match request.version {
        Version::HTTP_11 if request.uri.authority().is_none() && request.raw_path().starts_with(b"/") => true,
        Version::HTTP_2 => request.uri.authority().is_none(),
        _ => return false,
    };
    if request.method == Method::CONNECT {
        return false;
    }
    let (mut hosts, mut lengths, mut upgrades) = (0, 0, 0);
    for (name, value) in &request.headers {
        match *name {
            header::HOST => hosts += 1,
            header::CONTENT_LENGTH => lengths += 1,
            header::UPGRADE => upgrades += 1,
            header::CONNECTION | header::TE if accepted(name, value.as_bytes()) => {}
            header::CONNECTION
            | header::EXPECT
            | header::PROXY_AUTHENTICATE
            | header::PROXY_AUTHORIZATION
            | header::TE
            | header::TRAILER
            | header::TRANSFER_ENCODING => return false,
            _ if is_of_connection(name) => return false,
            _ => {}
        }
    }
    authority(request).is_some_and(|a| !a.contains(&b'@'))
        && hosts == usize::from(by_header)
        && lengths < 2
        && upgrades == protocols
}

/// Those without a name in the crate.
fn is_of_connection(name: &HeaderName) -> bool {
    matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

/// Makes an answer one whose end the client can tell while the connection stays open.
fn frame(answer: &mut ResponseHeader, method: &Method) -> Result<()> {
    let status = answer.status.as_u16();
    let without_body = *method == Method::HEAD || matches!(status, 100..=199 | 204 | 304);
    if !without_body
        && !answer.headers.contains_key(header::TRANSFER_ENCODING)
        && !answer.headers.contains_key(header::CONTENT_LENGTH)
    {
        answer.set_version(Version::HTTP_11);
        answer.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    Ok(())
}
