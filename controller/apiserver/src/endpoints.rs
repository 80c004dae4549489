//! What requests end at: resources and their subresources, reviews, discovery, health, metrics.
//!
//! In: a request that is authenticated and authorised ([`Incoming`]). Out: a response. Nothing here knows how requests
//! come in or which filters they have passed.

mod discovery;
mod health;
mod openapi;
pub mod relay;
mod resources;
mod reviews;
mod subresources;

use crate::authn::Authenticator;
use crate::authz::Authorizer;
use crate::catalog::Served;
use crate::engine::{Authority, Call, Engine};
use crate::exchange::{Incoming, Reply};
use crate::metrics::Metrics;
use crate::request::{WriteOptions, segments};
use crate::status::{ApiError, ApiResult};
use http::{Method, StatusCode};
use relay::NodeRelay;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Everything requests are served from.
pub struct Endpoints {
    /// Objects.
    pub engine: Arc<Engine>,
    /// Issues service accounts' tokens, and reviews tokens.
    pub authenticator: Arc<Authenticator>,
    /// Answers reviews of access.
    pub authorizer: Arc<dyn Authorizer>,
    /// The way to kubelets.
    pub relay: NodeRelay,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Ends watches.
    pub shutdown: CancellationToken,
}

impl Endpoints {
    /// Serves a request that may be served.
    pub async fn route(self: &Arc<Self>, incoming: Incoming) -> ApiResult<Reply> {
        let info = incoming.info.clone();
        if !info.offered {
            return Err(ApiError::method_not_allowed());
        }
        match &info.target {
            Some(target) => self.resource(target.clone(), &info.verb, incoming).await,
            None => self.other_path(incoming).await,
        }
    }

    async fn other_path(self: &Arc<Self>, incoming: Incoming) -> ApiResult<Reply> {
        if !matches!(incoming.info.method, Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed());
        }
        let all = segments(&incoming.info.path);
        let parts: Vec<&str> = all.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["healthz" | "livez" | "readyz", check @ ..] => self.health(parts[0], check, &incoming).await,
            ["metrics"] => Ok(Reply::text(StatusCode::OK, self.metrics.render(&self.engine))),
            ["version"] => Ok(Reply::json(StatusCode::OK, &health::version())),
            ["openid", "v1", "jwks"] => Ok(Reply::json(StatusCode::OK, &self.authenticator.accounts.jwks())),
            [".well-known", "openid-configuration"] => {
                Ok(Reply::json(StatusCode::OK, &self.authenticator.accounts.openid_configuration()))
            }
            _ => self.discovery(&parts, &incoming),
        }
    }
}

/// What a request asks of the engine.
fn call_of(served: Arc<Served>, namespace: &str, incoming: &Incoming) -> ApiResult<Call> {
    Ok(Call {
        served,
        namespace: namespace.to_owned(),
        user: incoming.user.clone(),
        authority: Authority::Caller(incoming.authorizer.clone()),
        peer: incoming.peer,
        options: WriteOptions::parse(&incoming.info.query, &incoming.user_agent)?,
        record: incoming.record.clone(),
        warnings: Vec::new(),
        tracked: false,
    })
}
