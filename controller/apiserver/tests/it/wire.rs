//! What goes over the wire in the corners: malformed requests, media types, health, discovery documents.

use crate::support::{Running, start};
use http::{Method, Request};
use serde_json::{Value, json};

pub struct Answer {
    pub code: u16,
    pub text: String,
    warnings: Vec<String>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }
}

pub async fn ask(
    running: &Running,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Vec<u8>>,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(kube::client::Body::from(body.into())).unwrap();
    let response = running.admin().send(request).await.unwrap();
    let code = response.status().as_u16();
    let warnings = response.headers().get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect();
    assert!(response.headers().contains_key("audit-id"));
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    Answer { code, text: String::from_utf8_lossy(&bytes).into_owned(), warnings }
}

/// Method, path, headers, body; code and reason.
type Case = (Method, &'static str, &'static [(&'static str, &'static str)], &'static str, u16, &'static str);

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const JSON: (&str, &str) = ("content-type", "application/json");

async fn refused(
    running: &Running,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String, String) {
    let answer = ask(running, method, path, headers, body).await;
    let status = answer.json();
    assert_eq!(
        (status["kind"].as_str(), status["status"].as_str()),
        (Some("Status"), Some("Failure")),
        "{}",
        answer.text
    );
    assert_eq!(status["code"], answer.code);
    let text = |key: &str| status[key].as_str().unwrap_or("").to_owned();
    (answer.code, text("reason"), text("message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_a_status() {
    let running = start().await;
    let cases: &[Case] = &[
        (Method::POST, MAPS, &[JSON], "{\"kind\":", 400, "BadRequest"),
        (Method::POST, MAPS, &[JSON], "[]", 400, "BadRequest"),
        (Method::POST, MAPS, &[JSON], "{\"kind\":\"Pod\",\"apiVersion\":\"v1\"}", 400, "BadRequest"),
        (Method::POST, MAPS, &[JSON], "{\"metadata\":{}}", 422, "Invalid"),
        (Method::POST, MAPS, &[JSON], "{\"metadata\":{\"name\":\"A_B\"}}", 422, "Invalid"),
        (Method::POST, MAPS, &[JSON], "{\"metadata\":{\"name\":\"a\",\"namespace\":\"other\"}}", 400, "BadRequest"),
        (Method::POST, MAPS, &[JSON], "{\"metadata\":{\"name\":\"a\"},\"data\":{\"k\":5}}", 400, "BadRequest"),
        (Method::POST, MAPS, &[("content-type", "text/csv")], "a,b", 415, "UnsupportedMediaType"),
        (Method::POST, MAPS, &[("content-type", "application/yaml")], "a: b: c", 400, "BadRequest"),
        (Method::GET, MAPS, &[("accept", "text/csv")], "", 406, "NotAcceptable"),
        (Method::GET, "/api/v1/namespaces/default/nonsense", &[], "", 404, "NotFound"),
        (Method::GET, "/apis/nonsense/v1", &[], "", 404, "NotFound"),
        (Method::GET, "/nonsense", &[], "", 404, "NotFound"),
        (Method::GET, "/openapi/v4", &[], "", 404, "NotFound"),
        (Method::PUT, MAPS, &[JSON], "{}", 405, "MethodNotAllowed"),
        (Method::POST, "/api/v1/configmaps", &[JSON], "{}", 405, "MethodNotAllowed"),
        (Method::GET, "/api/v1/namespaces/default/configmaps?labelSelector=a%20b", &[], "", 400, "BadRequest"),
        (Method::GET, "/api/v1/namespaces/default/configmaps?fieldSelector=spec.x%3D1", &[], "", 400, "BadRequest"),
        (Method::GET, "/api/v1/namespaces/default/configmaps?resourceVersion=x", &[], "", 400, "BadRequest"),
        (Method::GET, "/api/v1/namespaces/default/configmaps?continue=x", &[], "", 400, "BadRequest"),
        (Method::GET, "/api/v1/namespaces/default/configmaps/a?resourceVersion=x", &[], "", 400, "BadRequest"),
    ];
    for (method, path, headers, body, code, reason) in cases {
        let (c, r, message) = refused(&running, method.clone(), path, headers, body).await;
        assert_eq!((c, r.as_str()), (*code, *reason), "{method} {path} {body}: {message}");
        assert!(!message.is_empty());
    }
    let huge = format!("{{\"metadata\":{{\"name\":\"a\"}},\"data\":{{\"k\":\"{}\"}}}}", "x".repeat(3 * 1024 * 1024));
    assert_eq!(refused(&running, Method::POST, MAPS, &[JSON], &huge).await.0, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_warn_or_fail() {
    let running = start().await;
    let body = json!({ "metadata": { "name": "a" }, "dataa": {} }).to_string();
    let path = |validation: &str| format!("{MAPS}?fieldValidation={validation}&dryRun=All");
    let warned = ask(&running, Method::POST, &path("Warn"), &[JSON], body.clone()).await;
    assert_eq!((warned.code, warned.warnings), (201, vec!["299 - \"unknown field \\\"dataa\\\"\"".to_owned()]));
    let ignored = ask(&running, Method::POST, &path("Ignore"), &[JSON], body.clone()).await;
    assert!(ignored.code == 201 && ignored.warnings.is_empty());
    let (code, _, message) = refused(&running, Method::POST, &path("Strict"), &[JSON], &body).await;
    assert_eq!(code, 400);
    assert!(message.ends_with("strict decoding error: unknown field \"dataa\""), "{message}");
    let twice = "{\"metadata\":{\"name\":\"a\"},\"data\":{\"k\":\"1\",\"k\":\"2\"}}";
    let (_, _, message) = refused(&running, Method::POST, &path("Strict"), &[JSON], twice).await;
    assert!(message.contains("duplicate field \"data.k\""), "{message}");
    let none = ask(&running, Method::GET, &format!("{MAPS}/a"), &[], "").await;
    assert_eq!(none.code, 404, "a dry run stores nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_of_an_answer() {
    let running = start().await;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\ndata:\n  a: b\n";
    let made = ask(&running, Method::POST, MAPS, &[("content-type", "application/yaml")], yaml).await;
    assert_eq!(made.code, 201);
    let table = ask(&running, Method::GET, MAPS, &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")], "")
        .await
        .json();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial = ask(
        &running,
        Method::GET,
        MAPS,
        &[("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")],
        "",
    )
    .await
    .json();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert!(partial["items"][0].get("data").is_none());
    let yaml = ask(&running, Method::GET, &format!("{MAPS}/y"), &[("accept", "application/yaml")], "").await;
    assert!(yaml.text.contains("\ndata:\n  a: b\n"), "{}", yaml.text);
    let protobuf =
        ask(&running, Method::GET, MAPS, &[("accept", "application/vnd.kubernetes.protobuf")], "").await.json();
    assert_eq!(protobuf["kind"], "ConfigMapList");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_metrics_and_documents() {
    let running = start().await;
    for path in ["/healthz", "/livez", "/readyz", "/readyz/etcd"] {
        let answer = ask(&running, Method::GET, path, &[], "").await;
        assert_eq!((answer.code, answer.text.as_str()), (200, "ok"), "{path}");
    }
    let verbose = ask(&running, Method::GET, "/readyz?verbose", &[], "").await.text;
    assert!(verbose.contains("[+]etcd ok") && verbose.ends_with("readyz check passed\n"), "{verbose}");
    let metrics = ask(&running, Method::GET, "/metrics", &[], "").await.text;
    assert!(
        metrics.contains("apiserver_request_total{")
            && metrics.contains("apiserver_storage_objects{resource=\"namespaces\"} 4"),
        "{metrics}"
    );
    let index = ask(&running, Method::GET, "/openapi/v3", &[], "").await.json();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let document = ask(&running, Method::GET, &url, &[], "").await.json();
    assert!(document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"].is_object());
    let accept = ("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let aggregated = ask(&running, Method::GET, "/apis", &[accept], "").await.json();
    assert_eq!(aggregated["kind"], "APIGroupDiscoveryList");
    let version = ask(&running, Method::GET, "/version", &[], "").await.json();
    assert_eq!(version["minor"], causeway_api::version::MINOR);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_see_health_and_version_only() {
    let running = start().await;
    let mut config = kube::Config::new(format!("https://{}", running.address).parse().unwrap());
    config.root_cert =
        Some(vec![x509_parser::pem::parse_x509_pem(running.api.pki().ca_pem().as_bytes()).unwrap().1.contents]);
    let stranger = kube::Client::try_from(config).unwrap();
    assert_eq!(stranger.request_text(Request::get("/readyz").body(vec![]).unwrap()).await.unwrap(), "ok");
    assert!(stranger.apiserver_version().await.is_ok());
    let refused = stranger.request_text(Request::get("/api/v1/pods").body(vec![]).unwrap()).await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(s) if s.code == 403), "anonymous");
}
