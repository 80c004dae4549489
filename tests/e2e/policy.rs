//! NetworkPolicies as people write them, with kubectl, names and service addresses.

use crate::images::{CURL, load};
use crate::pods::pod;
use crate::services::web;
use crate::{Alone, Test};
use anyhow::{Context, Result, ensure};
use causeway_tests::{Cluster, eventually};

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("policy::deny_all_then_allow_by_label_name_and_dns", deny_all_then_allow_by_label_name_and_dns),
        ("policy::a_pod_is_held_from_its_first_packet", a_pod_is_held_from_its_first_packet),
    ]
}

/// With a cluster of its own, of two nodes.
pub fn alone() -> Vec<(&'static str, Alone)> {
    vec![("policy::pods_of_other_nodes_are_known_while_a_policy_speaks_of_them", pods_of_other_nodes)]
}

fn sleeper(ns: &str, name: &str) -> String {
    pod(
        ns,
        name,
        &format!("containers: [{{name: main, image: '{CURL}', imagePullPolicy: Never, command: [sleep, '600']}}]"),
    )
}

/// Asks once from a pod.
fn fetch(c: &Cluster, ns: &str, from: &str, url: &str) -> causeway_tests::Output {
    c.kubectl_args(&["-n", ns, "exec", from, "--", "curl", "-sS", "--max-time", "3", url], "")
}

fn look_up(c: &Cluster, ns: &str, from: &str) -> causeway_tests::Output {
    let name = format!("web.{ns}.svc.cluster.local");
    c.kubectl_args(&["-n", ns, "exec", from, "--", "nslookup", &name], "")
}

fn deny_all_then_allow_by_label_name_and_dns(c: &Cluster, ns: &str) -> Result<()> {
    let ip = web(c, ns, 2)?;
    c.apply(&format!("{}\n---\n{}", sleeper(ns, "friend"), sleeper(ns, "stranger")))?;
    for client in ["friend", "stranger"] {
        c.kubectl(&format!("-n {ns} wait pod/{client} --for=condition=Ready --timeout=60s")).ok()?;
        eventually("all is open without policies", || fetch(c, ns, client, "http://web/").ok())?;
    }
    let denied = format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: default-deny, namespace: {ns}}}
spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress]}}
"
    );
    let said = c.kubectl_in("apply -f -", &denied);
    ensure!(!said.err.contains("Warning"), "{}", said.err);
    said.ok()?;
    for client in ["friend", "stranger"] {
        eventually("the address is closed", || fetch(c, ns, client, &format!("http://{ip}/")).fails())?;
        ensure!(
            c.kubectl_args(&["-n", ns, "exec", client, "--", "nslookup", "web"], "").fails().is_ok(),
            "DNS is open"
        );
    }
    // The node's probes go on, and so does what the node itself asks.
    ensure!(c.on_node("node-1", &format!("curl -sS --max-time 5 http://{ip}/")).ok()?.starts_with("web-"));
    c.apply(&format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: web, namespace: {ns}}}
spec:
  podSelector: {{matchLabels: {{app: web}}}}
  ingress:
  - from: [{{podSelector: {{matchLabels: {{app: friend}}}}}}]
    ports: [{{port: http}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: clients, namespace: {ns}}}
spec:
  podSelector: {{matchExpressions: [{{key: app, operator: NotIn, values: [web]}}]}}
  policyTypes: [Egress]
  egress:
  - to: [{{podSelector: {{matchLabels: {{app: web}}}}}}]
    ports: [{{port: 8000, endPort: 8100}}]
  - to:
    - namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: kube-system}}}}
      podSelector: {{matchLabels: {{k8s-app: kube-dns}}}}
    ports: [{{port: 53, protocol: UDP}}, {{port: 53}}]
"
    ))?;
    eventually("the friend gets in by name", || {
        let page = fetch(c, ns, "friend", "http://web/").ok()?;
        ensure!(page.starts_with("web-"), "{page}");
        Ok(())
    })?;
    ensure!(look_up(c, ns, "stranger").ok()?.contains(&ip));
    fetch(c, ns, "stranger", "http://web/").fails().context("the stranger got in")?;
    // Labels count as they are now.
    c.kubectl(&format!("-n {ns} label pod stranger app=friend --overwrite")).ok()?;
    eventually("a stranger became a friend", || fetch(c, ns, "stranger", "http://web/").ok())?;
    c.kubectl(&format!("-n {ns} label pod friend app=stranger --overwrite")).ok()?;
    eventually("a friend became a stranger", || fetch(c, ns, "friend", "http://web/").fails())?;
    let described = c.kubectl(&format!("-n {ns} describe networkpolicy web")).ok()?;
    ensure!(described.contains("PodSelector: app=friend"), "{described}");
    let metrics = c.on_node("node-1", "curl -sS http://10.90.0.11:9091/metrics").ok()?;
    ensure!(metrics.contains("causeway_network_policy_isolated_pods"), "{metrics}");
    ensure!(!metrics.contains("causeway_network_policy_policies 0"), "{metrics}");
    ensure!(c.on_node("node-1", "curl -sS http://10.90.0.11:9091/healthz").ok()?.trim() == "ok");
    c.kubectl(&format!("-n {ns} delete networkpolicy --all")).ok()?;
    eventually("all is open again", || fetch(c, ns, "friend", "http://web/").ok()).map(drop)
}

fn a_pod_is_held_from_its_first_packet(c: &Cluster, ns: &str) -> Result<()> {
    let ip = web(c, ns, 1)?;
    c.apply(&format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: held, namespace: {ns}}}
spec: {{podSelector: {{matchLabels: {{app: held}}}}, policyTypes: [Egress]}}
"
    ))?;
    // The first thing that either does is to ask, once: the one must be let at once, the other never.
    let asks = |name: &str| {
        let spec = format!(
            "restartPolicy: Never\ncontainers: [{{name: main, image: '{CURL}', imagePullPolicy: Never, \
             command: [sh, -c, 'for i in 1 2 3; do curl -sS --max-time 2 http://{ip}/ && echo got it; done; true']}}]"
        );
        pod(ns, name, &spec)
    };
    c.apply(&format!("{}\n---\n{}", asks("held"), asks("free")))?;
    for (name, times) in [("held", 0), ("free", 3)] {
        let done = "--for=jsonpath={.status.phase}=Succeeded --timeout=60s";
        c.kubectl(&format!("-n {ns} wait pod/{name} {done}")).ok()?;
        let log = c.kubectl(&format!("-n {ns} logs {name}")).ok()?;
        ensure!(log.matches("got it").count() == times, "{name}: {log}");
    }
    Ok(())
}

fn pods_of_other_nodes() -> Result<()> {
    let mut c = Cluster::new("peers")?;
    c.args = ["--nodes", "2"].map(str::to_owned).to_vec();
    c.up()?;
    load(&c)?;
    let on = |name: &str, node: &str, command: &str| {
        format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: '{CURL}', imagePullPolicy: Never, command: [sh, -c, '{command}']}}]
---"
        )
    };
    let serve = "echo hello > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    let manifest =
        [on("web", "node-1", serve), on("friend", "node-2", "sleep 600"), on("stranger", "node-2", "sleep 600")];
    c.apply(&manifest.concat())?;
    c.kubectl("wait pod --all --for=condition=Ready --timeout=60s").ok()?;
    let url = format!("http://{}:8080/", c.kubectl("get pod web -o jsonpath={.status.podIP}").ok()?);
    let ask = |from: &str| fetch(&c, "default", from, &url);
    for client in ["friend", "stranger"] {
        eventually("all is open without policies", || ask(client).ok())?;
    }
    ensure!(watches_of_pods(&c)? == 3, "each node watches its own pods, and the control plane all");
    c.apply(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]
",
    )?;
    eventually("the stranger is kept out", || ask("stranger").fails())?;
    eventually("the friend gets in", || ask("friend").ok())?;
    // Only the node that has the pod of the policy asks for those of others.
    ensure!(watches_of_pods(&c)? == 4, "{} watches of pods", watches_of_pods(&c)?);
    c.apply(&on("late", "node-2", "sleep 600"))?;
    c.kubectl("wait pod late --for=condition=Ready --timeout=60s").ok()?;
    ask("late").fails().context("a pod that nobody speaks of got in")?;
    c.kubectl("label pod late app=friend --overwrite").ok()?;
    eventually("another friend gets in", || ask("late").ok())?;
    c.kubectl("label pod friend app=other --overwrite").ok()?;
    eventually("who is no friend any more does not", || ask("friend").fails())?;
    c.kubectl("delete networkpolicy web").ok()?;
    eventually("all is open again", || ask("stranger").ok()).map(drop)
}

fn watches_of_pods(c: &Cluster) -> Result<u64> {
    let all = c.kubectl("get --raw /metrics").ok()?;
    let of_pods =
        all.lines().filter(|l| l.starts_with("apiserver_longrunning_requests{") && l.contains("resource=\"pods\""));
    of_pods.map(|line| Ok(line.rsplit(' ').next().context("a metric without a value")?.parse::<u64>()?)).sum()
}
