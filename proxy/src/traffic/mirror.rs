//! Copies of requests (RequestMirror): sent beside the request, and whatever comes of them is thrown away.
//!
//! A copy has the request's head as it goes to the backend, and its body up to [`MAX_BODY`]; of a request with a longer
//! body no copy is sent. Copies never hold a request up, and no more than [`MAX_COPIES`] are under way.

use super::connect;
use crate::route::Upstream;
use crate::route::filter::Mirror;
use bytes::{Bytes, BytesMut};
use http::header;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pingora::http::RequestHeader;
use rand::Rng as _;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::Semaphore;

/// The longest body of a copy, in bytes.
const MAX_BODY: usize = 256 * 1024;
/// Copies under way; beyond it none are made.
const MAX_COPIES: usize = 512;
/// How long a copy may take.
const PATIENCE: Duration = Duration::from_secs(10);

static SLOTS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAX_COPIES)));

/// The copies of one request, until its body is complete.
pub(super) struct Copies {
    to: Vec<Arc<Upstream>>,
    head: Option<http::request::Parts>,
    body: BytesMut,
}

impl Copies {
    /// The mirrors that get a copy of this request; none when no mirror does.
    pub(super) fn of(mirrors: &[Mirror]) -> Option<Self> {
        let mut rng = rand::rng();
        let chosen = mirrors.iter().filter(|m| rng.random_range(0..m.denominator.max(1)) < m.numerator);
        let to: Vec<_> = chosen.map(|m| Arc::clone(&m.to)).collect();
        (!to.is_empty()).then(|| Self { to, head: None, body: BytesMut::new() })
    }

    /// The head, as it is sent on.
    pub(super) fn head(&mut self, head: &RequestHeader) {
        if self.head.is_none() {
            self.head = Some(head.as_owned_parts());
        }
    }

    /// A part of the body. False: too long, there will be no copies.
    pub(super) fn body(&mut self, part: Option<&Bytes>) -> bool {
        self.body.extend_from_slice(part.map_or(&[], |p| p));
        self.body.len() <= MAX_BODY
    }

    /// Sends the copies.
    pub(super) fn send(self) {
        let Some(head) = self.head else { return };
        let body = self.body.freeze();
        for upstream in self.to {
            let Ok(slot) = Arc::clone(&SLOTS).try_acquire_owned() else { return };
            let (head, body) = (head.clone(), body.clone());
            tokio::spawn(async move {
                let _slot = slot;
                match tokio::time::timeout(PATIENCE, copy(&upstream, head, body)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, backend = %upstream.key, "copy of a request not sent"),
                    Err(_) => tracing::debug!(backend = %upstream.key, "copy of a request not answered in time"),
                }
            });
        }
    }
}

async fn copy(upstream: &Upstream, mut head: http::request::Parts, body: Bytes) -> anyhow::Result<()> {
    let endpoint = upstream.pick(&[], None).ok_or_else(|| anyhow::anyhow!("no endpoint"))?;
    let stream = TokioIo::new(connect::own(endpoint.address, upstream.announce()).await?);
    // What is about the client's connection is not about this one.
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::EXPECT] {
        head.headers.remove(name);
    }
    head.headers.insert(header::CONTENT_LENGTH, body.len().into());
    let authority = head.headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or("mirror").to_owned();
    let target = head.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    if upstream.key.protocol().is_h2() {
        head.uri = format!("http://{authority}{target}").parse()?;
        head.version = http::Version::HTTP_2;
        head.headers.remove(header::HOST);
        let request = http::Request::from_parts(head, Full::new(body));
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
        let driver = tokio::spawn(connection);
        let result = sender.send_request(request).await;
        if let Ok(answer) = result {
            let _ = answer.into_body().collect().await;
        }
        driver.abort();
        return Ok(());
    }
    head.uri = target.parse()?;
    head.version = http::Version::HTTP_11;
    let request = http::Request::from_parts(head, Full::new(body));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let result = sender.send_request(request).await;
    if let Ok(answer) = result {
        let _ = answer.into_body().collect().await;
    }
    driver.abort();
    Ok(())
}
