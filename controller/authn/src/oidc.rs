//! Tokens of other issuers (OpenID Connect): checked against the issuers of an [`AuthenticationConfiguration`].
//!
//! In: a bearer token. Out: the user that its claims describe, nothing when it is of no configured issuer, or why it
//! is refused. Issuers are asked for their keys when a token needs them, within bounds (see `keys`). The configuration
//! can be exchanged while requests are served; keys of issuers whose description stays the same are kept.

mod keys;
mod mapping;

use crate::config::{AuthenticationConfiguration, Compiled};
use crate::jws::{self, Token};
use crate::user::{Authenticated, AuthnError};
use arc_swap::ArcSwap;
use jiff::Timestamp;
use keys::Keys;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// How far the clock of an issuer may be ahead, for `nbf`.
const LEEWAY: f64 = 60.0;
/// Threads that evaluate expressions at the same time.
const EVALUATIONS: usize = 8;

/// Bounds on asking issuers.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Longest time for a discovery document, and for a key set.
    pub timeout: Duration,
    /// Largest discovery document or key set, in bytes.
    pub max_body: usize,
    /// Shortest time between two times of asking an issuer, however many tokens have keys that are not known.
    pub min_interval: Duration,
    /// Keys older than this are fetched again when they are used; until that succeeds, they stay.
    pub max_age: Duration,
    /// Longest time for the expressions of a token.
    pub evaluation: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            max_body: 512 * 1024,
            min_interval: Duration::from_secs(10),
            max_age: Duration::from_secs(3600),
            evaluation: Duration::from_secs(5),
        }
    }
}

struct Authority {
    compiled: Arc<Compiled>,
    keys: Arc<Keys>,
}

/// Checks tokens of the configured issuers.
pub struct Oidc {
    bounds: Bounds,
    /// By URL.
    authorities: ArcSwap<HashMap<String, Arc<Authority>>>,
    evaluations: Arc<Semaphore>,
}

impl Oidc {
    /// For a configuration. An error when a client for an issuer cannot be made.
    pub fn new(configuration: &AuthenticationConfiguration, bounds: Bounds) -> Result<Self, String> {
        let authorities = ArcSwap::from_pointee(HashMap::new());
        let oidc = Self { bounds, authorities, evaluations: Arc::new(Semaphore::new(EVALUATIONS)) };
        oidc.reconfigure(configuration)?;
        Ok(oidc)
    }

    /// Takes another configuration; on an error the old one stays. Caches of answers must be cleared afterwards.
    pub fn reconfigure(&self, configuration: &AuthenticationConfiguration) -> Result<(), String> {
        let (old, mut new) = (self.authorities.load(), HashMap::new());
        for compiled in &configuration.issuers {
            let issuer = &compiled.config.issuer;
            let known = old.get(&issuer.url).filter(|known| known.keys.is_for(issuer));
            let keys = match known {
                Some(known) => Arc::clone(&known.keys),
                None => Arc::new(Keys::new(issuer, self.bounds)?),
            };
            new.insert(issuer.url.clone(), Arc::new(Authority { compiled: Arc::new(compiled.clone()), keys }));
        }
        self.authorities.store(Arc::new(new));
        Ok(())
    }

    /// Fetches the keys of all issuers that have none yet, so that the first token need not wait.
    pub async fn warm(&self) {
        let authorities: Vec<_> = self.authorities.load().values().cloned().collect();
        for authority in authorities {
            if let Err(error) = authority.keys.warm().await {
                let issuer = &authority.compiled.config.issuer.url;
                tracing::warn!(issuer, %error, "oidc authenticator: initializing plugin");
            }
        }
    }

    /// Who a token speaks for; `None` when it is of no configured issuer. OIDC tokens are good for the API server only:
    /// `wanted` audiences (of a TokenReview; empty when none are asked for) must be among `api_audiences`, whatever the
    /// token's own are. An error says why the token is refused.
    pub async fn authenticate(
        &self,
        token: &str,
        wanted: &[String],
        api_audiences: &[String],
    ) -> Result<Option<Authenticated>, AuthnError> {
        let audiences: Vec<String> = wanted.iter().filter(|wanted| api_audiences.contains(wanted)).cloned().collect();
        if audiences.is_empty() && !wanted.is_empty() {
            return Ok(None);
        }
        let Some(issuer) = jws::untrusted_issuer(token) else { return Ok(None) };
        let Some(authority) = self.authorities.load().get(&issuer).cloned() else { return Ok(None) };
        let parsed = Token::parse(token).map_err(verifying)?;
        // What needs no key first: a token that is of no use anyhow shall not make the issuer be asked.
        let now = Timestamp::now().as_millisecond() as f64 / 1000.0;
        check_times(&parsed.claims, now).map_err(verifying)?;
        check_audience(&parsed.claims, &authority.compiled.config.issuer.audiences).map_err(verifying)?;
        authority.keys.check(&parsed).await.map_err(verifying)?;
        let user = self.map(&authority.compiled, parsed.claims).await?;
        Ok(Some(Authenticated { user, audiences }))
    }

    /// Claims to a user, on another thread when expressions have to be evaluated.
    async fn map(&self, compiled: &Arc<Compiled>, claims: Map<String, Value>) -> Result<crate::User, AuthnError> {
        if !compiled.evaluates() {
            return mapping::user(compiled, &claims).map_err(AuthnError::Refused);
        }
        let busy = || AuthnError::Unavailable("oidc: expressions took too long".to_owned());
        let compiled = Arc::clone(compiled);
        let mapped = async {
            let permit = Arc::clone(&self.evaluations).acquire_owned().await.map_err(|_| busy())?;
            let work = tokio::task::spawn_blocking(move || {
                let user = mapping::user(&compiled, &claims);
                drop(permit);
                user
            });
            work.await.map_err(|_| busy())?.map_err(AuthnError::Refused)
        };
        tokio::time::timeout(self.bounds.evaluation, mapped).await.map_err(|_| busy())?
    }
}

fn verifying(error: AuthnError) -> AuthnError {
    match error {
        AuthnError::Refused(why) => AuthnError::Refused(format!("oidc: verify token: {why}")),
        AuthnError::Unavailable(why) => AuthnError::Unavailable(format!("oidc: verify token: {why}")),
    }
}

/// `exp` must be there and ahead, `nbf` past (RFC 7519, section 4.1). `now` in seconds since the epoch.
fn check_times(claims: &Map<String, Value>, now: f64) -> Result<(), AuthnError> {
    let time = |name: &str| match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(seconds) if seconds.is_finite() => Ok(Some(seconds)),
            _ => Err(AuthnError::Refused(format!("oidc: failed to unmarshal claims: {name} is no time"))),
        },
    };
    let end = time("exp")?.unwrap_or_default();
    if end <= now {
        return Err(AuthnError::Refused(format!("oidc: token is expired (Token Expiry: {})", shown(end))));
    }
    match time("nbf")? {
        Some(begin) if begin > now + LEEWAY => Err(AuthnError::Refused(format!(
            "oidc: current time {} before the nbf (not before) time: {}",
            shown(now),
            shown(begin)
        ))),
        _ => Ok(()),
    }
}

fn shown(seconds: f64) -> String {
    Timestamp::from_second(seconds as i64).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

/// The claim `aud`, a string or a list, must have one of the wanted audiences.
fn check_audience(claims: &Map<String, Value>, wanted: &[String]) -> Result<(), AuthnError> {
    let held: Vec<&str> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if held.iter().any(|held| wanted.iter().any(|wanted| wanted == held)) {
        return Ok(());
    }
    // As much as a line of a log can take.
    let held: Vec<String> = held.into_iter().take(8).map(|held| held.chars().take(64).collect()).collect();
    Err(AuthnError::Refused(format!("oidc: expected audience in {wanted:?} got {held:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn times() {
        let table = [
            (json!({ "exp": 1001 }), true),
            (json!({ "exp": 1000 }), false),
            (json!({ "exp": 1000.5 }), true),
            (json!({ "exp": "2000" }), false),
            (json!({ "exp": null }), false),
            (json!({}), false),
            (json!({ "exp": 2000, "nbf": 1060 }), true),
            (json!({ "exp": 2000, "nbf": 1061 }), false),
            (json!({ "exp": 2000, "nbf": [] }), false),
        ];
        for (claims, good) in table {
            assert_eq!(check_times(&object(claims.clone()), 1000.0).is_ok(), good, "{claims}");
        }
    }

    #[test]
    fn audiences() {
        let wanted = ["a".to_owned(), "b".to_owned()];
        let table = [
            (json!({ "aud": "a" }), true),
            (json!({ "aud": ["x", "b"] }), true),
            (json!({ "aud": ["x"] }), false),
            (json!({ "aud": [] }), false),
            (json!({ "aud": { "a": 1 } }), false),
            (json!({ "aud": ["ab"] }), false),
            (json!({}), false),
        ];
        for (claims, good) in table {
            assert_eq!(check_audience(&object(claims.clone()), &wanted).is_ok(), good, "{claims}");
        }
    }
}
