//! Certificate signing requests: who asks is written down by us, and nobody asks to be an administrator.

use crate::engine::{Call, text};
use crate::status::{ApiError, ApiResult};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use causeway_api::certificates::{self, SIGNER_CLIENT};
use causeway_api::identity::GROUP_MASTERS;
use serde_json::{Value, json};

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
    let request = STANDARD.decode(text(object, "/spec/request")).unwrap_or_default();
    let masters = certificates::parse(&request).is_ok_and(|w| w.organizations.iter().any(|o| o == GROUP_MASTERS));
    if masters && text(object, "/spec/signerName") == SIGNER_CLIENT {
        let why = format!("use of {SIGNER_CLIENT} signer with {GROUP_MASTERS} group is not allowed");
        let name = text(object, "/metadata/name");
        return Err(ApiError::forbidden("certificates.k8s.io", "certificatesigningrequests", name, &why));
    }
    Ok(())
}
