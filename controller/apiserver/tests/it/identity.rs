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

    let mut config = kube::Config::new(format!("https://{}", running.address).parse().unwrap());
    config.root_cert = Some(vec![pem(running.api.pki().ca_pem())]);
    config.auth_info.token = Some(token.clone().into());
    let client = kube::Client::try_from(config).unwrap();
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

fn pem(text: &str) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap().1.contents
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
    assert!(allowed(node.create(&PostParams::default(), &ask("get", "pods")).await.unwrap()));
    assert!(!allowed(node.create(&PostParams::default(), &ask("delete", "secrets")).await.unwrap()));
    let as_other = running.kubectl(&["auth", "whoami", "--as", "jane", "--as-group", "devs", "-o", "json"]).await;
    let who: Value = serde_json::from_str(&as_other).unwrap();
    assert_eq!(who["status"]["userInfo"]["username"], "jane");
    let (ok, _, err) = running.kubectl_with(&["get", "pods", "--as", "jane"], "").await;
    assert!(!ok && err.contains("User \"jane\" cannot list resource \"pods\""), "{err}");
}
