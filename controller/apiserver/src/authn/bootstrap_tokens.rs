//! Bootstrap tokens as credentials: `Authorization: Bearer id.secret` against the Secret of that id. In: the two parts.
//! Out: `system:bootstrap:<id>` in `system:bootstrappers`, or why not.

use crate::engine::Engine;
use crate::status::ApiResult;
use causeway_api::bootstrap_token::{GROUP, NAMESPACE, SECRET_PREFIX, Token, USER_PREFIX};
use causeway_authn::{AuthnError, User};
use sha2::{Digest, Sha256};

/// Checks a token. The outer error is one of the store.
pub async fn authenticate(engine: &Engine, id: &str, secret: &str) -> ApiResult<Result<User, AuthnError>> {
    let served = engine.served("", "v1", "secrets")?;
    let found = match engine.get(&served, NAMESPACE, &format!("{SECRET_PREFIX}{id}"), None).await {
        Err(error) if error.code() == 404 => return Ok(refused(id, "there is no such token")),
        other => other?,
    };
    let token = serde_json::from_value(found.value()).ok().and_then(|secret| Token::of(&secret));
    let Some(token) = token else { return Ok(refused(id, "its secret is not well-formed")) };
    // Of the digests: how long the comparison takes tells nothing about the secret.
    if Sha256::digest(&token.secret) != Sha256::digest(secret) {
        return Ok(refused(id, "the secret part is wrong"));
    }
    if token.expired(jiff::Timestamp::now()) {
        return Ok(refused(id, "it has expired"));
    }
    if !token.authentication {
        return Ok(refused(id, "it is not for authentication"));
    }
    let mut groups = vec![GROUP.to_owned()];
    groups.extend(token.extra_groups);
    Ok(Ok(User { username: format!("{USER_PREFIX}{id}"), groups, ..User::default() }))
}

fn refused(id: &str, why: &str) -> Result<User, AuthnError> {
    tracing::debug!(token = id, why, "bootstrap token refused");
    // TokenReviews show this: it tells nothing about which tokens there are.
    Err(AuthnError::Refused("the bootstrap token is not valid".to_owned()))
}
