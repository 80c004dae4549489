//! The front: the one way of every request, from any transport to its endpoint and back.
//!
//! In: HTTP requests (TLS sockets: [`tls`], clients of the same process: [`memory`]), with an identity in their extensions
//! where the transport knows one. Out: responses; every failure is a `Status`, also a panic. [`Front::handle`] and
//! [`Front::filter`] show the order: panic, authentication, impersonation, authorisation, route.

mod connections;
pub mod memory;
pub mod tls;

use crate::authn::{Authenticator, Identity};
use crate::authz::{self, Authorizer};
use crate::endpoints::Endpoints;
use crate::exchange::{Incoming, Reply};
use crate::metrics::Labels;
use crate::request::RequestInfo;
use crate::status::{ApiError, ApiResult};
use axum::body::Body;
use futures::FutureExt;
use http::{HeaderValue, Method, Request, Response};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

/// The filters, and what is behind them.
pub struct Front {
    /// Who a caller is.
    pub authenticator: Authenticator,
    /// Who may do what.
    pub authorizer: Arc<dyn Authorizer>,
    /// Where requests end.
    pub endpoints: Arc<Endpoints>,
}

impl Front {
    /// Serves one request. Never fails and never panics.
    pub async fn handle(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let info = Arc::new(RequestInfo::new(request.method(), request.uri(), request.headers()));
        let audit_id = request.headers().get("audit-id").cloned();
        let outcome = AssertUnwindSafe(self.filter(request, info.clone())).catch_unwind().await;
        let reply = match outcome {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => {
                if error.code() >= 500 {
                    tracing::warn!(%error, code = error.code(), "request failed");
                }
                Reply::error(&error)
            }
            Err(_) => {
                tracing::error!("a request handler panicked; the client got a 500");
                Reply::error(&ApiError::internal(
                    "this request caused apiserver to panic. Look in the logs for details",
                ))
            }
        };
        let mut response = reply.0;
        let audit_id = audit_id.or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok());
        if let Some(audit_id) = audit_id {
            response.headers_mut().insert("audit-id", audit_id);
        }
        response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        if info.method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        let labels = Labels::new(&info, &self.endpoints.engine.catalog.table());
        self.endpoints.metrics.observe(&labels, response.status().as_u16(), started.elapsed());
        response
    }

    /// What a request passes, in this order.
    async fn filter(&self, request: Request<Body>, info: Arc<RequestInfo>) -> ApiResult<Reply> {
        let identity = request.extensions().get::<Identity>().cloned();
        let user = self.authenticator.authenticate(identity, request.headers()).await?;
        let user = self.authenticator.impersonate(user, request.headers(), &*self.authorizer).await?;
        if let Some(stream) = info.stream_attributes() {
            authz::require(&*self.authorizer, &user, &stream).await?;
        }
        authz::require(&*self.authorizer, &user, &info.attributes()).await?;
        self.endpoints.route(Incoming::new(request, info, user, self.authorizer.clone())).await
    }
}
