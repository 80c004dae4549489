//! Who a caller is, asked in this order: front proxies, what the transport knows (client certificates, clients of the
//! same process), bearer tokens (bootstrap tokens, service accounts, OIDC issuers, the webhook), nobody. And who a caller
//! may pretend to be.
//!
//! In: what the transport has noted in a request's extensions, headers, the path. Out: a [`UserInfo`], or 401. The
//! semantics of the external authenticators are [`causeway_authn`]'s.

mod bootstrap_tokens;
pub mod certificates;
mod external;
mod impersonation;
mod service_accounts;
mod settings;
mod websocket;

pub use external::{External, Throttle};
pub use impersonation::impersonate;
pub use service_accounts::{ServiceAccounts, issuer as service_account_issuer};
pub use settings::{Authentication, RequestHeader, ServiceAccountTokens, TokenWebhook};

use crate::engine::Engine;
use crate::status::{ApiError, ApiResult};
use causeway_api::bootstrap_token;
use causeway_api::identity::UserInfo;
use causeway_authn::{Authenticated, AuthnError, User, front_proxy};
use certificates::{Identity, Presented};
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap};
use rustls::pki_types::UnixTime;
use std::sync::Arc;

/// The authenticators.
pub struct Authenticator {
    /// Objects that tokens speak of.
    pub engine: Arc<Engine>,
    /// Service accounts' tokens.
    pub accounts: Arc<ServiceAccounts>,
    /// Those that an operator has configured.
    pub external: External,
    /// How often refusals are logged.
    pub refusals: Throttle,
}

/// A token's user, or why there is none.
type Checked = Result<Authenticated, AuthnError>;

impl Authenticator {
    /// Who sent a request. `seen` is what its transport knows.
    pub async fn authenticate(&self, seen: &Extensions, headers: &HeaderMap, path: &str) -> ApiResult<UserInfo> {
        let presented = seen.get::<Presented>();
        let mut refused = false;
        match self.by_proxy(presented, headers) {
            Ok(Some(user)) => return Ok(complete(user)),
            Ok(None) => {}
            Err(why) => {
                self.refusals.note("front proxy", &why);
                refused = true;
            }
        }
        match seen.get::<Identity>() {
            Some(identity) if identity.holds() => return Ok(identity.user.clone()),
            Some(_) => refused = true,
            // A certificate of front proxies' authority only.
            None => refused |= presented.is_some(),
        }
        for token in [bearer(headers).map(|token| token.map(str::to_owned)), websocket::token(headers)] {
            match token {
                Ok(None) => {}
                Err(why) => {
                    self.refusals.note("bearer token", &AuthnError::Refused(why.to_owned()));
                    refused = true;
                }
                Ok(Some(token)) => match self.token(&token, &[]).await? {
                    Ok(found) => return Ok(complete(found.user)),
                    Err(_) => refused = true,
                },
            }
        }
        if !refused && self.external.allows_anonymous(path) {
            return Ok(UserInfo::anonymous());
        }
        Err(ApiError::unauthorized())
    }

    fn by_proxy(&self, presented: Option<&Presented>, headers: &HeaderMap) -> Result<Option<User>, AuthnError> {
        match (&self.external.proxy, presented) {
            (Some(proxy), Some(Presented(chain))) => proxy.authenticate(chain, UnixTime::now(), headers),
            _ => Ok(None),
        }
    }

    /// Who a token speaks for, towards one of the audiences (the API server's when there are none). The outer error is
    /// one of this server; a failing authenticator is as one that does not know the token.
    pub async fn token(&self, token: &str, audiences: &[String]) -> ApiResult<Checked> {
        let own = self.accounts.api_audiences();
        let wanted = if audiences.is_empty() { own } else { audiences };
        // Those of these tokens that name no audience are for the API server.
        let for_api: Vec<String> = wanted.iter().filter(|wanted| own.contains(wanted)).cloned().collect();
        let mut why = Vec::new();
        if let Some((id, secret)) = bootstrap_token::split(token)
            && !for_api.is_empty()
        {
            match bootstrap_tokens::authenticate(&self.engine, id, secret).await? {
                Ok(user) => return Ok(Ok(Authenticated { user, audiences: for_api })),
                Err(error) => why.push(("bootstrap token", error)),
            }
        }
        if self.accounts.is_for(token) {
            match self.accounts.authenticate(&self.engine, token, wanted).await? {
                Ok(found) => return Ok(Ok(found)),
                Err(error) => why.push(("service account", error)),
            }
        }
        if !for_api.is_empty() {
            match self.external.oidc(token).await {
                Ok(Some(user)) => return Ok(Ok(Authenticated { user, audiences: for_api })),
                Ok(None) => {}
                Err(error) => why.push(("oidc", error)),
            }
        }
        match self.external.webhook(token, wanted).await {
            Ok(Some(found)) => return Ok(Ok(found)),
            Ok(None) => {}
            Err(error) => why.push(("webhook", error)),
        }
        for (by, error) in &why {
            self.refusals.note(by, error);
        }
        let words: Vec<String> = why.iter().map(|(_, error)| external::short(error)).collect();
        Ok(Err(AuthnError::Refused(match words.as_slice() {
            [] => "invalid bearer token".to_owned(),
            words => format!("[invalid bearer token, {}]", words.join(", ")),
        })))
    }

    /// Removes what says who the caller is: nothing behind this may read it, or send it on.
    pub fn strip(&self, headers: &mut HeaderMap) {
        headers.remove(AUTHORIZATION);
        websocket::strip(headers);
        match &self.external.proxy {
            Some(proxy) => proxy.strip(headers),
            None => front_proxy::strip(headers),
        }
    }
}

/// The user of a credential, with the group of all of them.
pub fn complete(mut user: User) -> UserInfo {
    user.add_authenticated_group();
    let User { username, uid, groups, extra } = user;
    UserInfo { username, uid, groups, extra }
}

/// The token of a request. An error for what is no text: it is a credential, and a bad one.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| "the header is not UTF-8")?;
    let Some((scheme, rest)) = text.trim().split_once(' ') else { return Ok(None) };
    let token = rest.trim();
    Ok((scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn bearer_tokens() {
        type Row<'a> = (&'a [u8], Result<Option<&'a str>, ()>);
        let table: &[Row<'_>] = &[
            (b"Bearer abc", Ok(Some("abc"))),
            (b"bEARER  abc ", Ok(Some("abc"))),
            (b"Bearer", Ok(None)),
            (b"Bearer ", Ok(None)),
            (b"Basic abc", Ok(None)),
            (b"Bearer \xff", Err(())),
        ];
        for (value, want) in table {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
            assert_eq!(bearer(&headers).map_err(drop), *want, "{value:?}");
        }
        assert_eq!(bearer(&HeaderMap::new()), Ok(None));
    }
}
