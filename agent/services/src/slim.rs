//! What of an object nobody here reads is not kept: of a large cluster it is most of the memory.
//!
//! In: an object as the API has it. Out: the same for `model` and the metrics, without the record of who wrote which field,
//! which pod an endpoint belongs to, what `kubectl apply` was given, and room that lists have to grow.

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A Service.
pub fn service(mut object: Service) -> Service {
    meta(&mut object.metadata);
    object
}

/// An EndpointSlice.
pub fn slice(mut object: EndpointSlice) -> EndpointSlice {
    meta(&mut object.metadata);
    for endpoint in &mut object.endpoints {
        endpoint.target_ref = None;
        endpoint.deprecated_topology = None;
        endpoint.addresses.shrink_to_fit();
    }
    object.endpoints.shrink_to_fit();
    object
}

fn meta(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    meta.owner_references = None;
    meta.finalizers = None;
    meta.generate_name = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

/// The same of a watch event.
pub fn event<K>(event: Event<K>, slim: fn(K) -> K) -> Event<K> {
    match event {
        Event::Apply(object) => Event::Apply(slim(object)),
        Event::InitApply(object) => Event::InitApply(slim(object)),
        Event::Delete(object) => Event::Delete(slim(object)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{self, NodeView};
    use serde_json::json;

    #[test]
    fn what_the_model_says_stays_and_the_rest_goes() {
        let meta = |name: &str| {
            json!({"namespace": "d", "name": name, "labels": {"kubernetes.io/service-name": "s"}, "finalizers": ["a/b"],
                "annotations": {LAST_APPLIED: "{}", "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
                "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": {"f:spec": {}}}]})
        };
        let s: Service = serde_json::from_value(json!({"metadata": meta("s"), "spec": {"clusterIP": "10.96.0.5",
            "clusterIPs": ["10.96.0.5"], "ports": [{"port": 80, "protocol": "TCP"}]}}))
        .unwrap();
        let e: EndpointSlice = serde_json::from_value(json!({"metadata": meta("s-1"), "addressType": "IPv4",
            "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": [{"addresses": ["10.244.1.2"], "nodeName": "one",
                "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "p"}}]}))
        .unwrap();
        let node = NodeView { name: "one".into(), ips: vec!["10.90.0.11".parse().unwrap()], ..NodeView::default() };
        let whole = model::service(&s, [&e], &node);
        let (s, e) = (service(s), slice(e));
        assert_eq!(model::service(&s, [&e], &node), whole);
        assert!(!whole.fronts.is_empty());
        assert_eq!((&s.metadata.managed_fields, &e.metadata.managed_fields), (&None, &None));
        assert_eq!(e.endpoints[0].target_ref, None);
        let annotations = e.metadata.annotations.unwrap();
        assert_eq!(annotations.keys().collect::<Vec<_>>(), ["endpoints.kubernetes.io/last-change-trigger-time"]);
    }
}
