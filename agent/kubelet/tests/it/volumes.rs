//! Volumes of every kind, and their content when it changes.

use crate::house::{House, object, uid};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_every_kind() {
    let house = House::new().await;
    let maps: Api<ConfigMap> = Api::namespaced(house.client.clone(), "default");
    let post = PostParams::default();
    maps.create(&post, &object(json!({"metadata": {"name": "m"}, "data": {"k": "one"}}))).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(house.client.clone(), "default");
    secrets.create(&post, &object(json!({"metadata": {"name": "s"}, "stringData": {"pass": "word"}}))).await.unwrap();
    let host = house.dir.path().join("host/path");
    let claimed = house.dir.path().join("local/pv1");
    let volumes: Api<PersistentVolume> = Api::all(house.client.clone());
    let pv = json!({"metadata": {"name": "pv1", "labels": {"causeway.dev/node": "n1"}, "finalizers": ["causeway.dev/local-path"]},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"namespace": "default", "name": "pvc1"}, "hostPath": {"path": claimed, "type": "DirectoryOrCreate"}}});
    volumes.create(&post, &object(pv)).await.unwrap();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(house.client.clone(), "default");
    let pvc = json!({"metadata": {"name": "pvc1"}, "spec": {"volumeName": "pv1", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    claims.create(&post, &object(pvc)).await.unwrap();
    let bound = json!({"status": {"phase": "Bound"}});
    claims.patch_status("pvc1", &PatchParams::default(), &Patch::Merge(&bound)).await.unwrap();

    let script = "cat /m/k /s/pass /d/name /sub/file; echo; id; ls /t; echo x > /h/f; echo y > /p/f; echo z > /e/f; \
                  while true; do sleep 0.2; echo now $(cat /m/k) $(cat /sub/file); done";
    let created = house
        .create("v", json!({
            "securityContext": {"runAsUser": 1000, "fsGroup": 2000},
            "volumes": [
                {"name": "m", "configMap": {"name": "m", "defaultMode": 0o440}},
                {"name": "s", "secret": {"secretName": "s"}},
                {"name": "d", "downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                {"name": "t", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
                    {"configMap": {"name": "m", "items": [{"key": "k", "path": "deep/k"}]}}]}},
                {"name": "e", "emptyDir": {}},
                {"name": "h", "hostPath": {"path": host, "type": "DirectoryOrCreate"}},
                {"name": "p", "persistentVolumeClaim": {"claimName": "pvc1"}}],
            "initContainers": [{"name": "open", "securityContext": {"runAsUser": 0}, "command": ["/bin/sh", "-c", "busybox chmod 777 /h /p"],
                "volumeMounts": [{"name": "h", "mountPath": "/h"}, {"name": "p", "mountPath": "/p"}]}],
            "containers": [{"command": ["/bin/sh", "-c", script], "volumeMounts": [
                {"name": "m", "mountPath": "/m"}, {"name": "s", "mountPath": "/s"}, {"name": "d", "mountPath": "/d"},
                {"name": "t", "mountPath": "/t"}, {"name": "e", "mountPath": "/e"}, {"name": "h", "mountPath": "/h"},
                {"name": "p", "mountPath": "/p"}, {"name": "m", "mountPath": "/sub/file", "subPath": "k"}]}]}))
        .await;
    house.until_ready("v").await;
    house.until_logged("v", "now one one").await;
    let log = house.logs("v").await;
    assert!(log.starts_with("onewordvone\n"), "{log}");
    assert!(log.contains("uid=1000") && log.contains("2000"), "{log}");
    assert!(log.contains("deep\ntoken"), "{log}");
    assert_eq!(std::fs::read_to_string(host.join("f")).unwrap(), "x\n");
    assert_eq!(std::fs::read_to_string(claimed.join("f")).unwrap(), "y\n");

    // The volume follows the object; a subPath is what it was.
    maps.patch("m", &PatchParams::default(), &Patch::Merge(&json!({"data": {"k": "two"}}))).await.unwrap();
    house.until_logged("v", "now two one").await;
    house.delete("v").await;
    house.assert_gone(&uid(&created)).await;
    assert!(host.join("f").exists(), "a host path outlives its pod");

    // The folder of a released local volume goes with it.
    let protection = json!({"metadata": {"finalizers": ["causeway.dev/local-path"]}});
    volumes.patch("pv1", &PatchParams::default(), &Patch::Merge(&protection)).await.unwrap();
    volumes.delete("pv1", &Default::default()).await.unwrap();
    crate::house::eventually("the volume goes", async || volumes.get_opt("pv1").await.unwrap().is_none().then_some(()))
        .await;
    assert!(!claimed.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_not_there_is_waited_for() {
    let house = House::new().await;
    house
        .create(
            "w",
            json!({"volumes": [{"name": "m", "configMap": {"name": "late"}}],
            "containers": [{"command": ["/bin/sleep", "100"], "volumeMounts": [{"name": "m", "mountPath": "/m"}]}]}),
        )
        .await;
    house
        .until_event("w", "FailedMount", "MountVolume.SetUp failed for volume \"m\" : configmap \"late\" not found")
        .await;
    house.until("w", "waits", |s| s["containerStatuses"][0]["state"]["waiting"]["reason"] == "ContainerCreating").await;
    let maps: Api<ConfigMap> = Api::namespaced(house.client.clone(), "default");
    maps.create(&PostParams::default(), &object(json!({"metadata": {"name": "late"}}))).await.unwrap();
    house.until_ready("w").await;
}
