//! What keeps pods going: owners, order, namespaces, custom resources.

use crate::Test;
use crate::images::BUSYBOX;
use crate::kubectl::deployment;
use anyhow::{Result, ensure};
use causeway_tests::{Cluster, eventually};

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("workloads::owners_and_orphans", owners_and_orphans),
        ("workloads::a_lost_pod_is_replaced", a_lost_pod_is_replaced),
        ("workloads::daemons_run_on_every_node", daemons_run_on_every_node),
        ("workloads::placement_is_explained", placement_is_explained),
        ("workloads::namespaces_take_everything_along", namespaces_take_everything_along),
        ("workloads::custom_resources", custom_resources),
    ]
}

fn names(c: &Cluster, ns: &str, kind: &str) -> Result<Vec<String>> {
    Ok(c.kubectl(&format!("-n {ns} get {kind} -o name")).ok()?.lines().map(str::to_owned).collect())
}

fn owners_and_orphans(c: &Cluster, ns: &str) -> Result<()> {
    let make = || c.kubectl_in(&format!("-n {ns} apply -f -"), &deployment("web", 1)).ok();
    make()?;
    c.kubectl(&format!("-n {ns} rollout status deployment/web --timeout=60s")).ok()?;
    c.kubectl(&format!("-n {ns} delete deployment web --cascade=orphan")).ok()?;
    ensure!(names(c, ns, "replicasets")?.len() == 1);
    make()?;
    eventually("the orphan is adopted", || {
        let owner =
            c.get(&format!("replicasets -n {ns}"))?["items"][0]["metadata"]["ownerReferences"][0]["name"].clone();
        ensure!(owner == "web", "{owner}");
        Ok(())
    })?;
    c.kubectl(&format!("-n {ns} delete deployment web --cascade=foreground")).ok()?;
    ensure!(
        names(c, ns, "replicasets,pods")?.is_empty(),
        "foreground deletion returned before its dependents were gone"
    );
    make()?;
    eventually("pods are there", || {
        ensure!(!names(c, ns, "pods")?.is_empty());
        Ok(())
    })?;
    c.kubectl(&format!("-n {ns} delete deployment web")).ok()?;
    eventually("background deletion reaches the pods", || {
        ensure!(names(c, ns, "replicasets,pods")?.is_empty());
        Ok(())
    })
}

fn a_lost_pod_is_replaced(c: &Cluster, ns: &str) -> Result<()> {
    c.kubectl_in(&format!("-n {ns} apply -f -"), &deployment("web", 2)).ok()?;
    c.kubectl(&format!("-n {ns} rollout status deployment/web --timeout=60s")).ok()?;
    let before = names(c, ns, "pods")?;
    c.kubectl(&format!("-n {ns} delete {}", before[0])).ok()?;
    c.kubectl(&format!("-n {ns} rollout status deployment/web --timeout=60s")).ok()?;
    let after = names(c, ns, "pods")?;
    ensure!(after.len() == 2 && !after.contains(&before[0]), "{before:?} {after:?}");
    Ok(())
}

fn daemons_run_on_every_node(c: &Cluster, ns: &str) -> Result<()> {
    c.apply(&format!(
        "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: agent, namespace: {ns}}}\nspec:\n  selector: {{matchLabels: {{app: agent}}}}\n  template:\n    metadata: {{labels: {{app: agent}}}}\n    spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: main, image: '{BUSYBOX}', imagePullPolicy: Never, command: [sleep, '600']}}]}}\n"
    ))?;
    c.kubectl(&format!("-n {ns} rollout status daemonset/agent --timeout=60s")).ok()?;
    ensure!(names(c, ns, "pods")?.len() == names(c, ns, "nodes")?.len());
    Ok(())
}

fn placement_is_explained(c: &Cluster, ns: &str) -> Result<()> {
    let big = format!(
        "containers: [{{name: main, image: '{BUSYBOX}', imagePullPolicy: Never, resources: {{requests: {{cpu: '1000'}}}}}}]"
    );
    c.apply(&crate::pods::pod(ns, "big", &big))?;
    c.apply(&crate::pods::pod(ns, "picky", &format!("nodeSelector: {{disk: tape}}\n{}", big.replace("'1000'", "1m"))))?;
    eventually("both wait, and say why", || {
        let events = c.kubectl(&format!("-n {ns} get events")).ok()?;
        ensure!(events.contains("0/1 nodes are available: 1 Insufficient cpu"), "{events}");
        ensure!(events.contains("1 node(s) didn't match Pod's node affinity/selector"), "{events}");
        Ok(())
    })?;
    c.kubectl("label node node-1 disk=tape").ok()?;
    let placed = eventually("a label lets it run", || {
        let node = c.kubectl(&format!("-n {ns} get pod picky -o jsonpath={{.spec.nodeName}}")).ok()?;
        ensure!(node == "node-1", "{node}");
        Ok(())
    });
    c.kubectl("label node node-1 disk-").ok()?;
    placed
}

fn namespaces_take_everything_along(c: &Cluster, ns: &str) -> Result<()> {
    let inner = format!("{ns}-inner");
    c.kubectl(&format!("create namespace {inner}")).ok()?;
    eventually("the default service account is there", || {
        c.kubectl(&format!("-n {inner} get serviceaccount default")).ok()
    })?;
    c.kubectl_in(&format!("-n {inner} apply -f -"), &deployment("web", 1)).ok()?;
    c.kubectl(&format!("-n {inner} rollout status deployment/web --timeout=60s")).ok()?;
    c.kubectl(&format!("-n {inner} create configmap x")).ok()?;
    c.kubectl(&format!("delete namespace {inner} --timeout=90s")).ok()?;
    c.kubectl(&format!("get namespace {inner}")).fails()?;
    ensure!(names(c, &inner, "pods,configmaps,deployments")?.is_empty());
    Ok(())
}

fn custom_resources(c: &Cluster, ns: &str) -> Result<()> {
    c.apply(
        r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.e2e.causeway.dev}
spec:
  group: e2e.causeway.dev
  scope: Namespaced
  names: {plural: boats, singular: boat, kind: Boat, shortNames: [bt]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns: [{name: Masts, type: integer, jsonPath: .spec.masts}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [masts]
            properties:
              masts: {type: integer, minimum: 1}
              flag: {type: string, default: red}
            x-kubernetes-validations: [{rule: 'self.masts < 10', message: too many masts}]
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
"#,
    )?;
    c.kubectl("wait crd/boats.e2e.causeway.dev --for=condition=Established --timeout=30s").ok()?;
    let boat = |masts: &str| {
        format!(
            "apiVersion: e2e.causeway.dev/v1\nkind: Boat\nmetadata: {{name: b, namespace: {ns}}}\nspec: {{masts: {masts}}}\n"
        )
    };
    eventually("boats can be made", || c.apply(&boat("2")))?;
    ensure!(c.kubectl(&format!("-n {ns} get bt b -o jsonpath={{.spec.flag}}")).ok()? == "red");
    let table = c.kubectl(&format!("-n {ns} get boats")).ok()?;
    ensure!(table.contains("MASTS") && table.contains('2'), "{table}");
    for (masts, words) in [("0", "spec.masts"), ("12", "too many masts"), ("many", "spec.masts")] {
        let said = c.kubectl_in("apply -f -", &boat(masts)).fails()?;
        ensure!(said.contains(words), "{masts}: {said}");
    }
    ensure!(c.kubectl("explain boat.spec").ok()?.contains("masts"));
    c.kubectl("delete crd boats.e2e.causeway.dev --timeout=60s").ok()?;
    eventually("the kind is gone", || c.kubectl(&format!("-n {ns} get boats")).fails()).map(drop)
}
