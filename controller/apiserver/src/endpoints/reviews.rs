//! Resources that are asked, not stored: who am I, may I, is this token good. And the old `bindings`.

use super::{Endpoints, call_of};
use crate::authn::complete;
use crate::authz::{Attributes, Decision};
use crate::endpoints::subresources;
use crate::engine::text;
use crate::exchange::{Incoming, Reply};
use crate::request::Target;
use crate::status::{ApiError, ApiResult};
use causeway_api::identity::{GROUP_NODES, UserInfo};
use causeway_authz::Requirement;
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

/// Audiences of one TokenReview.
const MAX_AUDIENCES: usize = 256;

impl Endpoints {
    /// Serves a path whose resource has no objects; 404 for what does not exist at all.
    pub(crate) async fn virtual_resource(
        self: &Arc<Self>,
        target: Target,
        verb: &str,
        incoming: Incoming,
    ) -> ApiResult<Reply> {
        let known = matches!(
            (target.group.as_str(), target.version.as_str(), target.resource.as_str()),
            ("", "v1", "bindings")
                | ("authentication.k8s.io", "v1", "tokenreviews" | "selfsubjectreviews")
                | (
                    "authorization.k8s.io",
                    "v1",
                    "subjectaccessreviews"
                        | "selfsubjectaccessreviews"
                        | "localsubjectaccessreviews"
                        | "selfsubjectrulesreviews"
                )
        );
        // What was allowed in a namespace must not be done for the whole cluster.
        let namespaced = matches!(target.resource.as_str(), "bindings" | "localsubjectaccessreviews");
        if !known || target.name.is_some() || target.namespace.is_some() != namespaced {
            return Err(ApiError::no_such_path());
        }
        if verb != "create" {
            return Err(ApiError::method_not_allowed());
        }
        let (mut review, _) = incoming.object().await?;
        if !review.is_object() {
            return Err(ApiError::bad_request("the body must be an object"));
        }
        match target.resource.as_str() {
            "bindings" => return self.old_binding(target, &incoming, &review).await,
            "selfsubjectreviews" => review["status"] = json!({ "userInfo": user_json(&incoming.user) }),
            "tokenreviews" => self.review_token(&mut review).await?,
            "selfsubjectrulesreviews" => self.review_rules(&mut review, &incoming.user)?,
            "selfsubjectaccessreviews" => self.review_access(&mut review, &incoming.user).await?,
            "localsubjectaccessreviews" => {
                let namespace = target.namespace.unwrap_or_default();
                if text(&review, "/spec/resourceAttributes/namespace") != namespace {
                    return Err(ApiError::bad_request(format!(
                        "spec.resourceAttributes.namespace must match namespace: {namespace}"
                    )));
                }
                let user = subject(&review);
                self.review_access(&mut review, &user).await?;
            }
            _ => {
                let user = subject(&review);
                self.review_access(&mut review, &user).await?;
            }
        }
        if !review["metadata"].is_object() {
            review["metadata"] = json!({});
        }
        Ok(Reply::json(StatusCode::CREATED, &review))
    }

    async fn old_binding(self: &Arc<Self>, target: Target, incoming: &Incoming, binding: &Value) -> ApiResult<Reply> {
        let namespace = target.namespace.ok_or_else(ApiError::no_such_path)?;
        let mut call = call_of(self.engine.served("", "v1", "pods")?, &namespace, incoming)?;
        let name = text(binding, "/metadata/name").to_owned();
        subresources::bind(self, &mut call, &name, binding).await
    }

    async fn review_token(&self, review: &mut Value) -> ApiResult<()> {
        let token = text(review, "/spec/token").to_owned();
        if token.is_empty() {
            return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
        }
        let audiences: Vec<String> = review
            .pointer("/spec/audiences")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        if audiences.len() > MAX_AUDIENCES {
            return Err(ApiError::bad_request(format!("spec.audiences: must have at most {MAX_AUDIENCES} items")));
        }
        review["status"] = match self.authenticator.token(&token, &audiences).await? {
            Ok(good) => {
                json!({ "authenticated": true, "user": user_json(&complete(good.user)), "audiences": good.audiences })
            }
            Err(why) => json!({ "authenticated": false, "error": why.to_string() }),
        };
        Ok(())
    }

    async fn review_access(&self, review: &mut Value, user: &UserInfo) -> ApiResult<()> {
        let given = |field: &str| review["spec"].get(field).is_some_and(Value::is_object);
        if given("resourceAttributes") == given("nonResourceAttributes") {
            let why = "spec.resourceAttributes: Invalid value: exactly one of nonResourceAttributes or resourceAttributes \
                       must be specified";
            return Err(ApiError::new(422, "Invalid", why));
        }
        if user.username.is_empty() && user.groups.is_empty() {
            let why = "spec.user: Invalid value: \"\": at least one of user or group must be specified";
            return Err(ApiError::new(422, "Invalid", why));
        }
        let own = |pointer: &str| text(review, pointer).to_owned();
        let of_resource = |field: &str| own(&format!("/spec/resourceAttributes/{field}"));
        let attributes = if review.pointer("/spec/resourceAttributes").is_some_and(Value::is_object) {
            Attributes {
                verb: of_resource("verb"),
                group: of_resource("group"),
                resource: of_resource("resource"),
                subresource: of_resource("subresource"),
                namespace: of_resource("namespace"),
                name: of_resource("name"),
                fields: requirements(review, "/spec/resourceAttributes/fieldSelector/requirements"),
                labels: requirements(review, "/spec/resourceAttributes/labelSelector/requirements"),
                ..Attributes::default()
            }
        } else {
            Attributes {
                verb: own("/spec/nonResourceAttributes/verb"),
                path: own("/spec/nonResourceAttributes/path"),
                ..Attributes::default()
            }
        };
        review["status"] = match self.authorizer.authorize(user, &attributes).await {
            Decision::Allow(reason) => json!({ "allowed": true, "reason": reason }),
            Decision::Deny(reason) => json!({ "allowed": false, "denied": true, "reason": reason }),
            Decision::NoOpinion(reason) if reason.is_empty() => json!({ "allowed": false }),
            Decision::NoOpinion(reason) => json!({ "allowed": false, "reason": reason }),
        };
        Ok(())
    }

    fn review_rules(&self, review: &mut Value, user: &UserInfo) -> ApiResult<()> {
        let namespace = text(review, "/spec/namespace");
        if namespace.is_empty() {
            return Err(ApiError::bad_request("no namespace on request"));
        }
        let rules = self.authorizer.rules_for(user, namespace);
        // Nodes' reach is not in roles.
        let of_node = user.groups.iter().any(|g| g == GROUP_NODES);
        let mut status = json!({
            "resourceRules": rules.resource, "nonResourceRules": rules.non_resource,
            "incomplete": of_node || !rules.error.is_empty(),
        });
        if of_node || !rules.error.is_empty() {
            let error = if of_node { "node authorizer does not support user rule resolution" } else { &rules.error };
            status["evaluationError"] = error.into();
        }
        review["status"] = status;
        Ok(())
    }
}

/// Selectors as a review gives them. What is more than one value compared is left out, as in requests.
fn requirements(review: &Value, pointer: &str) -> Vec<Requirement> {
    let all = review.pointer(pointer).and_then(Value::as_array);
    let one = |r: &Value| {
        let equal = match text(r, "/operator") {
            "In" => true,
            "NotIn" => false,
            _ => return None,
        };
        let [value] = r["values"].as_array()?.as_slice() else { return None };
        Some(Requirement { key: text(r, "/key").to_owned(), equal, value: value.as_str()?.to_owned() })
    };
    all.into_iter().flatten().filter_map(one).collect()
}

fn user_json(user: &UserInfo) -> Value {
    serde_json::to_value(user).unwrap_or_default()
}

/// The user a SubjectAccessReview asks about.
fn subject(review: &Value) -> UserInfo {
    let list = |pointer: &str| -> Vec<String> {
        let all = review.pointer(pointer).and_then(Value::as_array);
        all.into_iter().flatten().filter_map(|g| g.as_str().map(str::to_owned)).collect()
    };
    UserInfo {
        username: text(review, "/spec/user").to_owned(),
        uid: text(review, "/spec/uid").to_owned(),
        groups: list("/spec/groups"),
        extra: serde_json::from_value(review.pointer("/spec/extra").cloned().unwrap_or_default()).unwrap_or_default(),
    }
}
