//! What a cluster costs that has nothing to do: watches and requests, counted by the API server.

use crate::Alone;
use crate::images::{BUSYBOX, load};
use anyhow::{Context, Result, ensure};
use causeway_tests::{Cluster, eventually};
use std::collections::BTreeMap;
use std::time::Duration;

/// Each with a cluster of its own.
pub fn tests() -> Vec<(&'static str, Alone)> {
    vec![("quiet::a_node_holds_one_watch_a_kind_and_asks_for_nothing", a_node_holds_one_watch_a_kind)]
}

const NODES: usize = 2;
const PODS: usize = 40;
/// How long is counted.
const COUNTED: Duration = Duration::from_secs(20);

fn a_node_holds_one_watch_a_kind() -> Result<()> {
    let mut cluster = Cluster::new("quiet")?;
    cluster.args = vec!["--nodes".to_owned(), NODES.to_string()];
    cluster.up()?;
    load(&cluster)?;
    cluster.apply(&format!(
        "
apiVersion: v1
kind: ConfigMap
metadata: {{name: page}}
data: {{index.html: hello}}
---
apiVersion: v1
kind: Secret
metadata: {{name: word}}
stringData: {{word: secret}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {PODS}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: {BUSYBOX}
        imagePullPolicy: Never
        command: [sh, -c, 'exec httpd -f -p 8080 -h /page']
        volumeMounts: [{{name: page, mountPath: /page}}, {{name: word, mountPath: /word}}]
      volumes: [{{name: page, configMap: {{name: page}}}}, {{name: word, secret: {{secretName: word}}}}]
"
    ))?;
    cluster.kubectl("rollout status deployment/web --timeout=180s").ok()?;
    // The last statuses are written.
    let mut asked = requests(&cluster)?;
    eventually("a quiet cluster", || {
        std::thread::sleep(Duration::from_secs(3));
        let now = requests(&cluster)?;
        let new = difference(&now, &asked);
        asked = now;
        ensure!(new.len() <= 1, "still busy: {new:?}");
        Ok(())
    })?;

    // One for each node, and one of the control plane.
    let watches = samples(&cluster, "apiserver_longrunning_requests", "resource")?;
    for kind in ["endpointslices", "namespaces", "nodes", "pods", "services", "servicecidrs"] {
        let count = watches.get(kind).copied().unwrap_or_default();
        ensure!((1..=NODES as u64 + 1).contains(&count), "{count} watches of {kind}: {watches:?}");
    }
    // Secrets and ConfigMaps are followed by name, one watch each on a node, however many pods mount them: the page and the
    // authority of the namespace here. Besides: DNS' settings on each node, the control plane's copy.
    let maps = watches.get("configmaps").copied().unwrap_or_default();
    ensure!(maps <= 2 * NODES as u64 + NODES as u64 + 1, "{maps} watches of configmaps: {watches:?}");
    // Those of bootstrap tokens and of the garbage collector. The ingress has none while nothing refers to a Secret.
    let secrets = watches.get("secrets").copied().unwrap_or_default();
    ensure!(secrets <= NODES as u64 + 2, "{secrets} watches of secrets: {watches:?}");

    let before = requests(&cluster)?;
    std::thread::sleep(COUNTED);
    let new = difference(&requests(&cluster)?, &before);
    let beside: u64 = new.iter().filter(|(what, _)| !what.contains("resource=\"leases\"")).map(|(_, n)| n).sum();
    ensure!(beside < COUNTED.as_secs() / 2, "{beside} requests beside the leases in {COUNTED:?}: {new:?}");
    let leases: u64 = new.iter().filter(|(what, _)| what.contains("resource=\"leases\"")).map(|(_, n)| n).sum();
    ensure!(leases <= 4 * NODES as u64, "{leases} requests of leases in {COUNTED:?}: {new:?}");

    // What is followed is not late.
    let pods = cluster.kubectl("get pods -l app=web -o jsonpath={.items[0].metadata.name}").ok()?;
    cluster.kubectl(r#"patch configmap page -p {"data":{"index.html":"other"}}"#).ok()?;
    eventually("the new page", || {
        let page = cluster.kubectl(&format!("exec {pods} -- cat /page/index.html")).ok()?;
        ensure!(page == "other", "{page}");
        Ok(())
    })
}

/// Requests so far by what they were, without our own for the metrics.
fn requests(cluster: &Cluster) -> Result<BTreeMap<String, u64>> {
    let all = metrics(cluster)?;
    let counts = all.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")?.split_once("} "));
    let counts = counts.filter(|(what, _)| !what.contains("resource=\"\""));
    counts.map(|(what, count)| Ok((what.to_owned(), count.trim().parse()?))).collect()
}

fn difference(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let new = now.iter().map(|(what, n)| (what.clone(), n - before.get(what).copied().unwrap_or_default()));
    new.filter(|(_, n)| *n > 0).collect()
}

/// A gauge, summed by one of its labels.
fn samples(cluster: &Cluster, name: &str, label: &str) -> Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    for line in metrics(cluster)?.lines().filter(|line| line.starts_with(name)) {
        let (labels, count) = line.rsplit_once("} ").context("a metric without labels")?;
        let value = labels.split(&format!("{label}=\"")).nth(1).and_then(|rest| rest.split('"').next());
        *all.entry(value.unwrap_or_default().to_owned()).or_default() += count.trim().parse::<u64>()?;
    }
    Ok(all)
}

fn metrics(cluster: &Cluster) -> Result<String> {
    cluster.kubectl("get --raw /metrics").ok()
}
