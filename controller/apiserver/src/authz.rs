//! Who may do what: one seam, [`Authorizer`], asked for every request before anything is done, and again by the engine
//! where the request turns out to do something else (a PUT that creates).
//!
//! In: who asks ([`UserInfo`]) and what for ([`Attributes`]). Out: a [`Decision`], or a 403 in Kubernetes' words.

mod cluster;

pub use causeway_authz::{Attributes, Decision};
pub use cluster::{Rules, is_master};

use crate::status::{ApiError, ApiResult, qualified};
use async_trait::async_trait;
use causeway_api::identity::UserInfo;
use causeway_authz::rbac::RulesFor;

/// Decides on requests.
#[async_trait]
pub trait Authorizer: Send + Sync {
    /// Whether `user` may do it.
    async fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision;

    /// What a user may do in a namespace, as far as it can be listed.
    fn rules_for(&self, user: &UserInfo, namespace: &str) -> RulesFor;
}

/// Nothing, or the 403 for what the user may not do.
pub async fn require(authorizer: &dyn Authorizer, user: &UserInfo, attributes: &Attributes) -> ApiResult<()> {
    permit(authorizer.authorize(user, attributes).await, user, attributes)
}

/// What a decision means for the caller.
pub fn permit(decision: Decision, user: &UserInfo, attributes: &Attributes) -> ApiResult<()> {
    match decision {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(why) | Decision::NoOpinion(why) => Err(denied(user, attributes, &why)),
    }
}

/// 403 in Kubernetes' words.
fn denied(user: &UserInfo, a: &Attributes, reason: &str) -> ApiError {
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if a.resource.is_empty() {
        return ApiError::forbidden_path(&user.username, &a.verb, &a.path);
    }
    let resource = a.full_resource();
    let place = if a.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", a.namespace)
    };
    let why = format!(
        "User {:?} cannot {} resource {resource:?} in API group {:?} {place}{reason}",
        user.username, a.verb, a.group
    );
    let shown = qualified(&a.group, &resource);
    tracing::debug!(user = user.username, verb = a.verb, resource = shown, "request denied");
    ApiError::forbidden(&a.group, &a.resource, &a.name, &why)
}
