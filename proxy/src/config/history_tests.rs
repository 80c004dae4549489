//! Whatever way led there: what objects that came, changed and went one by one leave in the data plane is what a fresh
//! start finds in the same objects.

use super::history_gateways as gateways;
use super::view::Update;
use super::*;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::watcher::Event;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::LazyLock;

/// One event.
#[derive(Debug, Clone)]
pub struct Step {
    pub kind: &'static str,
    pub object: Value,
    pub gone: bool,
}

impl Step {
    pub fn event<K: DeserializeOwned>(&self) -> Event<K> {
        let object = serde_json::from_value(self.object.clone()).unwrap();
        if self.gone { Event::Delete(object) } else { Event::Apply(object) }
    }

    fn shared<K: DeserializeOwned>(&self) -> Event<Arc<K>> {
        let object = Arc::new(serde_json::from_value(self.object.clone()).unwrap());
        if self.gone { Event::Delete(object) } else { Event::Apply(object) }
    }

    fn update(&self) -> Update {
        if let Some(update) = gateways::update(self) {
            return Update::Gateway(Box::new(update));
        }
        match self.kind {
            "Ingress" => Update::Ingress(self.event()),
            "IngressClass" => Update::Class(self.event()),
            "Service" => Update::Service(self.shared()),
            "EndpointSlice" => Update::Slice(self.shared()),
            other => panic!("{other} is followed by name"),
        }
    }

    /// What the step makes of the Secrets that there are, where it is about one.
    fn secret(&self, secrets: &mut BTreeMap<ObjectKey, Secret>) -> Option<ObjectKey> {
        if self.kind != "Secret" {
            return None;
        }
        let object: Secret = serde_json::from_value(self.object.clone()).unwrap();
        let key = ObjectKey::of(&object);
        if self.gone {
            secrets.remove(&key)
        } else {
            secrets.insert(key.clone(), object)
        };
        Some(key)
    }
}

static PAIRS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let pair = |_| {
        let made = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    };
    (0..2).map(pair).collect()
});

pub fn one<T: Clone + std::fmt::Debug + 'static>(all: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(all)
}

fn backend() -> impl Strategy<Value = Value> {
    (one(&["s", "t", "none"]), one(&[80, 81])).prop_map(|(s, p)| json!({"service": {"name": s, "port": {"number": p}}}))
}

/// A backend as routes of Gateways name it.
pub fn backend_ref() -> impl Strategy<Value = Value> {
    (one(&["s", "t", "none"]), one(&[80, 81]), 0..3, one(&[None, Some("n")])).prop_map(
        |(name, port, weight, namespace)| json!({"name": name, "port": port, "weight": weight, "namespace": namespace}),
    )
}

fn rule() -> impl Strategy<Value = Value> {
    let kind = one(&["Prefix", "Exact", "ImplementationSpecific"]);
    let path = (one(&["/", "/x", "/x/y", "x"]), kind, backend())
        .prop_map(|(path, kind, backend)| json!({"path": path, "pathType": kind, "backend": backend}));
    (one(&["a", "a", "b", "*.a", "", "a..b"]), prop::collection::vec(path, 0..3))
        .prop_map(|(host, paths)| json!({"host": host, "http": {"paths": paths}}))
}

fn ingress() -> impl Strategy<Value = Value> {
    let tls = (prop::collection::vec(one(&["a", "b", "*.a"]), 0..3), one(&["c", "d", "none"]))
        .prop_map(|(hosts, secret)| json!({"hosts": hosts, "secretName": secret}));
    let annotations = one(&[
        "{}",
        "{}",
        r#"{"causeway.dev/canary": "true", "causeway.dev/canary-weight": "30"}"#,
        r#"{"causeway.dev/canary": "true", "causeway.dev/canary-by-header": "x"}"#,
        r#"{"causeway.dev/use-regex": "true", "causeway.dev/rewrite-target": "/z"}"#,
        r#"{"causeway.dev/auth-type": "basic", "causeway.dev/auth-secret": "c"}"#,
    ]);
    let spec = (
        prop::collection::vec(rule(), 0..3),
        prop::collection::vec(tls, 0..2),
        prop::option::weighted(0.2, backend()),
        one(&[None, Some("causeway"), Some("other")]),
    );
    (one(&["n", "m"]), one(&["i", "j", "k"]), 0..3, annotations, spec).prop_map(
        |(namespace, name, second, annotations, (rules, tls, default, class))| {
            let annotations: Value = serde_json::from_str(annotations).unwrap();
            json!({"metadata": {"namespace": namespace, "name": name, "annotations": annotations,
                    "creationTimestamp": format!("2026-01-01T00:00:0{second}Z")},
                "spec": {"rules": rules, "tls": tls, "defaultBackend": default, "ingressClassName": class}})
        },
    )
}

fn service() -> impl Strategy<Value = Value> {
    let spec = one(&[
        r#"{"ports": [{"port": 80}]}"#,
        r#"{"ports": [{"name": "http", "port": 80}, {"name": "h2", "port": 81, "appProtocol": "kubernetes.io/h2c"}]}"#,
        r#"{"type": "ExternalName", "externalName": "db.example"}"#,
    ]);
    let annotations =
        one(&[r"{}", r#"{"causeway.dev/load-balance": "round-robin"}"#, r#"{"causeway.dev/load-balance": "?"}"#]);
    (one(&["n", "m"]), one(&["s", "t"]), spec, annotations).prop_map(|(namespace, name, spec, annotations)| {
        let (spec, annotations): (Value, Value) =
            (serde_json::from_str(spec).unwrap(), serde_json::from_str(annotations).unwrap());
        json!({"metadata": {"namespace": namespace, "name": name, "annotations": annotations}, "spec": spec})
    })
}

fn slice() -> impl Strategy<Value = Value> {
    (one(&["n", "m"]), one(&["s", "t"]), one(&["", "http"]), prop::collection::vec(1..5u8, 0..3)).prop_map(
        |(namespace, service, port, addresses)| {
            let endpoints: Vec<_> = addresses.iter().map(|a| json!({"addresses": [format!("10.0.0.{a}")]})).collect();
            json!({"addressType": "IPv4", "ports": [{"name": port, "port": 8080}], "endpoints": endpoints,
                "metadata": {"namespace": namespace, "name": format!("{service}-1"),
                    "labels": {"kubernetes.io/service-name": service}}})
        },
    )
}

fn secret() -> impl Strategy<Value = Value> {
    (one(&["n", "m"]), one(&["c", "d"]), 0..3usize).prop_map(|(namespace, name, pair)| {
        let mut secret =
            json!({"metadata": {"namespace": namespace, "name": name}, "type": "kubernetes.io/tls", "data": {}});
        if let Some((certificate, key)) = PAIRS.get(pair) {
            let data = |text: &str| json!(k8s_openapi::ByteString(text.as_bytes().to_vec()));
            secret["data"] = json!({"tls.crt": data(certificate), "tls.key": data(key)});
        }
        secret
    })
}

fn password() -> impl Strategy<Value = Value> {
    (one(&["n", "m"]), one(&["a:{SHA}x", "b:{SHA}y", "broken"])).prop_map(|(namespace, file)| {
        let file = k8s_openapi::ByteString(file.as_bytes().to_vec());
        json!({"metadata": {"namespace": namespace, "name": "c"}, "type": "Opaque", "data": {"auth": file}})
    })
}

fn class() -> impl Strategy<Value = Value> {
    (one(&["causeway", "other"]), one(&["causeway.dev/ingress", "example.org/x"]), one(&["true", "false"])).prop_map(
        |(name, controller, default)| {
            json!({"metadata": {"name": name, "annotations": {model::DEFAULT_CLASS_ANNOTATION: default}},
                "spec": {"controller": controller}})
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let object = prop_oneof![
        12 => ingress().prop_map(|o| ("Ingress", o)),
        4 => service().prop_map(|o| ("Service", o)),
        3 => slice().prop_map(|o| ("EndpointSlice", o)),
        2 => secret().prop_map(|o| ("Secret", o)),
        1 => password().prop_map(|o| ("Secret", o)),
        1 => class().prop_map(|o| ("IngressClass", o)),
        12 => gateways::object(),
    ];
    (object, prop::bool::weighted(0.25)).prop_map(|((kind, object), gone)| Step { kind, object, gone })
}

/// A planner and what its data plane reads.
struct Plane {
    shared: Arc<Shared>,
    planner: Planner,
    told: BTreeMap<ObjectKey, Vec<String>>,
    reports: Arc<Outbox<Option<Report>>>,
    gateways: GatewayOutput,
    followed: BTreeSet<Which>,
}

impl Plane {
    fn new() -> Self {
        let shared = Arc::new(Shared::new().unwrap());
        let settings = Settings { class: "causeway".to_owned(), default_class: true };
        let (mut planner, reports) = Planner::new(Arc::clone(&shared), settings);
        let address = std::net::IpAddr::from([10, 0, 0, 1]);
        let gateways = planner.with_gateways(gateway::Settings { node: "node".to_owned(), address });
        Self { shared, planner, told: BTreeMap::new(), reports, gateways, followed: BTreeSet::new() }
    }

    /// As [`follow::Follower`] does it: what is new in the view makes other objects needed, of which nothing is known until
    /// they are `read`.
    fn follow(&mut self, view: &mut View, dirt: &mut Dirt, secrets: &BTreeMap<ObjectKey, Secret>, read: bool) {
        if let Some(needed) = self.planner.needed(view, dirt) {
            self.followed.difference(&needed).for_each(|which| view.forget(which));
            self.followed = needed;
        }
        let mut new = Dirt::default();
        for which in self.followed.iter().filter(|_| read) {
            if let Which::Secret(key) = which {
                new.merge(view.handle(Update::Secret(key.clone(), Ok(secrets.get(key).cloned()))));
            }
        }
        self.planner.needed(view, &mut new);
        dirt.merge(new);
    }

    fn apply(&mut self, view: &View, dirt: &Dirt) {
        self.planner.apply(view, dirt);
        for (key, report) in futures::FutureExt::now_or_never(self.reports.take()).into_iter().flatten() {
            match report {
                Some(report) => {
                    let text = |p: &model::Problem| format!("{}: {}", p.reason, p.message);
                    self.told.insert(key, report.problems.iter().map(text).collect())
                }
                None => self.told.remove(&key),
            };
        }
    }

    /// All that can be seen of it, a line each.
    fn lines(&self) -> Vec<String> {
        let upstream = |u: &Upstream| {
            let endpoints: BTreeSet<_> = u.endpoints().iter().map(|e| e.address).collect();
            format!("{:?} {endpoints:?} {:?}", u.key, u.balance())
        };
        let table = self.shared.table.load();
        let mut lines = vec![format!("{} rules", table.len())];
        for (host, path, route) in table.rows() {
            let action = match &route.action {
                Action::Forward(to) => upstream(to),
                other => format!("{other:?}"),
            };
            let canary = route.canary.as_ref().map(|c| format!("{:?} {}", c.choice, upstream(&c.upstream)));
            let policy = route.policy.as_ref().map(|p| (p.auth.is_some(), format!("{:?}", p.sources)));
            let rewrite = route.rewrite.as_ref().map(|r| &r.to);
            lines.push(format!("{host} {path} {} {action} {canary:?} {policy:?} {rewrite:?}", route.owner));
        }
        for name in [None, Some("a"), Some("b"), Some("x.a"), Some("c")] {
            let found = self.shared.certificates.load();
            lines.push(format!("{name:?} {:?}", found.find(name).map(|key| key.cert[0].as_ref().to_vec())));
        }
        lines.extend(gateways::lines(&self.shared, &self.gateways));
        lines.extend(self.told.iter().map(|(key, problems)| format!("{key} {problems:#?}")));
        lines
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn any_history_ends_where_a_fresh_start_does(
        steps in prop::collection::vec((step(), any::<bool>(), prop::bool::weighted(0.8)), 1..80),
        relist in prop::option::weighted(0.3, 0..60usize),
    ) {
        let (mut view, mut plane, mut dirt) = (View::default(), Plane::new(), Dirt::default());
        let mut secrets = BTreeMap::new();
        dirt.merge(view.handle(gateways::class().update()));
        for (number, (step, apply, read)) in steps.iter().enumerate() {
            match step.secret(&mut secrets) {
                // Its watch says so, if there is one.
                Some(key) if plane.followed.contains(&Which::Secret(key.clone())) => {
                    let found = secrets.get(&key).cloned();
                    dirt.merge(view.handle(Update::Secret(key, Ok(found))));
                }
                Some(_) => {}
                None => dirt.merge(view.handle(step.update())),
            }
            if relist == Some(number) {
                // The watch was interrupted: the list says the same again, but for one Ingress that is gone.
                let kept: Vec<_> = view.ingresses.values().skip(1).map(|i| (**i).clone()).collect();
                view.handle(Update::Ingress(Event::Init));
                for ingress in kept {
                    view.handle(Update::Ingress(Event::InitApply(ingress)));
                }
                dirt.merge(view.handle(Update::Ingress(Event::InitDone)));
            }
            if *apply || number + 1 == steps.len() {
                plane.follow(&mut view, &mut dirt, &secrets, *read);
                plane.apply(&view, &std::mem::take(&mut dirt));
                let mut fresh = Plane::new();
                fresh.apply(&view, &Dirt::all());
                let (lines, want) = (plane.lines(), fresh.lines());
                let beyond = |of: &[String], other: &[String]| -> Vec<String> {
                    of.iter().filter(|line| !other.contains(line)).cloned().collect()
                };
                prop_assert_eq!(beyond(&lines, &want), beyond(&want, &lines));
                prop_assert_eq!(lines, want);
            }
        }
    }
}

#[test]
fn a_canary_goes_to_the_rule_that_fits_better() {
    let ingress = |name: &str, kind: &str, annotations: Value| Step {
        kind: "Ingress",
        object: json!({"metadata": {"namespace": "n", "name": name, "annotations": annotations}, "spec": {"rules": [
            {"host": "a", "http": {"paths": [{"path": "/x", "pathType": kind,
                "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}),
        gone: false,
    };
    let service = json!({"metadata": {"namespace": "n", "name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let expression = ingress("expression", "ImplementationSpecific", json!({"causeway.dev/use-regex": "true"}));
    let plain = ingress("plain", "Prefix", json!({}));
    let canary =
        ingress("canary", "Prefix", json!({"causeway.dev/canary": "true", "causeway.dev/canary-weight": "30"}));
    let (mut view, mut plane) = (View::default(), Plane::new());
    let mut apply = |step: &Step| {
        let dirt = view.handle(step.update());
        plane.apply(&view, &dirt);
        let table = plane.shared.table.load();
        let with = table.rows().into_iter().filter(|(.., route)| route.canary.is_some());
        let with = with.map(|(.., route)| route.owner.name.to_string()).collect::<Vec<_>>().join(" ");
        let told = plane.told.get(&ObjectKey::new("n", "canary")).cloned().unwrap_or_default();
        (with, told.len())
    };
    apply(&Step { kind: "Service", object: service, gone: false });
    assert_eq!(apply(&canary), (String::new(), 1));
    assert_eq!(apply(&expression), ("expression".to_owned(), 0));
    assert_eq!(apply(&plain), ("plain".to_owned(), 0));
    assert_eq!(apply(&Step { gone: true, ..plain }), ("expression".to_owned(), 0));
    assert_eq!(apply(&Step { gone: true, ..expression }), (String::new(), 1));
}
