//! What a request's way to an endpoint depends on besides its route: what it is known by, how endpoints did so far, and
//! whether it may be tried again.

use super::http::{HttpApp, RequestState};
use super::policy;
use crate::route::Upstream;
use crate::route::balance::{self, HashBy};
use crate::route::upstream::InFlight;
use http::HeaderValue;
use pingora::proxy::Session;

impl HttpApp {
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

    pub(super) fn may_try_again(&self, ctx: &RequestState) -> bool {
        let again = ctx.tried.len() < self.limits().attempts
            && ctx.upstream().is_some_and(|u| u.endpoints().iter().any(|e| !ctx.tried.contains(&e.id)));
        if again {
            self.shared().metrics.retries.inc();
        }
        again
    }
}
