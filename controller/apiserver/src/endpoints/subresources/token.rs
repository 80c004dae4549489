//! Tokens of service accounts: `serviceaccounts/NAME/token`.
//!
//! In: a TokenRequest. Out: the same with a token, as long-lived as the reply says or longer (pods' tokens, which old
//! clients read once).

use crate::endpoints::Endpoints;
use crate::engine::{Call, text};
use crate::exchange::{Incoming, Reply};
use crate::status::{ApiError, ApiResult};
use causeway_authn::service_account::{Account, Bound, Grant, Reference};
use causeway_registry::{FieldErrors, Path};
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

/// Life of a token, in seconds, when the request does not say.
const DEFAULT_SECONDS: i64 = 3600;
/// The shortest.
const MIN_SECONDS: i64 = 600;
/// Audiences of one token, and their length together in bytes: a token must fit into a header.
const MAX_AUDIENCES: (usize, usize) = (64, 4096);

/// Issues a token.
pub async fn serve(server: &Arc<Endpoints>, mut call: Call, name: &str, incoming: Incoming) -> ApiResult<Reply> {
    let (mut request, _) = incoming.object().await?;
    if !request.is_object() || !request.get("spec").is_none_or(|spec| spec.is_object() || spec.is_null()) {
        return Err(ApiError::bad_request("the body must be a TokenRequest"));
    }
    let accounts = &server.authenticator.accounts;
    let asked = Asked::read(&request, &call.namespace, name, accounts.api_audiences())?;
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["kind"] = "TokenRequest".into();
    request["spec"]["expirationSeconds"] = asked.seconds.into();
    // Before audiences have a default: admission compares them with those of the pod's volumes.
    server.engine.admission.subresource(&server.engine, &mut call, name, "token", &mut request).await?;
    let account = server.engine.get(&call.served, &call.namespace, name, None).await?.value();
    let reference = request.pointer("/spec/boundObjectRef").filter(|r| r.is_object());
    let bound = match reference {
        None => None,
        Some(reference) => Some(bound_object(server, &call, reference, name).await?),
    };
    let for_pod = matches!(bound, Some(Bound::Pod(..)));
    let lifetime = accounts.lifetime(asked.seconds, for_pod, &asked.audiences);
    request["spec"]["audiences"] = json!(asked.audiences);
    let grant = Grant {
        account: Account {
            namespace: call.namespace.clone(),
            name: name.to_owned(),
            uid: text(&account, "/metadata/uid").to_owned(),
        },
        bound,
        audiences: asked.audiences,
        lifetime,
    };
    let now = jiff::Timestamp::now().as_second();
    let token = accounts.issue(&grant, now)?;
    let end = jiff::Timestamp::from_second(now + lifetime.shown).map_err(ApiError::internal)?;
    request["metadata"] =
        json!({ "name": name, "namespace": call.namespace, "creationTimestamp": crate::engine::now_text() });
    request["spec"]["expirationSeconds"] = lifetime.shown.into();
    request["status"] = json!({ "token": token, "expirationTimestamp": crate::engine::time_text(end) });
    let warnings = lifetime.warning(asked.seconds).into_iter().collect();
    Ok(Reply::json(StatusCode::CREATED, &request).warn(warnings))
}

/// What a request asks for, with defaults.
struct Asked {
    seconds: i64,
    audiences: Vec<String>,
}

impl Asked {
    fn read(request: &Value, namespace: &str, name: &str, own: &[String]) -> ApiResult<Self> {
        let mut errors = FieldErrors::default();
        for (field, value, what) in [("name", name, "name"), ("namespace", namespace, "namespace")] {
            let given = text(request, &format!("/metadata/{field}"));
            if !given.is_empty() && given != value {
                let why = format!("must match the service account {what} if specified");
                errors.invalid(&Path::new("metadata").child(field), given, &why);
            }
        }
        let seconds = match request.pointer("/spec/expirationSeconds") {
            None | Some(Value::Null) => DEFAULT_SECONDS,
            Some(seconds) => seconds
                .as_i64()
                .ok_or_else(|| ApiError::bad_request("spec.expirationSeconds must be an integer of 64 bits"))?,
        };
        let path = Path::new("spec").child("expirationSeconds");
        if seconds < MIN_SECONDS {
            errors.invalid(&path, seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds > 1 << 32 {
            errors.invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds");
        }
        let mut audiences: Vec<String> = match request.pointer("/spec/audiences") {
            None | Some(Value::Null) => Vec::new(),
            Some(list) => serde_json::from_value(list.clone())
                .map_err(|_| ApiError::bad_request("spec.audiences must be a list of strings"))?,
        };
        let (most, longest) = MAX_AUDIENCES;
        if audiences.len() > most || audiences.iter().map(String::len).sum::<usize>() > longest {
            return Err(ApiError::bad_request(format!(
                "spec.audiences: must have at most {most} items of {longest} bytes together"
            )));
        }
        if audiences.is_empty() {
            audiences = own.to_vec();
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid_kind("authentication.k8s.io", "TokenRequest", name, &errors));
        }
        Ok(Self { seconds, audiences })
    }
}

/// The object a token is bound to must exist (and, a pod, use the account).
async fn bound_object(server: &Arc<Endpoints>, call: &Call, reference: &Value, account: &str) -> ApiResult<Bound> {
    let (kind, name, uid) = (text(reference, "/kind"), text(reference, "/name"), text(reference, "/uid"));
    let version = text(reference, "/apiVersion");
    let (plural, namespace) = match (version.contains('/'), kind) {
        (false, "Pod") => ("pods", call.namespace.as_str()),
        (false, "Secret") => ("secrets", call.namespace.as_str()),
        (false, "Node") => ("nodes", ""),
        (other_group, other) => {
            let group = if other_group { format!("{version}, Kind=") } else { String::new() };
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {account:?} to object type {group}{other}"
            )));
        }
    };
    let served = server.engine.served("", "v1", plural)?;
    let object = server.engine.get(&served, namespace, name, None).await?.value();
    if kind == "Pod" && text(&object, "/spec/serviceAccountName") != account {
        let used = text(&object, "/spec/serviceAccountName");
        return Err(ApiError::bad_request(format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name {used:?}"
        )));
    }
    let found = Reference { name: name.to_owned(), uid: text(&object, "/metadata/uid").to_owned() };
    if !uid.is_empty() && uid != found.uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict_because(&served.resource, name, &why));
    }
    Ok(match kind {
        "Pod" => Bound::Pod(found, node_of(server, &object).await?),
        "Secret" => Bound::Secret(found),
        _ => Bound::Node(found),
    })
}

/// The Node a pod is on; without uid when there is none of that name.
async fn node_of(server: &Arc<Endpoints>, pod: &Value) -> ApiResult<Option<Reference>> {
    let name = text(pod, "/spec/nodeName").to_owned();
    if name.is_empty() {
        return Ok(None);
    }
    let served = server.engine.served("", "v1", "nodes")?;
    let uid = match server.engine.get(&served, "", &name, Some(0)).await {
        Ok(node) => text(&node.value(), "/metadata/uid").to_owned(),
        Err(error) if error.code() == 404 => String::new(),
        Err(error) => return Err(error),
    };
    Ok(Some(Reference { name, uid }))
}
