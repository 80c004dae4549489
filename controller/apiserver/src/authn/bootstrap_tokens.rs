//! Bootstrap tokens as credentials: `Authorization: Bearer id.secret` against the Secret of that id. In: the two parts.
//! Out: `system:bootstrap:<id>` in `system:bootstrappers`, or 401.

use crate::engine::Engine;
use crate::status::{ApiError, ApiResult};
use causeway_api::bootstrap_token::{GROUP, NAMESPACE, SECRET_PREFIX, Token, USER_PREFIX};
use causeway_api::identity::UserInfo;
use sha2::{Digest, Sha256};

/// Checks a token; the same answer for all that is wrong with it.
pub async fn authenticate(engine: &Engine, id: &str, secret: &str) -> ApiResult<UserInfo> {
    let served = engine.served("", "v1", "secrets")?;
    let found = match engine.get(&served, NAMESPACE, &format!("{SECRET_PREFIX}{id}"), None).await {
        Err(error) if error.code() == 404 => return Err(refused(id, "there is no such token")),
        other => other?,
    };
    let token = serde_json::from_value(found.value()).ok().and_then(|secret| Token::of(&secret));
    let Some(token) = token else { return Err(refused(id, "its secret is not well-formed")) };
    // Of the digests: how long the comparison takes tells nothing about the secret.
    if Sha256::digest(&token.secret) != Sha256::digest(secret) {
        return Err(refused(id, "the secret part is wrong"));
    }
    if token.expired(jiff::Timestamp::now()) {
        return Err(refused(id, "it has expired"));
    }
    if !token.authentication {
        return Err(refused(id, "it is not for authentication"));
    }
    let mut groups = vec![GROUP.to_owned()];
    groups.extend(token.extra_groups);
    Ok(UserInfo { username: format!("{USER_PREFIX}{id}"), groups, ..UserInfo::default() })
}

fn refused(id: &str, why: &str) -> ApiError {
    tracing::info!(token = id, why, "bootstrap token refused");
    ApiError::unauthorized()
}
