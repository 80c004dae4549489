//! The transport of clients in the same process: no socket, no TLS.

use super::Front;
use crate::authn::certificates::Identity;
use axum::body::Body;
use causeway_api::identity::UserInfo;
use futures::future::BoxFuture;
use http::{Request, Response};
use std::sync::Arc;
use std::task::{Context, Poll};

/// A tower service around the server, for `kube::Client`.
#[derive(Clone)]
pub struct InMemory {
    server: Arc<Front>,
    user: UserInfo,
    runtime: tokio::runtime::Handle,
}

impl InMemory {
    /// Speaks as `user`; the work is done on `runtime`.
    pub fn new(server: Arc<Front>, user: UserInfo, runtime: tokio::runtime::Handle) -> Self {
        Self { server, user, runtime }
    }
}

impl tower::Service<Request<kube::client::Body>> for InMemory {
    type Response = Response<Body>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Identity::of(self.user.clone()));
        let task = self.runtime.spawn(self.server.clone().handle(request));
        Box::pin(async move { task.await.map_err(std::io::Error::other) })
    }
}
