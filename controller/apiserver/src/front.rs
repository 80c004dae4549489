//! The front: the one way of every request, from any transport to its endpoint and back.
//!
//! In: HTTP requests (TLS sockets: [`tls`], clients of the same process: [`memory`]), with an identity in their extensions
//! where the transport knows one. Out: responses; every failure is a `Status`, also a panic. [`Front::handle`] and
//! [`Front::filter`] show the order: panic, authentication, audit, impersonation,
//! priority and fairness, authorisation, route.

mod audit;
mod flow;
mod held;
mod idle;
pub mod memory;
pub mod tls;

use crate::authn::{self, Authenticator};
use crate::authz::{self, Authorizer};
use crate::endpoints::Endpoints;
use crate::exchange::{Incoming, Reply};
use crate::metrics::Labels;
use crate::request::RequestInfo;
use crate::status::{ApiError, ApiResult};
pub use flow::{FlowControl, STRANGERS};

use audit::Arrival;
use axum::body::Body;
use causeway_api::identity::UserInfo;
use causeway_audit::{Auditor, Record};
use futures::FutureExt;
use http::{HeaderValue, Method, Request, Response};
use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// The filters, and what is behind them.
pub struct Front {
    /// What is recorded.
    pub auditor: Option<Auditor>,
    /// Who a caller is.
    pub authenticator: Arc<Authenticator>,
    /// Who runs, who waits.
    pub flow: FlowControl,
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
        let arrival = Arrival::new(&request);
        let record = OnceLock::new();
        let outcome = AssertUnwindSafe(self.filter(request, info.clone(), &arrival, &record)).catch_unwind().await;
        let record: Option<Arc<Record>> = record.into_inner();
        let mut reply = match outcome {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => {
                if error.code() >= 500 {
                    tracing::warn!(%error, code = error.code(), "request failed");
                }
                Reply::error(&error)
            }
            Err(_) => {
                tracing::error!("a request handler panicked; the client got a 500");
                if let Some(record) = &record {
                    record.panic();
                }
                Reply::error(&ApiError::internal(
                    "this request caused apiserver to panic. Look in the logs for details",
                ))
            }
        };
        if let Some(record) = record {
            reply = audit::answered(record, &info, reply).await;
        }
        let mut response = reply.0;
        if let Ok(id) = HeaderValue::from_str(&arrival.id) {
            response.headers_mut().insert("audit-id", id);
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
    async fn filter(
        &self,
        mut request: Request<Body>,
        info: Arc<RequestInfo>,
        arrival: &Arrival,
        record: &OnceLock<Arc<Record>>,
    ) -> ApiResult<Reply> {
        let user = self.authenticate(&mut request, &info, arrival).await?;
        let record = self.record(&info, arrival, &user, record)?;
        let user = self.impersonate(user, &mut request, record.as_deref()).await?;
        let engine = &self.endpoints.engine;
        let mut passage = self.flow.enter(&user, &info, &engine.catalog.table(), &engine.feed).await?;
        self.authorize(&user, &info, record.as_deref()).await?;
        let mut incoming = Incoming::new(request, info, user, self.authorizer.clone(), record);
        if incoming.info.upgrade {
            incoming.lasting =
                passage.take_lasting().map(|budget| Box::new(budget) as Box<dyn Any + Send + Sync>).into();
        }
        let reply = self.endpoints.route(incoming).await?;
        Ok(passage.answered(reply))
    }

    /// Who the caller is.
    async fn authenticate(
        &self,
        request: &mut Request<Body>,
        info: &RequestInfo,
        arrival: &Arrival,
    ) -> ApiResult<UserInfo> {
        let outcome = self.authenticator.authenticate(request.extensions(), request.headers(), &info.path).await;
        let bearer = request.headers().contains_key(http::header::AUTHORIZATION);
        self.authenticator.strip(request.headers_mut());
        if let (Err(error), Some(auditor)) = (&outcome, &self.auditor) {
            arrival.refused(auditor, info, error.code(), bearer);
        }
        outcome
    }

    /// The record of the request, where the policy wants one.
    fn record(
        &self,
        info: &RequestInfo,
        arrival: &Arrival,
        user: &UserInfo,
        slot: &OnceLock<Arc<Record>>,
    ) -> ApiResult<Option<Arc<Record>>> {
        let Some(auditor) = &self.auditor else { return Ok(None) };
        let record = arrival.begin(auditor, info, user).map_err(ApiError::internal)?;
        if let Some(record) = &record {
            let _ = slot.set(record.clone());
        }
        Ok(record)
    }

    /// As whom the request is served.
    async fn impersonate(
        &self,
        user: UserInfo,
        request: &mut Request<Body>,
        record: Option<&Record>,
    ) -> ApiResult<UserInfo> {
        let Some(other) = authn::impersonate(&user, request.headers_mut(), &*self.authorizer).await? else {
            return Ok(user);
        };
        if let Some(record) = record {
            audit::impersonated(record, &other);
        }
        Ok(other)
    }

    /// Whether the user may do it.
    async fn authorize(&self, user: &UserInfo, info: &RequestInfo, record: Option<&Record>) -> ApiResult<()> {
        let asked = info.attributes();
        for asked in info.stream_attributes(&asked).into_iter().chain([asked]) {
            let decision = self.authorizer.authorize(user, &asked).await;
            if let Some(record) = record {
                audit::decided(record, &decision);
            }
            authz::permit(decision, user, &asked)?;
        }
        Ok(())
    }
}
