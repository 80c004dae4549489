//! The model, fed with objects as they come over the wire.

use super::super::view::Update;
use super::*;
use crate::route::upstream::Protocol;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

fn view(objects: Vec<Value>) -> View {
    let mut view = View::default();
    for object in objects {
        let update = match object["kind"].as_str().unwrap() {
            "Ingress" => Update::Ingress(Event::Apply(serde_json::from_value(object).unwrap())),
            "IngressClass" => Update::Class(Event::Apply(serde_json::from_value(object).unwrap())),
            "Service" => Update::Service(Event::Apply(Arc::new(serde_json::from_value(object).unwrap()))),
            "EndpointSlice" => Update::Slice(Event::Apply(Arc::new(serde_json::from_value(object).unwrap()))),
            other => panic!("{other}"),
        };
        view.handle(update);
    }
    // Of Secrets there is none, and that is known.
    let named: Vec<_> = view.ingresses.values().flat_map(|i| reading::tls_secrets(i)).collect();
    for secret in named {
        view.handle(Update::Secret(secret, Ok(None)));
    }
    view
}

fn settings() -> Settings {
    Settings { class: "causeway".to_owned(), default_class: true }
}

/// What a fresh model says of a view.
#[derive(Debug, Default)]
struct Built {
    /// By host and path.
    rules: Vec<(String, Rule)>,
    defaults: Vec<(String, String, Target)>,
    certificates: Vec<String>,
    /// By name.
    reports: Vec<Report>,
}

impl Built {
    fn new(plan: Plan) -> Self {
        let mut built = Self::default();
        let mut rows = plan.rows;
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        for (slot, row) in rows {
            match (&*slot, row) {
                (Slot::Path(host, path), Some(Row::Rule(rule))) => built.rules.push((format!("{host} {path}"), *rule)),
                (Slot::Default(host), Some(Row::Default(owner, target))) => {
                    built.defaults.push((host.to_string(), owner.to_string(), target));
                }
                (Slot::Certificate(host), Some(Row::Certificate(_))) => built.certificates.push(host.to_string()),
                (_, None) => {}
                other => panic!("{other:?}"),
            }
        }
        built.reports = plan.reports.into_iter().filter_map(|(_, report)| report).collect();
        built
    }
}

fn run(objects: Vec<Value>) -> Built {
    Built::new(Model::default().update(&view(objects), &settings(), &Dirt::all()))
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "ns"}, "spec": spec})
}

fn web() -> Value {
    service(
        "web",
        json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "grpc", "port": 90, "appProtocol": "kubernetes.io/h2c"}]}),
    )
}

fn ingress(name: &str, second: u8, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name, "namespace": "ns", "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")}, "spec": spec})
}

fn rule(host: &str, path: &str, kind: &str, service: &str, port: Value) -> Value {
    json!({"host": host, "http": {"paths": [{"path": path, "pathType": kind, "backend": {"service": {"name": service, "port": port}}}]}})
}

fn reasons(model: &Built) -> Vec<(String, Vec<&'static str>)> {
    let of = |r: &Report| (r.ingress.metadata.name.clone().unwrap(), r.problems.iter().map(|p| p.reason).collect());
    model.reports.iter().map(of).collect()
}

#[test]
fn ports_by_name_and_number() {
    let model = run(vec![
        web(),
        ingress(
            "a",
            1,
            json!({"rules": [
                rule("a", "/", "Prefix", "web", json!({"number": 80})),
                rule("b", "/", "Prefix", "web", json!({"name": "grpc"})),
            ]}),
        ),
    ]);
    assert_eq!(reasons(&model), [("a".to_owned(), vec![])]);
    let keys: Vec<_> = model.rules.iter().map(|(_, r)| r.target.clone()).collect();
    let key = |port: &str, protocol| {
        Target::Backend(BackendKey::Service {
            service: ObjectKey::new("ns", "web"),
            port: port.into(),
            protocol,
            tls: None,
        })
    };
    assert_eq!(keys, [key("http", Protocol::Http1), key("grpc", Protocol::H2c)]);
}

#[test]
fn the_oldest_wins_and_the_other_is_told() {
    let same = |port: i32| json!({"rules": [rule("shop", "/", "Prefix", "web", json!({"number": port}))]});
    let model = run(vec![web(), ingress("young", 9, same(90)), ingress("old", 1, same(80))]);
    assert_eq!(reasons(&model), [("old".to_owned(), vec![]), ("young".to_owned(), vec!["Conflict"])]);
    assert_eq!(model.rules.len(), 1);
    assert_eq!(model.rules[0].1.owner, ObjectKey::new("ns", "old"));
    assert!(model.reports[1].problems[0].message.contains("ns/old"));
    // Of the same age: by name. Different path types do not collide.
    let exact = json!({"rules": [rule("shop", "/", "Exact", "web", json!({"number": 80}))]});
    let model = run(vec![web(), ingress("b", 1, same(80)), ingress("a", 1, same(80)), ingress("c", 1, exact)]);
    assert_eq!(reasons(&model)[1], ("b".to_owned(), vec!["Conflict"]));
    assert_eq!(model.rules.len(), 2);
}

#[test]
fn mistakes_stay_where_they_are() {
    let model = run(vec![
        web(),
        ingress(
            "a",
            1,
            json!({
                "rules": [
                    rule("ok", "/", "Prefix", "web", json!({"number": 80})),
                    rule("ok", "/missing", "Prefix", "nope", json!({"number": 80})),
                    rule("ok", "/port", "Prefix", "web", json!({"number": 81})),
                    rule("a..b", "/", "Prefix", "web", json!({"number": 80})),
                    rule("ok", "/x/../..", "Prefix", "web", json!({"number": 80})),
                    {"host": "ok", "http": {"paths": [{"path": "/r", "pathType": "Prefix",
                        "backend": {"resource": {"apiGroup": "x", "kind": "Bucket", "name": "b"}}}]}},
                ],
                "tls": [{"hosts": ["ok"], "secretName": "gone"}],
            }),
        ),
    ]);
    assert_eq!(
        reasons(&model)[0].1,
        ["ServiceNotFound", "ServicePortNotFound", "InvalidHost", "InvalidPath", "ResourceBackend", "SecretNotFound"]
    );
    let available = model.rules.iter().filter(|(_, r)| matches!(r.target, Target::Backend(_))).count();
    assert_eq!((model.rules.len(), available), (4, 1));
}

#[test]
fn what_was_not_read_yet_is_not_said_to_be_missing() {
    let tls = json!({"rules": [], "tls": [{"hosts": ["h"], "secretName": "s"}]});
    let (mut view, mut model) = (view(vec![]), Model::default());
    let mut dirt = view.handle(Update::Ingress(Event::Apply(serde_json::from_value(ingress("a", 1, tls)).unwrap())));
    let mut said = |view: &View, dirt: &Dirt| {
        let problems = Built::new(model.update(view, &settings(), dirt)).reports.remove(0).problems;
        problems.into_iter().map(|p| format!("{} {}", p.reason, p.message)).collect::<String>()
    };
    assert!(said(&view, &dirt).starts_with("SecretNotRead Secret ns/s: it has not been read yet"));
    let secret = || ObjectKey::new("ns", "s");
    dirt = view.handle(Update::Secret(secret(), Err("it cannot be read: refused".to_owned())));
    assert!(said(&view, &dirt).contains("it cannot be read: refused"));
    dirt = view.handle(Update::Secret(secret(), Ok(None)));
    assert!(said(&view, &dirt).starts_with("SecretNotFound"));
    // One of another type is none that can be used.
    let other = json!({"metadata": {"name": "s", "namespace": "ns"}, "type": "Opaque"});
    dirt = view.handle(Update::secret(serde_json::from_value(other).unwrap()));
    assert!(said(&view, &dirt).starts_with("SecretNotFound"));
}

#[test]
fn classes() {
    let class = |name: &str, controller: &str, default: bool| {
        json!({"kind": "IngressClass", "metadata": {"name": name, "annotations":
            {DEFAULT_CLASS_ANNOTATION: default.to_string()}}, "spec": {"controller": controller}})
    };
    let with = |name: &str, class: Option<&str>, annotation: Option<&str>| {
        let mut i = ingress(name, 1, json!({"ingressClassName": class, "rules": []}));
        i["metadata"]["annotations"] = json!(annotation.map(|a| json!({CLASS_ANNOTATION: a})));
        i
    };
    let all = vec![
        with("named", Some("causeway"), None),
        with("other", Some("nginx"), None),
        with("unknown", Some("nobody"), None),
        with("annotated", None, Some("causeway")),
        with("annotated-other", None, Some("nginx")),
        with("none", None, None),
    ];
    let names = |mut objects: Vec<Value>| {
        objects.extend(all.clone());
        let model = run(objects);
        model.reports.iter().map(|r| r.ingress.metadata.name.clone().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(names(vec![]), ["annotated", "named", "none"]);
    assert_eq!(names(vec![class("causeway", CONTROLLER, false)]), ["annotated", "named"]);
    assert_eq!(names(vec![class("causeway", CONTROLLER, true)]), ["annotated", "named", "none"]);
    // A class of that name that belongs to somebody else.
    assert_eq!(names(vec![class("causeway", "example.org/other", false)]), ["none"]);
    assert_eq!(names(vec![class("nginx", CONTROLLER, false)]), ["annotated", "annotated-other", "named", "other"]);
}

#[test]
fn default_backends() {
    let backend = |port: i32| json!({"service": {"name": "web", "port": {"number": port}}});
    let model = run(vec![
        web(),
        ingress(
            "a",
            1,
            json!({"defaultBackend": backend(80), "rules": [rule("h", "/x", "Prefix", "web", json!({"number": 90}))]}),
        ),
        ingress("b", 2, json!({"defaultBackend": backend(90)})),
    ]);
    assert_eq!(reasons(&model), [("a".to_owned(), vec![]), ("b".to_owned(), vec!["Conflict"])]);
    let hosts: Vec<_> = model.defaults.iter().map(|(h, o, _)| (h.clone(), o.clone())).collect();
    assert_eq!(hosts, [("h".to_owned(), "ns/a".to_owned()), ("*".to_owned(), "ns/a".to_owned())]);
}

#[test]
fn external_names() {
    let external = |spec: Value| service("ext", spec);
    let one = |port: Value| ingress("a", 1, json!({"rules": [rule("h", "/", "Prefix", "ext", port)]}));
    let model = run(vec![
        external(json!({"type": "ExternalName", "externalName": "db.example"})),
        one(json!({"number": 8080})),
    ]);
    let want = BackendKey::External { name: "db.example".into(), port: 8080, protocol: Protocol::Http1 };
    assert_eq!(model.rules[0].1.target, Target::Backend(want));
    let model =
        run(vec![external(json!({"type": "ExternalName", "externalName": "db.example"})), one(json!({"name": "x"}))]);
    assert_eq!(reasons(&model)[0].1, ["ServicePortNotFound"]);
}

#[test]
fn endpoints_are_the_usable_ones_of_the_port() {
    let slice = |name: &str, endpoints: Value| {
        json!({"kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "http", "port": 8080}, {"name": "grpc", "port": 9090}], "endpoints": endpoints})
    };
    let mut v = view(vec![
        web(),
        slice(
            "s1",
            json!([
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            ]),
        ),
        slice("s2", json!([{"addresses": ["10.0.0.3"], "conditions": {}}])),
    ]);
    let key = BackendKey::Service {
        service: ObjectKey::new("ns", "web"),
        port: "http".into(),
        protocol: Protocol::Http1,
        tls: None,
    };
    let texts = |v: &View| addresses(v, &key).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&v), ["10.0.0.1:8080", "10.0.0.3:8080"]);
    // Nobody is ready any more: those that still serve while they end.
    let gone = serde_json::from_value(slice("s2", json!([]))).unwrap();
    let dirt = v.handle(Update::Slice(Event::Delete(Arc::new(gone))));
    assert_eq!(dirt.services.into_iter().collect::<Vec<_>>(), [ObjectKey::new("ns", "web")]);
    let ending = slice(
        "s1",
        json!([{"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}}]),
    );
    v.handle(Update::Slice(Event::Apply(Arc::new(serde_json::from_value(ending).unwrap()))));
    assert_eq!(texts(&v), ["10.0.0.2:8080"]);
}

#[test]
fn a_relist_replaces_everything_at_once() {
    let mut v = view(vec![web(), ingress("old", 1, json!({}))]);
    let listed: Ingress = serde_json::from_value(ingress("new", 1, json!({}))).unwrap();
    assert!(v.handle(Update::Ingress(Event::Init)).is_empty());
    assert!(v.handle(Update::Ingress(Event::InitApply(listed))).is_empty());
    assert_eq!(v.ingresses.values().count(), 1);
    assert!(v.ingresses.get(&ObjectKey::new("ns", "old")).is_some());
    assert!(v.handle(Update::Ingress(Event::InitDone)).routes);
    assert!(v.ingresses.get(&ObjectKey::new("ns", "old")).is_none());
    assert!(v.ingresses.get(&ObjectKey::new("ns", "new")).is_some());
    // Only the status changed: no new table.
    let mut same = ingress("new", 1, json!({}));
    same["status"] = json!({"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}});
    let dirt = v.handle(Update::Ingress(Event::Apply(serde_json::from_value(same).unwrap())));
    assert!(!dirt.routes && dirt.ingresses.is_empty() && dirt.reports.contains(&ObjectKey::new("ns", "new")));
}
