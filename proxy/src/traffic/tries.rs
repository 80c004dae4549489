//! What a request's way to an endpoint depends on besides its route: what it is known by, how endpoints did so far, and
//! whether it may be tried again.

use super::http::{HttpApp, RequestState};
use super::{policy, rule};
use crate::route::balance::{self, HashBy};
use crate::route::upstream::InFlight;
use crate::route::{Endpoint, Upstream};
use http::HeaderValue;
use pingora::proxy::Session;
use pingora::{BError, Error, ErrorSource, ErrorType, Result};
use std::fmt::Display;
use std::sync::Arc;

impl HttpApp {
    /// The endpoint for a request: the one its client knows, or one by the Service's own way to choose.
    pub(super) fn choose(&self, session: &Session, ctx: &mut RequestState) -> Result<Arc<Endpoint>> {
        let Some(upstream) = ctx.upstream() else {
            return Error::e_explain(ErrorType::InternalError, "a request without a route");
        };
        let admitted = ctx.admitted.unwrap_or_else(|| upstream.admit());
        if !admitted {
            ctx.admitted = Some(false);
            self.shared().metrics.overflows.inc();
            return Error::e_explain(ErrorType::HTTPStatus(503), "the service has too many requests");
        }
        let affinity = ctx.policy().and_then(|p| p.affinity.as_ref());
        let sent = affinity.and_then(|a| policy::cookie_of(session.req_header(), &a.cookie));
        let known = sent.and_then(|tag| upstream.find(tag, &ctx.tried));
        let session_token = ctx.route.as_ref().and_then(|r| rule::token(r.session.as_ref()?, session.req_header()));
        let known = known.or_else(|| session_token.and_then(|tag| upstream.find(tag, &ctx.tried)));
        let is_new = (affinity.is_some() || ctx.route.as_ref().is_some_and(|r| r.session.is_some())) && known.is_none();
        let key = if known.is_some() { None } else { upstream.hash_by().map(|by| self.key_of(session, &by)) };
        let Some(endpoint) = known.or_else(|| upstream.pick(&ctx.tried, key.as_deref())) else {
            self.shared().metrics.no_endpoint.inc();
            return Error::e_explain(ErrorType::HTTPStatus(503), format!("{} has no ready endpoint", upstream.key));
        };
        ctx.admitted = Some(true);
        ctx.new_tag = is_new.then_some(endpoint.tag);
        ctx.at = Some(InFlight::start(Arc::clone(&endpoint)));
        Ok(endpoint)
    }

    /// The endpoint took no connection. Nothing was sent, so any request may go elsewhere, or there again where the route
    /// asks for it. The error says whether there is to be another try.
    pub(super) fn not_connected(&self, mut error: BError, ctx: &mut RequestState) -> BError {
        self.shared().metrics.connect_failures.inc();
        if let Some(at) = ctx.at.take() {
            at.endpoint().failed();
            ctx.tried.push(at.endpoint().id);
        }
        error.set_retry(self.may_try_again(ctx) || self.once_more(ctx));
        error
    }

    /// The exchange with an endpoint broke off; `reused`: over a connection that had been used before. The error says
    /// whether there is to be another try.
    pub(super) fn broken(
        &self,
        address: &dyn Display,
        session: &Session,
        error: BError,
        ctx: &mut RequestState,
        reused: bool,
    ) -> BError {
        if *error.etype() == ErrorType::Custom(rule::AGAIN) {
            return error;
        }
        let mut error = error.more_context(format!("endpoint {address}"));
        let session = session.as_downstream();
        let begun = session.response_written().is_some();
        let repeatable = session.req_header().method.is_idempotent() && !session.retry_buffer_truncated();
        let broke_off = *error.esource() == ErrorSource::Upstream
            && !matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout);
        let slow = *error.etype() == ErrorType::ReadTimedout && !begun && !session.retry_buffer_truncated();
        if slow && !ctx.upgrade && ctx.route.as_ref().is_some_and(|r| r.timeouts.backend.is_some()) {
            // The route asks for another try itself, whatever the method is (GEP-1731).
            self.unanswered(ctx);
            ctx.at = None;
            let again = ctx.upstream().is_some_and(|u| self.may_repeat(u)) && self.once_more(ctx);
            error.set_retry(again);
            return error;
        }
        if !(reused && broke_off) && *error.esource() == ErrorSource::Upstream {
            self.unanswered(ctx);
        }
        if begun || !repeatable || ctx.upgrade {
            error.set_retry(false);
            return error;
        }
        if reused && broke_off {
            // The endpoint closed a pooled connection as we took it: it may be asked again.
            ctx.at = None;
            error.set_retry(self.may_ask_anew(ctx));
            return error;
        }
        if let Some(at) = ctx.at.take() {
            ctx.tried.push(at.endpoint().id);
        }
        let again = broke_off && ctx.upstream().is_some_and(|u| self.may_repeat(u)) && self.may_try_again(ctx);
        error.set_retry(again);
        error
    }

    /// The endpoint has not looked at the request, so it may be sent again, whatever it is. The error says whether it is.
    pub(super) fn refused(&self, session: &Session, mut error: BError, ctx: &mut RequestState) -> BError {
        let client = session.as_downstream();
        let repeatable = client.response_written().is_none() && !client.retry_buffer_truncated();
        ctx.at = None;
        error.set_retry(repeatable && self.may_ask_anew(ctx));
        error
    }

    /// What a request is known by, on the ring of its upstream's endpoints.
    pub(super) fn key_of(&self, session: &Session, by: &HashBy) -> Vec<u8> {
        let request = session.req_header();
        let value = match by {
            HashBy::Client => None,
            HashBy::Uri => request.uri.path_and_query().map(|p| p.as_str().as_bytes()),
            HashBy::Header(name) => request.headers.get(name).map(HeaderValue::as_bytes),
            HashBy::Cookie(name) => policy::cookie_of(request, name).map(str::as_bytes),
        };
        let client = || self.client(session).map(balance::key_of).unwrap_or_default();
        value.map_or_else(client, <[u8]>::to_vec)
    }

    /// Notes how an endpoint did.
    pub(super) fn answered(&self, upstream: &Upstream, at: &InFlight, bad: bool) {
        if !bad {
            at.endpoint().good();
        } else if upstream.bad_answer(at.endpoint()) {
            self.shared().metrics.ejections.inc();
        }
        if upstream.is_by_time() {
            at.endpoint().measure(at.age());
        }
    }

    /// An answer that should have come did not.
    pub(super) fn unanswered(&self, ctx: &RequestState) {
        if let (Some(upstream), Some(at)) = (ctx.upstream(), &ctx.at) {
            self.answered(upstream, at, true);
        }
    }

    /// Whether the budget has another try of what an endpoint may have worked on.
    pub(super) fn may_repeat(&self, upstream: &Upstream) -> bool {
        let may = upstream.may_repeat();
        if !may {
            self.shared().metrics.retries_denied.inc();
        }
        may
    }

    /// Takes one of the tries that the route's own retry policy has left.
    pub(super) fn once_more(&self, ctx: &mut RequestState) -> bool {
        let attempts = ctx.route.as_ref().and_then(|r| r.retry.as_ref()).map_or(0, |r| r.attempts);
        let again = ctx.again < attempts;
        if again {
            ctx.again += 1;
            ctx.tried.clear();
            self.shared().metrics.retries.inc();
        }
        again
    }

    /// Takes one of the tries for a request that no endpoint has looked at, any of which may get it then.
    fn may_ask_anew(&self, ctx: &mut RequestState) -> bool {
        let again = ctx.tried.len() < self.limits().attempts;
        if again {
            self.shared().metrics.retries.inc();
            // Bounds the tries; the id is nobody's.
            ctx.tried.push(0);
        }
        again
    }

    pub(super) fn may_try_again(&self, ctx: &RequestState) -> bool {
        let again = ctx.tried.len() < self.limits().attempts
            && ctx.upstream().is_some_and(|u| u.endpoints().iter().any(|e| !ctx.tried.contains(&e.id)));
        if again {
            self.shared().metrics.retries.inc();
        }
        again
    }
}
