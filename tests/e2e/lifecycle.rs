//! Starting, stopping, crashing: each test has a cluster of its own, and the machine is as before afterwards.

use crate::Alone;
use crate::images::{BUSYBOX, busybox};
use anyhow::{Result, bail, ensure};
use causeway_tests::traces::Traces;
use causeway_tests::{Cluster, eventually};
use std::net::TcpListener;

/// Those that compare what the machine has before and after: nothing else may run meanwhile.
pub fn exclusive() -> Vec<(&'static str, Alone)> {
    vec![
        ("lifecycle::down_leaves_nothing_behind", down_leaves_nothing_behind),
        ("lifecycle::down_after_kill_leaves_nothing_behind", down_after_kill_leaves_nothing_behind),
    ]
}

/// The others.
pub fn tests() -> Vec<(&'static str, Alone)> {
    vec![
        ("lifecycle::up_after_kill_finds_its_pods_running", up_after_kill_finds_its_pods_running),
        ("lifecycle::up_after_down_brings_everything_back", up_after_down_brings_everything_back),
        ("lifecycle::two_clusters_live_side_by_side", two_clusters_live_side_by_side),
        ("lifecycle::a_port_in_use_is_named", a_port_in_use_is_named),
    ]
}

/// A cluster with the test image and a running deployment.
fn with_pods(name: &str) -> Result<Cluster> {
    let cluster = Cluster::start(name)?;
    load(&cluster)?;
    cluster.apply(&format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: {BUSYBOX}
        imagePullPolicy: Never
        command: [sh, -c, 'hostname > /tmp/index.html; exec httpd -f -p 8080 -h /tmp']
        volumeMounts: [{{name: memory, mountPath: /memory}}]
      volumes: [{{name: memory, emptyDir: {{medium: Memory}}}}]
"
    ))?;
    cluster.kubectl("rollout status deployment/web --timeout=60s").ok()?;
    Ok(cluster)
}

fn load(cluster: &Cluster) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("busybox.tar");
    busybox(BUSYBOX).write(&archive)?;
    cluster.command(&["image", "load", &archive.to_string_lossy()]).ok()?;
    Ok(())
}

/// Container ids by pod name, sorted.
fn containers(cluster: &Cluster) -> Result<String> {
    let path =
        "jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.status.containerStatuses[0].containerID}\n{end}";
    cluster.kubectl_args(&["get", "pods", "-l", "app=web", "--sort-by=.metadata.name", "-o", path], "").ok()
}

fn down_leaves_nothing_behind() -> Result<()> {
    let marks = ["causeway-e2e-gone", "cw-gone-", "causeway/gone", "causeway-gone"];
    // The folder in which named namespaces are mounted is made once and for all clusters.
    drop(Cluster::start("gone")?);
    let before = Traces::now(&marks)?;
    let cluster = with_pods("gone")?;
    let during = Traces::now(&marks)?;
    ensure!(before.nothing_new(&during).is_err(), "the comparison sees nothing: it would never fail");
    cluster.down()?;
    before.nothing_new(&Traces::now(&marks)?)
}

fn down_after_kill_leaves_nothing_behind() -> Result<()> {
    let marks = ["causeway-e2e-killed", "cw-killed-", "causeway/killed", "causeway-killed"];
    let before = Traces::now(&marks)?;
    let cluster = with_pods("killed")?;
    cluster.kill()?;
    cluster.down()?;
    before.nothing_new(&Traces::now(&marks)?)
}

fn up_after_kill_finds_its_pods_running() -> Result<()> {
    let cluster = with_pods("adopt")?;
    let before = containers(&cluster)?;
    ensure!(before.lines().count() == 2, "{before}");
    cluster.kill()?;
    cluster.up()?;
    eventually("both pods are ready again", || {
        cluster.kubectl("wait pod -l app=web --for=condition=Ready --timeout=5s").ok()
    })?;
    let after = containers(&cluster)?;
    ensure!(before == after, "containers were not adopted:\n{before}\n{after}");
    Ok(())
}

fn up_after_down_brings_everything_back() -> Result<()> {
    let cluster = with_pods("again")?;
    cluster.kubectl("create configmap kept --from-literal=key=value").ok()?;
    let address = cluster.kubectl("get service kubernetes -o jsonpath={.spec.clusterIP}").ok()?;
    cluster.down()?;
    let said = cluster.command(&["status"]).fails()?;
    ensure!(said.contains("not running") && said.contains("causeway up"), "{said}");
    cluster.up()?;
    ensure!(cluster.kubectl("get configmap kept -o jsonpath={.data.key}").ok()? == "value");
    ensure!(cluster.kubectl("get service kubernetes -o jsonpath={.spec.clusterIP}").ok()? == address);
    eventually("the pods run again", || cluster.kubectl("rollout status deployment/web --timeout=10s").ok())?;
    let status = cluster.command(&["status"]).ok()?;
    for part in ["node-1", "Ready", "10.90.0.11", "revision"] {
        ensure!(status.contains(part), "{status}");
    }
    // A second `up` of a running cluster is harmless.
    ensure!(cluster.up()?.contains("running already"));
    Ok(())
}

fn two_clusters_live_side_by_side() -> Result<()> {
    let (one, two) = (with_pods("one")?, Cluster::start("two")?);
    ensure!(one.kubectl("get pods -o name").ok()?.lines().count() == 2);
    ensure!(two.kubectl("get pods -o name").ok()?.is_empty());
    let ours = one.on_node("lan", "ip -4 -br addr show").ok()?;
    ensure!(ours.contains("10.90.0.1/24"), "{ours}");
    drop(two);
    ensure!(one.kubectl("get pods -o name").ok()?.lines().count() == 2);
    Ok(())
}

fn a_port_in_use_is_named() -> Result<()> {
    let cluster = Cluster::new("port")?;
    let _taken = TcpListener::bind(("127.0.0.1", cluster.http))?;
    match cluster.up() {
        Ok(said) => bail!("it started on a port in use: {said}"),
        Err(error) => {
            let text = format!("{error:#}");
            for part in [cluster.http.to_string(), std::process::id().to_string(), "--http-port".to_owned()] {
                ensure!(text.contains(&part), "{text} lacks {part}");
            }
        }
    }
    Ok(())
}
