//! OpenAPI v3 documents, one for each group and version, as `kubectl apply`, `create` and `explain` read them.
//!
//! In: the resources that are served. Out: paths with their operations, and the schemas these refer to, closed under
//! `$ref`.

mod components;
mod paths;

use components::Components;
use serde_json::{Map, Value, json};

/// A resource that a document describes.
#[derive(Debug, Clone, Default)]
pub struct ServedResource {
    /// API group; empty for core.
    pub group: String,
    /// For example `v1`.
    pub version: String,
    /// For example `Deployment`.
    pub kind: String,
    /// For example `deployments`.
    pub plural: String,
    /// For example `deployment`.
    pub singular: String,
    /// Lives in namespaces.
    pub namespaced: bool,
    /// The verbs it is served with.
    pub verbs: Vec<String>,
    /// Has `/status`.
    pub status: bool,
    /// Has `/scale`.
    pub scale: bool,
    /// The raw `openAPIV3Schema` of a custom resource; `None` for built-in kinds.
    pub schema: Option<Value>,
}

/// The document of one group and version; resources of others are left out.
pub fn v3_document(group: &str, version: &str, resources: &[ServedResource]) -> Value {
    let mut components = Components::new(group, version);
    let mut all = Map::new();
    for resource in resources.iter().filter(|r| r.group == group && r.version == version) {
        paths::add(resource, &mut components, &mut all);
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.35.0"},
        "paths": all,
        "components": {
            "schemas": components.finish(),
            "securitySchemes": {
                "BearerToken": {
                    "description": "Bearer Token authentication",
                    "in": "header",
                    "name": "authorization",
                    "type": "apiKey",
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn deployment() -> ServedResource {
        ServedResource {
            group: "apps".into(),
            version: "v1".into(),
            kind: "Deployment".into(),
            plural: "deployments".into(),
            singular: "deployment".into(),
            namespaced: true,
            verbs: ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
                .map(str::to_owned)
                .to_vec(),
            status: true,
            scale: true,
            schema: None,
        }
    }

    fn custom() -> ServedResource {
        let schema = json!({"type": "object", "description": "A gateway.", "properties": {"spec": {"type": "object",
            "properties": {"listeners": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object"}}}}}});
        ServedResource {
            group: "gateway.networking.k8s.io".into(),
            kind: "Gateway".into(),
            plural: "gateways".into(),
            singular: "gateway".into(),
            schema: Some(schema),
            ..deployment()
        }
    }

    fn refs(value: &Value, found: &mut HashSet<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| match (key.as_str(), value) {
                ("$ref", Value::String(target)) => {
                    found.insert(target.clone());
                }
                _ => refs(value, found),
            }),
            Value::Array(items) => items.iter().for_each(|v| refs(v, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_has_its_schema() {
        for document in
            [v3_document("apps", "v1", &[deployment()]), v3_document("gateway.networking.k8s.io", "v1", &[custom()])]
        {
            let mut found = HashSet::new();
            refs(&document, &mut found);
            assert!(!found.is_empty());
            for target in found {
                let name = target.strip_prefix("#/components/schemas/").unwrap();
                assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn what_kubectl_looks_for() {
        let document = v3_document("apps", "v1", &[deployment()]);
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        assert_eq!(patch["x-kubernetes-action"], "patch");
        let names: Vec<_> =
            patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"fieldValidation") && names.contains(&"force"), "{names:?}");
        assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
        let schemas = &document["components"]["schemas"];
        let kind = &schemas["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(
            kind["x-kubernetes-group-version-kind"],
            json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
        );
        assert_eq!(
            kind["properties"]["spec"]["allOf"][0]["$ref"],
            "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"
        );
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        assert!(containers["description"].as_str().unwrap().starts_with("List of containers"));
        assert!(document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["put"].is_object());
        assert!(schemas["io.k8s.api.autoscaling.v1.Scale"].is_object());
    }

    #[test]
    fn custom_resources_are_named_and_completed() {
        let document = v3_document("gateway.networking.k8s.io", "v1", &[custom()]);
        let kind = &document["components"]["schemas"]["io.k8s.networking.gateway.v1.Gateway"];
        assert_eq!(kind["description"], "A gateway.");
        assert!(kind["properties"]["apiVersion"].is_object() && kind["properties"]["spec"].is_object());
        assert!(document["components"]["schemas"]["io.k8s.networking.gateway.v1.GatewayList"].is_object());
        let path = "/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/gateways/{name}";
        let content = &document["paths"][path]["patch"]["requestBody"]["content"];
        assert!(content.get("application/strategic-merge-patch+json").is_none());
    }
}
