//! `Impersonate-*` headers: a request in another's name, for those who may.
//!
//! In: who really asks, and headers. Out: as whom the request is served; 400 for headers that make no sense, 403 for
//! the first part that the caller may not impersonate.

use crate::authz::{self, Attributes, Authorizer};
use crate::status::{ApiError, ApiResult};
use causeway_api::identity::UserInfo;
use causeway_authn::User;
use causeway_authn::impersonation::{self, Question};
use http::HeaderMap;

/// The user that the headers name, if they name one and `user` may act as that. The headers are gone afterwards.
pub async fn impersonate(
    user: &UserInfo,
    headers: &mut HeaderMap,
    authorizer: &dyn Authorizer,
) -> ApiResult<Option<UserInfo>> {
    let asked = impersonation::parse(headers).map_err(|why| ApiError::bad_request(why.to_string()))?;
    impersonation::strip(headers);
    let Some(request) = asked else { return Ok(None) };
    for question in request.questions {
        let Question { group, version: _, resource, subresource, namespace, name } = question;
        let verb = Question::VERB.to_owned();
        let (group, resource) = (group.to_owned(), resource.to_owned());
        let attributes = Attributes { verb, group, resource, subresource, namespace, name, ..Attributes::default() };
        authz::require(authorizer, user, &attributes).await?;
    }
    let User { username, uid, groups, extra } = request.user;
    Ok(Some(UserInfo { username, uid, groups, extra }))
}
