//! Machines that join: bootstrap tokens, signing requests, and what a node may write.

use crate::support::{Running, eventually, start};
use causeway_api::identity::UserInfo;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};

const TOKEN: &str = "abcdef.0123456789abcdef";

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn code<T: std::fmt::Debug>(outcome: Result<T, kube::Error>) -> u16 {
    match outcome.unwrap_err() {
        kube::Error::Api(status) => status.code,
        other => panic!("{other}"),
    }
}

/// A client that says nothing, or a token.
fn bearer(running: &Running, token: Option<&str>) -> kube::Client {
    let mut config = kube::Config::new(format!("https://{}", running.address).parse().unwrap());
    let pem = x509_parser::pem::parse_x509_pem(running.api.pki().ca_pem().as_bytes()).unwrap().1;
    config.root_cert = Some(vec![pem.contents]);
    config.auth_info.token = token.map(|t| t.to_owned().into());
    kube::Client::try_from(config).unwrap()
}

async fn make_token(running: &Running, expiration: &str) {
    let secret: Secret = object(json!({
        "metadata": { "name": "bootstrap-token-abcdef" }, "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "expiration": expiration,
            "usage-bootstrap-authentication": "true", "auth-extra-groups": "system:bootstrappers:test,admins",
        },
    }));
    let secrets: Api<Secret> = Api::namespaced(running.admin(), "kube-system");
    drop(secrets.delete("bootstrap-token-abcdef", &DeleteParams::default()).await);
    secrets.create(&PostParams::default(), &secret).await.unwrap();
}

fn request(signer: &str, common_name: &str, organization: &str, usages: &[&str]) -> CertificateSigningRequest {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.distinguished_name.push(DnType::CommonName, common_name);
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    object(json!({
        "metadata": { "generateName": "csr-" },
        "spec": { "signerName": signer, "usages": usages, "username": "somebody-else",
                  "request": k8s_openapi::ByteString(pem.into_bytes()) },
    }))
}

const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";

#[tokio::test(flavor = "multi_thread")]
async fn a_token_asks_for_a_certificate_and_nothing_else() {
    let running = start().await;
    let stranger: Api<ConfigMap> = Api::namespaced(bearer(&running, None), "kube-public");
    let info = stranger.get("cluster-info").await.unwrap().data.unwrap();
    assert!(info["kubeconfig"].contains("certificate-authority-data"));
    assert_eq!(code(stranger.list(&ListParams::default()).await), 403, "one object, not all");

    let joiner = bearer(&running, Some(TOKEN));
    let mine: Api<CertificateSigningRequest> = Api::all(joiner.clone());
    let wanted = request(KUBELET_CLIENT, "system:node:n1", "system:nodes", &["digital signature", "client auth"]);
    assert_eq!(code(mine.create(&PostParams::default(), &wanted).await), 401, "there is no such token");
    make_token(&running, "2020-01-01T00:00:00Z").await;
    assert_eq!(code(mine.create(&PostParams::default(), &wanted).await), 401, "it is over");
    make_token(&running, "2999-01-01T00:00:00Z").await;
    let wrong: Api<CertificateSigningRequest> = Api::all(bearer(&running, Some("abcdef.0123456789abcdeX")));
    assert_eq!(code(wrong.create(&PostParams::default(), &wanted).await), 401);
    let wrong: Api<CertificateSigningRequest> = Api::all(bearer(&running, Some("abcdef.0123456789abcde0")));
    assert_eq!(code(wrong.create(&PostParams::default(), &wanted).await), 401);

    let made = mine.create(&PostParams::default(), &wanted).await.unwrap();
    assert_eq!(made.spec.username.as_deref(), Some("system:bootstrap:abcdef"), "the server says who asks");
    let mut groups = made.spec.groups.unwrap();
    groups.sort();
    assert_eq!(groups, ["system:authenticated", "system:bootstrappers", "system:bootstrappers:test"]);
    let nodes: Api<Node> = Api::all(joiner.clone());
    assert_eq!(code(nodes.list(&ListParams::default()).await), 403);
    let secrets: Api<Secret> = Api::namespaced(joiner.clone(), "kube-system");
    assert_eq!(code(secrets.list(&ListParams::default()).await), 403);
    let name = made.metadata.name.unwrap();
    let patch = json!({ "status": { "conditions": [{ "type": "Approved", "status": "True" }] } });
    let approved = mine.patch_approval(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
    assert_eq!(code(approved), 403, "who asks does not approve");

    let out = running.kubectl(&["certificate", "approve", &name]).await;
    assert!(out.contains("approved"), "{out}");
    let issued = eventually("a certificate", || async {
        mine.get(&name).await.unwrap().status.unwrap().certificate.filter(|c| !c.0.is_empty())
    })
    .await;
    let pem = x509_parser::pem::parse_x509_pem(&issued.0).unwrap().1;
    let user = causeway_apiserver::pki::user_of_certificate(&pem.contents).unwrap();
    assert_eq!(user, UserInfo::node("n1"));
    let table = running.kubectl(&["get", "csr"]).await;
    let row = table.lines().find(|l| l.starts_with(&name)).unwrap();
    for word in [KUBELET_CLIENT, "system:bootstrap:abcdef", "Approved,Issued"] {
        assert!(row.contains(word), "{row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_signer_keeps_to_its_rules_and_denials_are_final() {
    let running = start().await;
    let requests: Api<CertificateSigningRequest> = Api::all(running.admin());
    let usual = ["digital signature", "client auth"];
    let wrong = [
        request(KUBELET_CLIENT, "kubernetes-admin", "system:masters", &usual),
        request(
            "kubernetes.io/kubelet-serving",
            "system:node:n1",
            "system:nodes",
            &["digital signature", "server auth"],
        ),
        request("kubernetes.io/kube-apiserver-client", "jane", "devs", &["digital signature", "server auth"]),
    ];
    for wanted in wrong {
        let name = requests.create(&PostParams::default(), &wanted).await.unwrap().metadata.name.unwrap();
        running.kubectl(&["certificate", "approve", &name]).await;
        eventually("a refusal", || async {
            let status = requests.get(&name).await.unwrap().status.unwrap();
            assert!(status.certificate.is_none());
            status.conditions.into_iter().flatten().find(|c| c.type_ == "Failed")
        })
        .await;
    }
    let masters = request("kubernetes.io/kube-apiserver-client", "jane", "system:masters", &usual);
    assert_eq!(code(requests.create(&PostParams::default(), &masters).await), 403);
    let mut broken = request(KUBELET_CLIENT, "system:node:n1", "system:nodes", &usual);
    broken.spec.request.0.truncate(60);
    assert_eq!(code(requests.create(&PostParams::default(), &broken).await), 422);

    let wanted = request("kubernetes.io/kube-apiserver-client", "jane", "devs", &usual);
    let name = requests.create(&PostParams::default(), &wanted).await.unwrap().metadata.name.unwrap();
    let out = running.kubectl(&["certificate", "deny", &name]).await;
    assert!(out.contains("denied"), "{out}");
    let (ok, _, err) = running.kubectl_with(&["certificate", "approve", &name], "").await;
    assert!(!ok && err.contains("already Denied"), "{err}");
    let approved = json!({ "status": { "conditions": [{ "type": "Approved", "status": "True" }] } });
    let changed = requests.patch_approval(&name, &PatchParams::default(), &Patch::Merge(approved)).await;
    assert_eq!(code(changed), 422, "neither does the server take another decision");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_writes_what_is_its_own() {
    let running = start().await;
    let n1 = running.over_tls(&UserInfo::node("n1")).await;
    let post = PostParams::default();
    let merge = |v: Value| Patch::Merge(v);
    let patch = PatchParams::default();

    let nodes: Api<Node> = Api::all(n1.clone());
    let node = |name: &str| -> Node { object(json!({ "metadata": { "name": name } })) };
    nodes.create(&post, &node("n1")).await.unwrap();
    assert_eq!(code(nodes.create(&post, &node("n2")).await), 403);
    Api::<Node>::all(running.admin()).create(&post, &node("n2")).await.unwrap();
    let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    nodes.patch_status("n1", &patch, &merge(ready.clone())).await.unwrap();
    assert_eq!(code(nodes.patch_status("n2", &patch, &merge(ready)).await), 403);
    let label = json!({ "metadata": { "labels": { "node-restriction.kubernetes.io/trusted": "yes" } } });
    assert_eq!(code(nodes.patch("n1", &patch, &merge(label)).await), 403);

    let leases = |namespace: &str| Api::<Lease>::namespaced(n1.clone(), namespace);
    let lease =
        |name: &str| -> Lease { object(json!({ "metadata": { "name": name }, "spec": { "holderIdentity": "n1" } })) };
    leases("kube-node-lease").create(&post, &lease("n1")).await.unwrap();
    assert_eq!(code(leases("kube-node-lease").create(&post, &lease("n2")).await), 403);
    assert_eq!(code(leases("kube-system").create(&post, &lease("n1")).await), 403);
    leases("kube-system").create(&post, &lease("announce-n1")).await.unwrap();
    assert_eq!(code(leases("kube-system").create(&post, &lease("announce-n2")).await), 403);

    let all: Api<Pod> = Api::namespaced(running.admin(), "default");
    let pod = |name: &str, node: &str| -> Pod {
        object(json!({ "metadata": { "name": name },
            "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i" }] } }))
    };
    all.create(&post, &pod("own", "n1")).await.unwrap();
    all.create(&post, &pod("other", "n2")).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(n1.clone(), "default");
    let running_now = json!({ "status": { "phase": "Running" } });
    pods.patch_status("own", &patch, &merge(running_now.clone())).await.unwrap();
    assert_eq!(code(pods.patch_status("other", &patch, &merge(running_now)).await), 403);
    assert_eq!(code(pods.create(&post, &pod("new", "n1")).await), 403);
    assert_eq!(code(pods.delete("other", &DeleteParams::default()).await), 403);
    pods.delete("own", &DeleteParams::default().grace_period(0)).await.unwrap();

    let accounts: Api<ServiceAccount> = Api::namespaced(n1.clone(), "default");
    let token = |pod: &Pod| {
        object(json!({ "spec": { "audiences": [], "boundObjectRef": { "apiVersion": "v1", "kind": "Pod",
            "name": pod.metadata.name, "uid": pod.metadata.uid } } }))
    };
    let other = token(&all.get("other").await.unwrap());
    assert_eq!(code(accounts.create_token_request("default", &post, &other).await), 403);
    let loose = object(json!({ "spec": { "audiences": [] } }));
    assert_eq!(code(accounts.create_token_request("default", &post, &loose).await), 403);
    let mine = all.create(&post, &pod("mine", "n1")).await.unwrap();
    accounts.create_token_request("default", &post, &token(&mine)).await.unwrap();

    let slices: Api<EndpointSlice> = Api::namespaced(n1.clone(), "kube-system");
    let slice = |name: &str| -> EndpointSlice {
        object(json!({ "metadata": { "name": name, "labels": { "kubernetes.io/service-name": "kube-dns" } },
            "addressType": "IPv4", "endpoints": [] }))
    };
    slices.create(&post, &slice("kube-dns-n1")).await.unwrap();
    assert_eq!(code(slices.create(&post, &slice("kube-dns-n2")).await), 403);
    assert_eq!(code(Api::<Secret>::namespaced(n1, "default").create(&post, &object(json!({}))).await), 403);
}
