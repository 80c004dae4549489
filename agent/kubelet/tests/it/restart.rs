//! A kubelet that comes back: running containers are adopted, what ended meanwhile is noticed, orphans are removed.

use crate::house::{House, eventually, ready, uid};
use causeway_runtime::Runtime;
use kube::api::{DeleteParams, LogParams};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_kubelet_finds_its_pods() {
    let mut house = House::new().await;
    let forever = json!({"containers": [{"command": ["/bin/sh", "-c", "echo begin; while true; do sleep 0.1; done"],
        "readinessProbe": {"exec": {"command": ["/bin/true"]}, "periodSeconds": 1}}]});
    house.create("stays", forever.clone()).await;
    house
        .create(
            "ends",
            json!({"restartPolicy": "Never", "containers": [{"command": ["/bin/sh", "-c", "sleep 3; exit 4"]}]}),
        )
        .await;
    let orphan = house.create("orphan", forever).await;
    let before = house.until_ready("stays").await;
    house.until_ready("orphan").await;
    house.until_ready("ends").await;
    let id = before["status"]["containerStatuses"][0]["containerID"].clone();

    house.stop_kubelet();
    house.pods().delete("orphan", &DeleteParams::default().grace_period(0)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(ready(&house.until_ready("stays").await["status"]));
    house.start_kubelet();

    let pod = house.until("ends", "has failed", |s| s["phase"] == "Failed").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 4);
    let orphan = uid(&orphan);
    eventually("the orphan goes", async || {
        let all = house.runtime.containers().await.unwrap();
        (!all.iter().any(|c| c.labels["io.kubernetes.pod.uid"] == orphan)).then_some(())
    })
    .await;
    let after = house.until_ready("stays").await;
    let status = &after["status"]["containerStatuses"][0];
    assert_eq!(status["containerID"], id, "the container was adopted");
    assert_eq!(status["restartCount"], 0);
    assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
    assert_eq!(house.pods().logs("stays", &LogParams::default()).await.unwrap(), "begin\n");
    house.delete("stays").await;
}

/// Whoever starts a kubelet anew, for another version of it for instance, evicts nobody by that.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_kubelet_leaves_its_node_ready() {
    let mut house = House::new().await;
    let before = house.node_is_ready().await;
    house.stop_kubelet();
    // Times are whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    house.network = (Duration::from_secs(2), true);
    house.start_kubelet();
    let after = eventually("the node reports", async || {
        let now = house.node_is_ready().await;
        (now.last_heartbeat_time != before.last_heartbeat_time).then_some(now)
    })
    .await;
    assert_eq!(after.status, "True", "{after:?}");
    assert_eq!(after.last_transition_time, before.last_transition_time);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_cannot_be_made_is_told() {
    let mut house = House::new().await;
    house.stop_kubelet();
    house.network = (Duration::ZERO, false);
    house.start_kubelet();
    let told =
        eventually("the node is not ready", async || Some(house.node_is_ready().await).filter(|c| c.status == "False"))
            .await;
    assert_eq!(told.reason.as_deref(), Some("KubeletNotReady"));
    assert_eq!(told.message.as_deref(), Some("network not ready: no bridge today"));
}
