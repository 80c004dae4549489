//! What lives from one model to the next: keys that have been read, and what annotations asked for. So a Secret that has
//! not changed is not parsed again, and a client's share of requests is not given anew with every change of the table.

use super::annotations::{self, Asked};
use super::certs::CertCache;
use super::model::Problem;
use super::view::View;
use crate::route::ObjectKey;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::Ingress;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// The key of a Secret in which a password file is, as ingress-nginx has it.
pub const AUTH_KEY: &str = "auth";

/// All of it.
#[derive(Debug, Default)]
pub struct Caches {
    /// Certificates and their keys.
    pub certificates: CertCache,
    asked: HashMap<ObjectKey, Known>,
    used: HashSet<ObjectKey>,
}

/// What was read of an Ingress, and from what.
#[derive(Debug)]
struct Known {
    annotations: BTreeMap<String, String>,
    has_tls: bool,
    secret: Option<Arc<Secret>>,
    asked: Arc<Asked>,
    problems: Vec<Problem>,
}

impl Caches {
    /// What an Ingress' annotations ask for, and what is wrong with them.
    pub fn asked(&mut self, view: &View, ingress: &Ingress) -> (Arc<Asked>, Vec<Problem>) {
        let key = ObjectKey::of(ingress);
        let annotations = ingress.metadata.annotations.clone().unwrap_or_default();
        let has_tls = ingress.spec.as_ref().and_then(|s| s.tls.as_ref()).is_some_and(|t| !t.is_empty());
        let of = |prefix: &str| annotations.get(&format!("{prefix}auth-secret"));
        let name = of(annotations::PREFIX).or_else(|| of(annotations::NGINX_PREFIX));
        // `namespace/name` is allowed for the Ingress' own namespace.
        let name = name.map(|n| n.strip_prefix(&format!("{}/", key.namespace)).unwrap_or(n).to_owned());
        let secret = name.and_then(|n| view.auth_secrets.get(&ObjectKey::new(&key.namespace, &n)).cloned());
        self.used.insert(key.clone());
        if let Some(known) = self.asked.get(&key)
            && known.annotations == annotations
            && known.has_tls == has_tls
            && known.secret.as_ref().and_then(|s| s.data.as_ref()) == secret.as_ref().and_then(|s| s.data.as_ref())
        {
            return (Arc::clone(&known.asked), known.problems.clone());
        }
        let mut problems = Vec::new();
        let file = |name: &str| password_file(secret.as_deref(), name);
        let asked = Arc::new(annotations::read(&annotations, has_tls, file, &mut problems));
        let known = Known { annotations, has_tls, secret, asked: Arc::clone(&asked), problems: problems.clone() };
        self.asked.insert(key, known);
        (asked, problems)
    }

    /// Forgets what was not asked for since the last time.
    pub fn sweep(&mut self) {
        self.certificates.sweep();
        let used = std::mem::take(&mut self.used);
        self.asked.retain(|k, _| used.contains(k));
    }
}

fn password_file(secret: Option<&Secret>, name: &str) -> Result<String, String> {
    if name.is_empty() {
        return Err("the annotation auth-secret names no Secret".to_owned());
    }
    let secret = secret.ok_or("the Secret (type Opaque, of the Ingress' namespace) is not there")?;
    let file = secret.data.as_ref().and_then(|d| d.get(AUTH_KEY));
    let file = file.ok_or_else(|| format!("the Secret has no key {AUTH_KEY:?} with a htpasswd file"))?;
    String::from_utf8(file.0.clone()).map_err(|_| format!("its key {AUTH_KEY:?} is not text"))
}
