//! What goes wrong with images, configuration and containers, in the words that users know.

use crate::house::{House, eventually, object};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

fn waiting(status: &Value) -> &str {
    status["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or("")
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_configuration_that_are_not_there() {
    let house = House::new().await;
    house.create("pull", json!({"containers": [{"image": "127.0.0.1:1/none:1"}]})).await;
    house.create("never", json!({"containers": [{"image": "none:1", "imagePullPolicy": "Never"}]})).await;
    house.create("invalid", json!({"containers": [{"image": "No/Such:Image:Name"}]})).await;
    let env = json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "later", "key": "a"}}}]);
    house
        .create("config", json!({"containers": [{"command": ["/bin/sh", "-c", "echo $A; sleep 100"], "env": env}]}))
        .await;
    house
        .create("root", json!({"containers": [{"command": ["/bin/true"], "securityContext": {"runAsNonRoot": true}}]}))
        .await;
    house.create("binary", json!({"containers": [{"command": ["/no/such/binary"]}]})).await;

    house.until("pull", "backs off", |s| waiting(s) == "ImagePullBackOff").await;
    house.until_event("pull", "Failed", "Error: ErrImagePull").await;
    house.until_event("pull", "BackOff", "Back-off pulling image \"127.0.0.1:1/none:1\"").await;
    house.until("never", "says so", |s| waiting(s) == "ErrImageNeverPull").await;
    house.until("invalid", "says so", |s| waiting(s) == "InvalidImageName").await;
    let pod = house.until("config", "says so", |s| waiting(s) == "CreateContainerConfigError").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"], "configmap \"later\" not found");
    house.until("root", "says so", |s| waiting(s) == "CreateContainerConfigError").await;
    house
        .until("binary", "says so", |s| {
            let c = &s["containerStatuses"][0];
            ["RunContainerError", "CrashLoopBackOff"].contains(&waiting(s))
                && c["lastState"]["terminated"]["reason"] == "StartError"
        })
        .await;

    let map: ConfigMap = object(json!({"metadata": {"name": "later"}, "data": {"a": "found"}}));
    let maps: Api<ConfigMap> = Api::namespaced(house.client.clone(), "default");
    maps.create(&PostParams::default(), &map).await.unwrap();
    house.until_ready("config").await;
    house.until_logged("config", "found").await;
    for name in ["pull", "never", "invalid", "config", "root", "binary"] {
        house.delete(name).await;
    }
    eventually("nothing is left", async || {
        std::fs::read_dir(house.dir.path().join("kubelet/pods")).unwrap().next().is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_fail() {
    let house = House::new().await;
    let sh = |script: &str| json!(["/bin/sh", "-c", script]);
    house
        .create(
            "crash",
            json!({"containers": [{
            "command": sh("echo it broke; exit 5"), "terminationMessagePolicy": "FallbackToLogsOnError"}]}),
        )
        .await;
    house
        .create(
            "oom",
            json!({"restartPolicy": "Never", "containers": [{
            "command": sh("dd if=/dev/zero of=/dev/null bs=200M count=1"),
            "resources": {"limits": {"memory": "16Mi"}}}]}),
        )
        .await;
    house
        .create(
            "late",
            json!({"restartPolicy": "Never", "activeDeadlineSeconds": 1, "containers": [{"command": sh("sleep 100")}]}),
        )
        .await;
    house.create("picky", json!({"nodeSelector": {"disk": "tape"}, "containers": [{"command": sh("true")}]})).await;
    house
        .create("big", json!({"containers": [{"command": sh("true"), "resources": {"requests": {"cpu": "10000"}}}]}))
        .await;

    let pod = house.until("crash", "loops", |s| waiting(s) == "CrashLoopBackOff").await;
    let c = &pod["status"]["containerStatuses"][0];
    let last = &c["lastState"]["terminated"];
    assert_eq!((last["exitCode"].as_i64(), last["reason"].as_str()), (Some(5), Some("Error")), "{c}");
    assert_eq!(last["message"], "it broke\n");
    let words = c["state"]["waiting"]["message"].as_str().unwrap();
    assert!(words.starts_with("back-off 10s restarting failed container=c pod=crash_default("), "{words}");
    assert!(c["restartCount"].as_i64().unwrap() >= 1);

    let pod = house.until("oom", "fails", |s| s["phase"] == "Failed").await;
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((ended["reason"].as_str(), ended["exitCode"].as_i64()), (Some("OOMKilled"), Some(137)), "{ended}");
    let pod = house.until("late", "fails", |s| s["phase"] == "Failed").await;
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
    let pod = house.until("picky", "is refused", |s| s["phase"] == "Failed").await;
    assert_eq!(pod["status"]["reason"], "NodeAffinity");
    let pod = house.until("big", "is refused", |s| s["phase"] == "Failed").await;
    assert_eq!(pod["status"]["reason"], "OutOfcpu");

    // A failing postStart hook ends the container; a hook before the stop is waited for.
    house
        .create(
            "hooks",
            json!({"containers": [{"command": sh("echo up; sleep 100"),
            "lifecycle": {"postStart": {"exec": {"command": ["/bin/sh", "-c", "exit 9"]}}}}]}),
        )
        .await;
    house.until_event("hooks", "FailedPostStartHook", "exited with 9").await;
    house.until_event("hooks", "Killing", "FailedPostStartHook").await;
    house.until("hooks", "is started again", |s| s["containerStatuses"][0]["restartCount"] == 1).await;
    let left = house.dir.path().join("left");
    std::fs::create_dir(&left).unwrap();
    house
        .create(
            "node",
            json!({"hostNetwork": true, "terminationGracePeriodSeconds": 10,
            "volumes": [{"name": "l", "hostPath": {"path": left}}],
            "containers": [{"command": sh("hostname; sleep 100"), "volumeMounts": [{"name": "l", "mountPath": "/l"}],
                "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", "sleep 0.5; touch /l/stopped"]}}}}]}),
        )
        .await;
    let pod = house.until_ready("node").await;
    assert_eq!(pod["status"]["podIP"], "10.90.0.11");
    house.until_logged("node", "n1").await;
    house.delete("node").await;
    assert!(left.join("stopped").exists());
}
