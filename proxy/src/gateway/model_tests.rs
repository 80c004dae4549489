//! What objects come to: fronts and what they are told.

use super::*;
use crate::config::view::Update as ViewUpdate;
use crate::gateway::view::Update;
use crate::route::Action;
use crate::route::rule::Candidate;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

fn object<T: serde::de::DeserializeOwned>(mut value: Value) -> T {
    let defaults = json!({ "namespace": "ns", "uid": "u", "generation": 3, "resourceVersion": "1" });
    for (field, default) in defaults.as_object().unwrap() {
        if value["metadata"].get(field).is_none() {
            value["metadata"][field] = default.clone();
        }
    }
    serde_json::from_value(value).unwrap()
}

/// A view with a class, and whatever is added.
struct Case(View);

impl Case {
    fn new() -> Self {
        let mut case = Self(View::default());
        let class =
            json!({ "metadata": { "name": "causeway", "namespace": "" }, "spec": { "controllerName": CONTROLLER } });
        case.add(Update::Class(Event::Apply(object(class))));
        case
    }

    fn add(&mut self, update: Update) {
        self.0.handle(ViewUpdate::Gateway(Box::new(update)));
    }

    fn gateway(mut self, name: &str, mut spec: Value) -> Self {
        spec["gatewayClassName"] = "causeway".into();
        let gateway = json!({ "metadata": { "name": name }, "spec": spec });
        self.add(Update::Gateway(Box::new(Event::Apply(object(gateway)))));
        self
    }

    fn http(mut self, name: &str, namespace: &str, spec: Value) -> Self {
        let route = json!({ "metadata": { "name": name, "namespace": namespace }, "spec": spec });
        self.add(Update::Http(Event::Apply(object(route))));
        self
    }

    fn service(mut self, name: &str, namespace: &str) -> Self {
        let service = json!({ "metadata": { "name": name, "namespace": namespace },
            "spec": { "ports": [{ "port": 80, "name": "web" }] } });
        self.0.handle(ViewUpdate::Service(Event::Apply(std::sync::Arc::new(object(service)))));
        self
    }

    fn build(&self) -> Model {
        let upstream = &mut |key: &BackendKey| Arc::new(Upstream::new(key.clone()));
        build(&self.0, &mut CertCache::default(), &mut Kept::default(), &BTreeSet::new(), upstream)
    }
}

/// `type=status/reason` of every condition of an object, or of the part of it at a JSON pointer.
fn said(model: &Model, kind: &str, name: &str, pointer: &str) -> String {
    let report = model.reports.iter().find(|r| r.kind.kind == kind && &*r.key.name == name).unwrap();
    let whole = match &report.wanted {
        report::Wanted::Fields(fields) => fields.clone(),
        report::Wanted::Entries { field, ours } => json!({ *field: ours }),
    };
    let conditions = whole.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |c: &Value| {
        assert_eq!(c["observedGeneration"], 3);
        let field = |f: &str| c[f].as_str().unwrap().to_owned();
        format!("{}={}/{}", field("type"), field("status"), field("reason"))
    };
    conditions.iter().map(text).collect::<Vec<_>>().join(" ")
}

fn listener(port: u16, name: &str) -> Value {
    json!({ "name": name, "port": port, "protocol": "HTTP" })
}

fn rows(model: &Model, port: u16, host: &str, path: &str) -> Vec<Candidate> {
    let front = model.fronts.values().find(|f| f.key.port == port).unwrap();
    let FrontService::Http(listeners) = &front.service else { panic!("not HTTP") };
    listeners.iter().flat_map(|l| l.rules.lookup(Some(host), path.as_bytes()).cloned().unwrap_or_default()).collect()
}

#[test]
fn a_route_is_attached_and_served() {
    let case = Case::new().gateway("gw", json!({ "listeners": [listener(80, "http")] })).service("web", "ns").http(
        "r",
        "ns",
        json!({ "parentRefs": [{ "name": "gw" }], "hostnames": ["a.example"], "rules": [{
                "matches": [{ "path": { "type": "PathPrefix", "value": "/x" } }],
                "backendRefs": [{ "name": "web", "port": 80 }, { "name": "gone", "port": 80, "weight": 3 }] }] }),
    );
    let model = case.build();
    assert_eq!(
        said(&model, "HTTPRoute", "r", "/parents/0/conditions"),
        "Accepted=True/Accepted ResolvedRefs=False/BackendNotFound"
    );
    assert_eq!(
        said(&model, "Gateway", "gw", "/conditions"),
        "Accepted=True/Accepted Programmed=False/AddressNotAssigned ResolvedRefs=True/ResolvedRefs"
    );
    assert_eq!(
        said(&model, "Gateway", "gw", "/listeners/0/conditions"),
        "Accepted=True/Accepted Programmed=True/Programmed ResolvedRefs=True/ResolvedRefs Conflicted=False/NoConflicts"
    );
    let found = rows(&model, 80, "a.example", "/x/y");
    let Action::Split(split) = &found[0].route.action else { panic!() };
    assert_eq!(split.total(), 4);
    assert!(split.backends[0].target.is_ok() && split.backends[1].target.is_err());
    assert!(rows(&model, 80, "b.example", "/x/y").is_empty());
    assert_eq!(model.exposures.len(), 1);
}

#[test]
fn parents_say_who_may_come() {
    let case = Case::new()
        .gateway(
            "gw",
            json!({ "listeners": [
            { "name": "a", "port": 80, "protocol": "HTTP", "hostname": "*.a.example" },
            { "name": "b", "port": 81, "protocol": "HTTP", "allowedRoutes": { "kinds": [{ "kind": "GRPCRoute" }] } },
        ] }),
        )
        .http("other-namespace", "x", json!({ "parentRefs": [{ "name": "gw", "namespace": "ns" }] }))
        .http("other-host", "ns", json!({ "parentRefs": [{ "name": "gw", "port": 80 }], "hostnames": ["b.example"] }))
        .http("other-kind", "ns", json!({ "parentRefs": [{ "name": "gw", "sectionName": "b" }] }))
        .http("other-section", "ns", json!({ "parentRefs": [{ "name": "gw", "sectionName": "c" }] }))
        .http(
            "not-ours",
            "ns",
            json!({ "parentRefs": [{ "name": "unknown" }, { "name": "s", "kind": "Service", "group": "" }] }),
        );
    let model = case.build();
    for (route, reason) in [
        ("other-namespace", "NotAllowedByListeners"),
        ("other-host", "NoMatchingListenerHostname"),
        ("other-kind", "NotAllowedByListeners"),
        ("other-section", "NoMatchingParent"),
    ] {
        let want = format!("Accepted=False/{reason} ResolvedRefs=True/ResolvedRefs");
        assert_eq!(said(&model, "HTTPRoute", route, "/parents/0/conditions"), want, "{route}");
    }
    assert!(model.reports.iter().all(|r| &*r.key.name != "not-ours"));
    let gateway = model.reports.iter().find(|r| r.kind.kind == "Gateway").unwrap();
    let report::Wanted::Fields(status) = &gateway.wanted else { panic!() };
    assert_eq!(status["listeners"][0]["attachedRoutes"], 0);
}

#[test]
fn a_reference_to_another_namespace_needs_a_grant() {
    let rule = json!({ "parentRefs": [{ "name": "gw" }],
        "rules": [{ "backendRefs": [{ "name": "web", "namespace": "far", "port": 80 }] }] });
    let mut case = Case::new()
        .gateway("gw", json!({ "listeners": [listener(80, "http")] }))
        .service("web", "far")
        .http("r", "ns", rule);
    let conditions = |case: &Case| said(&case.build(), "HTTPRoute", "r", "/parents/0/conditions");
    assert_eq!(conditions(&case), "Accepted=True/Accepted ResolvedRefs=False/RefNotPermitted");
    let grant = |name: Option<&str>| {
        let grant = json!({ "metadata": { "name": "g", "namespace": "far" }, "spec": {
            "from": [{ "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "ns" }],
            "to": [{ "group": "", "kind": "Service", "name": name }] } });
        Update::Grant(Event::Apply(object(grant)))
    };
    case.add(grant(Some("other")));
    assert_eq!(conditions(&case), "Accepted=True/Accepted ResolvedRefs=False/RefNotPermitted");
    case.add(grant(None));
    assert_eq!(conditions(&case), "Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs");
}

#[test]
fn listeners_that_cannot_be_told_apart() {
    let set = json!({ "metadata": { "name": "set" }, "spec": { "parentRef": { "name": "gw" }, "listeners": [
        { "name": "same", "port": 80, "protocol": "HTTP", "hostname": "a.example" },
        { "name": "tcp", "port": 80, "protocol": "TCP" },
        { "name": "own", "port": 80, "protocol": "HTTP", "hostname": "b.example" },
    ] } });
    let gateway = |from: &str| {
        json!({ "allowedListeners": { "namespaces": { "from": from } }, "listeners": [
            { "name": "first", "port": 80, "protocol": "HTTP", "hostname": "a.example" },
            { "name": "odd", "port": 80, "protocol": "SCTP" },
            { "name": "udp", "port": 80, "protocol": "UDP" },
        ] })
    };
    let mut case = Case::new().gateway("gw", gateway("Same"));
    case.add(Update::ListenerSet(Event::Apply(object(set))));
    let model = case.build();
    let of = |index: usize| said(&model, "ListenerSet", "set", &format!("/listeners/{index}/conditions"));
    assert!(of(0).contains("Accepted=False/HostnameConflict Programmed=False/HostnameConflict"), "{}", of(0));
    assert!(of(1).contains("Conflicted=True/ProtocolConflict"), "{}", of(1));
    assert!(of(2).starts_with("Accepted=True/Accepted Programmed=True/Programmed"), "{}", of(2));
    assert_eq!(
        said(&model, "ListenerSet", "set", "/conditions"),
        "Accepted=True/ListenersNotValid Programmed=False/AddressNotAssigned"
    );
    assert!(said(&model, "Gateway", "gw", "/listeners/0/conditions").contains("Conflicted=False"));
    assert!(said(&model, "Gateway", "gw", "/listeners/1/conditions").starts_with("Accepted=False/UnsupportedProtocol"));
    assert!(said(&model, "Gateway", "gw", "/conditions").starts_with("Accepted=True/ListenersNotValid"));
    assert_eq!(model.fronts.len(), 2, "HTTP and UDP share a number");

    let closed = case.gateway("gw", gateway("None")).build();
    assert!(said(&closed, "ListenerSet", "set", "/conditions").starts_with("Accepted=False/NotAllowed"));
    let FrontService::Http(listeners) = &closed.fronts.values().next().unwrap().service else { panic!() };
    assert_eq!(listeners.len(), 1);
}

#[test]
fn what_cannot_be_served_says_so() {
    let tls = |mode: &str| {
        json!({ "name": "s", "port": 443, "protocol": "HTTPS", "tls": { "mode": mode,
        "certificateRefs": [{ "name": "gone" }] } })
    };
    let mut case = Case::new();
    case.0.handle(ViewUpdate::Secret(ObjectKey::new("ns", "gone"), Ok(None)));
    let model = case
        .gateway("certificate", json!({ "listeners": [tls("Terminate")] }))
        .gateway(
            "address",
            json!({ "listeners": [listener(80, "h")], "addresses": [{ "type": "Hostname", "value": "h" }] }),
        )
        .gateway(
            "parameters",
            json!({ "listeners": [listener(80, "h")],
            "infrastructure": { "parametersRef": { "group": "x", "kind": "Y", "name": "z" } } }),
        )
        .build();
    assert_eq!(
        said(&model, "Gateway", "certificate", "/listeners/0/conditions"),
        "Accepted=True/Accepted Programmed=False/Invalid ResolvedRefs=False/InvalidCertificateRef Conflicted=False/NoConflicts"
    );
    assert!(said(&model, "Gateway", "address", "/conditions").starts_with("Accepted=False/UnsupportedAddress"));
    assert!(said(&model, "Gateway", "parameters", "/conditions").starts_with("Accepted=False/InvalidParameters"));
    assert!(model.fronts.is_empty() && model.exposures.is_empty());
}

#[test]
fn only_what_may_be_used_is_read() {
    let reference = |kind: &str, name: &str, namespace: Option<&str>| json!({ "group": "", "kind": kind, "name": name, "namespace": namespace });
    let tls = |port: u16, references: &[Value]| json!({ "name": format!("p{port}"), "port": port, "protocol": "HTTPS", "tls": { "certificateRefs": references } });
    let spec = json!({ "listeners": [
            tls(443, &[reference("Secret", "own", None), reference("Secret", "far", Some("far"))]),
            tls(444, &[reference("ConfigMap", "no-certificate", None)]),
            { "name": "clear", "port": 80, "protocol": "HTTP", "tls": { "certificateRefs": [reference("Secret", "x", None)] } },
        ], "tls": { "backend": { "clientCertificateRef": reference("Secret", "client", None) },
            "frontend": { "default": { "validation": { "caCertificateRefs": [
                reference("ConfigMap", "clients", None), reference("ConfigMap", "far", Some("far"))] } } } } });
    let set = json!({ "metadata": { "name": "set" }, "spec": { "parentRef": { "name": "gw" },
        "listeners": [tls(445, &[reference("Secret", "set", None)])] } });
    let policy = json!({ "metadata": { "name": "p" }, "spec": {
        "targetRefs": [{ "group": "", "kind": "Service", "name": "web" }],
        "validation": { "hostname": "h", "caCertificateRefs": [
            reference("ConfigMap", "ca", None), reference("ConfigMap", "second", None)] } } });
    let mut case = Case::new();
    let needed = |case: &Case| {
        let all = references(&case.0, &mut CertCache::default());
        all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    case.add(Update::Policy(Event::Apply(object(policy))));
    assert_eq!(needed(&case), "", "no Gateway of ours needs it");
    let mut case = case.gateway("gw", spec);
    case.add(Update::ListenerSet(Event::Apply(object(set))));
    let own = "Secret ns/client, Secret ns/own";
    let maps = "ConfigMap ns/ca, ConfigMap ns/clients, ConfigMap ns/second";
    assert_eq!(needed(&case), format!("{own}, {maps}"));
    // Until it was read, nothing is said to be missing.
    let said_of = |case: &Case| said(&case.build(), "Gateway", "gw", "/conditions");
    assert!(said_of(&case).ends_with("ResolvedRefs=False/Pending"), "{}", said_of(&case));
    case.0.handle(ViewUpdate::Secret(ObjectKey::new("ns", "client"), Ok(None)));
    assert!(said_of(&case).ends_with("ResolvedRefs=False/InvalidClientCertificateRef"), "{}", said_of(&case));

    let grant = json!({ "metadata": { "name": "g", "namespace": "far" }, "spec": {
        "from": [{ "group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "ns" }],
        "to": [{ "group": "", "kind": "Secret" }] } });
    case.add(Update::Grant(Event::Apply(object(grant))));
    assert_eq!(needed(&case), format!("Secret far/far, {own}, {maps}"), "ConfigMaps are not granted");
}

#[test]
fn a_rule_that_cannot_be_kept_fails_and_the_others_are_served() {
    let model = Case::new()
        .gateway("gw", json!({ "listeners": [listener(80, "http")] }))
        .service("web", "ns")
        .http(
            "partly",
            "ns",
            json!({ "parentRefs": [{ "name": "gw" }], "hostnames": ["p.example"], "rules": [
                { "matches": [{ "path": { "value": "/bad" } }], "filters": [{ "type": "ExternalAuth" }],
                  "backendRefs": [{ "name": "web", "port": 80 }] },
                { "backendRefs": [{ "name": "web", "port": 80 }] } ] }),
        )
        .http(
            "wholly",
            "ns",
            json!({ "parentRefs": [{ "name": "gw" }], "rules": [
                { "matches": [{ "path": { "type": "RegularExpression", "value": "(" } }] }] }),
        )
        .build();
    assert_eq!(
        said(&model, "HTTPRoute", "partly", "/parents/0/conditions"),
        "Accepted=True/Accepted ResolvedRefs=True/ResolvedRefs PartiallyInvalid=True/UnsupportedValue"
    );
    assert!(
        said(&model, "HTTPRoute", "wholly", "/parents/0/conditions").starts_with("Accepted=False/UnsupportedValue")
    );
    let backends = |path: &str| match &rows(&model, 80, "p.example", path)[0].route.action {
        Action::Split(split) => split.backends.len(),
        _ => usize::MAX,
    };
    assert_eq!((backends("/bad"), backends("/good")), (0, 1));
}

#[test]
fn a_policy_is_told_at_the_gateways_that_use_it() {
    let policy = |name: &str, created: &str, ca: &str| {
        let policy = json!({ "metadata": { "name": name, "creationTimestamp": created }, "spec": {
            "targetRefs": [{ "group": "", "kind": "Service", "name": "web" }],
            "validation": { "hostname": "h.example", "caCertificateRefs": [{ "group": "", "kind": "ConfigMap", "name": ca }] } } });
        Update::Policy(Event::Apply(object(policy)))
    };
    let mut case = Case::new().gateway("gw", json!({ "listeners": [listener(80, "http")] })).service("web", "ns").http(
        "r",
        "ns",
        json!({ "parentRefs": [{ "name": "gw" }], "rules": [{ "backendRefs": [{ "name": "web", "port": 80 }] }] }),
    );
    case.add(Update::ConfigMap(ObjectKey::new("ns", "gone"), Ok(None)));
    case.add(policy("old", "2026-01-01T00:00:00Z", "gone"));
    case.add(policy("young", "2026-01-02T00:00:00Z", "gone"));
    let model = case.build();
    assert_eq!(
        said(&model, "BackendTLSPolicy", "old", "/ancestors/0/conditions"),
        "Accepted=False/NoValidCACertificate ResolvedRefs=False/InvalidCACertificateRef"
    );
    assert!(
        said(&model, "BackendTLSPolicy", "young", "/ancestors/0/conditions").starts_with("Accepted=False/Conflicted")
    );
    let Action::Split(split) = &rows(&model, 80, "x", "/")[0].route.action else { panic!() };
    assert!(split.backends[0].target.is_err(), "nothing is sent to a backend that cannot prove itself");
    assert!(said(&model, "HTTPRoute", "r", "/parents/0/conditions").ends_with("ResolvedRefs=True/ResolvedRefs"));
}
