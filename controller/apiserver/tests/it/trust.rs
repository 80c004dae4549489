//! What is recorded, who waits, what a dry run leaves, and how long lists are sent.

use crate::support::{start, start_set};
use causeway_api::config::ClusterConfig;
use causeway_api::identity::UserInfo;
use causeway_apiserver::Settings;
use causeway_apiserver::audit::{Config, LogConfig, Policy};
use causeway_store::{SledOptions, SledStore};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::IPAddress;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_done_what_is_recorded_and_no_secret_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit").join("audit.log");
    let store = Arc::new(SledStore::open(&dir.path().join("store"), SledOptions::default()).unwrap());
    let mut audit = Config::new(Policy::standard());
    audit.log = Some(LogConfig::new(path.clone()));
    let settings = Settings { audit: Some(audit), ..Settings::default() };
    let running = start_set(dir, store, ClusterConfig::default(), settings).await;

    let jane = running.over_tls(&UserInfo::component("jane", &["system:masters"])).await;
    let secrets: Api<Secret> = Api::namespaced(jane.clone(), "default");
    let secret = object(json!({ "metadata": { "name": "s" }, "stringData": { "k": "nobody-may-read-this" } }));
    secrets.create(&PostParams::default(), &secret).await.unwrap();
    secrets.get("s").await.unwrap();
    let nobody = running.as_service_account().await;
    Api::<Secret>::namespaced(nobody, "default").get("s").await.unwrap_err();
    let admin = running.over_tls(&UserInfo::admin()).await;
    let mut as_joe = http::Request::get("/api/v1/namespaces/default/secrets/s").header("impersonate-user", "joe");
    as_joe = as_joe.header("audit-id", "the-one");
    admin.send(as_joe.body(kube::client::Body::empty()).unwrap()).await.unwrap();

    let found = |text: &str, wanted: &dyn Fn(&Value) -> bool| {
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).find(|event| wanted(event))
    };
    let of = |event: &Value, verb: &str, user: &str| {
        event["stage"] == "ResponseComplete"
            && event["verb"] == verb
            && event["user"]["username"] == user
            && event["objectRef"]["resource"] == "secrets"
    };
    let robot = "system:serviceaccount:default:robot";
    let deadline = Instant::now() + Duration::from_secs(10);
    let text = loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let all = found(&text, &|e| of(e, "create", "jane")).is_some()
            && found(&text, &|e| of(e, "get", robot)).is_some()
            && text.contains("the-one");
        if all {
            break text;
        }
        assert!(Instant::now() < deadline, "not recorded: {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let made = found(&text, &|e| of(e, "create", "jane")).unwrap();
    assert_eq!((&made["objectRef"]["name"], &made["responseStatus"]["code"]), (&json!("s"), &json!(201)), "{made}");
    assert_eq!(made["annotations"]["authorization.k8s.io/decision"], "allow", "{made}");
    assert_eq!(made["sourceIPs"], json!(["127.0.0.1"]), "{made}");
    let refused = found(&text, &|e| of(e, "get", robot)).unwrap();
    assert_eq!(refused["responseStatus"]["code"], 403, "{refused}");
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid", "{refused}");
    let other = found(&text, &|e| e["auditID"] == "the-one" && e["stage"] == "ResponseComplete").unwrap();
    assert_eq!(other["impersonatedUser"]["username"], "joe", "{other}");
    assert!(!text.contains("nobody-may-read-this") && !text.contains("bm9ib2R5LW1heS1yZWFkLXRoaXM"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_its_worst_delays_no_lease() {
    let running = start().await;
    let maps: Api<ConfigMap> = Api::namespaced(running.admin(), "default");
    for n in 0..300 {
        let map = object(json!({ "metadata": { "name": format!("m{n}") }, "data": { "k": "x".repeat(4000) } }));
        maps.create(&PostParams::default(), &map).await.unwrap();
    }
    let robot = running.as_service_account().await;
    running
        .kubectl(&["create", "clusterrolebinding", "v", "--clusterrole=view", "--serviceaccount=default:robot"])
        .await;
    let node = running.over_tls(&UserInfo::node("n1")).await;
    let leases: Api<Lease> = Api::namespaced(node, "kube-node-lease");
    let lease = object(json!({ "metadata": { "name": "n1" }, "spec": { "holderIdentity": "n1" } }));
    leases.create(&PostParams::default(), &lease).await.unwrap();

    let end = Instant::now() + Duration::from_secs(4);
    let mut attackers = tokio::task::JoinSet::new();
    for _ in 0..400 {
        let maps: Api<ConfigMap> = Api::namespaced(robot.clone(), "default");
        attackers.spawn(async move {
            let mut told = 0;
            while Instant::now() < end {
                let listed = tokio::time::timeout(Duration::from_secs(1), maps.list(&ListParams::default())).await;
                told += usize::from(matches!(listed, Ok(Err(kube::Error::Api(s))) if s.code == 429));
            }
            told
        });
    }
    let mut worst = Duration::ZERO;
    let mut renewed = 0;
    while Instant::now() < end {
        let since = Instant::now();
        let renewal = json!({ "spec": { "leaseDurationSeconds": 40 + renewed % 2 } });
        leases.patch("n1", &PatchParams::default(), &Patch::Merge(renewal)).await.unwrap();
        worst = worst.max(since.elapsed());
        renewed += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    attackers.abort_all();
    // A lease is renewed every ten seconds and lost after forty.
    assert!(worst < Duration::from_secs(3), "{renewed} renewals, the slowest in {worst:?}");
    assert!(renewed >= 3, "{renewed} renewals in 4 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_leaves_nothing_and_takes_nothing() {
    let running = start().await;
    let namespaces: Api<Namespace> = Api::all(running.admin());
    namespaces.create(&PostParams::default(), &object(json!({ "metadata": { "name": "n" } }))).await.unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let pods: Api<Pod> = Api::namespaced(running.admin(), "n");
    let pod = object(json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } }));
    pods.create(&dry, &pod).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(running.admin(), "n");
    assert!(accounts.list(&ListParams::default()).await.unwrap().items.is_empty(), "an account was made");
    let addresses: Api<IPAddress> = Api::all(running.admin());
    let names = async || {
        let all = addresses.list(&ListParams::default()).await.unwrap();
        all.items.into_iter().filter_map(|a| a.metadata.name).collect::<Vec<_>>()
    };
    let before = names().await;
    let services: Api<Service> = Api::namespaced(running.admin(), "n");
    let service =
        object(json!({ "metadata": { "name": "s" }, "spec": { "type": "NodePort", "ports": [{ "port": 80 }] } }));
    let shown = services.create(&dry, &service).await.unwrap().spec.unwrap();
    assert!(shown.cluster_ip.is_some_and(|ip| !ip.is_empty()) && shown.ports.unwrap()[0].node_port.is_some());
    assert_eq!(before, names().await, "an address was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_lists_are_sent_in_pieces_and_whole() {
    let running = start().await;
    let maps: Api<ConfigMap> = Api::namespaced(running.admin(), "default");
    for n in 0..60 {
        let map = object(json!({ "metadata": { "name": format!("m{n:03}") }, "data": { "k": "x".repeat(20_000) } }));
        maps.create(&PostParams::default(), &map).await.unwrap();
    }
    let client = running.admin();
    let pieces = async |accept: &str| {
        let request = http::Request::get("/api/v1/namespaces/default/configmaps").header("accept", accept);
        let response = client.send(request.body(kube::client::Body::empty()).unwrap()).await.unwrap();
        let mut body = response.into_body();
        let (mut count, mut largest, mut all) = (0, 0, Vec::new());
        while let Some(frame) = http_body_util::BodyExt::frame(&mut body).await {
            let data = frame.unwrap().into_data().unwrap_or_default();
            (count, largest) = (count + 1, largest.max(data.len()));
            all.extend_from_slice(&data);
        }
        (count, largest, serde_json::from_slice::<Value>(&all).unwrap())
    };
    let (count, largest, list) = pieces("application/json").await;
    assert!(count > 3 && largest < 400_000, "{count} pieces, the largest of {largest} bytes");
    let items = list["items"].as_array().unwrap();
    assert_eq!((list["kind"].as_str(), items.len()), (Some("ConfigMapList"), 60));
    assert!(items.iter().enumerate().all(|(n, m)| m["metadata"]["name"] == format!("m{n:03}")));
    let (_, _, table) = pieces("application/json;as=Table;v=v1;g=meta.k8s.io").await;
    assert_eq!((table["kind"].as_str(), table["rows"].as_array().map(Vec::len)), (Some("Table"), Some(60)));
    assert!(table["columnDefinitions"].as_array().is_some_and(|c| c.len() > 1));
    let (_, _, partial) = pieces("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await;
    assert_eq!(partial["items"].as_array().map(Vec::len), Some(60));
}

/// The code of a raw request, and its body.
async fn ask(client: &kube::Client, method: &str, path: &str, body: Value) -> (u16, Value) {
    let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let response = client.send(request.body(kube::client::Body::from(body)).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_nobody_can_say_are_cut() {
    let running = start().await;
    let admin = running.admin();
    let pods = "/api/v1/namespaces/default/pods";
    for (name, grace) in [("a", i64::MAX), ("b", 30)] {
        let pod = json!({ "metadata": { "name": name }, "spec": { "nodeName": "n1",
            "terminationGracePeriodSeconds": grace, "containers": [{ "name": "c", "image": "i" }] } });
        let (code, told) = ask(&admin, "POST", pods, pod).await;
        assert_eq!(code, 201, "{told}");
    }
    let (code, told) = ask(&admin, "DELETE", &format!("{pods}/a"), Value::Null).await;
    assert_eq!(code, 200, "{told}");
    let (code, told) = ask(&admin, "DELETE", &format!("{pods}/b?gracePeriodSeconds=99999999999999"), Value::Null).await;
    assert_eq!(code, 200, "{told}");
    let watch = format!("{pods}?watch=1&resourceVersion=0&timeoutSeconds=9223372036854775807");
    let request = http::Request::get(watch).body(kube::client::Body::empty()).unwrap();
    assert_eq!(admin.send(request).await.unwrap().status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_in_one_namespace_is_good_there_and_only_there() {
    let running = start().await;
    let robot = running.as_service_account().await;
    running
        .kubectl(&["create", "rolebinding", "all", "--clusterrole=cluster-admin", "--serviceaccount=default:robot"])
        .await;
    running.kubectl(&["create", "namespace", "other"]).await;
    assert_eq!(ask(&robot, "GET", "/api/v1/namespaces/default", Value::Null).await.0, 200, "its own namespace");
    assert_eq!(ask(&robot, "GET", "/api/v1/namespaces/other", Value::Null).await.0, 403);
    assert_eq!(ask(&robot, "GET", "/api/v1/namespaces", Value::Null).await.0, 403);

    let access = json!({ "spec": { "user": "jane", "resourceAttributes": { "verb": "get", "resource": "secrets" } } });
    for (path, body) in [
        ("authorization.k8s.io/v1/namespaces/default/subjectaccessreviews", access.clone()),
        ("authorization.k8s.io/v1/namespaces/default/selfsubjectaccessreviews", access.clone()),
        ("authentication.k8s.io/v1/namespaces/default/tokenreviews", json!({ "spec": { "token": "x" } })),
    ] {
        assert_eq!(ask(&robot, "POST", &format!("/apis/{path}"), body).await.0, 404, "{path}");
    }
    let everywhere = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    assert_eq!(ask(&robot, "POST", everywhere, access.clone()).await.0, 403);
    let local = "/apis/authorization.k8s.io/v1/localsubjectaccessreviews";
    assert_eq!(ask(&running.admin(), "POST", local, access).await.0, 404);
    for spec in [
        json!({}),
        json!({ "user": "jane" }),
        json!({ "resourceAttributes": { "verb": "get", "resource": "pods" } }),
        json!({ "user": "jane", "resourceAttributes": {}, "nonResourceAttributes": {} }),
    ] {
        let (code, told) = ask(&running.admin(), "POST", everywhere, json!({ "spec": spec })).await;
        assert_eq!(code, 422, "{spec}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_asks_for_nothing_is_closed() {
    use tokio::io::AsyncReadExt;
    let running = start().await;
    let mut roots = rustls::RootCertStore::empty();
    let authority = x509_parser::pem::parse_x509_pem(running.api.pki().ca_pem().as_bytes()).unwrap().1.contents;
    roots.add(authority.into()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(running.address).await.unwrap();
    let name = rustls::pki_types::ServerName::IpAddress(running.address.ip().into());
    let mut silent = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let since = Instant::now();
    let ended = tokio::time::timeout(Duration::from_secs(20), silent.read(&mut [0; 16])).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
    assert!(since.elapsed() > Duration::from_secs(5), "it had some time: {:?}", since.elapsed());
}
