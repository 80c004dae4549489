//! Custom resources: served as soon as they are defined, gone with their definition.

use crate::support::{eventually, start};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::discovery::verbs;
use kube::runtime::wait::{await_condition, conditions};
use serde_json::{Value, json};

fn definition() -> CustomResourceDefinition {
    let schema = json!({ "openAPIV3Schema": { "type": "object", "properties": {
        "spec": { "type": "object", "required": ["size"], "properties": {
            "size": { "type": "integer", "minimum": 1 }, "colour": { "type": "string", "default": "grey" },
        } },
        "status": { "type": "object", "properties": { "done": { "type": "boolean" } } },
    } } });
    let version = |name: &str, storage: bool| {
        json!({ "name": name, "served": true, "storage": storage, "schema": schema, "subresources": { "status": {} },
            "additionalPrinterColumns": [{ "name": "Size", "type": "integer", "jsonPath": ".spec.size" }] })
    };
    serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "boxes.example.com" },
        "spec": { "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "boxes", "singular": "box", "kind": "Box", "shortNames": ["bx"] },
            "versions": [version("v1", true), version("v1beta1", false)] },
    }))
    .unwrap()
}

fn boxes(version: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("example.com", version, "Box"), "boxes")
}

fn a_box(version: &str, spec: Value) -> DynamicObject {
    serde_json::from_value(json!({ "apiVersion": format!("example.com/{version}"), "kind": "Box",
        "metadata": { "name": "b" }, "spec": spec }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_lives_and_dies() {
    let running = start().await;
    let client = running.admin();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.create(&PostParams::default(), &definition()).await.unwrap();
    await_condition(definitions.clone(), "boxes.example.com", conditions::is_crd_established()).await.unwrap();

    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &boxes("v1"));
    let made = api.create(&PostParams::default(), &a_box("v1", json!({ "size": 3, "unknown": 1 }))).await.unwrap();
    assert_eq!(made.data["spec"], json!({ "size": 3, "colour": "grey" }), "defaulted and pruned");
    let bad = api.create(&PostParams::default(), &a_box("v1", json!({ "size": 0 }))).await.unwrap_err();
    assert!(bad.to_string().contains("spec.size"), "{bad}");

    let beta: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &boxes("v1beta1"));
    let other = beta.get("b").await.unwrap();
    assert_eq!(other.types.unwrap().api_version, "example.com/v1beta1");
    let status = Patch::Merge(json!({ "status": { "done": true }, "spec": { "size": 9 } }));
    let reported = beta.patch_status("b", &PatchParams::default(), &status).await.unwrap();
    assert_eq!((&reported.data["status"]["done"], &reported.data["spec"]["size"]), (&json!(true), &json!(3)));

    let found = kube::discovery::group(&client, "example.com").await.unwrap();
    let (resource, capabilities) = found.recommended_kind("Box").unwrap();
    assert_eq!(resource.version, "v1");
    assert!(capabilities.supports_operation(verbs::WATCH));
    let table = running.kubectl(&["get", "bx"]).await;
    assert!(table.starts_with("NAME   SIZE") && table.contains("b      3"), "{table}");
    let explained = running.kubectl(&["explain", "boxes.spec"]).await;
    assert!(explained.contains("colour"), "{explained}");

    definitions.delete("boxes.example.com", &DeleteParams::default()).await.unwrap();
    eventually("the definition is gone", || async {
        definitions.get_opt("boxes.example.com").await.unwrap().is_none().then_some(())
    })
    .await;
    let gone = api.list(&ListParams::default()).await.unwrap_err();
    assert!(matches!(gone, kube::Error::Api(s) if s.code == 404));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_taken_once() {
    let running = start().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(running.admin());
    definitions.create(&PostParams::default(), &definition()).await.unwrap();
    await_condition(definitions.clone(), "boxes.example.com", conditions::is_crd_established()).await.unwrap();
    let mut other = definition();
    other.metadata.name = Some("crates.example.com".to_owned());
    other.spec.names.plural = "crates".to_owned();
    other.spec.names.singular = Some("crate".to_owned());
    definitions.create(&PostParams::default(), &other).await.unwrap();
    eventually("the names are refused", || async {
        let conditions = definitions.get("crates.example.com").await.unwrap().status?.conditions?;
        conditions.iter().any(|c| c.type_ == "NamesAccepted" && c.status == "False").then_some(())
    })
    .await;
}
