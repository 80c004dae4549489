//! The real kubectl: the verbs people use every day.

use crate::support::{Running, start};
use std::time::Duration;

const WEB: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: nginx, ports: [{containerPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
";

async fn with_input(running: &Running, arguments: &[&str], input: &str) -> String {
    let (ok, out, err) = running.kubectl_with(arguments, input).await;
    assert!(ok, "kubectl {arguments:?}: {out}{err}");
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_and_look() {
    let running = start().await;
    let first = with_input(&running, &["apply", "-f", "-"], WEB).await;
    assert_eq!(first, "deployment.apps/web created\nservice/web created\n");
    let second = with_input(&running, &["apply", "-f", "-"], WEB).await;
    assert_eq!(second, "deployment.apps/web unchanged\nservice/web unchanged\n");
    let third = with_input(&running, &["apply", "-f", "-"], &WEB.replace("replicas: 2", "replicas: 3")).await;
    assert!(third.starts_with("deployment.apps/web configured"), "{third}");
    let server_side = with_input(&running, &["apply", "--server-side", "--force-conflicts", "-f", "-"], WEB).await;
    assert!(server_side.contains("deployment.apps/web serverside-applied"), "{server_side}");
    assert_eq!(running.kubectl(&["get", "deploy", "web", "-o", "jsonpath={.spec.replicas}"]).await, "2");
    let diff = running.kubectl_with(&["diff", "-f", "-"], &WEB.replace("nginx", "caddy")).await;
    assert!(diff.1.contains("+        image: caddy") || diff.1.contains("+      - image: caddy"), "{diff:?}");
    let table = running.kubectl(&["get", "deploy,svc", "-o", "wide"]).await;
    assert!(table.contains("deployment.apps/web") && table.contains("service/kubernetes"), "{table}");
    let described = running.kubectl(&["describe", "deploy", "web"]).await;
    assert!(described.contains("Replicas:               2 desired"), "{described}");
    assert!(running.kubectl(&["explain", "deployment.spec.strategy"]).await.contains("rollingUpdate"));
    assert!(running.kubectl(&["api-resources"]).await.contains("deployments"));
    assert!(running.kubectl(&["api-versions"]).await.contains("apps/v1"));
    assert!(running.kubectl(&["version"]).await.contains("Server Version"));
    assert!(running.kubectl(&["cluster-info"]).await.contains("is running at"));
    assert!(running.kubectl(&["get", "events"]).await.is_empty());
    assert_eq!(running.kubectl(&["get", "--raw", "/readyz"]).await, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn change_in_every_way() {
    let running = start().await;
    with_input(&running, &["apply", "-f", "-"], WEB).await;
    for arguments in [
        ["scale", "deploy", "web", "--replicas=4"].as_slice(),
        &["set", "image", "deploy/web", "web=nginx:1.27"],
        &["label", "deploy", "web", "tier=front"],
        &["annotate", "deploy", "web", "note=x"],
        &[
            "patch",
            "deploy",
            "web",
            "-p",
            r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"A","value":"1"}]}]}}}}"#,
        ],
        &["patch", "deploy", "web", "--type=merge", "-p", r#"{"spec":{"minReadySeconds":3}}"#],
        &["patch", "deploy", "web", "--type=json", "-p", r#"[{"op":"replace","path":"/spec/replicas","value":5}]"#],
        &["rollout", "restart", "deploy/web"],
        &["rollout", "pause", "deploy/web"],
        &["expose", "deploy", "web", "--name=web2", "--port=80", "--type=NodePort"],
        &["create", "configmap", "c", "--from-literal=a=b"],
        &["create", "secret", "generic", "s", "--from-literal=a=b"],
        &["create", "namespace", "n"],
        &["create", "serviceaccount", "sa"],
        &["create", "role", "r", "--verb=get", "--resource=pods"],
        &["create", "ingress", "i", "--rule=a.example/*=web:80"],
        &["run", "p", "--image=nginx"],
        &["create", "token", "sa"],
        &["auth", "can-i", "create", "pods"],
    ] {
        running.kubectl(arguments).await;
    }
    let path = "jsonpath={.spec.replicas} {.spec.minReadySeconds} {.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].env[0].name} {.metadata.labels.tier}";
    assert_eq!(running.kubectl(&["get", "deploy", "web", "-o", path]).await, "5 3 nginx:1.27 A front");
    running.kubectl(&["wait", "--for=jsonpath={.status.phase}=Pending", "pod/p", "--timeout=10s"]).await;
    running.kubectl(&["delete", "pod/p", "deploy/web", "svc/web", "configmap/c", "--timeout=20s"]).await;
    let (_, out, err) = running.kubectl_with(&["get", "deploy", "web"], "").await;
    assert_eq!(
        (out.as_str(), err.as_str()),
        ("", "Error from server (NotFound): deployments.apps \"web\" not found\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_explained() {
    let running = start().await;
    let strict = running.kubectl_with(&["apply", "-f", "-"], &WEB.replace("replicas:", "replicaz:")).await;
    assert!(strict.2.contains("strict decoding error: unknown field \"spec.replicaz\""), "{strict:?}");
    let warned =
        running.kubectl_with(&["apply", "--validate=warn", "-f", "-"], &WEB.replace("replicas:", "replicaz:")).await;
    assert!(warned.0 && warned.2.contains("Warning: unknown field \"spec.replicaz\""), "{warned:?}");
    let wrong =
        running.kubectl_with(&["apply", "-f", "-"], &WEB.replace("containerPort: 80", "containerPort: 99999")).await;
    assert!(
        wrong.2.contains("spec.template.spec.containers[0].ports[0].containerPort: Invalid value: 99999"),
        "{wrong:?}"
    );
    let kind = running.kubectl_with(&["apply", "-f", "-"], &WEB.replace("kind: Deployment", "kind: Deploymint")).await;
    assert!(kind.2.contains("no matches for kind \"Deploymint\" in version \"apps/v1\""), "{kind:?}");
    let (_, _, err) = running.kubectl_with(&["exec", "nobody", "--", "true"], "").await;
    assert!(err.contains("pods \"nobody\" not found"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_shows_changes() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let running = start().await;
    let config = running.kubeconfig_file(&causeway_api::identity::UserInfo::admin());
    let mut child = tokio::process::Command::new("kubectl")
        .args(["get", "configmaps", "-w", "--no-headers"])
        .env("KUBECONFIG", config)
        .env("HOME", running.dir.path())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The watch begins after the list; what is made before that is listed.
    running.kubectl(&["create", "configmap", "seen", "--from-literal=a=b"]).await;
    let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(line.starts_with("seen"), "{line}");
    child.kill().await.unwrap();
}
