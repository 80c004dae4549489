//! What is not there yet says so, and what Kubernetes takes in other forms is taken.

use crate::support::{Running, start};
use causeway_api::identity::UserInfo;
use http::{Request, Response};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio_util::compat::FuturesAsyncReadCompatExt;

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn ask(running: &Running, method: &str, path: &str, headers: &[(&str, &str)]) -> Response<Vec<u8>> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(kube::client::Body::empty()).unwrap();
    let (parts, body) = running.admin().send(request).await.unwrap().into_parts();
    let bytes = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    Response::from_parts(parts, bytes.to_vec())
}

async fn running_pod(running: &Running) {
    let pods: Api<Pod> = Api::namespaced(running.admin(), "default");
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    pods.create(&PostParams::default(), &object(pod)).await.unwrap();
    let status = Patch::Merge(json!({ "status": { "phase": "Running" } }));
    pods.patch_status("p", &PatchParams::default(), &status).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn port_forward_and_ephemeral_containers_are_refused() {
    let running = start().await;
    running_pod(&running).await;
    let base = "/api/v1/namespaces/default/pods";
    let websocket: &[(&str, &str)] = &[("connection", "upgrade"), ("upgrade", "websocket")];
    let spdy: &[(&str, &str)] = &[("connection", "upgrade"), ("upgrade", "SPDY/3.1")];
    for (method, headers) in [("GET", websocket), ("POST", spdy), ("POST", &[])] {
        let answer = ask(&running, method, &format!("{base}/p/portforward?ports=80"), headers).await;
        let status: Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!((answer.status().as_u16(), &status["reason"]), (501, &json!("NotImplemented")), "{status}");
        assert_eq!(status["message"], "port-forward is not implemented yet");
    }
    assert_eq!(ask(&running, "POST", &format!("{base}/none/portforward"), spdy).await.status(), 404);
    for method in ["GET", "PUT", "PATCH"] {
        let answer = ask(&running, method, &format!("{base}/p/ephemeralcontainers"), &[]).await;
        let status: Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!((answer.status().as_u16(), &status["kind"]), (501, &json!("Status")), "{status}");
    }
    for arguments in [&["port-forward", "pod/p", "1:80"][..], &["debug", "p", "--image=i", "--attach=false"]] {
        let (ok, out, err) = running.kubectl_with(arguments, "").await;
        assert!(!ok && err.contains("not implemented yet"), "{arguments:?}: {out}\n{err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_acts_on_yet_is_stored_with_a_warning() {
    let running = start().await;
    for (arguments, words) in [
        (&["create", "job", "j", "--image=i"][..], "Jobs are stored, but not run yet"),
        (&["create", "cronjob", "c", "--image=i", "--schedule=* * * * *"], "CronJobs are stored, but not run yet"),
    ] {
        let (ok, out, err) = running.kubectl_with(arguments, "").await;
        assert!(ok && err.contains(&format!("Warning: {words}")), "{arguments:?}: {out}\n{err}");
    }
}

/// The types and names of the first events.
async fn events(stream: impl AsyncRead + Unpin, count: usize) -> Vec<(String, String)> {
    let mut lines = BufReader::new(stream).lines();
    let mut seen = Vec::new();
    while seen.len() < count {
        let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await.unwrap().unwrap();
        let line = line.unwrap_or_else(|| panic!("the watch ended after {seen:?}"));
        let event: Value = serde_json::from_str(&line).unwrap();
        let text = |v: &Value| v.as_str().unwrap_or_else(|| panic!("no event: {event}")).to_owned();
        seen.push((text(&event["type"]), text(&event["object"]["metadata"]["name"])));
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn one_object_is_watched_by_its_path() {
    let running = start().await;
    let client = running.over_tls(&UserInfo::admin()).await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let create = async |name: &str| {
        maps.create(&PostParams::default(), &object(json!({ "metadata": { "name": name } }))).await.unwrap();
    };
    let paths = [
        "/api/v1/namespaces/default/configmaps/one?watch=true",
        "/api/v1/watch/namespaces/default/configmaps/one",
        "/api/v1/watch/namespaces/default/configmaps?fieldSelector=metadata.name%3Done",
    ];
    for path in paths {
        create("one").await;
        let request = Request::get(path).body(Vec::new()).unwrap();
        let stream = client.request_stream(request).await.unwrap().compat();
        create("other").await;
        maps.delete("other", &DeleteParams::default()).await.unwrap();
        maps.delete("one", &DeleteParams::default()).await.unwrap();
        let event = |kind: &str| (kind.to_owned(), "one".to_owned());
        assert_eq!(events(stream, 2).await, [event("ADDED"), event("DELETED")], "{path}");
    }
    // Without the parameter it is still a plain get.
    create("one").await;
    let answer = ask(&running, "GET", "/api/v1/namespaces/default/configmaps/one?watch=false", &[]).await;
    assert_eq!(serde_json::from_slice::<Value>(answer.body()).unwrap()["kind"], "ConfigMap");
}
