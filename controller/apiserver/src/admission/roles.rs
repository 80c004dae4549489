//! Nobody gives away more than they hold: roles and bindings are compared with what their writer may do.

use crate::authz::{self, Rules};
use crate::engine::{Authority, Call, text};
use crate::status::{ApiError, ApiResult};
use causeway_authz::Subject;
use causeway_authz::rbac::escalation::{Refusal, Verdict, Write, check};
use serde_json::Value;

/// For a role or binding that is written by a caller. What the server keeps in place itself is not asked about.
pub async fn admit(rules: &Rules, call: &Call, new: &Value, old: Option<&Value>) -> ApiResult<()> {
    let Authority::Caller(authorizer) = &call.authority else { return Ok(()) };
    if call.served.resource.group != "rbac.authorization.k8s.io" || authz::is_master(&call.user) {
        return Ok(());
    }
    let name = text(old.unwrap_or(new), "/metadata/name").to_owned();
    let write = Write {
        resource: &call.served.resource.plural,
        namespace: &call.namespace,
        name: if old.is_some() { &name } else { "" },
        new,
        old,
    };
    let writer = Subject { user: &call.user.username, groups: &call.user.groups };
    let refusal = match check(&rules.roles(), writer, write) {
        Verdict::Fine => return Ok(()),
        Verdict::Only { permission, refusal } => {
            if authz::require(&**authorizer, &call.user, &permission).await.is_ok() {
                return Ok(());
            }
            refusal
        }
        Verdict::No(refusal) => refusal,
    };
    let resource = &call.served.resource;
    Err(match refusal {
        Refusal::Forbidden(why) => ApiError::forbidden(&resource.group, &resource.plural, &name, &why),
        Refusal::NotFound(message) => ApiError::new(404, "NotFound", message),
    })
}
