//! Secrets of the type `kubernetes.io/service-account-token`: tokens that never expire, made on request.
//!
//! In: a Secret, the ServiceAccount it names. Out: what the controller does about it. Admission needs nothing of its
//! own: that the annotation with the account's name is there is a rule of the kind Secret, and who may create Secrets
//! in a namespace may thereby get tokens of all its accounts.

use crate::read::{at, text};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// The account a token Secret is for: name, and uid once the controller has seen it. `None` for other Secrets.
pub fn account(secret: &Value) -> Option<(&str, Option<&str>)> {
    let annotation = |key: &str| at(secret, "metadata.annotations").get(key).and_then(Value::as_str);
    let name = annotation(ACCOUNT_NAME).filter(|name| !name.is_empty())?;
    (text(secret, "type") == TYPE).then(|| (name, annotation(ACCOUNT_UID).filter(|uid| !uid.is_empty())))
}

/// What is to be done with a token Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is complete, or none of ours.
    Nothing,
    /// Its account is gone, or another of the same name came after: delete it, on condition of its uid.
    Delete,
    /// Write it with [`filled`], on condition of its resource version; with a new token when `token`.
    Fill {
        /// A token is missing.
        token: bool,
    },
}

/// Looks at a Secret. `account` is the ServiceAccount of the name that [`account`] gives, read freshly and not from a
/// cache when it seems to be missing; `root_ca` is the PEM bundle of the cluster, empty when there is none.
pub fn action(secret: &Value, account: Option<&Value>, root_ca: &str) -> Action {
    let Some((name, uid)) = self::account(secret) else { return Action::Nothing };
    let Some(account) = account.filter(|a| text(a, "metadata.name") == name) else { return Action::Delete };
    if uid.is_some_and(|uid| uid != text(account, "metadata.uid")) {
        return Action::Delete;
    }
    let held = |key: &str| at(secret, "data").get(key).and_then(Value::as_str).unwrap_or("");
    let token = held("token").is_empty();
    let ca = !root_ca.is_empty() && STANDARD.decode(held("ca.crt")).ok().as_deref() != Some(root_ca.as_bytes());
    if token || ca || held("namespace").is_empty() { Action::Fill { token } } else { Action::Nothing }
}

/// The Secret with what it lacks. `token` is a signed token with the claims `iss` = `kubernetes/serviceaccount`, `sub` =
/// the account's user name, and the names of namespace, Secret and account; its bearer is only let in while the Secret
/// holds it.
pub fn filled(secret: &Value, account: &Value, root_ca: &str, token: Option<&str>) -> Value {
    let mut new = secret.clone();
    let Some(map) = new.as_object_mut() else { return new };
    let mut data: Map<String, Value> = at(secret, "data").as_object().cloned().unwrap_or_default();
    let mut put = |key: &str, plain: &str| data.insert(key.to_owned(), json!(STANDARD.encode(plain)));
    if !root_ca.is_empty() {
        put("ca.crt", root_ca);
    }
    if at(secret, "data.namespace").as_str().unwrap_or("").is_empty() {
        put("namespace", text(secret, "metadata.namespace"));
    }
    if let Some(token) = token {
        put("token", token);
    }
    map.insert("data".to_owned(), data.into());
    let mut annotations: Map<String, Value> =
        at(secret, "metadata.annotations").as_object().cloned().unwrap_or_default();
    annotations.insert(ACCOUNT_NAME.to_owned(), at(account, "metadata.name").clone());
    annotations.insert(ACCOUNT_UID.to_owned(), at(account, "metadata.uid").clone());
    if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("annotations".to_owned(), annotations.into());
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_empty_to_complete() {
        let account = json!({"metadata": {"name": "bot", "uid": "u1"}});
        let secret = json!({
            "metadata": {"name": "s", "namespace": "n", "annotations": {ACCOUNT_NAME: "bot", "x": "y"}}, "type": TYPE
        });
        assert_eq!(super::account(&secret), Some(("bot", None)));
        assert_eq!(action(&secret, Some(&account), "PEM"), Action::Fill { token: true });
        let full = filled(&secret, &account, "PEM", Some("a.b.c"));
        assert_eq!(full["data"], json!({"ca.crt": "UEVN", "namespace": "bg==", "token": "YS5iLmM="}));
        assert_eq!(full["metadata"]["annotations"], json!({ACCOUNT_NAME: "bot", ACCOUNT_UID: "u1", "x": "y"}));
        assert_eq!(action(&full, Some(&account), "PEM"), Action::Nothing);
        assert_eq!(action(&full, Some(&account), "NEW"), Action::Fill { token: false });
        assert_eq!(filled(&full, &account, "NEW", None)["data"]["token"], "YS5iLmM=");
        let again = json!({"metadata": {"name": "bot", "uid": "u2"}});
        assert_eq!(action(&full, Some(&again), "PEM"), Action::Delete, "another account of the same name");
        assert_eq!(action(&full, None, "PEM"), Action::Delete);
        let other = json!({"metadata": {"annotations": {ACCOUNT_NAME: "bot"}}, "type": "Opaque"});
        assert_eq!((super::account(&other), action(&other, None, "PEM")), (None, Action::Nothing));
    }
}
