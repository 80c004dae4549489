//! networking.k8s.io/v1 Ingress: HTTP hosts and paths that lead to Services.

use super::service;
use crate::json::{list, text};
use crate::rules::{Kind, Rules, Status};
use crate::validate::ingress;
use crate::{Resource, age, cell};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("networking.k8s.io", "v1", "Ingress", "ingresses")
        .short(&["ing"])
        .columns(&[
            ("Name", "string", 0),
            ("Class", "string", 0),
            ("Hosts", "string", 0),
            ("Address", "string", 0),
            ("Ports", "string", 0),
            ("Age", "string", 0),
        ])
        .rules(Rules {
            status: Status::Cleared(|_| json!({"loadBalancer": {}})),
            generation: true,
            validate: ingress::ingress,
            validate_new: ingress::new_ingress,
            warnings,
            cells,
            ..Rules::default()
        })
}

fn warnings(o: &Value) -> Vec<String> {
    if o["metadata"]["annotations"]["kubernetes.io/ingress.class"].is_null() {
        return Vec::new();
    }
    vec![
        "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"
            .to_owned(),
    ]
}

fn class(o: &Value) -> &str {
    match text(o, "spec.ingressClassName") {
        "" => o["metadata"]["annotations"]["kubernetes.io/ingress.class"].as_str().unwrap_or("<none>"),
        class => class,
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let hosts: Vec<String> =
        list(o, "spec.rules").iter().map(|r| text(r, "host").to_owned()).filter(|h| !h.is_empty()).collect();
    let ports = if list(o, "spec.tls").is_empty() { "80" } else { "80, 443" };
    vec![
        cell::name(o),
        json!(class(o)),
        json!(cell::some(&hosts, 3, "*")),
        json!(service::load_balancer(o).join(",")),
        json!(ports),
        age::age(o, now),
    ]
}
