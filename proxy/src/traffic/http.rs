//! What happens to a request: find its route, choose an endpoint, pass it on; try another endpoint where that is safe.
//!
//! The hot path looks up no more than a host and a path, and takes no lock but that of an endpoint's kept connections. A request is sent again only when the
//! endpoint cannot have acted on it (no connection came about), or when doing it twice is the same as once (an
//! idempotent method) and no answer has begun.

use super::access::{Entry, Log};
use super::conn::Conn;
use super::connect::{Announced, Connector};
use super::find::Verdict;
use super::mirror::Copies;
use super::{Limits, filters, pages, policy, rule};
use crate::config::Shared;
use crate::route::filter::Filters;
use crate::route::front::FrontKey;
use crate::route::policy::Policy;
use crate::route::upstream::InFlight;
use crate::route::{Action, Endpoint, Route, Upstream};
use async_trait::async_trait;
use http::{HeaderValue, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::compression::ResponseCompressionBuilder;
use pingora::protocols::Digest;
use pingora::protocols::http::ServerSession;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{BError, Error, ErrorType, Result};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How hard answers are compressed: as quickly as gains most.
const COMPRESSION: u32 = 3;

/// A client's connection is kept for further requests, as far as Pingora is concerned without end: [`Conn`] ends it.
pub(super) const KEPT: u64 = 0;

/// The proxy application that Pingora drives.
pub struct HttpApp {
    shared: Arc<Shared>,
    limits: Arc<Limits>,
    log: Option<Log>,
}

/// What is remembered of a request.
pub struct RequestState {
    start: Instant,
    pub(super) route: Option<Arc<Route>>,
    /// The Gateway's port it came by.
    pub(super) front: Option<FrontKey>,
    /// The backend that was chosen of several, and what is done to requests that go there.
    pub(super) share: Option<(Arc<Upstream>, Option<Arc<Filters>>)>,
    /// Copies that mirrors get.
    pub(super) copies: Option<Copies>,
    /// The canary's, for a request that goes there.
    pub(super) canary: Option<Arc<Upstream>>,
    /// Bytes that the body may still have.
    pub(super) body_left: Option<u64>,
    /// The endpoint that a client is to come back to, where it does not know yet.
    pub(super) new_tag: Option<u64>,
    pub(super) upgrade: bool,
    /// Nothing of it is left here: the connection is one for another protocol, and the request goes on with it.
    pub(super) handed_over: bool,
    pub(super) at: Option<InFlight>,
    /// Ids of the endpoints that were tried.
    pub(super) tried: Vec<u64>,
    /// Answers that were thrown away for another try.
    pub(super) again: u32,
    /// Counted among its Service's requests, or refused because there were too many.
    pub(super) admitted: Option<bool>,
}

impl HttpApp {
    /// Serves from what is in force in `shared`.
    pub fn new(shared: Arc<Shared>, limits: Arc<Limits>) -> Self {
        let log = Log::start(limits.access_log, tokio::io::stdout(), shared.metrics.log_dropped.clone());
        Self { shared, limits, log }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn log(&self) -> Option<&Log> {
        self.log.as_ref()
    }

    /// What the access log says of a request.
    pub(super) fn entry<'a>(&self, session: &'a Session, ctx: &RequestState) -> Entry<'a> {
        let endpoint = ctx.at.as_ref().map(|at| at.endpoint().address);
        Entry::of(session, ctx.route.as_deref(), ctx.front.as_ref(), endpoint)
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    fn peer(
        &self,
        endpoint: &Endpoint,
        upstream: &Upstream,
        ctx: &RequestState,
        announced: Option<Announced>,
    ) -> HttpPeer {
        let (protocol, terms) = (upstream.key.protocol(), upstream.key.tls());
        // Without terms, whoever has the pod's address is believed in TLS, as with clear text. An address as the name is
        // not sent. With terms TLS is done below Pingora.
        let pingoras = protocol.is_tls() && terms.is_none();
        let (address, id) = (endpoint.address, endpoint.id);
        let name = if pingoras { address.ip().to_string() } else { String::new() };
        let mut peer = HttpPeer::new(address, pingoras, name);
        let upgrade = ctx.upgrade && !protocol.is_h2();
        if terms.is_some() || announced.is_some() || upgrade {
            let terms = terms.map(|terms| (Arc::clone(terms), protocol.is_h2()));
            peer.options.custom_l4 = Some(Arc::new(Connector { announced, terms, upgrade }));
        }
        // An address that went and came back is another endpoint: it gets no connection of the former one.
        peer.group_key = announced.map_or(id, |announced| announced.pool(id));
        let connect = self.connect_timeout(ctx);
        let options = &mut peer.options;
        options.connection_timeout = Some(connect);
        options.total_connection_timeout = Some(connect);
        let (read, write) = self.silence(ctx);
        (options.read_timeout, options.write_timeout) = (Some(read), Some(write));
        options.idle_timeout = Some(self.limits.upstream_idle);
        if pingoras {
            (options.verify_cert, options.verify_hostname) = (false, false);
        }
        if protocol.is_h2() {
            options.set_http_version(2, 2);
            options.max_h2_streams = 100;
        }
        peer
    }

    /// How long a connection to a backend may take to come about.
    pub(super) fn connect_timeout(&self, ctx: &RequestState) -> Duration {
        ctx.policy().and_then(|p| p.connect_timeout).unwrap_or(self.limits.connect_timeout)
    }

    /// The longest pauses in reading from a backend, and in writing to it.
    pub(super) fn silence(&self, ctx: &RequestState) -> (Duration, Duration) {
        let usual = if ctx.upgrade { self.limits.upgraded_timeout } else { self.limits.upstream_timeout };
        let policy = ctx.policy();
        let read = policy.and_then(|p| p.read_timeout).unwrap_or(usual);
        let write = policy.and_then(|p| p.send_timeout).unwrap_or(usual);
        (read, write)
    }

    pub(super) fn trusted(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.limits.trusted_proxies.iter().any(|net| net.contains(&peer))
    }
}

impl RequestState {
    /// The time since the request's head had come.
    pub(super) fn took(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn policy(&self) -> Option<&Policy> {
        self.route.as_ref()?.policy.as_deref()
    }

    pub(super) fn upstream(&self) -> Option<&Arc<Upstream>> {
        if self.canary.is_some() {
            return self.canary.as_ref();
        }
        match &self.route.as_ref()?.action {
            Action::Forward(upstream) => Some(upstream),
            Action::Split(_) => self.share.as_ref().map(|(upstream, _)| upstream),
            Action::Unavailable(_) => None,
        }
    }
}

#[async_trait]
impl ProxyHttp for HttpApp {
    type CTX = RequestState;

    fn new_ctx(&self) -> Self::CTX {
        RequestState {
            start: Instant::now(),
            route: None,
            front: None,
            share: None,
            copies: None,
            canary: None,
            body_left: None,
            new_tag: None,
            upgrade: false,
            handed_over: false,
            at: None,
            tried: Vec::new(),
            again: 0,
            admitted: None,
        }
    }

    fn init_downstream_modules(&self, modules: &mut pingora::modules::http::HttpModules) {
        // Without it pods decide on compression.
        if self.limits.compression {
            modules.add_module(ResponseCompressionBuilder::enable(COMPRESSION));
        }
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<()> {
        let session = session.as_downstream_mut();
        if let Some(conn) = session.stream().and_then(Conn::of) {
            conn.head_done();
        }
        ctx.upgrade = session.is_upgrade_req();
        if ctx.upgrade && policy::asks_for_http2(session.req_header()) {
            // For Pingora too it asks for no other protocol then.
            session.req_header_mut().remove_header(&header::UPGRADE);
            ctx.upgrade = false;
        }
        let request = session.req_header();
        let lasting = request.version != Version::HTTP_10
            || request
                .headers
                .get(header::CONNECTION)
                .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"keep-alive"));
        // This also honours `Connection: close`.
        let keep = session.get_keepalive().is_some() && lasting && !self.shared.closing.load(Ordering::Relaxed);
        session.set_keepalive(keep.then_some(KEPT));
        let silence = if ctx.upgrade { self.limits.upgraded_timeout } else { self.limits.client_timeout };
        session.set_read_timeout(Some(silence));
        session.set_write_timeout(Some(silence));
        session.set_total_drain_timeout(Some(self.limits.head_timeout));
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        if let Some(text) = self.shared.challenges.text(session.req_header().uri.path()) {
            pages::send_bare(session.as_downstream_mut(), &text).await?;
            return Ok(true);
        }
        let (verdict, front) = self.judge(session);
        ctx.front = front;
        match verdict {
            Verdict::Forward(route) => {
                let answered = ((route.policy.is_some() || route.canary.is_some())
                    && self.enforce(session, &route, ctx).await?)
                    || (ctx.front.is_some() && self.rule(session, &route, ctx).await?);
                ctx.route = Some(route);
                Ok(answered)
            }
            Verdict::Refuse(status, text) => {
                if status == StatusCode::BAD_REQUEST {
                    self.shared.metrics.malformed.inc();
                    // Who sends one of these may have meant something else by what follows.
                    session.set_keepalive(None);
                }
                pages::send(session.as_downstream_mut(), status, &text).await?;
                Ok(true)
            }
        }
    }

    /// False: the request took the short way and has its answer.
    async fn proxy_upstream_filter(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<bool> {
        Ok(!self.direct(session, ctx).await?)
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        ctx.at = None;
        if let Some(pause) = ctx.route.as_ref().and_then(|r| rule::pause(r, ctx.again)) {
            tokio::time::sleep(pause).await;
        }
        let timeouts = ctx.route.as_ref().map(|r| r.timeouts).unwrap_or_default();
        let left = timeouts.request.map(|all| all.saturating_sub(ctx.start.elapsed()));
        if left.is_some_and(|l| l.is_zero()) {
            return Error::e_explain(ErrorType::HTTPStatus(504), "the route's time for the request is over");
        }
        let endpoint = self.choose(session, ctx)?;
        let Some(upstream) = ctx.upstream() else {
            return Error::e_explain(ErrorType::InternalError, "a request without a route");
        };
        let announced = upstream.announce().and_then(|version| Announced::of(session, version));
        let mut peer = self.peer(&endpoint, upstream, ctx, announced);
        if let Some(limit) = [timeouts.backend, left].into_iter().flatten().min() {
            peer.options.read_timeout = Some(peer.options.read_timeout.map_or(limit, |own| own.min(limit)));
        }
        Ok(Box::new(peer))
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if let Some(at) = &ctx.at {
            at.endpoint().succeeded();
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        self.forwarded_headers(session, request, ctx.front.as_ref())?;
        if session.req_header().version == Version::HTTP_2 && !ctx.upstream().is_some_and(|u| u.key.protocol().is_h2())
        {
            policy::join_cookies(request)?;
        }
        let Some(route) = &ctx.route else { return Ok(()) };
        policy::rewrite(route, request)?;
        if ctx.front.is_some() {
            if let Some(filters) = &route.filters {
                filters::request(filters, request)?;
            }
            if let Some(filters) = ctx.share.as_ref().and_then(|(_, f)| f.as_ref()) {
                filters::request(filters, request)?;
            }
            if let Some(copies) = &mut ctx.copies {
                copies.head(request);
            }
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<bytes::Bytes>,
        end_of_stream: bool,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if let Some(mut copies) = ctx.copies.take()
            && copies.body(body.as_ref())
        {
            if end_of_stream {
                copies.send();
            } else {
                ctx.copies = Some(copies);
            }
        }
        policy::count_body(ctx, body.as_ref().map_or(0, bytes::Bytes::len))
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        answer: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if let Some(policy) = ctx.policy() {
            policy::answered(policy, session.req_header(), ctx.new_tag, answer)?;
        }
        let Some(route) = ctx.route.as_ref().filter(|_| ctx.front.is_some()) else { return Ok(()) };
        if let (Some(sticky), Some(_), Some(at)) = (&route.session, ctx.new_tag, &ctx.at) {
            rule::remember(sticky, at.endpoint(), answer)?;
        }
        // The backend's first, as it is nearer to the answer.
        if let Some(filters) = ctx.share.as_ref().and_then(|(_, f)| f.as_ref()) {
            filters::response(filters, answer)?;
        }
        route.filters.as_ref().map_or(Ok(()), |filters| filters::response(filters, answer))
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        answer: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> Result<()> {
        if answer.status == StatusCode::SWITCHING_PROTOCOLS && !ctx.upgrade {
            let error = Error::explain(ErrorType::InvalidHTTPHeader, "the protocol was changed unasked");
            return Err(error.into_up());
        }
        let (Some(route), Some(upstream)) = (&ctx.route, ctx.upstream()) else { return Ok(()) };
        if let Some(at) = ctx.at.as_ref().filter(|_| !answer.status.is_informational()) {
            self.answered(upstream, at, answer.status.is_server_error());
        }
        match rule::again(route, answer, ctx.again) {
            Some(error) if !session.as_downstream().retry_buffer_truncated() && self.may_repeat(upstream) => {
                ctx.again += 1;
                self.shared.metrics.retries.inc();
                Err(error)
            }
            _ => Ok(()),
        }
    }

    fn fail_to_connect(&self, _session: &mut Session, _peer: &HttpPeer, ctx: &mut Self::CTX, error: BError) -> BError {
        self.not_connected(error, ctx)
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: BError,
        ctx: &mut Self::CTX,
        reused: bool,
    ) -> BError {
        self.broken(&peer._address, session, error, ctx, reused)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Self::CTX) -> FailToProxy {
        tracing::debug!(%error, tried = ctx.tried.len(), "request failed");
        let session: &mut ServerSession = session.as_downstream_mut();
        // An answer that has begun cannot be taken back: the client sees it break off.
        if session.response_written().is_some_and(|r| !r.status.is_informational()) {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        }
        let Some((status, text)) = pages::of_error(error) else {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        session.set_keepalive(None);
        let upstream = ctx.upstream().map(|u| format!(" ({})", u.key)).unwrap_or_default();
        let text = match status {
            StatusCode::SERVICE_UNAVAILABLE if ctx.admitted == Some(false) => {
                format!("The service has as many requests as it may have{upstream}.")
            }
            StatusCode::SERVICE_UNAVAILABLE => format!("No endpoint of the service is ready{upstream}."),
            _ => format!("{text}{upstream}"),
        };
        if let Err(error) = pages::send(session, status, &text).await {
            tracing::trace!(%error, "client gone");
        }
        FailToProxy { error_code: status.as_u16(), can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _error: Option<&Error>, ctx: &mut Self::CTX) {
        if ctx.handed_over {
            return;
        }
        let status = session.as_downstream().response_written().map_or(0, |r| r.status.as_u16());
        let took = ctx.took();
        self.shared.metrics.answered(status, took.as_secs_f64());
        if let Some(log) = &self.log {
            log.write(self.entry(session, ctx), took);
        }
        ctx.at = None;
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Self::CTX, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Self::CTX,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

/// `Host`, or the authority of the target (HTTP/2, absolute form).
pub(super) fn authority(request: &RequestHeader) -> Option<&[u8]> {
    match request.uri.authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => request.headers.get(header::HOST).map(HeaderValue::as_bytes),
    }
}
