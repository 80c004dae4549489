//! Which Secrets and ConfigMaps are needed. In: the view, and what in it is new. Out: the names of exactly those that
//! Ingresses and Gateways of ours refer to and may use; of what others refer to nothing is read.
//!
//! Ingresses are looked at one by one, as they change. What Gateways need is found by the functions that read it: what is
//! asked for there is followed, so the two cannot come apart.

use super::asked;
use super::certs::CertCache;
use super::followed::is_possible;
use super::model::{self, Settings};
use super::reading;
use super::view::View;
use super::{Dirt, gateway};
use crate::route::ObjectKey;
use std::collections::{BTreeSet, HashMap};
use std::fmt;

/// One object that is followed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    /// A Secret.
    Secret(ObjectKey),
    /// A ConfigMap.
    ConfigMap(ObjectKey),
}

/// What is needed.
#[derive(Debug, Default)]
pub struct References {
    by_ingress: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// How many Ingresses name a Secret.
    users: HashMap<ObjectKey, usize>,
    gateways: BTreeSet<Which>,
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(key) => write!(f, "Secret {key}"),
            Self::ConfigMap(key) => write!(f, "ConfigMap {key}"),
        }
    }
}

impl References {
    /// Takes in what is new in a view, for Gateways only where there are `certificates` of theirs. Says whether other
    /// objects are needed than before. A Secret that Gateways need makes them stale: that is added to what is new.
    pub fn update(
        &mut self,
        view: &View,
        settings: &Settings,
        dirt: &mut Dirt,
        certificates: Option<&mut CertCache>,
    ) -> bool {
        let mut changed = false;
        let mut stale = dirt.ingresses.clone();
        if dirt.routes {
            stale.extend(self.by_ingress.keys().cloned());
            stale.extend(view.ingresses.keys().cloned());
        }
        let ours = model::ours(view, settings);
        for key in stale {
            let ingress = view.ingresses.get(&key).filter(|ingress| ours(ingress));
            let new = ingress.map(|i| asked::auth_secret(i).into_iter().chain(reading::tls_secrets(i)));
            let new = new.into_iter().flatten().filter(is_possible).collect();
            changed |= self.exchange(key, new);
        }
        dirt.fronts |= dirt.secrets.iter().any(|key| self.gateways.contains(&Which::Secret(key.clone())));
        if let Some(certificates) = certificates.filter(|_| dirt.fronts) {
            let mut new = gateway::model::references(view, certificates);
            new.retain(|(Which::Secret(key) | Which::ConfigMap(key))| is_possible(key));
            changed |= new != self.gateways;
            self.gateways = new;
        }
        changed
    }

    fn exchange(&mut self, ingress: ObjectKey, new: BTreeSet<ObjectKey>) -> bool {
        let mut changed = false;
        for secret in &new {
            let users = self.users.entry(secret.clone()).or_default();
            changed |= *users == 0;
            *users += 1;
        }
        let old = if new.is_empty() { self.by_ingress.remove(&ingress) } else { self.by_ingress.insert(ingress, new) };
        for secret in old.into_iter().flatten() {
            if let Some(users) = self.users.get_mut(&secret) {
                *users -= 1;
                if *users == 0 {
                    self.users.remove(&secret);
                    changed = true;
                }
            }
        }
        changed
    }

    /// All that is needed.
    pub fn all(&self) -> BTreeSet<Which> {
        self.users.keys().cloned().map(Which::Secret).chain(self.gateways.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::view::Update;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    fn ingress(
        name: &str,
        class: &str,
        annotations: Value,
        secrets: &[&str],
    ) -> Event<k8s_openapi::api::networking::v1::Ingress> {
        let tls: Vec<_> = secrets.iter().map(|s| json!({"hosts": ["a"], "secretName": s})).collect();
        let object = json!({"metadata": {"namespace": "n", "name": name, "annotations": annotations},
            "spec": {"ingressClassName": class, "tls": tls}});
        Event::Apply(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn only_what_our_ingresses_name_is_needed() {
        let (mut view, mut references) = (View::default(), References::default());
        let settings = Settings { class: "causeway".to_owned(), default_class: false };
        let mut take = |event| {
            let mut dirt = view.handle(Update::Ingress(event));
            let changed = references.update(&view, &settings, &mut dirt, None);
            let all: Vec<_> = references.all().iter().map(ToString::to_string).collect();
            (changed, all.join(", "))
        };
        let told = |changed, all: &str| (changed, all.to_owned());
        let auth = json!({"causeway.dev/auth-secret": "n/users"});
        assert_eq!(take(ingress("other", "nginx", auth.clone(), &["x"])), told(false, ""));
        let both = "Secret n/a, Secret n/users";
        assert_eq!(take(ingress("i", "causeway", auth.clone(), &["a", "a", "", "a,b"])), told(true, both));
        assert_eq!(take(ingress("j", "causeway", json!({}), &["a"])), told(false, both));
        assert_eq!(take(ingress("i", "causeway", auth, &[])), told(false, both));
        assert_eq!(take(ingress("i", "nginx", json!({}), &["a"])), told(true, "Secret n/a"));
        // Of another namespace nothing is taken, whatever an annotation says.
        let far = json!({"nginx.ingress.kubernetes.io/auth-secret": "m/users"});
        assert_eq!(take(ingress("i", "causeway", far, &[])), told(false, "Secret n/a"));
        assert_eq!(take(ingress("j", "causeway", json!({}), &["b"])), told(true, "Secret n/b"));
    }
}
