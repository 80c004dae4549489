//! core/v1 Endpoints: the addresses of a Service in one object; EndpointSlices have taken over.

use crate::json::{fill_zero, int, items_mut, list, text};
use crate::rules::{Kind, Rules};
use crate::validate::endpoints;
use crate::{Resource, age, cell};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("", "v1", "Endpoints", "endpoints")
        .short(&["ep"])
        .columns(&[("Name", "string", 0), ("Endpoints", "string", 0), ("Age", "string", 0)])
        .rules(Rules { default, validate: endpoints::endpoints, warnings, cells, ..Rules::default() })
}

fn default(o: &mut Value) {
    for subset in items_mut(o, "subsets") {
        for port in items_mut(subset, "ports") {
            fill_zero(port, "protocol", "TCP");
        }
    }
}

fn warnings(_o: &Value) -> Vec<String> {
    vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned()]
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in list(o, "subsets") {
        let addresses = || list(subset, "addresses").iter().map(|a| text(a, "ip"));
        if list(subset, "ports").is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in list(subset, "ports").iter().filter_map(|p| int(p, "port")) {
            all.extend(addresses().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{port}"),
                false => format!("{ip}:{port}"),
            }));
        }
    }
    vec![cell::name(o), json!(cell::some(&all, 3, "<none>")), age::age(o, now)]
}
