//! Small requests that want much: nested bodies, growing patches. They are refused, and the server goes on.

use crate::support::{Running, start};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const LIMIT: usize = 3 * 1024 * 1024;

async fn ask(
    client: &kube::Client,
    method: &str,
    path: &str,
    media: &str,
    body: impl Into<Vec<u8>>,
) -> (u16, String, Value) {
    let request = http::Request::builder().method(method).uri(path).header("content-type", media);
    let response = client.send(request.body(kube::client::Body::from(body.into())).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    let answer: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    (code, answer["message"].as_str().unwrap_or("").to_owned(), answer)
}

async fn answers(running: &Running, client: &kube::Client) {
    let review = json!({ "spec": { "resourceAttributes": { "verb": "get", "resource": "pods" } } }).to_string();
    assert_eq!(ask(client, "POST", REVIEWS, JSON, review).await.0, 201);
    assert_eq!(ask(&running.admin(), "GET", MAPS, JSON, "").await.0, 200);
}

/// A protobuf body that is made from the inside out: reversed.
#[derive(Clone)]
struct Layers(Vec<u8>);

impl Layers {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend(bytes.iter().rev());
    }

    /// Makes all of it field `number` of what comes around it.
    fn wrap(&mut self, number: u32) {
        let mut head = Vec::new();
        for mut n in [(number << 3 | 2) as usize, self.0.len()] {
            while n >= 0x80 {
                head.push(n as u8 | 0x80);
                n >>= 7;
            }
            head.push(n as u8);
        }
        self.put(&head);
    }

    fn envelope(&mut self, api_version: &str, kind: &str) {
        self.wrap(2);
        let mut meta = Layers(Vec::new());
        meta.put(kind.as_bytes());
        meta.wrap(2);
        let mut version = Layers(Vec::new());
        version.put(api_version.as_bytes());
        version.wrap(1);
        meta.0.extend(version.0);
        meta.wrap(1);
        self.0.extend(meta.0);
        self.put(b"k8s\0");
    }

    /// Makes it `metadata.managedFields[0].fieldsV1` of a kind.
    fn owned_by(&mut self, api_version: &str, kind: &str) {
        [1, 7, 17, 1].into_iter().for_each(|number| self.wrap(number));
        self.envelope(api_version, kind);
    }

    fn done(&self) -> Vec<u8> {
        self.0.iter().rev().copied().collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_bodies_are_refused() {
    let running = start().await;
    let (admin, robot) =
        (running.over_tls(&causeway_api::identity::UserInfo::admin()).await, running.as_service_account().await);
    for levels in [10, 100, 1_000, 100_000] {
        let mut lists = Layers(Vec::new());
        let mut maps = Layers(b"{}".iter().rev().copied().collect());
        let mut reviews = maps.clone();
        for _ in 0..levels {
            lists.wrap(1);
            lists.wrap(2);
            lists.envelope("v1", "List");
            if maps.0.len() < LIMIT {
                maps.owned_by("v1", "ConfigMap");
                reviews.owned_by("authorization.k8s.io/v1", "SelfSubjectAccessReview");
            }
        }
        let mut bodies = vec![(MAPS, lists.done()), (MAPS, maps.done()), (REVIEWS, reviews.done())];
        if levels > 10 {
            bodies.push((REVIEWS, lists.done()));
        }
        let mut inside = lists.clone();
        inside.owned_by("v1", "ConfigMap");
        bodies.push((MAPS, inside.done()));
        lists.owned_by("authorization.k8s.io/v1", "SelfSubjectAccessReview");
        bodies.push((REVIEWS, lists.done()));
        for (path, body) in bodies {
            let client = if path == REVIEWS { &robot } else { &admin };
            let expected = if body.len() > LIMIT { 413 } else { 400 };
            let (code, message, _) = ask(client, "POST", path, PROTOBUF, body).await;
            assert_eq!(code, expected, "{levels} levels to {path}: {message}");
        }
        answers(&running, &robot).await;
        // Where anything may stand, the levels decide.
        let text = |media: &str, spec: &str| {
            let fields = format!("{}1{}", "{\"f:a\":".repeat(levels), "}".repeat(levels));
            let object =
                format!("{{\"metadata\":{{\"name\":\"deep\",\"managedFields\":[{{\"fieldsV1\":{fields}}}]}}{spec}}}");
            if media == YAML { object.replace(':', ": ").replace("f: a", "f:a") } else { object }
        };
        for media in [JSON, YAML] {
            let (code, message, _) = ask(&admin, "POST", &format!("{MAPS}?dryRun=All"), media, text(media, "")).await;
            let fits = if levels <= 100 { 201 } else { 400 };
            assert_eq!(code, fits, "{levels} levels of {media}: {message}");
            let (code, message, _) = ask(&robot, "POST", REVIEWS, media, text(media, ASKS)).await;
            assert_eq!(code, fits, "{levels} levels of {media}: {message}");
        }
        answers(&running, &robot).await;
    }
}

/// What a review asks, so that it is one.
const ASKS: &str = ",\"spec\":{\"resourceAttributes\":{\"verb\":\"get\",\"resource\":\"pods\"}}";

/// What is stored can be read again, by the server and in lists by clients.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_can_be_read_again() {
    let running = start().await;
    let admin = running.over_tls(&causeway_api::identity::UserInfo::admin()).await;
    let path = "/apis/apps/v1/namespaces/default/controllerrevisions";
    for (levels, code) in [(100, 201), (119, 201), (120, 400), (126, 400), (127, 400)] {
        let data = (1..levels).fold(json!({}), |inner, _| json!({ "f": inner }));
        let name = format!("r{levels}");
        let object = json!({ "metadata": { "name": name }, "revision": 1, "data": data }).to_string();
        let (found, message, _) = ask(&admin, "POST", path, JSON, object).await;
        assert_eq!(found, code, "{levels}: {message}");
        let (found, ..) = ask(&admin, "GET", &format!("{path}/{name}"), JSON, "").await;
        assert_eq!(found, if code == 201 { 200 } else { 404 }, "{levels}");
    }
    let (code, _, list) = ask(&admin, "GET", path, JSON, "").await;
    assert_eq!((code, list["items"].as_array().map(Vec::len)), (200, Some(2)), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_do_not_blow_an_object_up() {
    let running = start().await;
    let admin = running.admin();
    let map = json!({ "metadata": { "name": "m" }, "data": { "x": "y".repeat(1_000) } });
    assert_eq!(ask(&admin, "POST", MAPS, JSON, map.to_string()).await.0, 201);
    let path = format!("{MAPS}/m");
    let patch = async |media: &str, patch: Value| ask(&admin, "PATCH", &path, media, patch.to_string()).await;
    let copy = |n: usize| json!({ "op": "copy", "from": "/data", "path": format!("/data/d{n}") });

    // A kilobyte of patch that would make gigabytes, and one that would make a tower.
    let doubled = (0..22).map(copy).collect::<Vec<_>>();
    let (code, message, _) = patch("application/json-patch+json", json!(doubled)).await;
    assert_eq!(code, 422, "{message}");
    assert!(message.contains("Unable to complete the copy, the accumulated size increase of copy"), "{message}");
    let tower = (1..1_000).map(|n| json!({ "op": "add", "path": "/a".repeat(n), "value": {} })).collect::<Vec<_>>();
    let (code, message, _) = patch("application/json-patch+json", json!(tower)).await;
    assert!(code == 422 && message.contains("nested more than"), "{code} {message}");

    let many = vec![json!({ "op": "test", "path": "/kind", "value": "ConfigMap" }); 10_001];
    let (code, message, answer) = patch("application/json-patch+json", json!(many)).await;
    let text = "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001";
    assert_eq!((code, message.as_str(), &answer["reason"]), (413, text, &json!("RequestEntityTooLarge")));
    assert_eq!(patch("application/json-patch+json", json!(many[1..])).await.0, 200);

    // Whatever the patch, an object stays below what the store takes.
    let most = causeway_store::MAX_REQUEST - causeway_store::MAX_KEY - causeway_store::MAX_ADDED;
    let part = "z".repeat(most / 2);
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let path = format!("{deployments}/d");
    let template = |container: Value| {
        json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" },
        "spec": { "selector": { "matchLabels": { "a": "b" } }, "template": {
            "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [container] } } } })
    };
    let object = template(json!({ "name": "c", "image": "i", "env": [{ "name": "E", "value": part }] }));
    assert_eq!(ask(&admin, "POST", deployments, JSON, object.to_string()).await.0, 201);
    let container = "/spec/template/spec/containers/0";
    for (media, change) in [
        ("application/json-patch+json", json!([{ "op": "add", "path": format!("{container}/args"), "value": [part] }])),
        (
            "application/json-patch+json",
            json!([{ "op": "copy", "from": format!("{container}/env/0/value"),
            "path": format!("{container}/workingDir") }]),
        ),
        ("application/strategic-merge-patch+json", template(json!({ "name": "c", "args": [part] }))),
        ("application/apply-patch+yaml", template(json!({ "name": "c", "image": "i", "args": [part] }))),
    ] {
        for query in ["&dryRun=All", ""] {
            let path = format!("{path}?fieldManager=m{query}");
            let (code, message, _) = ask(&admin, "PATCH", &path, media, change.to_string()).await;
            let text = format!("Request entity too large: limit is {most}");
            assert_eq!((code, message), (413, text), "{media}");
        }
    }
    // And it can still be changed, made smaller and deleted.
    let small = json!([{ "op": "add", "path": format!("{container}/args"), "value": ["x"] },
        { "op": "remove", "path": format!("{container}/env") }]);
    let (code, message, _) = ask(&admin, "PATCH", &path, "application/json-patch+json", small.to_string()).await;
    assert_eq!(code, 200, "{message}");
    assert_eq!(ask(&admin, "DELETE", &path, JSON, "").await.0, 200);
}
