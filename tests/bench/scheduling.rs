//! How fast pods get their nodes: a Deployment is scaled up on nodes that are objects only, so that nothing but the API
//! server, the controllers and the scheduler works. In: a cluster of one real node. Out: pods a second from the order to the
//! last binding, and the CPU time of the whole process for each.

use crate::stats::spread;
use crate::{Options, process};
use anyhow::{Result, ensure};
use causeway_tests::{Cluster, eventually};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PODS: usize = 500;
/// Sizes of the cluster.
pub const NODES: [usize; 2] = [100, 1000];
const PATIENCE: Duration = Duration::from_secs(120);

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: hollow}
spec:
  replicas: 0
  selector: {matchLabels: {app: hollow}}
  template:
    metadata: {labels: {app: hollow}}
    spec:
      nodeSelector: {bench: hollow}
      tolerations: [{operator: Exists}]
      containers: [{name: c, image: 'causeway.local/bench/none:1', resources: {requests: {cpu: 10m, memory: 16Mi}}}]
"#;

/// Measures both sizes, each round on a new cluster.
pub fn run(options: &Options) -> Result<Value> {
    let mut results = json!({ "pods": PODS });
    for nodes in NODES {
        let (mut rates, mut cpu) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds.clamp(1, 5) {
            let (rate, micros) = one(nodes)?;
            rates.push(rate);
            cpu.push(micros);
        }
        let size = json!({ "podsPerSecond": spread(&rates), "cpuMicrosPerPod": spread(&cpu) });
        results[format!("{nodes}Nodes")] = size;
    }
    Ok(results)
}

fn one(nodes: usize) -> Result<(f64, f64)> {
    let cluster = Cluster::start(crate::startup::CLUSTER)?;
    let list: Vec<Value> = (0..nodes).map(hollow).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": list });
    cluster.kubectl_in("create -f -", &list.to_string()).ok()?;
    cluster.apply(DEPLOYMENT)?;
    let wanted = nodes + 1;
    eventually("all nodes are there", || {
        let found = cluster.kubectl("get nodes -o name").ok()?.lines().count();
        ensure!(found == wanted, "{found} of {wanted}");
        Ok(())
    })?;
    let pid = cluster.pid()?;
    let (before, begin) = (process::cpu_seconds(pid)?, Instant::now());
    cluster.kubectl(&format!("scale deployment hollow --replicas={PODS}")).ok()?;
    loop {
        // The count of those that have a node: one field a pod.
        let placed = cluster.kubectl("get pods -l app=hollow -o jsonpath={.items[*].spec.nodeName}").ok()?;
        let placed = placed.split_whitespace().count();
        if placed == PODS {
            break;
        }
        ensure!(begin.elapsed() < PATIENCE, "only {placed} of {PODS} pods have a node");
        std::thread::sleep(Duration::from_millis(50));
    }
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = process::cpu_seconds(pid)? - before;
    Ok((PODS as f64 / seconds, cpu * 1e6 / PODS as f64))
}

fn hollow(number: usize) -> Value {
    let name = format!("hollow-{number}");
    let room = json!({ "cpu": "32", "memory": "64Gi", "pods": "110" });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "bench": "hollow", "kubernetes.io/hostname": name } },
        "status": {
            "capacity": room, "allocatable": room,
            "conditions": [{ "type": "Ready", "status": "True", "reason": "Hollow" }],
        },
    })
}
