//! A kubelet that comes back: running containers are adopted, what ended meanwhile is noticed, orphans are removed.

use crate::house::{House, eventually, ready, uid};
use causeway_runtime::Runtime;
use kube::api::{DeleteParams, LogParams};
use serde_json::json;

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
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
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
