//! Who speaks: service-account tokens, reviews, impersonation.

use crate::support::start;
use causeway_api::identity::UserInfo;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenReview};
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_while_its_pod_is() {
    let running = start().await;
    let pods: Api<Pod> = Api::namespaced(running.admin(), "default");
    let pod: Pod =
        object(json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } }));
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(running.admin(), "default");
    let request: TokenRequest = object(json!({ "spec": { "audiences": [], "expirationSeconds": 3600,
        "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": "p" } } }));
    let token = accounts.create_token_request("default", &PostParams::default(), &request).await.unwrap();
    let token = token.status.unwrap().token;

    running.kubectl(&["create", "rolebinding", "v", "--clusterrole=view", "--serviceaccount=default:default"]).await;
    let client = running.with_token(&token);
    let mine: Api<Pod> = Api::namespaced(client.clone(), "default");
    assert_eq!(mine.list(&ListParams::default()).await.unwrap().items.len(), 1);
    let secrets: Api<Secret> = Api::namespaced(client, "default");
    let refused = secrets.list(&ListParams::default()).await.unwrap_err();
    assert!(refused.to_string().contains("system:serviceaccount:default:default"), "{refused}");

    let review = |token: &str| -> TokenReview { object(json!({ "spec": { "token": token } })) };
    let reviews: Api<TokenReview> = Api::all(running.admin());
    let good = reviews.create(&PostParams::default(), &review(&token)).await.unwrap().status.unwrap();
    assert_eq!(good.authenticated, Some(true));
    let extra = good.user.unwrap().extra.unwrap();
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], ["p"]);
    let forged = format!("{}x", &token[..token.len() - 1]);
    let bad = reviews.create(&PostParams::default(), &review(&forged)).await.unwrap().status.unwrap();
    assert!(!bad.authenticated.unwrap_or(false));
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    let late = mine.list(&ListParams::default()).await.unwrap_err();
    assert!(matches!(late, kube::Error::Api(s) if s.code == 401));
}

#[tokio::test(flavor = "multi_thread")]
async fn access_can_be_asked_about() {
    let running = start().await;
    let ask = |verb: &str, resource: &str| -> SelfSubjectAccessReview {
        object(
            json!({ "spec": { "resourceAttributes": { "verb": verb, "resource": resource, "namespace": "default" } } }),
        )
    };
    let node: Api<SelfSubjectAccessReview> = Api::all(running.over_tls(&UserInfo::node("n1")).await);
    let allowed = |review: SelfSubjectAccessReview| review.status.unwrap().allowed;
    assert!(allowed(node.create(&PostParams::default(), &ask("get", "services")).await.unwrap()));
    assert!(!allowed(node.create(&PostParams::default(), &ask("delete", "secrets")).await.unwrap()));
    let as_other = running.kubectl(&["auth", "whoami", "--as", "jane", "--as-group", "devs", "-o", "json"]).await;
    let who: Value = serde_json::from_str(&as_other).unwrap();
    assert_eq!(who["status"]["userInfo"]["username"], "jane");
    let (ok, _, err) = running.kubectl_with(&["get", "pods", "--as", "jane"], "").await;
    assert!(!ok && err.contains("User \"jane\" cannot list resource \"pods\""), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_gets_no_stream_into_a_pod() {
    let running = start().await;
    let pods: Api<Pod> = Api::namespaced(running.admin(), "kube-system");
    let pod: Pod =
        object(json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } }));
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let client = running.as_service_account().await;
    running
        .kubectl(&["create", "clusterrolebinding", "v", "--clusterrole=view", "--serviceaccount=default:robot"])
        .await;
    let theirs: Api<Pod> = Api::namespaced(client.clone(), "kube-system");
    assert_eq!(theirs.get("p").await.unwrap().metadata.name.as_deref(), Some("p"));

    let ask = async |client: &kube::Client, method: &str, path: &str, protocol: Option<&str>| {
        let mut request = http::Request::builder().method(method).uri(path);
        if let Some(protocol) = protocol {
            request = request.header("connection", "Upgrade").header("upgrade", protocol);
        }
        if protocol == Some("websocket") {
            request = request
                .header("sec-websocket-version", "13")
                .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
                .header("sec-websocket-protocol", "v5.channel.k8s.io");
        }
        let response = client.send(request.body(kube::client::Body::empty()).unwrap()).await.unwrap();
        let code = response.status().as_u16();
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
    };
    let pod = "/api/v1/namespaces/kube-system/pods/p";
    for subresource in ["exec", "attach", "portforward"] {
        let path = format!("{pod}/{subresource}?command=id&stdout=true&ports=80");
        for (method, protocol) in
            [("GET", Some("websocket")), ("GET", Some("SPDY/3.1")), ("GET", None), ("POST", Some("SPDY/3.1"))]
        {
            let (code, status) = ask(&client, method, &path, protocol).await;
            let message = format!(
                "pods \"p\" is forbidden: User \"system:serviceaccount:default:robot\" cannot create resource \
                 \"pods/{subresource}\" in API group \"\" in the namespace \"kube-system\""
            );
            assert_eq!((code, status["message"].as_str()), (403, Some(message.as_str())), "{method} {protocol:?}");
        }
        // The old form of watches does not get around it.
        let old = format!("/api/v1/watch/namespaces/kube-system/pods/p/{subresource}");
        assert_eq!(ask(&client, "GET", &old, Some("websocket")).await.0, 403);
        // Whoever may, gets as far as the missing node (or the missing feature).
        let (code, status) = ask(&running.over_tls(&UserInfo::admin()).await, "GET", &path, Some("websocket")).await;
        assert!(matches!(code, 400 | 501), "{code} {status}");
    }
    for path in ["proxy", "proxy/x", "ephemeralcontainers", "unheard-of"] {
        let (code, status) = ask(&client, "GET", &format!("{pod}/{path}"), None).await;
        assert_eq!(code, 403, "{path}: {status}");
    }
    for path in
        ["/api/v1/nodes/n/proxy/pods", "/api/v1/nodes/n/log", "/api/v1/namespaces/kube-system/services/s/proxy/"]
    {
        assert_eq!(ask(&client, "GET", path, None).await.0, 403, "{path}");
    }
    assert_eq!(ask(&client, "GET", &format!("{pod}/log"), None).await.0, 200);
    assert_eq!(ask(&client, "GET", &format!("{pod}/status"), None).await.0, 200);

    // What it is told when it asks first.
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client);
    for (verb, resource, subresource, allowed) in [
        ("get", "pods", "", true),
        ("get", "pods", "log", true),
        ("get", "pods", "exec", false),
        ("create", "pods", "exec", false),
        ("get", "pods/exec", "", false),
        ("get", "nodes", "proxy", false),
        ("get", "*", "", false),
        ("get", "pods", "*", false),
    ] {
        let review: SelfSubjectAccessReview = object(json!({ "spec": { "resourceAttributes": {
            "verb": verb, "resource": resource, "subresource": subresource, "namespace": "kube-system" } } }));
        let answer = reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed;
        assert_eq!(answer, allowed, "{verb} {resource}/{subresource}");
    }
}
