//! A pod's way from creation to removal, and its containers' order.

use crate::house::{House, condition, uid};
use kube::api::AttachParams;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_and_dies() {
    let house = House::new().await;
    let script = "echo up $GREETING $POD $KUBERNETES_SERVICE_HOST; trap 'echo bye; exit 0' TERM; \
                  while true; do sleep 0.1; done";
    let created = house
        .create(
            "web",
            json!({"hostAliases": [{"ip": "1.2.3.4", "hostnames": ["old"]}], "containers": [{
            "command": ["/bin/sh", "-c", script],
            "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}}}]}),
        )
        .await;
    let pod = house.until_ready("web").await;
    let status = &pod["status"];
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["qosClass"], "Guaranteed");
    assert!(status["podIP"].as_str().unwrap().starts_with("10.244.7."), "{status}");
    assert_eq!(status["hostIP"], "10.90.0.11");
    assert_eq!(status["containerStatuses"][0]["started"], true);
    house.until_logged("web", "up hello web 10.96.0.1").await;

    let mut exec = house
        .remote_pods()
        .await
        .exec(
            "web",
            ["/bin/sh", "-c", "cat; cat /etc/hosts /etc/resolv.conf; echo oops >&2; exit 7"],
            &AttachParams::default().stdin(true),
        )
        .await
        .unwrap();
    let mut stdin = exec.stdin().unwrap();
    stdin.write_all(b"typed\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (exec.stdout().unwrap(), exec.stderr().unwrap());
    let (a, b) = tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
    a.unwrap();
    b.unwrap();
    let end = exec.take_status().unwrap().await.unwrap();
    assert!(
        out.starts_with("typed\n") && out.contains("1.2.3.4\told") && out.contains("nameserver 10.96.0.10"),
        "{out}"
    );
    assert!(out.contains("search default.svc.cluster.local svc.cluster.local cluster.local"), "{out}");
    assert_eq!(err, "oops\n");
    assert_eq!(end.reason.as_deref(), Some("NonZeroExitCode"), "{end:?}");

    for (reason, words) in [
        ("Pulled", "Container image \"busybox:test\" already present on machine"),
        ("Created", "Created container: c"),
        ("Started", "Started container c"),
    ] {
        house.until_event("web", reason, words).await;
    }
    house.delete("web").await;
    house.assert_gone(&uid(&created)).await;
    house.until_event("web", "Killing", "Stopping container c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_start_in_order_and_jobs_end() {
    let house = House::new().await;
    let share = json!([{"name": "d", "mountPath": "/d"}]);
    let step =
        |name: &str, script: &str| json!({"name": name, "command": ["/bin/sh", "-c", script], "volumeMounts": share});
    let mut sidecar =
        step("side", "touch /d/side-up; echo side >> /d/order; trap 'exit 0' TERM; while true; do sleep 0.1; done");
    sidecar["restartPolicy"] = json!("Always");
    sidecar["startupProbe"] = json!({"exec": {"command": ["/bin/test", "-e", "/d/side-up"]}, "periodSeconds": 1});
    let created = house
        .create("job", json!({
            "restartPolicy": "Never",
            "volumes": [{"name": "d", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
            "initContainers": [step("one", "sleep 0.3; echo one >> /d/order"), sidecar, step("two", "echo two >> /d/order")],
            "containers": [step("main", "echo main >> /d/order; cat /d/order; echo -n done > /dev/termination-log")]}))
        .await;
    let pod = house.until("job", "ends", |s| s["phase"] == "Succeeded").await;
    let status = &pod["status"];
    let main = kube::api::LogParams { container: Some("main".to_owned()), ..Default::default() };
    let log = house.pods().logs("job", &main).await.unwrap();
    assert_eq!(log, "one\nside\ntwo\nmain\n");
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((ended["reason"].as_str(), ended["message"].as_str()), (Some("Completed"), Some("done")), "{status}");
    assert_eq!(condition(status, "Initialized"), "True");
    assert_eq!(condition(status, "Ready"), "False");
    house.delete("job").await;
    house.assert_gone(&uid(&created)).await;

    // Without restarts a failing init container ends the pod.
    house
        .create(
            "bad",
            json!({"restartPolicy": "Never", "initContainers": [step("one", "exit 3")],
            "volumes": [{"name": "d", "emptyDir": {}}], "containers": [step("main", "true")]}),
        )
        .await;
    let pod = house.until("bad", "fails", |s| s["phase"] == "Failed").await;
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    house.delete("bad").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_each_other_and_are_probed() {
    let house = House::new().await;
    let serve = "mkdir -p /w; echo hi > /w/index.html; exec httpd -f -p 8080 -h /w";
    house
        .create("server", json!({"containers": [{
            "command": ["/bin/sh", "-c", serve], "ports": [{"name": "http", "containerPort": 8080}],
            "startupProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 1},
            "readinessProbe": {"httpGet": {"path": "/index.html", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1},
            "livenessProbe": {"exec": {"command": ["/bin/test", "!", "-e", "/dead"]}, "periodSeconds": 1, "failureThreshold": 1}}]}))
        .await;
    let pod = house.until_ready("server").await;
    let ip = pod["status"]["podIP"].as_str().unwrap().to_owned();
    house
        .create(
            "client",
            json!({"restartPolicy": "Never", "containers": [{
            "command": ["/bin/wget", "-q", "-O", "-", format!("http://{ip}:8080/index.html")]}]}),
        )
        .await;
    house.until("client", "ends well", |s| s["phase"] == "Succeeded").await;
    assert_eq!(house.logs("client").await, "hi\n");

    run(&house, "server", &["rm", "/w/index.html"]).await;
    let pod = house.until("server", "is no longer ready", |s| condition(s, "Ready") == "False").await;
    let all = pod["status"]["conditions"].as_array().unwrap();
    let ready = all.iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(
        (ready["reason"].as_str(), ready["message"].as_str()),
        (Some("ContainersNotReady"), Some("containers with unready status: [c]"))
    );
    house.until_event("server", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404").await;
    run(&house, "server", &["touch", "/dead"]).await;
    let pod = house
        .until("server", "is restarted", |s| s["containerStatuses"][0]["restartCount"] == 1 && crate::house::ready(s))
        .await;
    assert!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"].is_object());
    house.until_event("server", "Killing", "Container c failed liveness probe, will be restarted").await;
}

async fn run(house: &House, pod: &str, command: &[&str]) {
    let command: Vec<String> = command.iter().map(|s| (*s).to_owned()).collect();
    let api = house.remote_pods().await;
    let mut exec = api.exec(pod, command, &AttachParams::default()).await.unwrap();
    let end = exec.take_status().unwrap().await.unwrap();
    assert_eq!(end.status.as_deref(), Some("Success"), "{end:?}");
}
