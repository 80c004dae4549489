//! What people type: every verb of the real kubectl against the cluster.

use crate::Test;
use crate::images::BUSYBOX;
use anyhow::{Result, ensure};
use causeway_tests::{Cluster, eventually};

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("kubectl::looks", looks),
        ("kubectl::creates_and_deletes", creates_and_deletes),
        ("kubectl::patches", patches),
        ("kubectl::applies", applies),
        ("kubectl::rolls_out", rolls_out),
        ("kubectl::selects_and_prints", selects_and_prints),
        ("kubectl::watches", watches),
        ("kubectl::logs_and_exec", logs_and_exec),
        ("kubectl::explains", explains),
        ("kubectl::edits", edits),
    ]
}

/// A deployment of the test image.
pub fn deployment(name: &str, replicas: u32) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: {BUSYBOX}
        imagePullPolicy: Never
        command: [sh, -c, 'echo started; hostname > /tmp/index.html; exec httpd -f -p 8080 -h /tmp']
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
"
    )
}

fn looks(c: &Cluster, _ns: &str) -> Result<()> {
    let version = c.kubectl("version").ok()?;
    ensure!(version.contains("Server Version: v1."), "{version}");
    ensure!(c.kubectl("cluster-info").ok()?.contains("control plane"));
    let resources = c.kubectl("api-resources").ok()?;
    for kind in ["Deployment", "EndpointSlice", "Ingress", "CustomResourceDefinition", "Lease"] {
        ensure!(resources.contains(kind), "{resources}");
    }
    ensure!(c.kubectl("get --raw /readyz").ok()? == "ok");
    let nodes = c.kubectl("get nodes -o wide").ok()?;
    ensure!(nodes.contains("Ready") && nodes.contains("containerd://") && nodes.contains("10.90.0.11"), "{nodes}");
    let described = c.kubectl("describe node node-1").ok()?;
    for part in ["Capacity:", "Allocatable:", "PodCIDR:", "KubeletReady", "RenewTime:"] {
        ensure!(described.contains(part), "{described}");
    }
    ensure!(c.kubectl("auth whoami").ok()?.contains("kubernetes-admin"));
    ensure!(c.kubectl("auth can-i create pods").ok()?.contains("yes"));
    Ok(())
}

fn creates_and_deletes(c: &Cluster, ns: &str) -> Result<()> {
    let k = |args: &str| c.kubectl(&format!("-n {ns} {args}"));
    k("create configmap settings --from-literal=a=1").ok()?;
    k("create secret generic login --from-literal=password=geheim").ok()?;
    ensure!(k("get secret login -o jsonpath={.data.password}").ok()? == "Z2VoZWlt");
    k("create serviceaccount robot").ok()?;
    ensure!(k("create token robot").ok()?.split('.').count() == 3, "a token has three parts");
    k(&format!("create deployment web --image={BUSYBOX} --replicas=0")).ok()?;
    k("expose deployment web --port=80 --target-port=8080").ok()?;
    ensure!(k("get service web -o jsonpath={.spec.ports[0].targetPort}").ok()? == "8080");
    k("create ingress web --class=causeway --rule=created.localhost/*=web:80").ok()?;
    k("create service nodeport outside --tcp=80:8080").ok()?;
    let exists = k("create configmap settings").fails()?;
    ensure!(exists.contains("already exists"), "{exists}");
    let missing = k("get configmap nothing").fails()?;
    ensure!(missing.contains(r#"configmaps "nothing" not found"#), "{missing}");
    k("delete configmap settings").ok()?;
    k("get configmap settings").fails()?;
    k("delete deployment,service,ingress --all").ok()?;
    ensure!(k("get deployment,service,ingress -o name").ok()?.is_empty());
    Ok(())
}

fn patches(c: &Cluster, ns: &str) -> Result<()> {
    let k = |args: &[&str]| c.kubectl_args(&[&["-n", ns], args].concat(), "");
    c.apply(
        &deployment("web", 0).replace("metadata: {name: web,", &format!("metadata: {{name: web, namespace: {ns},")),
    )?;
    let strategic =
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"A","value":"1"}]}]}}}}"#;
    k(&["patch", "deployment", "web", "-p", strategic]).ok()?;
    let image = k(&["get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[*].image}"]).ok()?;
    ensure!(image == BUSYBOX, "the strategic patch replaced the list: {image}");
    k(&["patch", "deployment", "web", "--type=merge", "-p", r#"{"metadata":{"annotations":{"m":"1"}}}"#]).ok()?;
    k(&["patch", "deployment", "web", "--type=json", "-p", r#"[{"op":"replace","path":"/spec/replicas","value":2}]"#])
        .ok()?;
    ensure!(k(&["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"]).ok()? == "2");
    k(&["label", "deployment", "web", "tier=front"]).ok()?;
    k(&["annotate", "deployment", "web", "note=seen"]).ok()?;
    k(&["scale", "deployment", "web", "--replicas=1", "--current-replicas=2"]).ok()?;
    let object = c.get(&format!("deployment web -n {ns}"))?;
    ensure!(object["metadata"]["labels"]["tier"] == "front" && object["metadata"]["annotations"]["note"] == "seen");
    ensure!(
        object["spec"]["replicas"] == 1
            && object["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] == "1"
    );
    let wrong =
        k(&["patch", "deployment", "web", "--type=json", "-p", r#"[{"op":"test","path":"/spec/replicas","value":9}]"#]);
    wrong.fails()?;
    Ok(())
}

fn applies(c: &Cluster, ns: &str) -> Result<()> {
    let manifest = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m, namespace: {ns}}}\ndata: {value}\n")
    };
    ensure!(c.apply(&manifest("{a: '1', b: '2'}"))?.contains("created"));
    ensure!(c.apply(&manifest("{a: '1', b: '2'}"))?.contains("unchanged"));
    ensure!(c.apply(&manifest("{a: '3'}"))?.contains("configured"));
    ensure!(c.get(&format!("configmap m -n {ns}"))?["data"] == serde_json::json!({ "a": "3" }), "b was not removed");
    let diff = c.kubectl_in("diff -f -", &manifest("{a: '4'}"));
    ensure!(diff.code == 1 && diff.out.contains("+  a: \"4\""), "{diff:?}");
    // Server side: two managers, a conflict, and force.
    let apply = |value: &str, manager: &str, more: &str| {
        c.kubectl_in(
            &format!("apply --server-side --field-manager={manager} {more} -f -"),
            &manifest(value).replace("name: m", "name: s"),
        )
    };
    apply("{x: '1'}", "one", "").ok()?;
    let conflict = apply("{x: '2'}", "two", "").fails()?;
    ensure!(conflict.contains("conflict") && conflict.contains("\"one\""), "{conflict}");
    apply("{x: '2'}", "two", "--force-conflicts").ok()?;
    ensure!(c.get(&format!("configmap s -n {ns}"))?["data"]["x"] == "2");
    // A folder, and a kustomization.
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("a.yaml"), manifest("{k: '1'}").replace("name: m", "name: d1"))?;
    std::fs::write(
        dir.path().join("b.json"),
        serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "d2", "namespace": ns } })
        .to_string(),
    )?;
    let path = dir.path().to_string_lossy().into_owned();
    ensure!(c.kubectl(&format!("apply -f {path}")).ok()?.lines().count() == 2);
    std::fs::write(
        dir.path().join("kustomization.yaml"),
        format!("namePrefix: pre-\nnamespace: {ns}\nresources: [a.yaml]\n"),
    )?;
    ensure!(c.kubectl(&format!("apply -k {path}")).ok()?.contains("configmap/pre-d1 created"));
    Ok(())
}

fn rolls_out(c: &Cluster, ns: &str) -> Result<()> {
    let k = |args: &str| c.kubectl(&format!("-n {ns} {args}"));
    c.kubectl_in(&format!("-n {ns} apply -f -"), &deployment("web", 2)).ok()?;
    k("rollout status deployment/web --timeout=60s").ok()?;
    k("set env deployment/web VERSION=2").ok()?;
    k("rollout status deployment/web --timeout=60s").ok()?;
    let history = k("rollout history deployment/web").ok()?;
    ensure!(history.lines().any(|l| l.starts_with("2 ")), "{history}");
    k("rollout undo deployment/web").ok()?;
    k("rollout status deployment/web --timeout=60s").ok()?;
    ensure!(k("get deployment web -o jsonpath={.spec.template.spec.containers[0].env}").ok()?.is_empty());
    k("rollout restart deployment/web").ok()?;
    k("rollout status deployment/web --timeout=60s").ok()?;
    k(&format!("set image deployment/web web={BUSYBOX}-none")).ok()?;
    let stuck = k("rollout status deployment/web --timeout=2s").fails()?;
    ensure!(stuck.contains("timed out"), "{stuck}");
    eventually("the old pods still serve while the new image is missing", || {
        let ready = k("get deployment web -o jsonpath={.status.availableReplicas}").ok()?;
        let waiting = k("get pods -o jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}").ok()?;
        ensure!(ready == "2" && waiting.contains("ErrImageNeverPull"), "{ready} {waiting}");
        Ok(())
    })
}

fn selects_and_prints(c: &Cluster, ns: &str) -> Result<()> {
    let k = |args: &str| c.kubectl(&format!("-n {ns} {args}"));
    for (name, color) in [("a", "red"), ("b", "blue"), ("c", "red")] {
        k(&format!("create configmap {name}")).ok()?;
        k(&format!("label configmap {name} color={color}")).ok()?;
    }
    for (selector, want) in [("color=red", 2), ("color!=red", 2), ("color in (red,blue)", 3), ("!color", 1)] {
        let found = c.kubectl_args(&["-n", ns, "get", "configmaps", "-l", selector, "-o", "name"], "").ok()?;
        // kube-root-ca.crt is there, too, without a color.
        ensure!(found.lines().count() == want, "{selector}: {found}");
    }
    ensure!(k("get configmaps --field-selector=metadata.name=b -o name").ok()?.trim() == "configmap/b");
    let wide = k("get configmaps -o wide --show-labels").ok()?;
    ensure!(wide.contains("NAME") && wide.contains("DATA") && wide.contains("color=red"), "{wide}");
    ensure!(k("get configmaps --chunk-size=1 -o name").ok()?.lines().count() == 4);
    let yaml = k("get configmap a -o yaml").ok()?;
    ensure!(yaml.contains("kind: ConfigMap") && yaml.contains("resourceVersion:"), "{yaml}");
    let columns = k("get configmaps -o custom-columns=N:.metadata.name --sort-by=.metadata.name").ok()?;
    ensure!(columns.starts_with("N\na\nb\nc\n"), "{columns}");
    ensure!(c.kubectl("get namespaces --no-headers").ok()?.lines().count() >= 4);
    ensure!(c.kubectl("get all -A").ok()?.contains("service/kubernetes"));
    Ok(())
}

fn watches(c: &Cluster, ns: &str) -> Result<()> {
    let mut command = c.kubectl_command();
    command.args(["-n", ns, "get", "configmaps", "-w", "--request-timeout=8s", "-o", "name"]);
    let watching = std::thread::spawn(move || causeway_tests::run(&mut command));
    std::thread::sleep(std::time::Duration::from_secs(2));
    c.kubectl(&format!("-n {ns} create configmap seen")).ok()?;
    c.kubectl(&format!("-n {ns} wait configmap/seen --for=create --timeout=5s")).ok()?;
    let output = watching.join().map_err(|_| anyhow::anyhow!("the watch panicked"))??;
    ensure!(output.out.contains("configmap/seen"), "{output:?}");
    c.kubectl(&format!("-n {ns} delete configmap seen --wait=false")).ok()?;
    c.kubectl(&format!("-n {ns} wait configmap/seen --for=delete --timeout=10s")).ok()?;
    Ok(())
}

fn logs_and_exec(c: &Cluster, ns: &str) -> Result<()> {
    let k = |args: &[&str]| c.kubectl_args(&[&["-n", ns], args].concat(), "");
    c.kubectl_in(&format!("-n {ns} apply -f -"), &deployment("web", 1)).ok()?;
    k(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok()?;
    ensure!(k(&["logs", "deployment/web"]).ok()? == "started\n");
    let stamped = k(&["logs", "deployment/web", "--timestamps", "--tail=1"]).ok()?;
    ensure!(stamped.starts_with("20") && stamped.ends_with(" started\n"), "{stamped}");
    ensure!(k(&["exec", "deployment/web", "--", "sh", "-c", "echo out; echo err >&2"]).ok()? == "out\n");
    let failed = k(&["exec", "deployment/web", "--", "sh", "-c", "exit 7"]);
    ensure!(failed.code == 7, "the exit code of the command is kubectl's: {failed:?}");
    let missing = k(&["exec", "deployment/web", "--", "/no/such/program"]).fails()?;
    ensure!(missing.contains("no such file"), "{missing}");
    let echoed = c.kubectl_in(&format!("-n {ns} exec -i deployment/web -- cat"), "through stdin\n").ok()?;
    ensure!(echoed == "through stdin\n", "{echoed}");
    // With a terminal: `script` gives kubectl one.
    let mut terminal = std::process::Command::new("script");
    let line = format!("kubectl -n {ns} exec -it deployment/web -- sh -c 'tty; stty size; echo done'");
    terminal.env("KUBECONFIG", c.dir.join("kubeconfig")).args(["-qec", &line, "/dev/null"]);
    let output = causeway_tests::run(&mut terminal)?;
    ensure!(output.out.contains("done"), "{output:?}");
    // Following ends with the pod.
    let mut follow = c.kubectl_command();
    follow.args(["-n", ns, "logs", "-f", "deployment/web"]);
    let following = std::thread::spawn(move || causeway_tests::run(&mut follow));
    std::thread::sleep(std::time::Duration::from_secs(1));
    k(&["scale", "deployment/web", "--replicas=0"]).ok()?;
    let output = following.join().map_err(|_| anyhow::anyhow!("following panicked"))??;
    ensure!(output.out.starts_with("started\n"), "{output:?}");
    Ok(())
}

fn explains(c: &Cluster, _ns: &str) -> Result<()> {
    let text = c.kubectl("explain deployment.spec.strategy.rollingUpdate").ok()?;
    ensure!(text.contains("maxSurge") && text.contains("IntOrString"), "{text}");
    ensure!(c.kubectl("explain ingress.spec.rules --recursive").ok()?.contains("pathType"));
    Ok(())
}

fn edits(c: &Cluster, ns: &str) -> Result<()> {
    c.kubectl(&format!("-n {ns} create configmap e --from-literal=a=before")).ok()?;
    let mut command = c.kubectl_command();
    command.env("KUBE_EDITOR", "sed -i s/before/after/").args(["-n", ns, "edit", "configmap", "e"]);
    causeway_tests::run(&mut command)?.ok()?;
    ensure!(c.kubectl(&format!("-n {ns} get configmap e -o jsonpath={{.data.a}}")).ok()? == "after");
    Ok(())
}
