//! What is wrong is said with its place and kind, and nothing is lost.

use crate::Test;
use anyhow::{Result, ensure};
use causeway_tests::Cluster;

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("bad_input::manifests", manifests),
        ("bad_input::a_null_stops_nobody_else", a_null_stops_nobody_else),
        ("bad_input::stale_writes_conflict", stale_writes_conflict),
        ("bad_input::an_old_watch_expires", an_old_watch_expires),
        ("bad_input::what_is_not_there_says_so", what_is_not_there_says_so),
    ]
}

/// A null in a map (`note:` with nothing behind it) is an empty string, as with Kubernetes: clients with types could not read
/// it, and neither could ours.
fn a_null_stops_nobody_else(c: &Cluster, ns: &str) -> Result<()> {
    let metadata =
        |name: &str| format!("metadata: {{name: {name}, namespace: {ns}, annotations: {{note: }}, labels: {{x: }}}}");
    for (name, rest) in [
        ("map", "apiVersion: v1\nkind: ConfigMap\ndata: {a: }"),
        ("secret", "apiVersion: v1\nkind: Secret\nstringData: {a: }"),
        (
            "pod",
            "apiVersion: v1\nkind: Pod\nspec: {nodeSelector: {disktype: }, containers: [{name: c, image: x, command: [null]}]}",
        ),
        (
            "ingress",
            "apiVersion: networking.k8s.io/v1\nkind: Ingress\nspec: {defaultBackend: {service: {name: x, port: {number: 80}}}, tls: [null]}",
        ),
    ] {
        c.kubectl_in("create --validate=ignore -f -", &format!("{rest}\n{}\n", metadata(name))).ok()?;
    }
    c.kubectl_args(
        &[
            "-n",
            ns,
            "patch",
            "configmap",
            "map",
            "--type=json",
            "-p",
            r#"[{"op": "add", "path": "/metadata/annotations/more", "value": null}]"#,
        ],
        "",
    )
    .ok()?;
    // Server-side apply leaves out what says nothing; an item of a list is one all the same.
    let policy = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: all, namespace: {ns}}}\nspec: {{podSelector: {{}}, ingress: [null]}}\n"
    );
    c.kubectl_in("apply --server-side -f -", &policy).ok()?;
    let stored = c.get(&format!("-n {ns} networkpolicy all"))?;
    ensure!(stored["spec"]["ingress"] == serde_json::json!([{}]), "{stored}");
    let wrong = r#"{"spec":{"replicas":"3"}}"#;
    c.kubectl_in(&format!("-n {ns} create -f -"), &crate::kubectl::deployment("scaled", 0)).ok()?;
    let refused = c.kubectl_args(
        &["-n", ns, "patch", "deployment", "scaled", "--subresource=scale", "--type=merge", "-p", wrong],
        "",
    );
    ensure!(refused.fails()?.contains("cannot unmarshal string"), "a text is no number of replicas");
    let stored = c.get(&format!("-n {ns} pod pod"))?;
    ensure!(
        stored["spec"]["nodeSelector"]["disktype"] == "" && stored["metadata"]["annotations"]["note"] == "",
        "{stored}"
    );
    let stored = c.get(&format!("-n {ns} configmap map"))?;
    ensure!(stored["metadata"]["annotations"]["more"] == "" && stored["data"]["a"] == "", "{stored}");
    // Scheduler, controllers, kube-proxy and ingress go on.
    crate::services::web(c, ns, 1).map(drop)
}

fn manifests(c: &Cluster, ns: &str) -> Result<()> {
    let map = |rest: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: x, namespace: {ns}}}\n{rest}\n");
    let pod = |spec: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: x, namespace: {ns}}}\nspec: {spec}\n");
    for (manifest, words) in [
        ("apiVersion: v1\nkind: [".to_owned(), vec!["error parsing"]),
        ("apiVersion: v1\nkind: Nonsense\nmetadata: {name: x}".to_owned(), vec!["no matches for kind", "Nonsense"]),
        (map("data: {a: 1}"), vec!["ConfigMap", "data"]),
        (map("unknown: true"), vec!["unknown field \"unknown\""]),
        (pod("{containers: []}"), vec!["spec.containers", "Required value"]),
        (pod("{containers: [{name: A, image: x}]}"), vec!["spec.containers[0].name", "Invalid value", "RFC 1123"]),
        (
            pod("{containers: [{name: a, image: x, ports: [{containerPort: 70000}]}]}"),
            vec!["spec.containers[0].ports[0].containerPort", "65535"],
        ),
        (
            pod("{containers: [{name: a, image: x, volumeMounts: [{name: v, mountPath: /v}]}]}"),
            vec!["spec.containers[0].volumeMounts[0].name", "Not found"],
        ),
        (
            pod("{containers: [{name: a, image: x, resources: {limits: {memory: lots}}}]}"),
            vec!["quantities must match"],
        ),
        (
            format!(
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: x, namespace: {ns}}}\nspec: {{selector: \
                 {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: c}}}}, spec: {{containers: [{{name: a, \
                 image: x}}]}}}}}}"
            ),
            vec!["spec.template.metadata.labels", "selector"],
        ),
        (
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: x, namespace: {ns}}}\nspec: {{clusterIP: 1.2.3.4, ports: [{{port: 80}}]}}"
            ),
            vec!["spec.clusterIP", "1.2.3.4"],
        ),
    ] {
        let said = c.kubectl_in("apply -f -", &manifest).fails()?;
        for word in words {
            ensure!(said.contains(word), "{manifest}\nshould say {word:?}, but says:\n{said}");
        }
    }
    // Unknown fields only warn when asked to; duplicate keys, too.
    let warned = c.kubectl_in("apply --validate=warn -f -", &map("unknown: true"));
    ensure!(warned.code == 0 && warned.err.contains("unknown field"), "{warned:?}");
    let raw = c.kubectl_in(&format!("create --raw /api/v1/namespaces/{ns}/configmaps -f -"), "{\"kind\":").fails()?;
    ensure!(raw.contains("BadRequest") || raw.contains("400") || raw.contains("unexpected"), "{raw}");
    Ok(())
}

fn stale_writes_conflict(c: &Cluster, ns: &str) -> Result<()> {
    c.kubectl(&format!("-n {ns} create configmap x --from-literal=a=1")).ok()?;
    let old = c.kubectl(&format!("-n {ns} get configmap x -o json")).ok()?;
    c.kubectl(&format!("-n {ns} label configmap x b=2")).ok()?;
    let said = c.kubectl_in("replace -f -", &old).fails()?;
    ensure!(said.contains("the object has been modified; please apply your changes to the latest version"), "{said}");
    let name = c.kubectl_in("create -f -", &old).fails()?;
    ensure!(name.contains("resourceVersion should not be set") || name.contains("already exists"), "{name}");
    Ok(())
}

fn an_old_watch_expires(c: &Cluster, ns: &str) -> Result<()> {
    let said = c.kubectl(&format!(
        "get --raw /api/v1/namespaces/{ns}/configmaps?watch=true&resourceVersion=1&timeoutSeconds=2"
    ));
    // History since the first revision is still there in a young cluster: the watch answers with what happened since.
    ensure!(said.code == 0 || said.err.contains("too old") || said.err.contains("Expired"), "{said:?}");
    let future = c.kubectl("get --raw /api/v1/configmaps?resourceVersion=999999999&resourceVersionMatch=NotOlderThan");
    ensure!(future.code != 0 && future.err.to_lowercase().contains("too large resource version"), "{future:?}");
    let bad = c.kubectl("get --raw /api/v1/configmaps?continue=nonsense").fails()?;
    ensure!(bad.contains("continue"), "{bad}");
    Ok(())
}

fn what_is_not_there_says_so(c: &Cluster, _ns: &str) -> Result<()> {
    let said = c.kubectl("get nonsense").fails()?;
    ensure!(said.contains("the server doesn't have a resource type \"nonsense\""), "{said}");
    let path = c.kubectl("get --raw /apis/nowhere/v1").fails()?;
    ensure!(path.contains("NotFound") || path.contains("could not find"), "{path}");
    let namespace = c.kubectl("-n missing create configmap x").fails()?;
    ensure!(namespace.contains("namespaces \"missing\" not found"), "{namespace}");
    Ok(())
}
