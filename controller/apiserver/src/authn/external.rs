//! The authenticators that an operator configures: front proxies, OIDC issuers, a webhook, and who may be anonymous.
//!
//! In: [`Authentication`]. Out: users, or nothing for what is none of theirs. Answers about OIDC tokens are kept for
//! [`OIDC_TTL`]; the webhook keeps its own.

use super::{Authentication, RequestHeader};
use anyhow::{Context, anyhow, ensure};
use causeway_authn::cache::Fresh;
use causeway_authn::config::Anonymous;
use causeway_authn::front_proxy::FrontProxy;
use causeway_authn::oidc::{Bounds, Oidc};
use causeway_authn::webhook::Webhook;
use causeway_authn::{Authenticated, AuthnError, Cache, User};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How long an OIDC token that was accepted is believed without being checked again, as upstream. It may so outlive its
/// end.
const OIDC_TTL: Duration = Duration::from_secs(10);
/// OIDC tokens that are remembered.
const OIDC_KEPT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// Longest time for checking one: two requests to the issuer, and expressions.
const OIDC_LIMIT: Duration = Duration::from_secs(30);
/// Longest text about a refusal, in characters.
const MAX_TEXT: usize = 256;

/// What is configured.
pub struct External {
    /// Whom front proxies speak for.
    pub proxy: Option<FrontProxy>,
    proxy_ca_pem: Option<String>,
    oidc: Option<(Arc<Oidc>, Cache<Option<User>>)>,
    webhook: Option<Webhook>,
    anonymous: Anonymous,
}

impl External {
    /// From the settings. `issuer` and `api_audiences` are the API server's own. Must be called in a runtime: issuers
    /// are asked for their keys in the background.
    pub fn new(settings: &Authentication, issuer: &str, api_audiences: &[String]) -> anyhow::Result<Self> {
        let options = settings.request_header.as_ref().map(RequestHeader::options).transpose()?;
        let proxy = options.as_ref().map(FrontProxy::new).transpose();
        let proxy = proxy.map_err(|why| anyhow!("request-header authentication: {why}"))?;
        let proxy_ca_pem = options.map(|options| options.client_ca_pem);
        let oidc = match &settings.configuration {
            Some(configuration) if !configuration.issuer_urls().is_empty() => {
                ensure!(
                    !configuration.issuer_urls().contains(&issuer),
                    "the issuer {issuer} is that of the tokens of service accounts"
                );
                let oidc = Oidc::new(configuration, Bounds::default()).map_err(|why| anyhow!("OIDC: {why}"))?;
                let oidc = Arc::new(oidc);
                let warming = oidc.clone();
                tokio::spawn(async move { warming.warm().await });
                Some((oidc, Cache::new(OIDC_KEPT, OIDC_LIMIT)?))
            }
            _ => None,
        };
        let webhook = settings.webhook.as_ref().map(|webhook| {
            let mut options = webhook.options.clone();
            options.implicit_audiences = api_audiences.to_vec();
            Webhook::new(&webhook.kubeconfig, options)
                .map_err(|why| anyhow!(why))
                .with_context(|| format!("the token webhook of {}", webhook.kubeconfig.display()))
        });
        let configured = settings.configuration.as_ref().and_then(|configuration| configuration.anonymous.clone());
        let default = Anonymous { enabled: !settings.no_anonymous, conditions: Vec::new() };
        Ok(Self { proxy, proxy_ca_pem, oidc, webhook: webhook.transpose()?, anonymous: configured.unwrap_or(default) })
    }

    /// The certificates of front proxies' authority.
    pub fn proxy_ca_pem(&self) -> Option<&str> {
        self.proxy_ca_pem.as_deref()
    }

    /// Whom an issuer's token describes; nothing when it is of none of the issuers.
    pub async fn oidc(&self, token: &str) -> Result<Option<User>, AuthnError> {
        let Some((oidc, cache)) = &self.oidc else { return Ok(None) };
        let find = || {
            let (oidc, token) = (oidc.clone(), token.to_owned());
            async move {
                let value = oidc.authenticate(&token, &[], &[]).await?.map(|found| found.user);
                let ttl = if value.is_some() { OIDC_TTL } else { Duration::ZERO };
                Ok(Fresh { value, ttl })
            }
        };
        cache.get_or(token, &[], find).await
    }

    /// Whom the webhook names.
    pub async fn webhook(&self, token: &str, wanted: &[String]) -> Result<Option<Authenticated>, AuthnError> {
        match &self.webhook {
            Some(webhook) => webhook.authenticate(token, wanted).await,
            None => Ok(None),
        }
    }

    /// Whether a request for this path may come without a credential.
    pub fn allows_anonymous(&self, path: &str) -> bool {
        let decoded = percent_encoding::percent_decode_str(path).decode_utf8();
        decoded.is_ok_and(|path| self.anonymous.allows(&path))
    }
}

/// At most one line of the log a second, whatever callers send.
#[derive(Default)]
pub struct Throttle {
    /// Seconds since the epoch.
    last: AtomicI64,
    hidden: AtomicU64,
}

impl Throttle {
    /// Logs why a credential was not accepted, or counts it.
    pub fn note(&self, authenticator: &str, error: &AuthnError) {
        let now = jiff::Timestamp::now().as_second();
        if !self.due(now) {
            return;
        }
        let (why, hidden) = (short(error), self.hidden.swap(0, Relaxed));
        match error {
            AuthnError::Refused(_) => tracing::info!(authenticator, why, hidden, "a credential was refused"),
            AuthnError::Unavailable(_) => tracing::warn!(authenticator, why, hidden, "a credential was not checked"),
        }
    }

    fn due(&self, now: i64) -> bool {
        let last = self.last.load(Relaxed);
        let due = last != now && self.last.compare_exchange(last, now, Relaxed, Relaxed).is_ok();
        if !due {
            self.hidden.fetch_add(1, Relaxed);
        }
        due
    }
}

/// An error's text, within bounds: parts of it are the caller's.
pub fn short(error: &AuthnError) -> String {
    error.to_string().chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second() {
        let throttle = Throttle::default();
        assert_eq!([5, 5, 5, 6, 6].map(|now| throttle.due(now)), [true, false, false, true, false]);
        assert_eq!(throttle.hidden.load(Relaxed), 3);
    }

    #[test]
    fn texts_are_short_and_of_one_line() {
        let error = AuthnError::Refused(format!("a\n{}", "é".repeat(1000)));
        assert_eq!(short(&error).chars().count(), MAX_TEXT);
        assert!(!short(&error).contains('\n'));
    }
}
