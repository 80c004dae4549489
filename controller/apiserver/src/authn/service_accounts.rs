//! Service accounts' tokens: issued for TokenRequests, checked on every use.
//!
//! In: keys, grants, tokens. Out: signed tokens, and users, as long as the account and what the token is bound to
//! exist: that is looked up anew for every request, so what is deleted ends its tokens at once. Claims and signatures
//! are [`causeway_authn::service_account`]'s. Nothing is kept: a signature is checked in less than the time of a
//! lookup.

use super::{Checked, ServiceAccountTokens};
use crate::engine::Engine;
use crate::status::{ApiError, ApiResult};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use causeway_authn::service_account::{Existing, Grant, Lifetime, Tokens};
use causeway_authn::{Authenticated, AuthnError};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// On a Secret whose token the clean-up of unused ones has switched off.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// Signs and checks tokens.
pub struct ServiceAccounts {
    tokens: Tokens,
    limit: Option<i64>,
    extend: bool,
}

/// The issuer of the tokens of a cluster with this domain.
pub fn issuer(domain: &str) -> String {
    format!("https://kubernetes.default.svc.{domain}")
}

impl ServiceAccounts {
    /// From keys in PEM: the first signs, all check.
    pub fn new(keys: &[String], domain: &str, settings: &ServiceAccountTokens) -> anyhow::Result<Self> {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let tokens = Tokens::new(&keys, &issuer(domain), &settings.api_audiences);
        let tokens = tokens.map_err(|why| anyhow::anyhow!(why))?;
        Ok(Self { tokens, limit: settings.max_expiration, extend: !settings.no_extension })
    }

    /// The issuer.
    pub fn issuer(&self) -> &str {
        self.tokens.issuer()
    }

    /// Those of the API server.
    pub fn api_audiences(&self) -> &[String] {
        self.tokens.api_audiences()
    }

    /// How long a token lives that is wanted for `seconds`.
    pub fn lifetime(&self, seconds: i64, for_pod: bool, audiences: &[String]) -> Lifetime {
        let for_api = audiences.iter().all(|audience| self.api_audiences().contains(audience));
        Lifetime::of(seconds, for_pod, for_api, self.limit, self.extend)
    }

    /// A new token. `now` in seconds since the epoch.
    pub fn issue(&self, grant: &Grant, now: i64) -> ApiResult<String> {
        self.tokens.issue(grant, now).map_err(ApiError::internal)
    }

    /// Whether a token says that it is one of these.
    pub fn is_for(&self, token: &str) -> bool {
        self.tokens.is_for(token)
    }

    /// Checks a token for one of the audiences. The outer error is one of the store.
    pub async fn authenticate(&self, engine: &Engine, token: &str, wanted: &[String]) -> ApiResult<Checked> {
        let now = jiff::Timestamp::now().as_second();
        let verified = match self.tokens.verify(token, wanted, now) {
            Ok(verified) => verified,
            Err(error) => return Ok(Err(error)),
        };
        engine.feed.catch_up().await?;
        for existing in &verified.existing {
            let found = look_up(engine, existing).await?;
            if let Err(error) = existing.check(found.as_ref(), now) {
                return Ok(Err(error));
            }
            if verified.secret.is_some()
                && existing.resource == "secrets"
                && let Err(error) = holds(found.as_ref(), token)
            {
                return Ok(Err(error));
            }
        }
        Ok(Ok(Authenticated { user: verified.user, audiences: verified.audiences }))
    }

    /// The public keys as a JSON Web Key Set.
    pub fn jwks(&self) -> Value {
        self.tokens.jwks()
    }

    /// OpenID discovery.
    pub fn openid_configuration(&self) -> Value {
        self.tokens.openid_configuration(&format!("{}/openid/v1/jwks", self.issuer()))
    }
}

/// The object in the cache, which has every write acknowledged before the request.
async fn look_up(engine: &Engine, existing: &Existing) -> ApiResult<Option<Value>> {
    let served = engine.served("", "v1", existing.resource)?;
    match engine.get(&served, &existing.namespace, &existing.name, Some(0)).await {
        Ok(object) => Ok(Some(object.value())),
        Err(error) if error.code() == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// A Secret-based token is good while its Secret holds this very token.
fn holds(secret: Option<&Value>, token: &str) -> Result<(), AuthnError> {
    let refused = |why: &str| Err(AuthnError::Refused(why.to_owned()));
    let Some(secret) = secret else { return refused("service account token has been invalidated") };
    let held = secret.pointer("/data/token").and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
    // Of the digests: how long the comparison takes tells nothing about the token.
    if held.is_none_or(|held| Sha256::digest(held) != Sha256::digest(token)) {
        return refused("service account token doesn't match server's copy");
    }
    if secret["metadata"]["labels"].get(INVALID_SINCE).is_some_and(|since| !since.is_null()) {
        return refused("service account token has been marked invalid");
    }
    Ok(())
}
