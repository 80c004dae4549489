//! Certificate signing requests: who asks, and from where, is written down by us; nobody asks to be an administrator; who
//! approves or signs must be allowed to for the signer.

use crate::authz::Attributes;
use crate::engine::{Call, Part, text};
use crate::status::{ApiError, ApiResult};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use causeway_api::certificates::{self, SIGNER_CLIENT};
use causeway_api::identity::GROUP_MASTERS;
use causeway_authz::node::serving::PEER_ANNOTATION;
use serde_json::{Value, json};

const GROUP: &str = "certificates.k8s.io";

fn forbidden(object: &Value, why: &str) -> ApiError {
    ApiError::forbidden(GROUP, "certificatesigningrequests", text(object, "/metadata/name"), why)
}

/// For new requests.
pub fn admit(call: &Call, object: &mut Value) -> ApiResult<()> {
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("username".to_owned(), call.user.username.as_str().into());
        spec.insert("groups".to_owned(), json!(call.user.groups));
        for (key, value) in [("uid", json!(call.user.uid)), ("extra", json!(call.user.extra))] {
            spec.shift_remove(key);
            if !matches!(&value, Value::String(s) if s.is_empty()) && value != json!({}) {
                spec.insert(key.to_owned(), value);
            }
        }
    }
    set_peer(object, call.peer.map(|ip| ip.to_canonical().to_string()).map(Value::from));
    let request = STANDARD.decode(text(object, "/spec/request")).unwrap_or_default();
    let masters = certificates::parse(&request).is_ok_and(|w| w.organizations.iter().any(|o| o == GROUP_MASTERS));
    if masters && text(object, "/spec/signerName") == SIGNER_CLIENT {
        let why = format!("use of {SIGNER_CLIENT} signer with {GROUP_MASTERS} group is not allowed");
        return Err(forbidden(object, &why));
    }
    Ok(())
}

/// Sets or removes the annotation that says where a request came from.
fn set_peer(object: &mut Value, peer: Option<Value>) {
    let annotations = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    match (peer, annotations) {
        (Some(peer), Some(annotations)) => {
            annotations.insert(PEER_ANNOTATION.to_owned(), peer);
        }
        (Some(peer), None) => object["metadata"]["annotations"] = json!({ PEER_ANNOTATION: peer }),
        (None, Some(annotations)) => {
            annotations.shift_remove(PEER_ANNOTATION);
        }
        (None, None) => {}
    }
}

/// For changes: of the request itself (`spec` does not change), its approval or its certificate.
pub async fn admit_update(call: &Call, part: Part, new: &mut Value, old: &Value) -> ApiResult<()> {
    let peer = old.pointer("/metadata/annotations").and_then(|a| a.get(PEER_ANNOTATION)).cloned();
    set_peer(new, peer);
    let signer = text(old, "/spec/signerName");
    let certificate = |object: &Value| text(object, "/status/certificate").to_owned();
    match part {
        Part::Approval if decisions(new) != decisions(old) => may(call, "approve", signer, new).await,
        Part::Status => {
            if decisions(new) != decisions(old) {
                return Err(forbidden(
                    new,
                    "conditions Approved and Denied are changed through the subresource approval",
                ));
            }
            if certificate(new) != certificate(old) || failed(new) != failed(old) {
                return may(call, "sign", signer, new).await;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn conditions<'a>(object: &'a Value, types: &[&str]) -> Vec<&'a Value> {
    let all = object.pointer("/status/conditions").and_then(Value::as_array);
    all.into_iter().flatten().filter(|c| types.contains(&text(c, "/type"))).collect()
}

fn decisions(object: &Value) -> Vec<&Value> {
    conditions(object, &["Approved", "Denied"])
}

fn failed(object: &Value) -> Vec<&Value> {
    conditions(object, &["Failed"])
}

/// Asks for the signer by its name, and for all of its domain.
async fn may(call: &Call, verb: &str, signer: &str, object: &Value) -> ApiResult<()> {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or(""));
    for name in [signer, &domain] {
        let asked = Attributes {
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            resource: "signers".to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        if call.require_of(asked).await.is_ok() {
            return Ok(());
        }
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(forbidden(object, &why))
}
