//! core/v1 Service: a stable name and address. Addresses, node ports, families and `clusterIPs` are allocated by the
//! engine after these defaults.

use crate::json::{at, existing_mut, fill, fill_zero, int, items_mut, list, object_mut, put, remove, text};
use crate::rules::{Kind, Rules, Status};
use crate::validate::service;
use crate::{Resource, age, cell, field};
use serde_json::{Value, json};

/// Three hours.
const AFFINITY_SECONDS: i64 = 10_800;

pub(super) fn resource() -> Resource {
    Kind::new("", "v1", "Service", "services")
        .short(&["svc"])
        .in_all()
        .columns(&[
            ("Name", "string", 0),
            ("Type", "string", 0),
            ("Cluster-IP", "string", 0),
            ("External-IP", "string", 0),
            ("Port(s)", "string", 0),
            ("Age", "string", 0),
            ("Selector", "string", 1),
        ])
        .rules(Rules {
            default,
            status: Status::Cleared(|_| json!({"loadBalancer": {}})),
            status_metadata: true,
            prepare,
            validate: service::service,
            validate_update: service::service_update,
            validate_status: service::service_status,
            cells,
            fields: &["spec.clusterIP", "spec.type"],
            name: field::dns_1035_label,
            ..Rules::default()
        })
}

/// Only a load balancer has load balancer's addresses.
fn prepare(o: &mut Value, old: Option<&Value>) {
    if old.is_some()
        && text(o, "spec.type") != "LoadBalancer"
        && let Some(status) = existing_mut(o, "status")
    {
        put(status, "loadBalancer", json!({}));
    }
}

fn default(o: &mut Value) {
    let Some(spec) = object_mut(o, "spec") else { return };
    fill_zero(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "ClientIP" => {
            if let Some(client) = object_mut(spec, "sessionAffinityConfig").and_then(|c| object_mut(c, "clientIP")) {
                fill(client, "timeoutSeconds", AFFINITY_SECONDS);
            }
        }
        "None" => {
            remove(spec, "sessionAffinityConfig");
        }
        _ => {}
    }
    fill_zero(spec, "type", "ClusterIP");
    for port in items_mut(spec, "ports") {
        fill_zero(port, "protocol", "TCP");
        let number = at(port, "port").clone();
        if !number.is_null() {
            fill_zero(port, "targetPort", number);
        }
    }
    let type_ = text(spec, "type").to_owned();
    let external = matches!(type_.as_str(), "NodePort" | "LoadBalancer")
        || type_ == "ClusterIP" && !list(spec, "externalIPs").is_empty();
    if external {
        fill_zero(spec, "externalTrafficPolicy", "Cluster");
    }
    if type_ != "ExternalName" {
        fill(spec, "internalTrafficPolicy", "Cluster");
    }
    if type_ == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
    }
    if let Some(balancer) = existing_mut(o, "status").and_then(|s| existing_mut(s, "loadBalancer")) {
        for ingress in items_mut(balancer, "ingress").filter(|i| !text(i, "ip").is_empty()) {
            fill(ingress, "ipMode", "VIP");
        }
    }
    // Go prints this struct even when it is empty; clients rely on `status.loadBalancer`.
    if let Some(status) = o.get_mut("status").filter(|s| s.is_object()) {
        let balancer = at(status, "loadBalancer").clone();
        put(status, "loadBalancer", if balancer.is_null() { json!({}) } else { balancer });
    }
}

fn external_addresses(o: &Value) -> String {
    let strings =
        |path: &str| -> Vec<String> { list(o, path).iter().filter_map(|v| v.as_str().map(str::to_owned)).collect() };
    let externals = strings("spec.externalIPs");
    match text(o, "spec.type") {
        "ExternalName" => text(o, "spec.externalName").to_owned(),
        "LoadBalancer" => {
            let mut all = load_balancer(o);
            if all.is_empty() && externals.is_empty() {
                return "<pending>".to_owned();
            }
            all.extend(externals);
            all.join(",")
        }
        _ if externals.is_empty() => "<none>".to_owned(),
        _ => externals.join(","),
    }
}

/// Addresses or host names of `status.loadBalancer`.
pub(super) fn load_balancer(o: &Value) -> Vec<String> {
    let mut all: Vec<String> = list(o, "status.loadBalancer.ingress")
        .iter()
        .map(|i| if text(i, "ip").is_empty() { text(i, "hostname") } else { text(i, "ip") })
        .filter(|a| !a.is_empty())
        .map(str::to_owned)
        .collect();
    all.sort();
    all.dedup();
    all
}

fn ports(o: &Value) -> String {
    let one = |p: &Value| match (int(p, "port").unwrap_or(0), int(p, "nodePort").unwrap_or(0)) {
        (port, 0) => format!("{port}/{}", text(p, "protocol")),
        (port, node) => format!("{port}:{node}/{}", text(p, "protocol")),
    };
    let all: Vec<String> = list(o, "spec.ports").iter().map(one).collect();
    if all.is_empty() { "<none>".to_owned() } else { all.join(",") }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let ip = match list(o, "spec.clusterIPs").first().and_then(Value::as_str) {
        Some(ip) => ip,
        None => text(o, "spec.clusterIP"),
    };
    vec![
        cell::name(o),
        json!(text(o, "spec.type")),
        json!(if ip.is_empty() { "<none>" } else { ip }),
        json!(external_addresses(o)),
        json!(ports(o)),
        age::age(o, now),
        json!(cell::labels(at(o, "spec.selector"))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_row() {
        let mut o = json!({
            "metadata": {"name": "web", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "selector": {"b": "2", "a": "1"},
                     "ports": [{"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP", "targetPort": "dns"}]}
        });
        default(&mut o);
        let spec = json!({
            "type": "NodePort", "clusterIP": "10.96.0.7", "selector": {"b": "2", "a": "1"},
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP", "targetPort": 80},
                      {"port": 53, "protocol": "UDP", "targetPort": "dns"}],
            "sessionAffinity": "None", "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster"
        });
        assert_eq!(o["spec"], spec);
        let row = json!(["web", "NodePort", "10.96.0.7", "<none>", "80:30080/TCP,53/UDP", "5s", "a=1,b=2"]);
        assert_eq!(json!(cells(&o, 5)), row);
        let external = json!({"spec": {"type": "ExternalName", "externalName": "db.example.com"}});
        assert_eq!(cells(&external, 0)[2..5], [json!("<none>"), json!("db.example.com"), json!("<none>")]);
    }
}
