//! discovery.k8s.io/v1 EndpointSlice: up to 1,000 endpoints of one Service and one address family.

use crate::json::{fill, int, items_mut, list, text};
use crate::rules::{Kind, Rules};
use crate::validate::endpoints;
use crate::{Resource, age, cell};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
        .columns(&[
            ("Name", "string", 0),
            ("AddressType", "string", 0),
            ("Ports", "string", 0),
            ("Endpoints", "string", 0),
            ("Age", "string", 0),
        ])
        .rules(Rules {
            default,
            generation: true,
            validate: endpoints::slice,
            validate_update: endpoints::slice_update,
            cells,
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    for port in items_mut(o, "ports") {
        fill(port, "name", "");
        fill(port, "protocol", "TCP");
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let port = |p: &Value| int(p, "port").map_or_else(|| "*".to_owned(), |n| n.to_string());
    let ports: Vec<String> = list(o, "ports").iter().map(port).collect();
    let addresses: Vec<String> = list(o, "endpoints")
        .iter()
        .flat_map(|e| list(e, "addresses"))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    vec![
        cell::name(o),
        json!(text(o, "addressType")),
        json!(cell::some(&ports, 3, "<unset>")),
        json!(cell::some(&addresses, 3, "<unset>")),
        age::age(o, now),
    ]
}
