//! Who a caller is: what the transport knows (client certificates, clients of the same process), service-account tokens,
//! bootstrap tokens, and who a caller may pretend to be.
//!
//! In: a request's identity and headers. Out: a [`UserInfo`], or 401.

mod bootstrap_tokens;
mod impersonation;
mod jwt;
mod tokens;

pub use impersonation::impersonate;
pub use tokens::{Grant, MAX_SECONDS, MIN_SECONDS, Tokens as ServiceAccountTokens};

use crate::engine::Engine;
use crate::status::ApiResult;
use causeway_api::bootstrap_token;
use causeway_api::identity::{GROUP_AUTHENTICATED, UserInfo};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use std::sync::Arc;

/// Who the transport says the caller is (in-process clients, client certificates).
#[derive(Debug, Clone)]
pub struct Identity(pub UserInfo);

/// The authenticators, asked in order.
pub struct Authenticator {
    /// Objects that tokens speak of.
    pub engine: Arc<Engine>,
    /// Service-account tokens.
    pub tokens: Arc<ServiceAccountTokens>,
}

impl Authenticator {
    /// Who sent these headers over a transport that knows `identity`, if it knows one.
    pub async fn authenticate(&self, identity: Option<Identity>, headers: &HeaderMap) -> ApiResult<UserInfo> {
        match (identity, bearer(headers)) {
            (Some(Identity(user)), _) => Ok(user),
            (None, Some(token)) => {
                let mut user = match bootstrap_token::split(token) {
                    Some((id, secret)) => bootstrap_tokens::authenticate(&self.engine, id, secret).await?,
                    None => self.tokens.authenticate(&self.engine, token, &[]).await?.user,
                };
                user.groups.push(GROUP_AUTHENTICATED.to_owned());
                Ok(user)
            }
            (None, None) => Ok(UserInfo::anonymous()),
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
