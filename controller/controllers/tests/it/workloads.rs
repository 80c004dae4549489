//! Deployments, ReplicaSets, StatefulSets, DaemonSets.

use crate::support::*;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

fn strategic(patch: &serde_json::Value) -> Patch<&serde_json::Value> {
    Patch::Strategic(patch)
}

fn done(d: &Deployment) -> bool {
    let (Some(spec), Some(status)) = (&d.spec, &d.status) else { return false };
    let n = |v: Option<i32>| v.unwrap_or(0);
    status.observed_generation == d.metadata.generation
        && n(status.updated_replicas) == n(spec.replicas)
        && n(status.replicas) == n(spec.replicas)
        && n(status.available_replicas) == n(spec.replicas)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_rolls_scales_and_goes_back() {
    let c = Cluster::start(1).await;
    let api = c.api::<Deployment>();
    let params = PatchParams::default();
    c.create::<Deployment>(deployment("web", 3, "a")).await;
    let complete = || async { api.get("web").await.ok().filter(done) };
    let d = eventually("three pods", complete).await;
    assert_eq!(d.annotations()["deployment.kubernetes.io/revision"], "1");
    assert_eq!(c.ready("web").await, 3);

    api.patch("web", &params, &strategic(&json!({"spec": {"template": template("web", "b")}}))).await.unwrap();
    let d = eventually("rolled", complete).await;
    assert_eq!(d.annotations()["deployment.kubernetes.io/revision"], "2");
    let images = |pods: Vec<Pod>| -> Vec<_> {
        pods.iter().map(|p| p.spec.as_ref().unwrap().containers[0].image.clone().unwrap()).collect()
    };
    eventually("only new pods", || async { (images(c.pods("web").await) == ["b", "b", "b"]).then_some(()) }).await;
    let sets = c.api::<ReplicaSet>();
    assert_eq!(sets.list(&ListParams::default()).await.unwrap().items.len(), 2);

    api.patch("web", &params, &strategic(&json!({"spec": {"replicas": 5}}))).await.unwrap();
    eventually("five", complete).await;
    assert_eq!(c.ready("web").await, 5);

    // As `kubectl rollout undo` does it.
    api.patch("web", &params, &strategic(&json!({"spec": {"template": template("web", "a")}}))).await.unwrap();
    let d = eventually("back", complete).await;
    assert_eq!(d.annotations()["deployment.kubernetes.io/revision"], "3");
    assert_eq!(sets.list(&ListParams::default()).await.unwrap().items.len(), 2, "the old set is used again");
    let progressing = d.status.unwrap().conditions.unwrap().into_iter().find(|c| c.type_ == "Progressing").unwrap();
    assert_eq!(progressing.reason.as_deref(), Some("NewReplicaSetAvailable"));

    let first = sets.list(&ListParams::default()).await.unwrap().items;
    let first = first.iter().find(|s| s.annotations()["deployment.kubernetes.io/revision"] == "3").unwrap().name_any();
    let wanted = format!("Scaled up replica set {first} from 0 to 3");
    eventually("the event", || async { c.event_messages("ScalingReplicaSet").await.contains(&wanted).then_some(()) })
        .await;

    api.delete("web", &DeleteParams::background()).await.unwrap();
    eventually("all gone", || async {
        let sets = sets.list(&ListParams::default()).await.unwrap().items.len();
        (sets == 0 && c.pods("web").await.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_image_keeps_the_old_pods_serving() {
    let c = Cluster::start(1).await;
    let api = c.api::<Deployment>();
    c.create::<Deployment>(deployment("web", 4, "a")).await;
    eventually("first", || async { api.get("web").await.ok().filter(done) }).await;
    let patch = json!({"spec": {"template": template("web", "broken")}});
    api.patch("web", &PatchParams::default(), &strategic(&patch)).await.unwrap();
    eventually("the new set starts", || async {
        let sets = c.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items;
        (sets.len() == 2).then_some(())
    })
    .await;
    for _ in 0..20 {
        let pods = c.pods("web").await;
        let alive = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()).count();
        assert!(alive <= 5, "surge of 25% of 4 is one: {alive}");
        assert!(c.ready("web").await >= 3);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_set_never_creates_too_many_adopts_and_releases() {
    let c = Cluster::start(1).await;
    let set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": { "name": "many" },
        "spec": { "replicas": 60, "selector": { "matchLabels": { "app": "many" } }, "template": template("many", "i") },
    });
    let orphan = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "orphan", "labels": { "app": "many" } },
        "spec": template("many", "i")["spec"],
    });
    c.create::<Pod>(orphan).await;
    // Once it is ready the controllers know it too; before, the set would rightly create one more, and delete one.
    eventually("the orphan", || async { (c.ready("many").await == 1).then_some(()) }).await;
    c.create::<ReplicaSet>(set).await;
    eventually("sixty", || async { (c.ready("many").await >= 60).then_some(()) }).await;
    assert_eq!(c.pods("many").await.len(), 60);
    eventually("events", || async { (c.event_messages("SuccessfulCreate").await.len() >= 59).then_some(()) }).await;
    assert_eq!(c.event_messages("SuccessfulCreate").await.len(), 59, "59 were created, one was adopted");
    assert!(c.event_messages("SuccessfulDelete").await.is_empty());

    // A pod that no longer matches is let go, and replaced.
    let patch = json!({"metadata": {"labels": {"app": "free"}}});
    c.api::<Pod>().patch("orphan", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    eventually("released", || async {
        let p = c.api::<Pod>().get("orphan").await.unwrap();
        (p.owner_references().is_empty() && c.ready("many").await == 60).then_some(())
    })
    .await;

    c.api::<ReplicaSet>()
        .patch("many", &PatchParams::default(), &strategic(&json!({"spec": {"replicas": 2}})))
        .await
        .unwrap();
    eventually("two", || async { (c.pods("many").await.len() == 2).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_is_ordered_and_keeps_its_claims() {
    let c = Cluster::start(1).await;
    let set = |image: &str, replicas: i32| {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "db" },
            "spec": {
                "replicas": replicas, "serviceName": "db", "selector": { "matchLabels": { "app": "db" } },
                "template": template("db", image),
                "volumeClaimTemplates": [{
                    "metadata": { "name": "data" },
                    "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
                }],
            },
        })
    };
    c.create::<StatefulSet>(set("a", 3)).await;
    eventually("three", || async { (c.ready("db").await == 3).then_some(()) }).await;
    let mut pods = c.pods("db").await;
    pods.sort_by_key(|p| p.metadata.resource_version.as_ref().unwrap().parse::<u64>().unwrap());
    let mut created: Vec<_> =
        c.event_messages("SuccessfulCreate").await.into_iter().filter(|m| m.starts_with("Created pod")).collect();
    created.sort();
    assert_eq!(created, ["Created pod: db-0", "Created pod: db-1", "Created pod: db-2"]);
    let claims = c.api::<PersistentVolumeClaim>();
    let bound = || async {
        let all = claims.list(&ListParams::default()).await.unwrap().items;
        let bound = all.iter().filter(|c| c.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")).count();
        (bound == 3).then_some(())
    };
    eventually("claims are bound", bound).await;
    let claim = claims.get("data-db-0").await.unwrap();
    let volume_name = claim.spec.unwrap().volume_name.unwrap();
    let volume = c.all::<PersistentVolume>().get(&volume_name).await.unwrap();
    assert_eq!(volume.labels()["causeway.dev/node"], "n1");
    let path = volume.spec.unwrap().host_path.unwrap().path;
    assert!(path.starts_with("/var/lib/causeway/volumes/pvc-") && path.ends_with("_default_data-db-0"), "{path}");

    // A deleted pod comes back under its name with its claim.
    let before = c.api::<Pod>().get("db-1").await.unwrap().uid();
    c.api::<Pod>().delete("db-1", &DeleteParams::default()).await.unwrap();
    eventually("again", || async {
        let p = c.api::<Pod>().get_opt("db-1").await.unwrap()?;
        (p.uid() != before && causeway_api::pod::is_ready(&p)).then_some(())
    })
    .await;
    assert_eq!(claims.list(&ListParams::default()).await.unwrap().items.len(), 3);

    let sets = c.api::<StatefulSet>();
    sets.patch("db", &PatchParams::default(), &strategic(&json!({"spec": {"template": template("db", "b")}})))
        .await
        .unwrap();
    eventually("updated", || async {
        let s = sets.get("db").await.unwrap().status.unwrap_or_default();
        (s.observed_generation == Some(2)
            && s.updated_replicas == Some(3)
            && s.ready_replicas == Some(3)
            && s.current_revision == s.update_revision)
            .then_some(())
    })
    .await;
    assert_eq!(c.api::<ControllerRevision>().list(&ListParams::default()).await.unwrap().items.len(), 2);

    sets.patch("db", &PatchParams::default(), &strategic(&json!({"spec": {"replicas": 1}}))).await.unwrap();
    eventually("one", || async { (c.pods("db").await.len() == 1).then_some(()) }).await;
    assert_eq!(claims.list(&ListParams::default()).await.unwrap().items.len(), 3, "claims stay");

    // A claim in use is protected; freed, it goes, its volume waits for the node to remove the directory.
    claims.delete("data-db-2", &DeleteParams::default()).await.unwrap();
    claims.delete("data-db-0", &DeleteParams::default()).await.unwrap();
    eventually("unused one is gone", || async { claims.get_opt("data-db-2").await.unwrap().is_none().then_some(()) })
        .await;
    assert!(claims.get_opt("data-db-0").await.unwrap().is_some(), "a pod uses it");
    eventually("its volume waits for the node", || async {
        let all = c.all::<PersistentVolume>().list(&ListParams::default()).await.unwrap().items;
        let leaving: Vec<_> = all.iter().filter(|v| v.metadata.deletion_timestamp.is_some()).collect();
        (leaving.len() == 1 && leaving[0].finalizers() == ["causeway.dev/local-path"]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_set_covers_the_nodes_and_rolls() {
    let c = Cluster::start(3).await;
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "agent" },
        "spec": { "selector": { "matchLabels": { "app": "agent" } }, "template": template("agent", "a") },
    });
    c.create::<DaemonSet>(set).await;
    eventually("three", || async { (c.ready("agent").await == 3).then_some(()) }).await;
    let mut nodes: Vec<_> =
        c.pods("agent").await.iter().map(|p| p.spec.as_ref().unwrap().node_name.clone().unwrap()).collect();
    nodes.sort();
    assert_eq!(nodes, ["n1", "n2", "n3"]);
    let sets = c.api::<DaemonSet>();
    let patch = json!({"spec": {"template": template("agent", "b")}});
    sets.patch("agent", &PatchParams::default(), &strategic(&patch)).await.unwrap();
    eventually("rolled", || async {
        let s = sets.get("agent").await.unwrap().status.unwrap_or_default();
        (s.updated_number_scheduled == Some(3) && s.number_available == Some(3) && s.observed_generation == Some(2))
            .then_some(())
    })
    .await;
    assert_eq!(c.pods("agent").await.len(), 3);
}
