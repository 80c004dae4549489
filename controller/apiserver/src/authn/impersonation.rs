//! `Impersonate-*` headers: a request in another's name, for those who may.

use crate::authz::{self, Attributes, Authorizer};
use crate::status::{ApiError, ApiResult};
use causeway_api::identity::{GROUP_AUTHENTICATED, GROUP_SERVICE_ACCOUNTS, UserInfo};
use http::HeaderMap;

/// The user that the headers name, if they name one and `user` may act as that.
pub async fn impersonate(
    user: &UserInfo,
    headers: &mut HeaderMap,
    authorizer: &dyn Authorizer,
) -> ApiResult<Option<UserInfo>> {
    let values = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok().map(str::to_owned)).collect()
    };
    let groups = values("impersonate-group");
    let Some(name) = values("impersonate-user").into_iter().next() else {
        return if groups.is_empty() {
            Ok(None)
        } else {
            Err(ApiError::bad_request("requested groups without impersonating a user"))
        };
    };
    let question = |resource: &str, name: &str| {
        let (verb, resource, name) = ("impersonate".to_owned(), resource.to_owned(), name.to_owned());
        Attributes { verb, resource, name, ..Attributes::default() }
    };
    authz::require(authorizer, user, &question("users", &name)).await?;
    for group in &groups {
        authz::require(authorizer, user, &question("groups", group)).await?;
    }
    let mut other = UserInfo { username: name, groups, ..UserInfo::default() };
    if let Some((namespace, _)) =
        other.username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
        && other.groups.is_empty()
    {
        other.groups = vec![GROUP_SERVICE_ACCOUNTS.to_owned(), format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}")];
    }
    if !other.groups.iter().any(|g| g == GROUP_AUTHENTICATED) {
        other.groups.push(GROUP_AUTHENTICATED.to_owned());
    }
    Ok(Some(other))
}
