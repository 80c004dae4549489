//! What tokens of service accounts say, and what follows from it.

use super::{Verified, refused};
use crate::user::{AuthnError, GROUP_SERVICE_ACCOUNTS, User};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// How far clocks may differ, in seconds; also how long a token outlives the deletion of what it is bound to.
const LEEWAY: i64 = 60;
/// What kubelets ask for in pods' token volumes by default, in seconds: old clients read a token only once.
const WARN_ONLY: i64 = 3607;
/// What they get instead: a year.
const EXTENDED: i64 = 365 * 24 * 3600;

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Account {
    pub(super) fn username(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

/// An object by name and uid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Its uid; empty for a pod's Node that was not there.
    pub uid: String,
}

/// What a token is bound to: it is good only while that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// A pod, with the Node it is on, which is noted and not checked later.
    Pod(Reference, Option<Reference>),
    /// A Secret.
    Secret(Reference),
    /// A Node.
    Node(Reference),
}

/// How long a token lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// The token's life, in seconds.
    pub seconds: i64,
    /// When its holder should have taken a new one, in seconds from now.
    pub warn_after: Option<i64>,
    /// What the reply says (`spec.expirationSeconds`, and `status.expirationTimestamp` from now).
    pub shown: i64,
    /// A limit has shortened it: the warning to send.
    pub shortened: bool,
}

impl Lifetime {
    /// For a TokenRequest: what it asks for, whether it is bound to a pod, whether all its audiences are the API
    /// server's; the server's limit (`--service-account-max-token-expiration`) and whether it extends what kubelets
    /// ask for by default (`--service-account-extend-token-expiration`, on by default).
    pub fn of(requested: i64, for_pod: bool, for_api: bool, limit: Option<i64>, extend: bool) -> Self {
        let shown = limit.filter(|limit| *limit > 0).map_or(requested, |limit| limit.min(requested));
        let shortened = shown < requested;
        if extend && for_pod && for_api && shown == WARN_ONLY {
            return Self { seconds: EXTENDED, warn_after: Some(shown), shown, shortened };
        }
        Self { seconds: shown, warn_after: None, shown, shortened }
    }

    /// The warning for a life that was shortened, in Kubernetes' words.
    pub fn warning(&self, requested: i64) -> Option<String> {
        let shown = self.shown;
        self.shortened.then(|| format!("requested expiration of {requested} seconds shortened to {shown} seconds"))
    }
}

/// What a token is issued for.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Whom it speaks for.
    pub account: Account,
    /// What it is bound to, if anything.
    pub bound: Option<Bound>,
    /// Who shall accept it; empty means the API server.
    pub audiences: Vec<String>,
    /// Its life.
    pub lifetime: Lifetime,
}

/// An object that must still exist for a token to be good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Existing {
    /// `serviceaccounts`, `pods`, `secrets` or `nodes`, of the core group.
    pub resource: &'static str,
    /// Empty for a Node.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty when that does not matter (the Secret of a Secret-based token).
    pub uid: String,
}

impl Existing {
    /// Judges what was found: nothing, another object of that name, or one that is being deleted for a minute are the
    /// end of the token. `now` in seconds since the epoch.
    pub fn check(&self, found: Option<&Value>, now: i64) -> Result<(), AuthnError> {
        let what = format!("{} {}/{}", self.resource, self.namespace, self.name);
        let Some(metadata) = found.map(|object| &object["metadata"]) else {
            return Err(refused(&format!("service account token has been invalidated: no {what}")));
        };
        let uid = metadata["uid"].as_str().unwrap_or_default();
        if !self.uid.is_empty() && uid != self.uid {
            return Err(refused(&format!("{what}: UID ({uid}) does not match claim ({})", self.uid)));
        }
        let deleted = match &metadata["deletionTimestamp"] {
            Value::Null => return Ok(()),
            time => time.as_str().and_then(|time| time.parse::<jiff::Timestamp>().ok()),
        };
        // What cannot be read counts as long ago.
        if deleted.is_none_or(|at| at.as_second() < now - LEEWAY) {
            return Err(refused(&format!("service account token has been invalidated: {what} is being deleted")));
        }
        Ok(())
    }
}

/// The claims of a new token.
pub(super) fn of(grant: &Grant, issuer: &str, audiences: &[String], id: &str, now: i64) -> Value {
    let reference = |object: &Reference| json!({ "name": object.name, "uid": object.uid });
    let account = &grant.account;
    let mut about = json!({
        "namespace": account.namespace,
        "serviceaccount": { "name": account.name, "uid": account.uid },
    });
    match &grant.bound {
        None => {}
        Some(Bound::Pod(pod, node)) => {
            about["pod"] = reference(pod);
            if let Some(node) = node {
                about["node"] = json!({ "name": node.name });
                if !node.uid.is_empty() {
                    about["node"] = reference(node);
                }
            }
        }
        Some(Bound::Secret(secret)) => about["secret"] = reference(secret),
        Some(Bound::Node(node)) => about["node"] = reference(node),
    }
    if let Some(after) = grant.lifetime.warn_after {
        about["warnafter"] = json!(now + after);
    }
    json!({
        "aud": audiences, "exp": now + grant.lifetime.seconds, "iat": now, "nbf": now, "iss": issuer, "jti": id,
        "sub": account.username(), "kubernetes.io": about,
    })
}

/// What follows from the claims of a token with an end.
pub(super) fn bound(claims: &Map<String, Value>, wanted: &[String], now: i64) -> Result<Verified, AuthnError> {
    let time = |name: &str| claims.get(name).and_then(Value::as_i64);
    let end = time("exp").ok_or_else(|| refused("the token has no end"))?;
    if now - LEEWAY > end {
        return Err(refused("service account token has expired"));
    }
    if time("nbf").is_some_and(|begin| now + LEEWAY < begin) {
        return Err(refused("service account token is not valid yet"));
    }
    let held: Vec<&str> =
        claims.get("aud").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let audiences: Vec<String> = wanted.iter().filter(|wanted| held.contains(&wanted.as_str())).cloned().collect();
    if audiences.is_empty() {
        let held: Vec<String> = held.into_iter().take(8).map(|held| held.chars().take(64).collect()).collect();
        return Err(refused(&format!("token audiences {held:?} is invalid for the target audiences {wanted:?}")));
    }
    let about = claims.get("kubernetes.io").ok_or_else(|| refused("the token has no claim kubernetes.io"))?;
    let account = account(
        about["namespace"].as_str(),
        about["serviceaccount"]["name"].as_str(),
        about["serviceaccount"]["uid"].as_str(),
    )?;
    same_subject(claims, &account)?;
    let mut existing = vec![existing_account(&account)];
    let mut extra = BTreeMap::new();
    let mut note = |key: &str, value: String| extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
    if let Some(id) = claims.get("jti").and_then(Value::as_str).filter(|id| !id.is_empty()) {
        note("credential-id", format!("JTI={id}"));
    }
    let (pod, node) = (reference(&about["pod"], true)?, reference(&about["node"], about["pod"].is_null())?);
    if let Some(pod) = &pod {
        note("pod-name", pod.name.clone());
        note("pod-uid", pod.uid.clone());
        existing.push(must_exist("pods", &account.namespace, pod));
    }
    if let Some(secret) = reference(&about["secret"], true)? {
        existing.push(must_exist("secrets", &account.namespace, &secret));
    }
    if let Some(node) = &node {
        note("node-name", node.name.clone());
        if !node.uid.is_empty() {
            note("node-uid", node.uid.clone());
        }
        // The Node of a pod is information: the pod is what is checked.
        if pod.is_none() {
            existing.push(must_exist("nodes", "", node));
        }
    }
    let stale = about["warnafter"].as_i64().is_some_and(|after| now > after);
    Ok(Verified { user: user(&account, extra), audiences, existing, secret: None, stale })
}

/// What follows from the claims of a Secret-based token. It is for the API server's audiences, and names none.
pub(super) fn legacy(
    claims: &Map<String, Value>,
    wanted: &[String],
    api_audiences: &[String],
) -> Result<Verified, AuthnError> {
    let claim = |name: &str| claims.get(&format!("kubernetes.io/serviceaccount/{name}")).and_then(Value::as_str);
    let account = account(claim("namespace"), claim("service-account.name"), claim("service-account.uid"))?;
    same_subject(claims, &account)?;
    let audiences: Vec<String> = wanted.iter().filter(|wanted| api_audiences.contains(wanted)).cloned().collect();
    if audiences.is_empty() {
        return Err(refused(&format!("token audiences [] is invalid for the target audiences {wanted:?}")));
    }
    let secret = claim("secret.name").filter(|name| !name.is_empty());
    let secret = secret.ok_or_else(|| refused("secretName claim is missing"))?.to_owned();
    let reference = Reference { name: secret.clone(), uid: String::new() };
    let existing = vec![existing_account(&account), must_exist("secrets", &account.namespace, &reference)];
    Ok(Verified { user: user(&account, BTreeMap::new()), audiences, existing, secret: Some(secret), stale: false })
}

fn account(namespace: Option<&str>, name: Option<&str>, uid: Option<&str>) -> Result<Account, AuthnError> {
    let text = |value: Option<&str>, what: &str| {
        let value = value.filter(|value| !value.is_empty()).map(str::to_owned);
        value.ok_or_else(|| refused(&format!("{what} claim is missing")))
    };
    let (namespace, name) = (text(namespace, "namespace")?, text(name, "serviceAccountName")?);
    Ok(Account { namespace, name, uid: text(uid, "serviceAccountUID")? })
}

fn same_subject(claims: &Map<String, Value>, account: &Account) -> Result<(), AuthnError> {
    let subject = claims.get("sub").and_then(Value::as_str);
    if subject == Some(&account.username()) { Ok(()) } else { Err(refused("sub claim is invalid")) }
}

/// An object that a token is bound to. One without a name, or a uid where that is needed, binds to nothing, which must
/// not read as not bound.
fn reference(value: &Value, with_uid: bool) -> Result<Option<Reference>, AuthnError> {
    if value.is_null() {
        return Ok(None);
    }
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let object = Reference { name: text("name"), uid: text("uid") };
    if object.name.is_empty() || (with_uid && object.uid.is_empty()) {
        return Err(refused("the token is bound to an object without name or uid"));
    }
    Ok(Some(object))
}

fn must_exist(resource: &'static str, namespace: &str, object: &Reference) -> Existing {
    Existing { resource, namespace: namespace.to_owned(), name: object.name.clone(), uid: object.uid.clone() }
}

fn existing_account(account: &Account) -> Existing {
    let Account { namespace, name, uid } = account.clone();
    Existing { resource: "serviceaccounts", namespace, name, uid }
}

fn user(account: &Account, extra: BTreeMap<String, Vec<String>>) -> User {
    let groups = vec![GROUP_SERVICE_ACCOUNTS.to_owned(), format!("{GROUP_SERVICE_ACCOUNTS}:{}", account.namespace)];
    User { username: account.username(), uid: account.uid.clone(), groups, extra }
}

/// Random bytes as a UUID of version 4 (RFC 9562).
pub(super) fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&at) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
