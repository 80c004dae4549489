//! AdmissionReview (`admission.k8s.io/v1`): what is asked, and what is answered.
//!
//! In: a request's facts and objects; the bytes of an answer. Out: the bytes of a question; the answer, or what is
//! wrong with it.

use crate::admission_request::{Equivalent, Facts, Rejection, described};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use causeway_schema::bounds::{MAX_DEPTH, is_deeper};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Bytes of an answer.
pub const MAX_RESPONSE: usize = 1 << 20;

const API_VERSION: &str = "admission.k8s.io/v1";

/// The body of a question.
pub(crate) fn question(uid: &str, facts: &Facts, matched: &Equivalent, object: &Value, old: &Value) -> Bytes {
    let mut request = described(facts, matched);
    request["uid"] = json!(uid);
    request["object"] = object.clone();
    request["oldObject"] = old.clone();
    if facts.options.is_null() {
        request["options"] = Value::Null;
    }
    json!({"kind": "AdmissionReview", "apiVersion": API_VERSION, "request": request}).to_string().into()
}

/// A good answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Answer {
    pub allowed: bool,
    /// `Status` of a refusal; `null` when there is none.
    pub status: Value,
    /// The operations of a JSON patch; `null` when nothing is to be changed.
    pub patch: Value,
    pub warnings: Vec<String>,
    pub audit: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    response: Option<Response>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    allowed: bool,
    #[serde(default)]
    status: Value,
    patch: Option<String>,
    patch_type: Option<String>,
    #[serde(default)]
    audit_annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    warnings: Option<Vec<String>>,
}

/// Reads an answer.
///
/// # Errors
///
/// What is wrong with it: that is a failure of the webhook, not of the request.
pub(crate) fn answer(body: &[u8], uid: &str, mutating: bool) -> Result<Answer, String> {
    let invalid = |why: String| format!("received invalid webhook response: {why}");
    if body.len() > MAX_RESPONSE {
        return Err(invalid(format!("more than {MAX_RESPONSE} bytes")));
    }
    let review: Review = serde_json::from_slice(body)
        .map_err(|e| format!("failed to call webhook: couldn't get version/kind; json parse error: {e}"))?;
    let response = review.response.ok_or_else(|| invalid("webhook response was absent".to_owned()))?;
    if response.uid != uid {
        return Err(invalid(format!("expected response.uid={uid:?}, got {:?}", shown(&response.uid))));
    }
    if review.api_version != API_VERSION || review.kind != "AdmissionReview" {
        return Err(invalid(format!(
            "expected webhook response of {API_VERSION}, Kind=AdmissionReview, got {}, Kind={}",
            shown(&review.api_version),
            shown(&review.kind)
        )));
    }
    let patch = response.patch.filter(|p| !p.is_empty());
    let patch = match (mutating, patch, response.patch_type) {
        (_, None, None) => Value::Null,
        (false, Some(_), _) => return Err(invalid("validating webhook may not return response.patch".to_owned())),
        (false, None, Some(_)) => {
            return Err(invalid("validating webhook may not return response.patchType".to_owned()));
        }
        (true, Some(_), None) => {
            return Err(invalid("webhook returned response.patch but not response.patchType".to_owned()));
        }
        (true, None, Some(_)) => {
            return Err(invalid("webhook returned response.patchType but not response.patch".to_owned()));
        }
        (true, Some(_), Some(kind)) if kind.is_empty() => {
            return Err(invalid("webhook returned invalid response.patchType of \"\"".to_owned()));
        }
        // A refusal stays one, whatever comes with it.
        (true, Some(_), Some(_)) if !response.allowed => Value::Null,
        (true, Some(_), Some(kind)) if kind != "JSONPatch" => {
            return Err(format!("unsupported patch type {:?}", shown(&kind)));
        }
        (true, Some(patch), Some(_)) => operations(&patch)?,
    };
    Ok(Answer {
        allowed: response.allowed,
        status: response.status,
        patch,
        warnings: response.warnings.unwrap_or_default(),
        audit: response.audit_annotations.unwrap_or_default(),
    })
}

/// The operations of a patch in base64; `null` for none.
fn operations(patch: &str) -> Result<Value, String> {
    let undecodable = |why: String| format!("received undecodable patch in webhook response: {why}");
    let bytes = STANDARD.decode(patch).map_err(|e| undecodable(e.to_string()))?;
    let patch: Value = serde_json::from_slice(&bytes).map_err(|e| undecodable(e.to_string()))?;
    match &patch {
        Value::Array(list) if list.is_empty() => Ok(Value::Null),
        Value::Null => Ok(Value::Null),
        Value::Array(_) if is_deeper(&patch, MAX_DEPTH) => Err(undecodable("nested too deeply".to_owned())),
        Value::Array(_) => Ok(patch),
        _ => Err(undecodable("not a list of operations".to_owned())),
    }
}

/// The beginning of what a webhook says, for an error.
fn shown(text: &str) -> &str {
    crate::admission_request::cut(text, 256)
}

/// How a webhook's refusal reads.
pub(crate) fn refusal(name: &str, status: &Value) -> Rejection {
    let denied = format!("admission webhook {name:?} denied the request");
    let text = |key: &str| status[key].as_str().unwrap_or("");
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code = status["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c));
    let details = if status["details"].is_object() { status["details"].clone() } else { Value::Null };
    Rejection { code: code.unwrap_or(400), reason: text("reason").to_owned(), message, details: Box::new(details) }
}
