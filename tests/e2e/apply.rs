//! `causeway apply`: manifests without kubectl, beside the real one.

use crate::Test;
use crate::images::BUSYBOX;
use crate::kubectl::deployment;
use anyhow::{Result, ensure};
use causeway_tests::{Cluster, Output};
use std::fs;

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("apply::manifests_are_applied_and_waited_for", manifests_are_applied_and_waited_for),
        ("apply::what_others_have_set_is_not_taken_in_silence", what_others_have_set_is_not_taken_in_silence),
        ("apply::what_cannot_be_applied_is_said", what_cannot_be_applied_is_said),
        ("apply::a_kind_and_its_objects_in_one_go", a_kind_and_its_objects_in_one_go),
    ]
}

/// `causeway apply` of files with these contents.
fn apply(c: &Cluster, ns: &str, files: &[(&str, &str)], more: &[&str]) -> Result<Output> {
    let dir = tempfile::tempdir()?;
    for (name, text) in files {
        fs::write(dir.path().join(name), text)?;
    }
    let folder = dir.path().to_string_lossy();
    Ok(c.command(&[&["apply", "-n", ns, "-f", &folder], more].concat()))
}

fn manifests_are_applied_and_waited_for(c: &Cluster, ns: &str) -> Result<()> {
    let map = "{apiVersion: v1, kind: ConfigMap, metadata: {name: words}, data: {a: '1'}}";
    let web = deployment("web", 2);
    let said = apply(c, ns, &[("2.yaml", &web), ("1.yml", map), ("notes.txt", "no manifest")], &["--wait"])?.ok()?;
    ensure!(said == "configmap/words created\ndeployment.apps/web created\n", "{said}");
    let ready = c.kubectl(&format!("-n {ns} get deployment web -o jsonpath={{.status.readyReplicas}}")).ok()?;
    ensure!(ready == "2", "it came back with {ready} of 2 pods ready");
    let again = apply(c, ns, &[("1.yaml", map), ("2.yaml", &web)], &["--wait"])?.ok()?;
    ensure!(again == "configmap/words unchanged\ndeployment.apps/web unchanged\n", "{again}");
    let changed = apply(c, ns, &[("1.yaml", &map.replace("'1'", "'2'"))], &[])?.ok()?;
    ensure!(changed == "configmap/words configured\n", "{changed}");
    // kubectl's own way of applying goes on from there. (It takes a text that begins with a brace for JSON.)
    let same = format!("---\n{}", map.replace("'1'", "'2'"));
    c.kubectl_in(&format!("-n {ns} apply --server-side -f -"), &same).ok()?;
    Ok(())
}

fn what_others_have_set_is_not_taken_in_silence(c: &Cluster, ns: &str) -> Result<()> {
    let web = [("web.yaml", &*deployment("web", 1))];
    apply(c, ns, &web, &[])?.ok()?;
    c.kubectl(&format!("-n {ns} scale deployment web --replicas=0")).ok()?;
    let said = apply(c, ns, &web, &[])?.fails()?;
    ensure!(said.contains("conflict") && said.contains("replicas"), "{said}");
    apply(c, ns, &web, &["--force-conflicts"])?.ok()?;
    let replicas = c.kubectl(&format!("-n {ns} get deployment web -o jsonpath={{.spec.replicas}}")).ok()?;
    ensure!(replicas == "1", "{replicas}");
    Ok(())
}

fn what_cannot_be_applied_is_said(c: &Cluster, ns: &str) -> Result<()> {
    let map = "{apiVersion: v1, kind: ConfigMap, metadata: {name: good}}";
    let unknown = "{apiVersion: example.com/v1, kind: Nonsense, metadata: {name: x}}";
    let wrong = "{apiVersion: v1, kind: ConfigMap, metadata: {name: Not_A_Name}}";
    let said = apply(c, ns, &[("1.yaml", unknown), ("2.yaml", wrong), ("3.yaml", map)], &[])?.fails()?;
    ensure!(said.contains("does not know kind Nonsense of example.com/v1"), "{said}");
    ensure!(said.contains("Not_A_Name") && said.contains("2 of 3 objects"), "{said}");
    // What is good is there all the same, as with kubectl.
    c.kubectl(&format!("-n {ns} get configmap good")).ok()?;

    // A field that is misspelt is refused, as kubectl does; what the API server warns of is told.
    let misspelt = deployment("misspelt", 1).replace("replicas:", "replica:");
    let said = apply(c, ns, &[("1.yaml", &misspelt)], &[])?.fails()?;
    ensure!(said.contains("unknown field \"spec.replica\"") && !said.contains("ApiError"), "{said}");
    let job = "{apiVersion: batch/v1, kind: Job, metadata: {name: later}, spec: {template: {spec: {restartPolicy: Never, \
               containers: [{name: c, image: x}]}}}}";
    let warned = apply(c, ns, &[("1.yaml", job)], &[])?;
    ensure!(warned.code == 0 && warned.err.contains("Warning: "), "{warned:?}");

    let none = apply(c, ns, &[], &[])?.fails()?;
    ensure!(none.contains("no objects"), "{none}");
    let missing = c.command(&["apply", "-f", "/no/such/file.yaml"]).fails()?;
    ensure!(missing.contains("/no/such/file.yaml"), "{missing}");

    let stuck = deployment("stuck", 1).replace(BUSYBOX, "causeway.local/test/nobody-has-it:1");
    let said = apply(c, ns, &[("stuck.yaml", &stuck)], &["--wait", "--timeout", "2"])?.fails()?;
    ensure!(said.contains("not ready within 2 s") && said.contains("deployment.apps/stuck"), "{said}");
    let begun = "{apiVersion: v1, kind: Pod, metadata: {name: short}, spec: {restartPolicy: Never, containers: \
                 [{name: c, image: IMAGE, command: [sh, -c, 'exit 3'], readinessProbe: {exec: {command: ['false']}}}]}}";
    let said = apply(c, ns, &[("pod.yaml", &begun.replace("IMAGE", BUSYBOX))], &["--wait"])?.fails()?;
    ensure!(said.contains("pod/short failed"), "{said}");
    Ok(())
}

/// Whatever order the files have: namespaces and definitions go first, and are waited for.
fn a_kind_and_its_objects_in_one_go(c: &Cluster, ns: &str) -> Result<()> {
    let own = format!(
        "{{apiVersion: e2e-apply.example.com/v1, kind: Thing, metadata: {{name: one, namespace: {ns}-own}}, size: 3}}"
    );
    let definition = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.e2e-apply.example.com}
spec:
  group: e2e-apply.example.com
  scope: Namespaced
  names: {plural: things, singular: thing, kind: Thing}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {size: {type: integer}}}}}]
";
    let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {ns}-own}}}}");
    let said = apply(c, ns, &[("1.yaml", &own), ("2.yaml", definition), ("3.yaml", &namespace)], &[])?.ok()?;
    ensure!(said.ends_with("thing.e2e-apply.example.com/one created\n"), "{said}");
    c.kubectl(&format!("delete namespace {ns}-own --wait=false")).ok()?;
    c.kubectl("delete crd things.e2e-apply.example.com").ok().map(drop)
}
