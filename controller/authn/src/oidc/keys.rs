//! The keys of one issuer: found by discovery, kept, and fetched again when a token has one that is not known.
//!
//! However many tokens come with key ids that nobody knows, the issuer is asked no more often than the bounds say, by
//! one at a time; tokens whose keys are known never wait for it.

use super::Bounds;
use crate::config::Issuer;
use crate::jwks::{self, Key};
use crate::jws::Token;
use crate::remote::Client;
use crate::user::AuthnError;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::time::Instant;

const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// Keys and when they were fetched.
struct Fetched {
    keys: Vec<Key>,
    at: Instant,
}

/// When the issuer was asked last, and what came of it.
#[derive(Default)]
struct Asked {
    at: Option<Instant>,
    error: Option<AuthnError>,
}

pub(super) struct Keys {
    url: String,
    discovery_url: String,
    authority: String,
    client: Client,
    bounds: Bounds,
    fetched: ArcSwapOption<Fetched>,
    asking: Mutex<Asked>,
}

/// What discovery needs of the document (OpenID Connect Discovery, section 3).
#[derive(Deserialize)]
struct Document {
    issuer: String,
    jwks_uri: String,
}

impl Keys {
    pub(super) fn new(issuer: &Issuer, bounds: Bounds) -> Result<Self, String> {
        let ca = Some(issuer.certificate_authority.as_bytes()).filter(|pem| !pem.is_empty());
        Ok(Self {
            url: issuer.url.clone(),
            discovery_url: issuer.discovery_url.clone(),
            authority: issuer.certificate_authority.clone(),
            client: Client::new(ca, None, bounds.timeout, bounds.max_body)?,
            bounds,
            fetched: ArcSwapOption::empty(),
            asking: Mutex::default(),
        })
    }

    /// Whether these are the keys of an issuer of this description.
    pub(super) fn is_for(&self, issuer: &Issuer) -> bool {
        self.url == issuer.url
            && self.discovery_url == issuer.discovery_url
            && self.authority == issuer.certificate_authority
    }

    /// Fetches keys if there are none.
    pub(super) async fn warm(self: &Arc<Self>) -> Result<(), AuthnError> {
        if self.fetched.load().is_none() { self.fetch(None).await } else { Ok(()) }
    }

    /// Whether a key of the issuer has signed the token; asks for keys when none that is known may have.
    pub(super) async fn check(self: &Arc<Self>, token: &Token<'_>) -> Result<(), AuthnError> {
        let known = self.fetched.load_full();
        if let Some(fetched) = &known {
            if fetched.at.elapsed() >= self.bounds.max_age {
                self.refresh_later(fetched.at);
            }
            match verdict(&fetched.keys, token) {
                Verdict::Good => return Ok(()),
                // Another key of the same id would be an error of the issuer: asking again is of no use.
                Verdict::Bad if token.kid.is_some() => return Err(bad_signature()),
                Verdict::Bad | Verdict::Unknown => {}
            }
        }
        self.fetch(known.as_ref().map(|fetched| fetched.at)).await?;
        match self.fetched.load().as_ref().map(|fetched| verdict(&fetched.keys, token)) {
            Some(Verdict::Good) => Ok(()),
            _ => Err(bad_signature()),
        }
    }

    /// Old keys are good until there are others.
    fn refresh_later(self: &Arc<Self>, seen: Instant) {
        if self.asking.try_lock().is_ok() {
            let keys = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = keys.fetch(Some(seen)).await {
                    tracing::warn!(issuer = keys.url, %error, "the keys of an issuer could not be fetched again");
                }
            });
        }
    }

    /// Asks the issuer, unless somebody else has since `seen`, or a moment ago. No error when it was left alone and the
    /// time before had succeeded.
    ///
    /// On a task of its own: whoever closes the connection while the issuer is asked must not keep others from keys.
    async fn fetch(self: &Arc<Self>, seen: Option<Instant>) -> Result<(), AuthnError> {
        let keys = Arc::clone(self);
        let fetched = tokio::spawn(async move { keys.fetch_here(seen).await }).await;
        fetched.unwrap_or_else(|_| Err(AuthnError::Unavailable("oidc: fetching keys failed".to_owned())))
    }

    async fn fetch_here(&self, seen: Option<Instant>) -> Result<(), AuthnError> {
        let mut asked = self.asking.lock().await;
        if self.fetched.load().as_ref().map(|fetched| fetched.at) != seen {
            return Ok(());
        }
        if asked.at.is_some_and(|at| at.elapsed() < self.bounds.min_interval) {
            return asked.error.clone().map_or(Ok(()), Err);
        }
        // Noted before, for the case that asking panics.
        asked.at = Some(Instant::now());
        asked.error = Some(AuthnError::Unavailable("oidc: authenticator not initialized".to_owned()));
        let found = self.ask().await;
        asked.error = found.as_ref().err().map(|why| AuthnError::Unavailable(format!("oidc: fetching keys {why}")));
        match found {
            Ok(keys) => {
                tracing::info!(issuer = self.url, keys = keys.len(), "the keys of an issuer were fetched");
                self.fetched.store(Some(Arc::new(Fetched { keys, at: Instant::now() })));
                Ok(())
            }
            Err(_) => asked.error.clone().map_or(Ok(()), Err),
        }
    }

    async fn ask(&self) -> Result<Vec<Key>, String> {
        let place = match self.discovery_url.as_str() {
            "" => format!("{}{WELL_KNOWN}", self.url.trim_end_matches('/')),
            other => other.to_owned(),
        };
        let body = self.get(&place).await?;
        let document: Document = serde_json::from_slice(&body)
            .map_err(|e| format!("{place}: failed to decode provider discovery object: {e}"))?;
        if document.issuer != self.url {
            let other: String = document.issuer.chars().take(256).collect();
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {:?} got {other:?}",
                self.url
            ));
        }
        let body = self.get(&document.jwks_uri).await?;
        jwks::parse(&body)
    }

    async fn get(&self, place: &str) -> Result<Bytes, String> {
        let shown: String = place.chars().filter(|c| !c.is_control()).take(256).collect();
        let uri: Uri = place.parse().map_err(|_| format!("{shown}: no URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(format!("{shown}: URL scheme must be https"));
        }
        let request = Request::get(uri).header(http::header::ACCEPT, "application/json").body(Full::default());
        let request = request.map_err(|e| format!("{shown}: {e}"))?;
        let answer = self.client.send(request).await.map_err(|e| format!("{shown}: {e}"))?;
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body()),
            status => Err(format!("{shown}: {status}")),
        }
    }
}

enum Verdict {
    Good,
    /// A key may have signed it, and has not.
    Bad,
    /// No key may have.
    Unknown,
}

fn verdict(keys: &[Key], token: &Token<'_>) -> Verdict {
    let mut verdict = Verdict::Unknown;
    for key in keys.iter().filter(|key| key.may_have_signed(token)) {
        if token.signed_by(&key.key) {
            return Verdict::Good;
        }
        verdict = Verdict::Bad;
    }
    verdict
}

fn bad_signature() -> AuthnError {
    AuthnError::Refused("failed to verify signature: failed to verify id token signature".to_owned())
}
