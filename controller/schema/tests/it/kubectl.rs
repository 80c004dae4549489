//! `kubectl`'s protobuf bodies, its strategic merge patches and its reading of our OpenAPI documents.

use crate::stub::Stub;
use causeway_schema::{builtin, patch, strict};
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Runs `kubectl` against the stub and returns its output; fails the test when it fails.
fn kubectl(stub: &Stub, arguments: &[&str], input: &str) -> String {
    let unique = format!("causeway-schema-kubectl-{}-{}", std::process::id(), stub.address.port());
    let home = std::env::temp_dir().join(unique);
    let mut child = Command::new("kubectl")
        .args(["--server", &format!("http://{}", stub.address), "--cache-dir"])
        .arg(home.join("cache"))
        .args(arguments)
        .env("HOME", &home)
        .env_remove("KUBECONFIG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl must be installed to test against it");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let _ = std::fs::remove_dir_all(&home);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Without nulls and an empty status, which Go's JSON shows and nobody means.
fn simplified(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let inner = map.iter().map(|(k, v)| (k.clone(), simplified(v)));
            inner.filter(|(key, v)| !(v.is_null() || key == "status" && v == &json!({}))).collect()
        }
        Value::Array(items) => items.iter().map(simplified).collect(),
        other => other.clone(),
    }
}

#[test]
fn protobuf_bodies_say_what_the_dry_run_says() {
    let commands: &[&[&str]] = &[
        &["create", "deployment", "web", "--image=nginx:1", "--port=80", "--replicas=0"],
        &["create", "configmap", "c", "--from-literal=a=b", "--from-literal=empty="],
        &["create", "secret", "generic", "s", "--from-literal=password=hunter2"],
        &["create", "namespace", "n"],
        &["create", "serviceaccount", "sa"],
        &["create", "job", "j", "--image=busybox", "--", "sh", "-c", "true"],
        &["create", "cronjob", "cj", "--image=busybox", "--schedule=*/5 * * * *"],
        &["create", "role", "r", "--verb=get,list", "--resource=pods"],
        &["create", "ingress", "i", "--rule=a.example/x*=web:80,tls=cert", "--class=causeway"],
        &["create", "service", "nodeport", "np", "--tcp=80:8080"],
        &["create", "service", "clusterip", "cl", "--clusterip=None"],
        &["create", "poddisruptionbudget", "pdb", "--selector=a=b", "--min-available=0"],
    ];
    for command in commands {
        let stub = Stub::start();
        let dry = kubectl(&stub, &command_with(command, &["--dry-run=client", "-o", "json"]), "");
        let expected: Value = serde_json::from_str(&dry).unwrap();
        kubectl(&stub, command, "");
        let created = stub.created();
        assert_eq!(created.len(), 1, "{command:?}");
        assert!(stub.sent.lock().unwrap()[0].content_type.contains("protobuf"), "{command:?} sent JSON");
        assert_eq!(simplified(&created[0]), simplified(&expected), "{command:?}");
        check_schema(&created[0]);
    }
}

/// Options go in front of `--`.
fn command_with<'a>(command: &[&'a str], options: &[&'a str]) -> Vec<&'a str> {
    let at = command.iter().position(|word| *word == "--").unwrap_or(command.len());
    [&command[..at], options, &command[at..]].concat()
}

fn check_schema(object: &Value) {
    let (api_version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let schema = builtin(group, version, kind).unwrap();
    assert_eq!(strict::unknown_fields(object, &schema), Vec::<String>::new(), "{object}");
    assert_eq!(strict::type_errors(object, &schema), Vec::new(), "{object}");
}

#[test]
fn explain_reads_our_documents() {
    let stub = Stub::start();
    let text = kubectl(&stub, &["explain", "deployment.spec.strategy.rollingUpdate.maxSurge"], "");
    assert!(text.contains("FIELD: maxSurge <IntOrString>"), "{text}");
    assert!(text.contains("maximum number of pods that can be scheduled"), "{text}");
    let text = kubectl(&stub, &["explain", "pods.spec.containers"], "");
    assert!(text.contains("FIELD: containers <[]Container>") && text.contains("name\t<string> -required-"), "{text}");
    assert!(text.contains("livenessProbe\t<Probe>"), "{text}");
    let text = kubectl(&stub, &["explain", "service", "--recursive"], "");
    assert!(text.contains("KIND:       Service") && text.contains("clusterIP\t<string>"), "{text}");
}

#[test]
fn apply_sends_a_patch_that_gives_the_new_manifest() {
    let stub = Stub::start();
    let manifest = |image: &str, extra: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\n  namespace: default\nspec:\n  selector:\n    \
             matchLabels: {{a: b}}\n  template:\n    metadata:\n      labels: {{a: b}}\n    spec:\n      containers:\n      \
             - name: web\n        image: {image}\n        ports: [{{containerPort: 80}}]\n{extra}"
        )
    };
    let sidecar = "      - name: sidecar\n        image: s\n";
    kubectl(&stub, &["apply", "-f", "-"], &manifest("one", sidecar));
    let live = stub.created().pop().unwrap();
    kubectl(&stub, &["apply", "-f", "-"], &manifest("two", ""));
    let sent = stub.sent.lock().unwrap().iter().find(|s| s.method == "PATCH").cloned().expect("apply patches");
    assert_eq!(sent.content_type, "application/strategic-merge-patch+json");
    let schema = builtin("apps", "v1", "Deployment").unwrap();
    let now = patch::strategic(&live, &serde_json::from_slice(&sent.body).unwrap(), &schema).unwrap();
    let containers = now["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1, "{containers:?}");
    assert_eq!((&containers[0]["name"], &containers[0]["image"]), (&json!("web"), &json!("two")));
    assert_eq!(containers[0]["ports"], json!([{"containerPort": 80}]));
}
