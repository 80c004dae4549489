//! Several nodes: pods of different nodes over either pod network and both families; nodes that are cut off, die and
//! come back. Each test has a cluster of its own.

use crate::Alone;
use crate::images::{self, BUSYBOX};
use anyhow::{Context, Result, bail, ensure};
use causeway_tests::{Cluster, eventually};
use serde_json::Value;
use std::collections::BTreeSet;

pub fn tests() -> Vec<(&'static str, Alone)> {
    vec![
        ("nodes::cut_and_dead_nodes_are_replaced_and_come_back", cut_and_dead_nodes_are_replaced_and_come_back),
        ("nodes::pods_talk_by_tunnels_and_by_routes", pods_talk_by_tunnels_and_by_routes),
    ]
}

/// A filter of the segment's router that lets no packet with a pod's address pass.
const NO_PODS: &str = "nft 'table inet test { chain forward { type filter hook forward priority 0; \
    ip saddr 10.244.0.0/16 drop; ip daddr 10.244.0.0/16 drop; \
    ip6 saddr fdca:5e3a:a700:100::/56 drop; ip6 daddr fdca:5e3a:a700:100::/56 drop; }; }'";

/// A server that tells who asks, and has a file that takes many packets.
const WHO: &str = r"mkdir -p /tmp/cgi-bin; dd if=/dev/zero of=/tmp/large bs=1k count=4096 2>/dev/null;
          printf '#!/bin/sh\necho; echo $REMOTE_ADDR\n' > /tmp/cgi-bin/who; chmod +x /tmp/cgi-bin/who;
          hostname > /tmp/index.html; exec httpd -f -p '[::]:8080' -h /tmp";

fn started(name: &str, args: &[&str]) -> Result<Cluster> {
    let mut cluster = Cluster::new(name)?;
    cluster.args = args.iter().map(|a| (*a).to_owned()).collect();
    cluster.up()?;
    images::load(&cluster)?;
    Ok(cluster)
}

/// A pod as far as it matters here.
#[derive(Debug, Clone, PartialEq)]
struct Pod {
    name: String,
    uid: String,
    node: String,
    ips: Vec<String>,
    ready: bool,
    leaving: bool,
}

fn pods(c: &Cluster, app: &str) -> Result<Vec<Pod>> {
    let list = c.get(&format!("pods -l app={app}"))?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let all = list["items"].as_array().context("no list")?.iter().map(|p| Pod {
        name: text(&p["metadata"]["name"]),
        uid: text(&p["metadata"]["uid"]),
        node: text(&p["spec"]["nodeName"]),
        ips: p["status"]["podIPs"].as_array().into_iter().flatten().map(|ip| text(&ip["ip"])).collect(),
        ready: p["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Ready" && c["status"] == "True"),
        leaving: !p["metadata"]["deletionTimestamp"].is_null(),
    });
    Ok(all.collect())
}

fn fetch(c: &Cluster, pod: &str, url: &str) -> Result<String> {
    c.kubectl_args(&["exec", pod, "--", "wget", "-qO-", url], "").ok()
}

fn url(ip: &str, port: u16, path: &str) -> String {
    if ip.contains(':') { format!("http://[{ip}]:{port}/{path}") } else { format!("http://{ip}:{port}/{path}") }
}

fn daemon_set() -> String {
    format!(
        "
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: {BUSYBOX}
        imagePullPolicy: Never
        command:
        - sh
        - -c
        - |
          {WHO}
        readinessProbe: {{httpGet: {{port: 8080, path: /}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{ipFamilyPolicy: RequireDualStack, selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
"
    )
}

/// Every pod reaches every other by both families and is seen as itself; long streams and both service addresses work.
fn all_reach_all(c: &Cluster, mtu: u32) -> Result<()> {
    let all = pods(c, "web")?;
    ensure!(all.len() == 2 && all[0].node != all[1].node, "{all:?}");
    for (from, to) in [(&all[0], &all[1]), (&all[1], &all[0])] {
        ensure!(to.ips.len() == 2 && !to.ips[0].contains(':') && to.ips[1].contains(':'), "{to:?}");
        for (family, ip) in to.ips.iter().enumerate() {
            let who = fetch(c, &from.name, &url(ip, 8080, "cgi-bin/who"))?;
            ensure!(who.contains(&from.ips[family]), "{ip} was asked by {who}, not by {}", from.ips[family]);
            let large = format!("wget -qO- '{}' | wc -c", url(ip, 8080, "large"));
            let bytes = c.kubectl_args(&["exec", &from.name, "--", "sh", "-c", &large], "").ok()?;
            ensure!(bytes.trim() == "4194304", "{bytes} bytes of a long stream arrived from {ip}");
        }
        let size = c.kubectl_args(&["exec", &from.name, "--", "cat", "/sys/class/net/eth0/mtu"], "").ok()?;
        ensure!(size.trim() == mtu.to_string(), "the pod's MTU is {size}");
    }
    let addresses = c.kubectl("get service web -o jsonpath={.spec.clusterIPs[*]}").ok()?;
    ensure!(addresses.split(' ').count() == 2, "{addresses}");
    for ip in addresses.split(' ') {
        eventually("both pods answer at the service's address", || {
            let mut seen = BTreeSet::new();
            for _ in 0..12 {
                seen.insert(fetch(c, &all[0].name, &url(ip, 80, ""))?);
            }
            ensure!(seen.len() == 2, "{ip}: {seen:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn pods_talk_by_tunnels_and_by_routes() -> Result<()> {
    let mut c = started("tunnels", &["--nodes", "2", "--pod-network", "vxlan", "--ip-family", "dual"])?;
    let node = c.get("node node-2")?;
    let addresses: Vec<&Value> = node["status"]["addresses"].as_array().into_iter().flatten().collect();
    ensure!(addresses.iter().filter(|a| a["type"] == "InternalIP").count() == 2, "{addresses:?}");
    ensure!(node["spec"]["podCIDRs"].as_array().is_some_and(|r| r.len() == 2), "{}", node["spec"]);
    c.on_node("lan", NO_PODS).ok()?;
    c.apply(&daemon_set())?;
    c.kubectl("rollout status daemonset/web --timeout=60s").ok()?;
    all_reach_all(&c, 1450)?;
    let all = pods(&c, "web")?;
    // The API, outside of the pods' network, and names.
    let api = "nc -w 5 kubernetes.default.svc.cluster.local 443 </dev/null && echo open";
    let said = c.kubectl_args(&["exec", &all[1].name, "--", "sh", "-c", api], "").ok()?;
    ensure!(said.contains("open"), "{said}");
    // What no pod and no service has leads nowhere, on any node.
    for (ip, family) in [("10.244.250.9", "-4"), ("fdca:5e3a:a700:1fe::9", "-6")] {
        c.on_node("node-1", &format!("ip {family} route get {ip}")).fails()?;
    }
    ensure!(c.on_node("node-1", "ip route show default; ip -6 route show default").ok()?.trim().is_empty());
    // Another mode after a crash: the same pods, and nothing of the tunnels.
    c.on_node("lan", "nft delete table inet test").ok()?;
    c.kill()?;
    c.args[3] = "routed".to_owned();
    c.up()?;
    eventually("all pods are ready again", || {
        let now = pods(&c, "web")?;
        ensure!(now.iter().all(|p| p.ready) && now.iter().map(|p| &p.uid).eq(all.iter().map(|p| &p.uid)), "{now:?}");
        all_reach_all(&c, 1500)
    })?;
    for node in ["node-1", "node-2"] {
        c.on_node(node, "ip link show cwvx0").fails()?;
        let routes = c.on_node(node, "ip route show proto 140; ip -6 route show proto 140").ok()?;
        ensure!(routes.lines().count() == 2 && !routes.contains("cwvx0"), "{routes}");
        ensure!(!c.on_node(node, "nft list tables").ok()?.contains("causeway-pods"));
    }
    Ok(())
}

fn workloads() -> String {
    let pod = |app: &str| {
        format!(
            "
    metadata: {{labels: {{app: {app}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}}
      - {{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}}
      topologySpreadConstraints:
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {{matchLabels: {{app: {app}}}}}}}
      containers:
      - name: main
        image: {BUSYBOX}
        imagePullPolicy: Never
        command: [sh, -c, 'hostname > /tmp/index.html; exec httpd -f -p 8080 -h /tmp']
        readinessProbe: {{httpGet: {{port: 8080, path: /}}, periodSeconds: 1}}"
        )
    };
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: web}}}}
  template:{}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db}}
spec:
  serviceName: db
  replicas: 3
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: db}}}}
  template:{}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: db}}
spec: {{clusterIP: None, selector: {{app: db}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: web}}
spec: {{rules: [{{host: web.test, http: {{paths: [{{path: /, pathType: Prefix, backend: {{service: {{name: web, port: {{number: 80}}}}}}}}]}}}}]}}
",
        pod("web"),
        pod("db")
    )
}

/// The names of the containers that run on a node by containerd's word, whatever the API says.
fn running(c: &Cluster, node: &str) -> Result<Vec<String>> {
    let socket = format!("/run/causeway/{}/containerd/containerd.sock", c.name);
    let ctr = |args: &str| {
        let line = format!("ctr -a {socket} -n causeway-{node} {args}");
        causeway_tests::run(std::process::Command::new("sh").args(["-c", &line]))?.ok()
    };
    let tasks = ctr("tasks ls")?;
    let ids = tasks.lines().skip(1).filter(|l| l.contains("RUNNING")).filter_map(|l| l.split_whitespace().next());
    let names = ids.map(|id| {
        let info: Value = serde_json::from_str(&ctr(&format!("containers info {id}"))?)?;
        let labels = &info["Labels"];
        let found = labels.as_object().into_iter().flatten().find(|(k, _)| k.ends_with("pod.name"));
        Ok(found.and_then(|(_, v)| v.as_str()).unwrap_or(id).to_owned())
    });
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// What the API says runs on a node.
fn expected(c: &Cluster, node: &str) -> Result<Vec<String>> {
    let all = [pods(c, "web")?, pods(c, "db")?].concat();
    ensure!(all.iter().all(|p| !p.leaving && p.ready), "{all:?}");
    let mut names: Vec<String> = all.into_iter().filter(|p| p.node == node).map(|p| p.name).collect();
    names.sort();
    Ok(names)
}

/// While `lost` is away: nothing leads to it, its Deployment's pods are elsewhere, its StatefulSet's pods nowhere else.
fn everybody_gets_along_without(c: &Cluster, lost: &str, before: &[Pod]) -> Result<()> {
    eventually("the node is marked", || {
        let node = c.get(&format!("node {lost}"))?;
        let ready = node["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
        ensure!(ready.is_some_and(|c| c["status"] == "Unknown" && c["reason"] == "NodeStatusUnknown"), "{ready:?}");
        let taints: BTreeSet<String> = node["spec"]["taints"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|t| t["key"] == "node.kubernetes.io/unreachable")
            .map(|t| t["effect"].to_string())
            .collect();
        ensure!(taints.len() == 2, "{taints:?}");
        Ok(())
    })?;
    let gone: Vec<&Pod> = before.iter().filter(|p| p.node == lost).collect();
    ensure!(gone.iter().any(|p| p.name.starts_with("db-")) && gone.iter().any(|p| p.name.starts_with("web-")));
    let service = c.kubectl("get service web -o jsonpath={.spec.clusterIP}").ok()?;
    eventually("nothing leads to the lost node", || {
        for pod in &gone {
            for node in ["node-1", "node-2", "node-3"].into_iter().filter(|n| *n != lost) {
                let map = c.on_node(node, "nft list map ip causeway endpoints").ok()?;
                ensure!(!map.contains(&pod.ips[0]), "{node} still sends to {}", pod.ips[0]);
                let names =
                    c.on_node(node, "dig @10.96.0.10 +time=2 +tries=1 +short db.default.svc.cluster.local").ok()?;
                ensure!(!names.contains(&pod.ips[0]), "DNS of {node} still names {}: {names}", pod.ips[0]);
            }
        }
        let routes = c.on_node("node-1", "curl -sS --max-time 5 http://10.90.0.11:10254/debug/routes").ok()?;
        ensure!(!gone.iter().any(|p| routes.contains(&p.ips[0])), "the ingress: {routes}");
        Ok(())
    })?;
    eventually("the Deployment's pods are replaced", || {
        let now = pods(c, "web")?;
        let well = now.iter().filter(|p| p.ready && !p.leaving && p.node != lost).count();
        ensure!(well == 3, "{now:?}");
        Ok(())
    })?;
    let here = ["node-1", "node-2"].into_iter().find(|n| *n != lost).unwrap_or("node-1");
    for _ in 0..12 {
        c.on_node(here, &format!("curl -sS --max-time 3 http://{service}/")).ok()?;
        let said = c.curl("http://web.test/", &["-f"]).ok()?;
        ensure!(said.starts_with("web-"), "{said}");
    }
    let now = pods(c, "db")?;
    let lost_db: Vec<&&Pod> = gone.iter().filter(|p| p.name.starts_with("db-")).collect();
    for old in lost_db {
        let same: Vec<&Pod> = now.iter().filter(|p| p.name == old.name).collect();
        ensure!(same.len() == 1 && same[0].uid == old.uid && same[0].leaving, "{} ran twice: {same:?}", old.name);
    }
    ensure!(now.len() == 3, "{now:?}");
    Ok(())
}

/// After `back` came back: Ready, and on every node runs exactly what the API says.
fn all_is_well_again(c: &Cluster, back: &str) -> Result<()> {
    eventually("the node is back and every pod runs once", || {
        c.kubectl(&format!("wait node/{back} --for=condition=Ready --timeout=1s")).ok()?;
        let taints = c.kubectl(&format!("get node {back} -o jsonpath={{.spec.taints}}")).ok()?;
        ensure!(taints.trim().is_empty(), "{taints}");
        for node in ["node-1", "node-2", "node-3"] {
            let (has, wants) = (running(c, node)?, expected(c, node)?);
            ensure!(has == wants, "{node} runs {has:?}, the API says {wants:?}");
        }
        ensure!(pods(c, "db")?.len() == 3 && pods(c, "web")?.len() == 3);
        c.command(&["status"]).ok().map(drop)
    })
}

fn all_pods(c: &Cluster) -> Result<Vec<Pod>> {
    Ok([pods(c, "web")?, pods(c, "db")?].concat())
}

/// A node dies and is back within the grace period, and nothing is said against it. On a busy machine it may take longer,
/// which the controllers tell: then it is no such case, and is tried again.
fn back_before_anybody_noticed(c: &Cluster, node: &str) -> Result<()> {
    let since = format!("get node {node} -o jsonpath={{.status.conditions[?(@.type==\"Ready\")].lastTransitionTime}}");
    let restarts = |pod: &Pod| -> Result<u32> {
        let count = "jsonpath={.status.containerStatuses[0].restartCount}";
        Ok(c.kubectl(&format!("get pod {} -o {count}", pod.name)).ok()?.trim().parse()?)
    };
    let missed = format!(
        "get events -A --field-selector involvedObject.kind=Node,involvedObject.name={node},reason=NodeNotReady -o json"
    );
    let missed = || -> Result<u64> {
        let events: Value = serde_json::from_str(&c.kubectl(&missed).ok()?)?;
        Ok(events["items"].as_array().into_iter().flatten().map(|e| e["count"].as_u64().unwrap_or(1)).sum())
    };
    for _ in 0..4 {
        let missed_before = missed()?;
        let before = all_pods(c)?.into_iter().map(|p| Ok((restarts(&p)?, p))).collect::<Result<Vec<_>>>()?;
        let ready_since = c.kubectl(&since).ok()?;
        c.command(&["node", "kill", node]).ok()?;
        c.command(&["node", "start", node]).ok()?;
        all_is_well_again(c, node)?;
        if missed()? != missed_before {
            continue;
        }
        let since = c.kubectl(&since).ok()?;
        ensure!(since == ready_since, "{node} was ready since {ready_since}, now since {since}");
        let (old, new): (BTreeSet<_>, BTreeSet<_>) =
            (before.iter().map(|(_, p)| p.uid.clone()).collect(), all_pods(c)?.into_iter().map(|p| p.uid).collect());
        ensure!(old == new, "{old:?} became {new:?}");
        for (count, pod) in &before {
            ensure!(restarts(pod)? == count + u32::from(pod.node == node), "{}", pod.name);
        }
        return Ok(());
    }
    bail!("{node} was missed whenever it came back")
}

fn cut_and_dead_nodes_are_replaced_and_come_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("cluster.yaml");
    std::fs::write(&config, "nodeMonitorGracePeriodSeconds: 4\n")?;
    let c = started("faults", &["--nodes", "3", "--config", &config.to_string_lossy()])?;
    c.apply(&workloads())?;
    c.kubectl("rollout status deployment/web --timeout=60s").ok()?;
    c.kubectl("rollout status statefulset/db --timeout=60s").ok()?;
    all_is_well_again(&c, "node-3")?;

    // Cut off: it goes on, alone.
    let before = all_pods(&c)?;
    let containers = running(&c, "node-3")?;
    ensure!(c.command(&["node", "cut", "node-3"]).ok()?.contains("cut off"));
    let listed = c.command(&["node", "ls"]).ok()?;
    let line = listed.lines().find(|l| l.starts_with("node-3")).context("node-3 is not listed")?;
    ensure!(line.split_whitespace().nth(1) == Some("cut"), "{listed}");
    let said = c.command(&["status"]).fails()?;
    ensure!(said.contains("node-3 is cut off") && said.contains("causeway node heal node-3"), "{said}");
    everybody_gets_along_without(&c, "node-3", &before)?;
    ensure!(running(&c, "node-3")? == containers, "a node that is cut off keeps its containers");
    c.command(&["node", "heal", "node-3"]).ok()?;
    all_is_well_again(&c, "node-3")?;

    // Off, with what it had in memory; somebody who knows that it is dead has its pod of the StatefulSet back.
    c.kubectl("scale deployment web --replicas=0").ok()?;
    eventually("the Deployment's pods are gone", || {
        ensure!(pods(&c, "web")?.is_empty());
        Ok(())
    })?;
    c.kubectl("scale deployment web --replicas=3").ok()?;
    c.kubectl("rollout status deployment/web --timeout=60s").ok()?;
    all_is_well_again(&c, "node-3")?;
    let before = all_pods(&c)?;
    ensure!(c.command(&["node", "kill", "node-2"]).ok()?.contains("off"));
    ensure!(running(&c, "node-2")?.is_empty(), "nothing of a dead node runs");
    ensure!(!std::path::Path::new("/run/netns/cw-faults-node-2").exists());
    ensure!(c.command(&["node", "cut", "node-2"]).fails()?.contains("causeway node start node-2"));
    ensure!(c.command(&["node", "kill", "node-9"]).fails()?.contains("node-1, node-2, node-3"));
    everybody_gets_along_without(&c, "node-2", &before)?;
    let dead = before.iter().find(|p| p.node == "node-2" && p.name.starts_with("db-")).context("no db on node-2")?;
    c.kubectl(&format!("delete pod {} --force --grace-period=0", dead.name)).ok()?;
    eventually("the StatefulSet's pod runs elsewhere", || {
        let now = pods(&c, "db")?;
        let new = now.iter().find(|p| p.name == dead.name).context("it is not there")?;
        ensure!(new.uid != dead.uid && new.node != "node-2" && new.ready, "{new:?}");
        Ok(())
    })?;
    c.command(&["node", "start", "node-2"]).ok()?;
    all_is_well_again(&c, "node-2")?;

    // The node with the ingress, back before anybody noticed: the same pods, in new containers. What had ended is not
    // run once more.
    let once = format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: once}}
spec:
  nodeName: node-1
  restartPolicy: Never
  containers: [{{name: main, image: {BUSYBOX}, imagePullPolicy: Never, command: [echo, done]}}]
"
    );
    c.apply(&once)?;
    c.kubectl("wait pod/once --for=jsonpath={.status.phase}=Succeeded --timeout=30s").ok()?;
    let id = "get pod once -o jsonpath={.status.containerStatuses[0].containerID}";
    let ended = c.kubectl(id).ok()?;
    back_before_anybody_noticed(&c, "node-1")?;
    ensure!(c.kubectl(id).ok()? == ended && c.kubectl("get pod once -o jsonpath={.status.phase}").ok()? == "Succeeded");
    ensure!(c.curl("http://web.test/", &["-f"]).ok()?.starts_with("web-"));
    Ok(())
}
