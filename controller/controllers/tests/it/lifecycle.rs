//! Garbage collection and the end of namespaces.

use crate::support::*;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::json;

fn owned(name: &str, kind: &str, owner: &str, uid: &str) -> serde_json::Value {
    let version = if kind == "Widget" { "example.com/v1" } else { "v1" };
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "ownerReferences": [{
            "apiVersion": version, "kind": kind, "name": owner, "uid": uid, "blockOwnerDeletion": true,
        }]},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn foreground_waits_and_orphans_stay() {
    let c = Cluster::start(1).await;
    let deployments = c.api::<Deployment>();
    c.create::<Deployment>(deployment("web", 2, "a")).await;
    eventually("two", || async { (c.ready("web").await == 2).then_some(()) }).await;
    deployments.delete("web", &DeleteParams::orphan()).await.unwrap();
    eventually("gone", || async { deployments.get_opt("web").await.unwrap().is_none().then_some(()) }).await;
    let sets = c.api::<ReplicaSet>();
    let set = sets.list(&ListParams::default()).await.unwrap().items.remove(0);
    assert!(set.owner_references().is_empty());
    assert_eq!(c.ready("web").await, 2);

    // A new Deployment of the same selector adopts what was orphaned.
    c.create::<Deployment>(deployment("web", 2, "a")).await;
    eventually("adopted", || async {
        (!sets.get(&set.name_any()).await.unwrap().owner_references().is_empty()).then_some(())
    })
    .await;
    assert_eq!(sets.list(&ListParams::default()).await.unwrap().items.len(), 1);

    deployments.delete("web", &DeleteParams::foreground()).await.unwrap();
    eventually("gone with its dependents", || async {
        match deployments.get_opt("web").await.unwrap() {
            Some(_) => None,
            None => {
                assert!(sets.list(&ListParams::default()).await.unwrap().items.is_empty(), "dependents go first");
                Some(())
            }
        }
    })
    .await;
    eventually("no pods", || async { c.pods("web").await.is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_that_never_were_and_custom_ones() {
    let c = Cluster::start(0).await;
    let maps = c.api::<ConfigMap>();
    c.create::<ConfigMap>(owned("lost", "Secret", "none", "11111111-1111-1111-1111-111111111111")).await;
    eventually("collected", || async { maps.get_opt("lost").await.unwrap().is_none().then_some(()) }).await;

    let definition: CustomResourceDefinition = serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "widgets.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            }}}],
        },
    }))
    .unwrap();
    c.all::<CustomResourceDefinition>().create(&PostParams::default(), &definition).await.unwrap();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Widget"));
    let widgets: Api<DynamicObject> = Api::namespaced_with(c.client.clone(), "default", &resource);
    let widget = DynamicObject::new("w", &resource);
    let widget = eventually("served", || async { widgets.create(&PostParams::default(), &widget).await.ok() }).await;
    c.create::<ConfigMap>(owned("part", "Widget", "w", &widget.uid().unwrap())).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(maps.get_opt("part").await.unwrap().is_some(), "its owner is there");
    widgets.delete("w", &DeleteParams::default()).await.unwrap();
    eventually("collected", || async { maps.get_opt("part").await.unwrap().is_none().then_some(()) }).await;

    // With two owners, one is enough.
    let secret = |name: &str| json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name } });
    let (a, b) = (c.create::<Secret>(secret("a")).await, c.create::<Secret>(secret("b")).await);
    let mut both = owned("both", "Secret", "a", &a.uid().unwrap());
    let second = owned("", "Secret", "b", &b.uid().unwrap())["metadata"]["ownerReferences"][0].clone();
    both["metadata"]["ownerReferences"].as_array_mut().unwrap().push(second);
    c.create::<ConfigMap>(both).await;
    c.api::<Secret>().delete("a", &DeleteParams::default()).await.unwrap();
    eventually("one owner less", || async {
        (maps.get("both").await.unwrap().owner_references().len() == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_takes_everything_along() {
    let c = Cluster::start(1).await;
    let namespaces = c.all::<Namespace>();
    let namespace: Namespace =
        serde_json::from_value(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }))
            .unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let inside: Api<Deployment> = Api::namespaced(c.client.clone(), "shop");
    let web: Deployment = serde_json::from_value(deployment("web", 2, "a")).unwrap();
    eventually("account", || async {
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(c.client.clone(), "shop");
        accounts.get_opt("default").await.unwrap()
    })
    .await;
    inside.create(&PostParams::default(), &web).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(c.client.clone(), "shop");
    eventually("runs", || async { (pods.list(&ListParams::default()).await.unwrap().items.len() == 2).then_some(()) })
        .await;
    let maps: Api<ConfigMap> = Api::namespaced(c.client.clone(), "shop");
    let held: ConfigMap = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "held", "finalizers": ["example.com/hold"] },
    }))
    .unwrap();
    maps.create(&PostParams::default(), &held).await.unwrap();

    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    let waiting = eventually("says what it waits for", || async {
        let n = namespaces.get("shop").await.unwrap();
        let conditions = n.status.clone()?.conditions?;
        let held = conditions.into_iter().find(|c| c.type_ == "NamespaceFinalizersRemaining" && c.status == "True")?;
        held.message.filter(|m| m.contains("example.com/hold"))
    })
    .await;
    assert!(waiting.contains("in 1 resource instances"), "{waiting}");
    let free = json!({"metadata": {"finalizers": []}});
    maps.patch("held", &PatchParams::default(), &Patch::Merge(&free)).await.unwrap();
    eventually("gone", || async { namespaces.get_opt("shop").await.unwrap().is_none().then_some(()) }).await;
    assert!(pods.list(&ListParams::default()).await.unwrap().items.is_empty());
}
