//! Which certificates should be there. In: the view. Out: for every Secret that an annotated Ingress or Gateway of ours
//! names, the names that it should have, and what is there. Pure.

use super::{ANNOTATION, MANAGED_LABEL, OLD_ANNOTATION};
use crate::config::Dirt;
use crate::config::certs::CERTIFICATE;
use crate::config::model::{self, Settings};
use crate::config::view::View;
use crate::gateway::listeners::{Speaks, speaks};
use crate::gateway::model::is_ours;
use crate::gateway::types::Reference;
use crate::route::{HostPattern, ObjectKey, rank};
use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use kube::Resource;
use kube::api::ObjectMeta;
use std::collections::{BTreeMap, BTreeSet};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

/// A certificate that should be there.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Where it belongs.
    pub secret: ObjectKey,
    /// For these names; never empty.
    pub names: BTreeSet<String>,
    /// Who asks for it, and is told.
    pub owner: ObjectReference,
    /// What is there.
    pub current: Current,
}

/// What a Secret has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Current {
    /// Nobody can tell yet.
    Unread,
    /// There is no such Secret.
    Missing,
    /// Somebody else's, which is left alone.
    Foreign,
    /// A certificate for these names, valid from and until (Unix time in seconds).
    Issued(BTreeSet<String>, i64, i64),
    /// It is ours, but cannot be read.
    Broken,
}

impl Wanted {
    /// When it has to be got, in Unix time: at once, when two thirds of its life are over, or never.
    pub fn due(&self) -> Option<i64> {
        match &self.current {
            Current::Missing | Current::Broken => Some(0),
            Current::Unread | Current::Foreign => None,
            Current::Issued(names, ..) if !self.names.is_subset(names) => Some(0),
            Current::Issued(_, from, until) => Some(until - (until - from) / 3),
        }
    }
}

/// Whether what is new in a view may change what should be there, `last` being what was before.
pub fn concerned(view: &View, dirt: &Dirt, last: &[Wanted]) -> bool {
    let owns = |wanted: &Wanted, key: &ObjectKey| {
        let owner = (wanted.owner.kind.as_deref(), wanted.owner.name.as_deref());
        owner == (Some("Ingress"), Some(&*key.name)) && wanted.secret.namespace == key.namespace
    };
    let asking = |key: &ObjectKey| {
        view.ingresses.get(key).is_some_and(|i| asks(&i.metadata)) || last.iter().any(|wanted| owns(wanted, key))
    };
    let known = |key: &ObjectKey| last.iter().any(|wanted| wanted.secret == *key);
    dirt.routes || dirt.fronts || dirt.ingresses.iter().any(asking) || dirt.secrets.iter().any(known)
}

fn asks(meta: &ObjectMeta) -> bool {
    let annotation = |name: &str| meta.annotations.as_ref().and_then(|a| a.get(name));
    annotation(ANNOTATION).or_else(|| annotation(OLD_ANNOTATION)).is_some_and(|v| v == "true")
}

/// Of every Secret once, by its key. A wildcard needs a proof in the DNS, which cannot be given here: it is passed over.
pub fn all(view: &View, settings: &Settings) -> Vec<Wanted> {
    let mut found: BTreeMap<ObjectKey, Wanted> = BTreeMap::new();
    let mut add = |namespace: &str, secret: &str, hosts: Vec<&str>, owner: ObjectReference| {
        let exact = |host: &str| match HostPattern::parse(Some(host)) {
            Ok(HostPattern::Exact(name)) => Some(name.into_string()),
            _ => None,
        };
        let names: BTreeSet<String> = hosts.into_iter().filter_map(exact).collect();
        if names.is_empty() || secret.is_empty() {
            return;
        }
        let key = ObjectKey::new(namespace, secret);
        let current = view.secrets.get(&key).map_or(Current::Unread, |found| current(found.map(AsRef::as_ref)));
        let entry =
            found.entry(key.clone()).or_insert_with(|| Wanted { secret: key, names: BTreeSet::new(), owner, current });
        entry.names.extend(names);
    };
    let ours = model::ours(view, settings);
    let mut ingresses: Vec<_> = view.ingresses.values().filter(|i| asks(&i.metadata) && ours(i)).collect();
    // Of several that name one Secret the oldest is told.
    ingresses.sort_by_cached_key(|i| rank(&***i));
    for ingress in ingresses {
        let namespace = ingress.metadata.namespace.as_deref().unwrap_or_default();
        for tls in ingress.spec.iter().flat_map(|s| s.tls.iter().flatten()) {
            let hosts = tls.hosts.iter().flatten().map(String::as_str).collect();
            add(namespace, tls.secret_name.as_deref().unwrap_or_default(), hosts, ingress.object_ref(&()));
        }
    }
    let gateways = view.gateways.gateways.values();
    for gateway in gateways.filter(|g| asks(&g.metadata) && is_ours(view, g)) {
        let own = gateway.metadata.namespace.as_deref().unwrap_or_default();
        for listener in &gateway.spec.listeners {
            let (Some(host), Some(tls)) = (listener.hostname.as_deref(), &listener.tls) else { continue };
            // Others have no use for a certificate.
            if !matches!(speaks(listener), Some(Speaks::Https | Speaks::TlsTerminate)) {
                continue;
            }
            let is_own = |to: &&Reference| to.is("", "Secret", "", "Secret") && to.namespace_or(own) == own;
            for to in tls.certificate_refs.iter().filter(is_own) {
                add(own, &to.name, vec![host], gateway.object_ref(&()));
            }
        }
    }
    found.into_values().collect()
}

fn current(secret: Option<&Secret>) -> Current {
    let Some(secret) = secret else { return Current::Missing };
    if secret.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_LABEL)).is_none_or(|v| v != "true") {
        return Current::Foreign;
    }
    read(secret).unwrap_or(Current::Broken)
}

fn read(secret: &Secret) -> Option<Current> {
    let pem = secret.data.as_ref()?.get(CERTIFICATE)?;
    let first = Pem::iter_from_buffer(&pem.0).next()?.ok()?;
    let certificate = first.parse_x509().ok()?;
    let names = certificate.subject_alternative_name().ok()??.value.general_names.iter();
    let names = names.filter_map(|n| if let GeneralName::DNSName(name) = n { Some((*name).to_owned()) } else { None });
    let validity = certificate.validity();
    Some(Current::Issued(names.collect(), validity.not_before.timestamp(), validity.not_after.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::followed::Found;
    use crate::config::view::Update;
    use crate::gateway::CONTROLLER as GATEWAY_CONTROLLER;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    fn ingress(annotation: &str) -> Value {
        json!({"metadata": {"name": "web", "namespace": "n", "uid": "u", "annotations": {annotation: "true"}},
            "spec": {"ingressClassName": "causeway", "tls": [
                {"hosts": ["a.example", "B.example"], "secretName": "web-tls"},
                {"hosts": ["*.wild.example"], "secretName": "wild"}]}})
    }

    fn secret(names: &[&str], managed: bool) -> Secret {
        let made =
            rcgen::generate_simple_self_signed(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        let labels = if managed { json!({MANAGED_LABEL: "true"}) } else { json!({}) };
        let mut secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": "web-tls", "namespace": "n", "labels": labels}}))
                .unwrap();
        let pem = k8s_openapi::ByteString(made.cert.pem().into_bytes());
        secret.data = Some([("tls.crt".to_owned(), pem)].into());
        secret
    }

    fn of(annotation: &str, found: Found<Secret>) -> Vec<Wanted> {
        let mut view = View::default();
        view.handle(Update::Ingress(Event::Apply(serde_json::from_value(ingress(annotation)).unwrap())));
        view.handle(Update::Secret(ObjectKey::new("n", "web-tls"), found));
        all(&view, &Settings { class: "causeway".to_owned(), default_class: false })
    }

    #[test]
    fn who_asks_gets_what_is_missing() {
        assert_eq!(of("other", Ok(None)), []);
        for annotation in [ANNOTATION, OLD_ANNOTATION] {
            let all = of(annotation, Ok(None));
            assert_eq!(all.len(), 1, "a wildcard cannot be proved: {all:?}");
            assert_eq!(all[0].names, ["a.example", "b.example"].map(str::to_owned).into());
            assert_eq!((all[0].secret.to_string().as_str(), all[0].due()), ("n/web-tls", Some(0)));
            assert_eq!(all[0].owner.uid.as_deref(), Some("u"));
        }
    }

    #[test]
    fn what_is_there_decides_when_it_is_due() {
        let due = |secret| of(ANNOTATION, Ok(Some(secret)))[0].due();
        assert_eq!(due(secret(&["a.example"], false)), None, "somebody else's");
        assert_eq!(due(secret(&["a.example"], true)), Some(0), "a name is missing");
        let whole = due(secret(&["a.example", "b.example", "c.example"], true));
        assert!(whole.is_some_and(|at| at > 2_000_000_000), "long from now: {whole:?}");
        let mut broken = secret(&["a.example"], true);
        broken.data = None;
        assert_eq!(due(broken), Some(0));
        let unread = of(ANNOTATION, Err("refused".to_owned()));
        assert_eq!((&unread[0].current, unread[0].due()), (&Current::Unread, None), "it may be there");
    }

    #[test]
    fn gateways_ask_as_well() {
        let mut view = View::default();
        let class: crate::gateway::types::GatewayClass = serde_json::from_value(
            json!({"metadata": {"name": "causeway"}, "spec": {"controllerName": GATEWAY_CONTROLLER}}),
        )
        .unwrap();
        let gateway: crate::gateway::types::Gateway = serde_json::from_value(json!({
            "metadata": {"name": "g", "namespace": "n", "annotations": {ANNOTATION: "true"}},
            "spec": {"gatewayClassName": "causeway", "listeners": [
                {"name": "a", "port": 443, "protocol": "HTTPS", "hostname": "a.example",
                    "tls": {"certificateRefs": [{"name": "g-tls"}, {"name": "far", "namespace": "m"}]}},
                {"name": "b", "port": 443, "protocol": "HTTPS", "hostname": "b.example",
                    "tls": {"certificateRefs": [{"name": "g-tls"}]}},
                {"name": "c", "port": 80, "protocol": "HTTP", "hostname": "c.example"}]}}))
        .unwrap();
        view.gateways.classes.handle(Event::Apply(class));
        view.gateways.gateways.handle(Event::Apply(gateway));
        let all = all(&view, &Settings { class: "causeway".to_owned(), default_class: false });
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].names, ["a.example", "b.example"].map(str::to_owned).into());
    }
}
