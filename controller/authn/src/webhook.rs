//! Webhooks that check tokens: TokenReview (authentication.k8s.io/v1), asked at the address in a kubeconfig file.
//!
//! In: a token and the audiences that are wanted. Out: whom the webhook says it speaks for, or nothing. Answers are
//! kept; requests that fail for a moment are repeated.

use crate::cache::{Cache, Fresh};
use crate::jws::MAX_TOKEN;
use crate::kubeconfig::{self, Endpoint};
use crate::remote::RemoteError;
use crate::user::{Authenticated, AuthnError, User};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Requests to the webhook at the same time.
const MAX_REQUESTS: usize = 64;

/// Bounds and times.
#[derive(Debug, Clone)]
pub struct Options {
    /// The API server's own audiences: assumed of a webhook that answers without any.
    pub implicit_audiences: Vec<String>,
    /// How long an accepted token is believed without asking.
    pub success_ttl: Duration,
    /// How long one that is not accepted is refused without asking.
    pub failure_ttl: Duration,
    /// Answers that are kept.
    pub capacity: NonZeroUsize,
    /// Longest time for one request.
    pub timeout: Duration,
    /// Largest answer, in bytes.
    pub max_body: usize,
    /// Attempts, the first included.
    pub attempts: u32,
    /// The wait before the second; half as much again before each that follows.
    pub backoff: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            implicit_audiences: Vec::new(),
            success_ttl: Duration::from_secs(120),
            failure_ttl: Duration::from_secs(30),
            capacity: NonZeroUsize::MIN.saturating_add(4095),
            timeout: Duration::from_secs(30),
            max_body: 1024 * 1024,
            attempts: 5,
            backoff: Duration::from_millis(500),
        }
    }
}

/// Asks a webhook about tokens.
pub struct Webhook {
    inner: Arc<Inner>,
    cache: Cache<Option<Authenticated>>,
}

struct Inner {
    endpoint: Endpoint,
    options: Options,
    requests: Semaphore,
}

/// What counts of the answer.
#[derive(Deserialize)]
struct Review {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    status: Status,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    authenticated: bool,
    user: Option<Info>,
    audiences: Option<Vec<String>>,
    error: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Info {
    username: String,
    uid: String,
    groups: Option<Vec<String>>,
    extra: Option<BTreeMap<String, Vec<String>>>,
}

impl Webhook {
    /// For the current context of a kubeconfig file. The error names what is wrong with it.
    pub fn new(kubeconfig: &Path, options: Options) -> Result<Self, String> {
        let endpoint = kubeconfig::load(kubeconfig, options.timeout, options.max_body)?;
        // All attempts and the waits between them.
        let waits = options.backoff.saturating_mul(2u32.saturating_pow(options.attempts.min(16)));
        let limit = options.timeout.saturating_mul(options.attempts.max(1)).saturating_add(waits);
        let cache = Cache::new(options.capacity, limit).map_err(|e| e.to_string())?;
        let inner = Inner { endpoint, options, requests: Semaphore::new(MAX_REQUESTS) };
        Ok(Self { inner: Arc::new(inner), cache })
    }

    /// Who a token speaks for, towards the audiences; `None` when the webhook does not accept it for any of them.
    /// Without audiences, those are not looked at.
    pub async fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Option<Authenticated>, AuthnError> {
        if token.len() > MAX_TOKEN {
            return Err(AuthnError::Refused(format!("the token has more than {MAX_TOKEN} bytes")));
        }
        let find = || {
            let (inner, token, audiences) = (Arc::clone(&self.inner), token.to_owned(), audiences.to_vec());
            async move {
                let value = inner.ask(&token, &audiences).await?;
                let ttl = if value.is_some() { inner.options.success_ttl } else { inner.options.failure_ttl };
                Ok(Fresh { value, ttl })
            }
        };
        self.cache.get_or(token, audiences, find).await
    }
}

impl Inner {
    async fn ask(&self, token: &str, audiences: &[String]) -> Result<Option<Authenticated>, AuthnError> {
        let failed = |why: String| {
            tracing::debug!(why, "failed to make webhook authenticator request");
            AuthnError::Unavailable(format!("webhook: {why}"))
        };
        let mut spec = json!({ "token": token });
        if !audiences.is_empty() {
            spec["audiences"] = json!(audiences);
        }
        let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "metadata": { "creationTimestamp": null }, "spec": spec, "status": { "user": {} } });
        let body = Bytes::from(serde_json::to_vec(&review).map_err(|e| failed(e.to_string()))?);
        let answer = self.post(&body).await.map_err(failed)?;
        let review: Review = serde_json::from_slice(&answer).map_err(|e| failed(format!("the answer: {e}")))?;
        if review.kind != "TokenReview" || review.api_version != "authentication.k8s.io/v1" {
            return Err(failed("the answer is no TokenReview of authentication.k8s.io/v1".to_owned()));
        }
        self.accept(review.status, audiences)
    }

    fn accept(&self, status: Status, wanted: &[String]) -> Result<Option<Authenticated>, AuthnError> {
        let held = status.audiences.filter(|held| !held.is_empty());
        let held = held.as_ref().unwrap_or(&self.options.implicit_audiences);
        let audiences: Vec<String> = wanted.iter().filter(|wanted| held.contains(wanted)).cloned().collect();
        if !wanted.is_empty() && audiences.is_empty() {
            return Ok(None);
        }
        if !status.authenticated {
            if !status.error.is_empty() {
                let error: String = status.error.chars().filter(|c| !c.is_control()).take(256).collect();
                tracing::info!(error, "the webhook refuses a token");
            }
            return Ok(None);
        }
        let info = status.user.unwrap_or_default();
        if info.username.is_empty() {
            return Err(AuthnError::Unavailable("webhook: the answer has no user name".to_owned()));
        }
        let user = User {
            username: info.username,
            uid: info.uid,
            groups: info.groups.unwrap_or_default(),
            extra: info.extra.unwrap_or_default(),
        };
        Ok(Some(Authenticated { user, audiences }))
    }

    /// The body of the answer, after as many attempts as it takes and may take.
    async fn post(&self, body: &Bytes) -> Result<Bytes, String> {
        let _permit = self.requests.acquire().await.map_err(|e| e.to_string())?;
        let mut wait = self.options.backoff;
        let mut attempt = 1;
        loop {
            let answer = match self.once(body).await {
                Ok(answer) => Ok(answer),
                Err(Failure::Final(why)) => return Err(why),
                Err(Failure::Again(why, after)) => Err((why, after)),
            };
            let (why, after) = match answer {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if attempt >= self.options.attempts {
                return Err(why);
            }
            // What the webhook asks for counts as long as one request may take.
            tokio::time::sleep(after.map_or(wait, |after| after.max(wait).min(self.options.timeout))).await;
            wait = wait.saturating_mul(3) / 2;
            attempt += 1;
        }
    }

    async fn once(&self, body: &Bytes) -> Result<Bytes, Failure> {
        let mut request = Request::post(self.endpoint.uri.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json");
        if let Some(credential) = &self.endpoint.credential {
            request = request.header(AUTHORIZATION, credential.header().map_err(Failure::Final)?);
        }
        let request = request.body(Full::new(body.clone())).map_err(|e| Failure::Final(e.to_string()))?;
        let answer = self.endpoint.client.send(request).await.map_err(|error| match error {
            RemoteError::Connect(_) | RemoteError::Exchange(_) => Failure::Again(error.to_string(), None),
            other => Failure::Final(other.to_string()),
        })?;
        let after = retry_after(answer.headers());
        match answer.status() {
            status if status.is_success() => Ok(answer.into_body()),
            status @ (StatusCode::INTERNAL_SERVER_ERROR | StatusCode::TOO_MANY_REQUESTS) => {
                Err(Failure::Again(status.to_string(), after))
            }
            status if after.is_some() => Err(Failure::Again(status.to_string(), after)),
            status => Err(Failure::Final(status.to_string())),
        }
    }
}

enum Failure {
    Final(String),
    /// Worth another attempt, after the time that the webhook asks for.
    Again(String, Option<Duration>),
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}
