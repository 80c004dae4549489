//! What an Ingress' annotations ask for, read anew only when they, or the password file that they name, have changed: so
//! a client's share of requests is not given out again with every change of something else.

use super::annotations::{self, Asked};
use super::model::Problem;
use super::view::{OPAQUE, View};
use crate::route::ObjectKey;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::Ingress;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The key of a Secret in which a password file is, as ingress-nginx has it.
pub const AUTH_KEY: &str = "auth";

/// What was read of an Ingress' annotations, and from what.
#[derive(Debug)]
pub struct Known {
    /// What they ask for.
    pub asked: Arc<Asked>,
    /// What is wrong with them.
    pub problems: Vec<Problem>,
    /// The Secret with the password file that they name.
    pub auth_secret: Option<ObjectKey>,
    annotations: BTreeMap<String, String>,
    has_tls: bool,
    file: PasswordFile,
}

/// The Secret with the password file, or why nobody can tell yet.
type PasswordFile = Result<Option<Arc<Secret>>, String>;

/// The Secret with a password file that an Ingress' annotations name.
pub fn auth_secret(ingress: &Ingress) -> Option<ObjectKey> {
    let annotations = ingress.metadata.annotations.as_ref()?;
    let of = |prefix: &str| annotations.get(&format!("{prefix}auth-secret"));
    let name = of(annotations::PREFIX).or_else(|| of(annotations::NGINX_PREFIX))?;
    let own = ingress.metadata.namespace.as_deref().unwrap_or_default();
    // `namespace/name` is allowed for the Ingress' own namespace.
    let name = name.strip_prefix(own).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name);
    Some(ObjectKey::new(own, name))
}

/// Reads annotations, or finds that what was read `before` still holds.
pub fn read(view: &View, ingress: &Ingress, before: Option<&Arc<Known>>) -> Arc<Known> {
    let empty = BTreeMap::new();
    let annotations = ingress.metadata.annotations.as_ref().unwrap_or(&empty);
    let has_tls = ingress.spec.as_ref().and_then(|s| s.tls.as_ref()).is_some_and(|t| !t.is_empty());
    let auth_secret = auth_secret(ingress);
    let file: PasswordFile = match &auth_secret {
        Some(key) => view.secret(key, OPAQUE).map(|found| found.cloned()).map_err(str::to_owned),
        None => Ok(None),
    };
    if let Some(known) = before
        && known.annotations == *annotations
        && known.has_tls == has_tls
        && same(&known.file, &file)
    {
        return Arc::clone(known);
    }
    let mut problems = Vec::new();
    let text = |name: &str| password_file(&file, name);
    let asked = Arc::new(annotations::read(annotations, has_tls, text, &mut problems));
    Arc::new(Known { asked, problems, auth_secret, annotations: annotations.clone(), has_tls, file })
}

fn same(one: &PasswordFile, other: &PasswordFile) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => one.as_ref().map(|s| &s.data) == other.as_ref().map(|s| &s.data),
        (one, other) => one.as_ref().err() == other.as_ref().err(),
    }
}

fn password_file(secret: &PasswordFile, name: &str) -> Result<String, String> {
    if name.is_empty() {
        return Err("the annotation auth-secret names no Secret".to_owned());
    }
    let secret = secret.as_ref().map_err(|why| format!("the Secret is not known: {why}"))?;
    let secret = secret.as_ref().ok_or("the Secret (type Opaque, of the Ingress' namespace) is not there")?;
    let file = secret.data.as_ref().and_then(|d| d.get(AUTH_KEY));
    let file = file.ok_or_else(|| format!("the Secret has no key {AUTH_KEY:?} with a htpasswd file"))?;
    String::from_utf8(file.0.clone()).map_err(|_| format!("its key {AUTH_KEY:?} is not text"))
}
