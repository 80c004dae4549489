//! The Gateway API's part of histories: its objects at random, and all that can be seen of Gateways.

use super::history_tests::{Step, backend_ref, one};
use super::*;
use crate::gateway::view::Update as GatewayUpdate;
use crate::route::front::{FrontService, TlsMode};
use proptest::prelude::*;
use serde_json::{Value, json};

fn meta(namespace: &str, name: &str) -> Value {
    // An object keeps its age. Of one age are some, so that names decide.
    let second = name.bytes().chain(namespace.bytes()).map(u32::from).sum::<u32>() % 3;
    json!({"namespace": namespace, "name": name, "generation": 1, "uid": name,
        "creationTimestamp": format!("2026-01-01T00:00:0{second}Z")})
}

fn gateway() -> impl Strategy<Value = Value> {
    let from = one(&["Same", "All"]);
    (one(&["g", "h"]), prop::sample::subsequence(vec![0, 1, 2, 3, 4], 1..5), from).prop_map(
        |(name, listeners, from)| {
            let all = [
                json!({"name": "any", "port": 80, "protocol": "HTTP"}),
                json!({"name": "a", "port": 80, "protocol": "HTTP", "hostname": "*.a"}),
                json!({"name": "other", "port": 81, "protocol": "HTTP"}),
                json!({"name": "bytes", "port": 90, "protocol": "TCP"}),
                json!({"name": "tls", "port": 443, "protocol": "TLS", "tls": {"certificateRefs": [{"name": "d"}]}}),
            ];
            let listeners: Vec<_> = listeners
                .into_iter()
                .map(|at| {
                    let mut listener = all[at].clone();
                    listener["allowedRoutes"] = json!({"namespaces": {"from": from}});
                    listener
                })
                .collect();
            json!({"metadata": meta("n", name), "spec": {"gatewayClassName": "causeway", "listeners": listeners}})
        },
    )
}

fn route(kind: &'static str) -> impl Strategy<Value = Value> {
    let parent = (one(&["g", "g", "g", "h", "none"]), one(&[None, None, None, Some("any"), Some("a")]))
        .prop_map(|(name, section)| json!({"name": name, "namespace": "n", "sectionName": section}));
    let header = one(&[None, None, None, Some("x")]);
    let rule = (
        one(&["/", "/", "/", "/x", "x"]),
        header,
        one(&["PathPrefix", "PathPrefix", "Exact"]),
        prop::collection::vec(backend_ref(), 0..3),
    );
    let rule = rule.prop_map(move |(path, header, how, backends)| {
        let headers: Vec<_> = header.into_iter().map(|name| json!({"name": name, "value": "1"})).collect();
        let matches = match kind {
            "HTTPRoute" => json!([{"path": {"type": how, "value": path}, "headers": headers}]),
            "GRPCRoute" => json!([{"method": {"service": path.replace('/', "s")}, "headers": headers}]),
            _ => return json!({"backendRefs": backends}),
        };
        json!({"matches": matches, "backendRefs": backends})
    });
    let spec = (
        prop::collection::vec(parent, 1..3),
        prop::sample::subsequence(vec!["b", "x.a", "*.a"], 0..2),
        prop::collection::vec(rule, 1..3),
    );
    (one(&["n", "m"]), one(&["r", "q", "p"]), spec).prop_map(move |(namespace, name, (parents, hosts, rules))| {
        let mut route = json!({"metadata": meta(namespace, name), "spec": {"parentRefs": parents, "rules": rules}});
        if kind != "TCPRoute" {
            route["spec"]["hostnames"] = json!(hosts);
        }
        route
    })
}

fn grant() -> impl Strategy<Value = Value> {
    one(&["HTTPRoute", "GRPCRoute"]).prop_map(|kind| {
        json!({"metadata": meta("n", "grant"), "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": kind, "namespace": "m"}],
            "to": [{"group": "", "kind": "Service"}]}})
    })
}

/// An object, with its kind.
pub fn object() -> impl Strategy<Value = (&'static str, Value)> {
    prop_oneof![
        2 => gateway().prop_map(|o| ("Gateway", o)),
        8 => route("HTTPRoute").prop_map(|o| ("HTTPRoute", o)),
        4 => route("GRPCRoute").prop_map(|o| ("GRPCRoute", o)),
        1 => route("TCPRoute").prop_map(|o| ("TCPRoute", o)),
        1 => grant().prop_map(|o| ("ReferenceGrant", o)),
    ]
}

/// What a step does to the view; none when it is not about the Gateway API.
pub fn update(step: &Step) -> Option<GatewayUpdate> {
    Some(match step.kind {
        "GatewayClass" => GatewayUpdate::Class(step.event()),
        "Gateway" => GatewayUpdate::Gateway(Box::new(step.event())),
        "HTTPRoute" => GatewayUpdate::Http(step.event()),
        "GRPCRoute" => GatewayUpdate::Grpc(step.event()),
        "TCPRoute" => GatewayUpdate::Tcp(step.event()),
        "ReferenceGrant" => GatewayUpdate::Grant(step.event()),
        _ => return None,
    })
}

/// The class of all Gateways.
pub fn class() -> Step {
    let object = json!({"metadata": {"name": "causeway"}, "spec": {"controllerName": crate::gateway::CONTROLLER}});
    Step { kind: "GatewayClass", object, gone: false }
}

/// All that can be seen of Gateways, a line each.
pub fn lines(shared: &Shared, output: &GatewayOutput) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, front) in shared.fronts.borrow().iter() {
        match &front.service {
            FrontService::Http(listeners) => {
                for listener in listeners {
                    for (host, path, row) in listener.rules.rows() {
                        let row: Vec<_> = row
                            .iter()
                            .map(|c| format!("{:?} {} {:?}", c.conditions, c.route.owner, action(&c.route.action)))
                            .collect();
                        lines.push(format!("{key} {} {host} {path} {row:#?}", listener.name));
                    }
                }
            }
            FrontService::Tcp(split) => lines.push(format!("{key} {:?}", action(&Action::Split(split.clone())))),
            FrontService::Tls(listeners) => {
                for listener in listeners {
                    let TlsMode::Terminate(server, _) = &listener.mode else { panic!("{listener:?}") };
                    let shown = server.certificates.find(None).map(|pair| pair.cert[0].as_ref().to_vec());
                    lines.push(format!("{key} {} {shown:?}", listener.name));
                }
            }
            other => lines.push(format!("{key} {other:?}")),
        }
    }
    let mut reports: Vec<_> = output
        .reports
        .borrow()
        .iter()
        .map(|r| format!("{} {} {:?} {:?} {}", r.kind.kind, r.key, r.wanted, r.current, r.resource_version))
        .collect();
    reports.sort();
    lines.extend(reports);
    lines.push(format!("{:?}", *output.writes.borrow()));
    lines
}

fn action(action: &Action) -> Vec<String> {
    let Action::Split(split) = action else { return vec![format!("{action:?}")] };
    let target = |target: &Result<Arc<Upstream>, Arc<str>>| match target {
        Ok(upstream) => {
            format!("{:?} {:?}", upstream.key, upstream.endpoints().iter().map(|e| e.address).collect::<Vec<_>>())
        }
        Err(why) => why.to_string(),
    };
    split.backends.iter().map(|share| format!("{} {}", share.weight, target(&share.target))).collect()
}
