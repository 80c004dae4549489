//! Who callers are, by every way there is: OIDC, a webhook, front proxies, tokens of service accounts, impersonation.

use crate::issuer::{Authority, Provider};
use crate::support::{Running, start, start_authenticating};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use causeway_api::identity::UserInfo;
use causeway_apiserver::{Authentication, RequestHeader, TokenWebhook, service_account_issuer};
use causeway_authn::config::AuthenticationConfiguration;
use kube::client::Body;
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;

/// A request with headers; status and body.
async fn send(client: &kube::Client, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> (u16, Value) {
    let mut request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string().into_bytes()) };
    let response = client.send(request.body(body).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

const PODS: &str = "/api/v1/namespaces/default/pods";
const WHO: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const TOKENS: &str = "/api/v1/namespaces/default/serviceaccounts/default/token";

/// Whom the server takes the sender for, or the status code.
async fn who(client: &kube::Client, headers: &[(&str, &str)]) -> Result<Value, u16> {
    let (code, review) = send(client, "POST", WHO, headers, &json!({})).await;
    if code == 201 { Ok(review["status"]["userInfo"].clone()) } else { Err(code) }
}

async fn review(running: &Running, token: &str, audiences: &[&str]) -> Value {
    let body = json!({ "spec": { "token": token, "audiences": audiences } });
    let (code, review) = send(&running.admin(), "POST", REVIEWS, &[], &body).await;
    assert_eq!(code, 201, "{review}");
    review["status"].clone()
}

/// A client over TLS without a credential.
fn anonymous(running: &Running) -> kube::Client {
    let mut config = kube::Config::new(format!("https://{}", running.address).parse().unwrap());
    let authority = x509_parser::pem::parse_x509_pem(running.api.pki().ca_pem().as_bytes()).unwrap().1.contents;
    config.root_cert = Some(vec![authority]);
    kube::Client::try_from(config).unwrap()
}

/// A token of the account `default/default`, which is made when there is none.
async fn token(running: &Running, spec: Value) -> Value {
    account(running).await;
    let (code, made) = send(&running.admin(), "POST", TOKENS, &[], &json!({ "spec": spec })).await;
    assert_eq!(code, 201, "{made}");
    made
}

async fn account(running: &Running) -> Value {
    let path = "/api/v1/namespaces/default/serviceaccounts";
    let object = json!({ "metadata": { "name": "default" } });
    let (code, status) = send(&running.admin(), "POST", path, &[], &object).await;
    assert!(matches!(code, 201 | 409), "{status}");
    send(&running.admin(), "GET", &format!("{path}/default"), &[], &Value::Null).await.1
}

async fn create(running: &Running, path: &str, object: Value) -> Value {
    let (code, made) = send(&running.admin(), "POST", path, &[], &object).await;
    assert_eq!(code, 201, "{made}");
    made
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

async fn with_provider() -> (Running, Provider) {
    let (dir, provider) = (tempfile::tempdir().unwrap(), Provider::start().await);
    let configuration = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {{ enabled: true, conditions: [{{ path: /livez }}] }}\njwt:\n- issuer:\n    url: {}\n    audiences: [cluster]\n    certificateAuthority: |\n      {}\n  claimMappings: {{ username: {{ claim: sub, prefix: 'oidc:' }}, groups: {{ claim: groups, prefix: 'oidc:' }} }}\n",
        provider.url,
        provider.ca_pem.replace('\n', "\n      ")
    );
    let disallowed = [service_account_issuer("cluster.local")];
    let configuration = Some(AuthenticationConfiguration::parse(&configuration, &disallowed).unwrap());
    let kubeconfig = dir.path().join("webhook");
    let file = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
        "clusters": [{ "name": "k", "cluster": { "server": format!("{}/review", provider.url),
            "certificate-authority-data": STANDARD.encode(&provider.ca_pem) } }],
        "users": [{ "name": "u", "user": {} }] });
    std::fs::write(&kubeconfig, file.to_string()).unwrap();
    let options = causeway_authn::webhook::Options { backoff: Duration::from_millis(5), ..Default::default() };
    let webhook = Some(TokenWebhook { kubeconfig, options });
    let running = start_authenticating(dir, Authentication { configuration, webhook, ..Default::default() }).await;
    (running, provider)
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_an_issuer_and_of_a_webhook() {
    let (running, provider) = with_provider().await;
    let good = provider.token("cluster", &["dev"]);
    let client = running.with_token(&good);
    let me = who(&client, &[]).await.unwrap();
    assert_eq!((&me["username"], &me["groups"]), (&json!("oidc:ann"), &json!(["oidc:dev", "system:authenticated"])));
    assert_eq!(send(&client, "GET", PODS, &[], &Value::Null).await.0, 403);
    running.kubectl(&["create", "clusterrolebinding", "dev", "--clusterrole=view", "--group=oidc:dev"]).await;
    assert_eq!(send(&client, "GET", PODS, &[], &Value::Null).await.0, 200);
    let protocols =
        format!("v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode(&good));
    let of_socket =
        [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-protocol", protocols.as_str())];
    let exec = format!("{PODS}/p/exec?command=id");
    let (code, status) = send(&anonymous(&running), "GET", &exec, &of_socket, &Value::Null).await;
    assert!(code == 403 && text(&status["message"]).contains("User \"oidc:ann\" cannot"), "{status}");
    let forged = format!("{}AA", &good[..good.len() - 2]);
    for bad in [provider.token("another", &["dev"]), forged, "unheard-of".to_owned(), "broken".to_owned()] {
        assert_eq!(who(&running.with_token(&bad), &[]).await, Err(401), "{bad}");
    }
    let hooked = who(&running.with_token("of-the-webhook"), &[]).await.unwrap();
    let want = json!({ "username": "bob", "uid": "7", "groups": ["hooked", "system:authenticated"],
        "extra": { "k": ["v"] } });
    assert_eq!(hooked, want);

    let status = review(&running, &good, &[]).await;
    assert_eq!((&status["authenticated"], &status["user"]["username"]), (&json!(true), &json!("oidc:ann")));
    assert_eq!(status["audiences"], json!([service_account_issuer("cluster.local")]));
    assert_eq!(review(&running, &good, &["elsewhere"]).await["authenticated"], json!(false));
    assert_eq!(review(&running, "of-the-webhook", &[]).await["user"]["username"], "bob");
    let status = review(&running, "broken", &[]).await;
    assert!(text(&status["error"]).starts_with("[invalid bearer token, webhook: "), "{status}");
    let many = json!({ "spec": { "token": "x", "audiences": vec!["a"; 300] } });
    assert_eq!(send(&running.admin(), "POST", REVIEWS, &[], &many).await.0, 400);

    // Who may be anonymous is configured too.
    let nobody = anonymous(&running);
    assert_eq!(send(&nobody, "GET", "/livez", &[], &Value::Null).await.0, 200);
    assert_eq!(send(&nobody, "GET", "/version", &[], &Value::Null).await.0, 401);
}

/// A client over TLS with a certificate of any authority.
async fn with_certificate(running: &Running, (certificate, key): (String, String)) -> kube::Client {
    let file = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
        "clusters": [{ "name": "k", "cluster": { "server": format!("https://{}", running.address),
            "certificate-authority-data": STANDARD.encode(running.api.pki().ca_pem()) } }],
        "users": [{ "name": "u", "user": { "client-certificate-data": STANDARD.encode(certificate),
            "client-key-data": STANDARD.encode(key) } }] });
    let file = kube::config::Kubeconfig::from_yaml(&file.to_string()).unwrap();
    kube::Client::try_from(kube::Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_proxy_speaks_for_others_and_nobody_else_does() {
    let (dir, ours, other) = (tempfile::tempdir().unwrap(), Authority::new("proxies"), Authority::new("others"));
    let ca = dir.path().join("proxies.crt");
    std::fs::write(&ca, &ours.pem).unwrap();
    let request_header = Some(RequestHeader::new(ca, vec!["front".to_owned()]));
    let running = start_authenticating(dir, Authentication { request_header, ..Default::default() }).await;
    let said = [
        ("X-Remote-User", "ann"),
        ("X-Remote-Group", "dev"),
        ("X-Remote-Uid", "42"),
        ("X-Remote-Extra-Acme.com%2fTeam", "one"),
    ];
    let front = with_certificate(&running, ours.client("front", "system:masters")).await;
    let want = json!({ "username": "ann", "uid": "42", "groups": ["dev", "system:authenticated"],
        "extra": { "acme.com/team": ["one"] } });
    assert_eq!(who(&front, &said).await, Ok(want));
    // Of itself a proxy is nobody, whatever its certificate says.
    assert_eq!(who(&front, &[]).await, Err(401));
    assert_eq!(send(&front, "GET", "/api/v1/secrets", &[], &Value::Null).await.0, 401);
    let unlisted = with_certificate(&running, ours.client("another", "system:masters")).await;
    assert_eq!(who(&unlisted, &said).await, Err(401));
    // The cluster's own clients are who they are, a client of the allowed name too.
    let admin = running.over_tls(&UserInfo::admin()).await;
    assert_eq!(who(&admin, &said).await.unwrap()["username"], "kubernetes-admin");
    let named = running.over_tls(&UserInfo::component("front", &[])).await;
    assert_eq!(who(&named, &said).await.unwrap()["username"], "front");
    let robot = running.as_service_account().await;
    assert_eq!(who(&robot, &said).await.unwrap()["username"], "system:serviceaccount:default:robot");
    // A third authority's certificate is refused by TLS.
    let stranger = with_certificate(&running, other.client("front", "x")).await;
    let request = http::Request::get("/version").body(Body::empty()).unwrap();
    assert!(stranger.send(request).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn impersonation_asks_for_every_part() {
    let running = start().await;
    let robot = running.as_service_account().await;
    let forbidden = async |headers: &[(&str, &str)]| {
        let (code, status) = send(&robot, "POST", WHO, headers, &json!({})).await;
        assert_eq!(code, 403, "{status}");
        text(&status["message"]).to_owned()
    };
    let cannot = "User \"system:serviceaccount:default:robot\" cannot impersonate resource";
    assert_eq!(
        forbidden(&[("Impersonate-User", "ann")]).await,
        format!("users \"ann\" is forbidden: {cannot} \"users\" in API group \"\" at the cluster scope")
    );
    assert_eq!(
        forbidden(&[("Impersonate-User", "system:serviceaccount:kube-system:x")]).await,
        format!(
            "serviceaccounts \"x\" is forbidden: {cannot} \"serviceaccounts\" in API group \"\" in the namespace \"kube-system\""
        )
    );
    let role = json!({ "metadata": { "name": "ann" }, "rules": [
        { "verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["ann"] },
        { "verbs": ["impersonate"], "apiGroups": ["authentication.k8s.io"], "resources": ["userextras/team"],
          "resourceNames": ["one"] },
    ] });
    create(&running, "/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
    running
        .kubectl(&["create", "clusterrolebinding", "ann", "--clusterrole=ann", "--serviceaccount=default:robot"])
        .await;
    let ann = ("Impersonate-User", "ann");
    let me = who(&robot, &[ann, ("Impersonate-Extra-Team", "one")]).await.unwrap();
    assert_eq!(me, json!({ "username": "ann", "groups": ["system:authenticated"], "extra": { "team": ["one"] } }));
    assert_eq!(
        forbidden(&[ann, ("Impersonate-Extra-Team", "two")]).await,
        format!(
            "userextras.authentication.k8s.io \"two\" is forbidden: {cannot} \"userextras/team\" in API group \"authentication.k8s.io\" at the cluster scope"
        )
    );
    assert!(
        forbidden(&[ann, ("Impersonate-Uid", "7")])
            .await
            .starts_with("uids.authentication.k8s.io \"7\" is forbidden: ")
    );
    assert!(forbidden(&[ann, ("Impersonate-Group", "system:masters")]).await.starts_with("groups \"system:masters\""));
    assert_eq!(who(&robot, &[("Impersonate-Group", "x")]).await, Err(400));

    let admin = running.admin();
    let anonymous = [("Impersonate-User", "system:anonymous")];
    assert_eq!(who(&admin, &anonymous).await, Err(403));
    running
        .kubectl(&[
            "create",
            "clusterrolebinding",
            "x",
            "--clusterrole=system:basic-user",
            "--group=system:unauthenticated",
        ])
        .await;
    let nobody = who(&admin, &anonymous).await.unwrap();
    assert_eq!(nobody["groups"], json!(["system:unauthenticated"]));
    let account = who(&admin, &[("Impersonate-User", "system:serviceaccount:a:b"), ("Impersonate-Uid", "7")]).await;
    let want = json!({ "username": "system:serviceaccount:a:b", "uid": "7",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"] });
    assert_eq!(account, Ok(want));
    let (_, out, _) = running
        .kubectl_with(&["auth", "whoami", "--as", "jane", "--as-group", "dev", "--as-uid", "9", "-o", "json"], "")
        .await;
    let shown: Value = serde_json::from_str(&out).unwrap();
    let info = &shown["status"]["userInfo"];
    assert_eq!((&info["uid"], &info["groups"]), (&json!("9"), &json!(["dev", "system:authenticated"])));
}

fn claims(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_end_with_what_they_are_bound_to() {
    let running = start().await;
    let node = create(&running, "/api/v1/nodes", json!({ "metadata": { "name": "n1" } })).await;
    let uid = &node["metadata"]["uid"];
    let pod = json!({ "metadata": { "name": "p" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] } });
    create(&running, PODS, pod).await;
    let of = |kind: &str, name: &str| json!({ "boundObjectRef": { "apiVersion": "v1", "kind": kind, "name": name } });
    let in_pod = token(&running, of("Pod", "p")).await;
    let in_pod = text(&in_pod["status"]["token"]);
    assert_eq!(claims(in_pod)["kubernetes.io"]["node"], json!({ "name": "n1", "uid": uid }));
    let me = who(&running.with_token(in_pod), &[]).await.unwrap();
    assert_eq!(me["extra"]["authentication.kubernetes.io/node-name"], json!(["n1"]));
    assert_eq!(me["extra"]["authentication.kubernetes.io/node-uid"], json!([uid]));
    assert_eq!(me["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));

    let on_node = token(&running, of("Node", "n1")).await;
    let client = running.with_token(text(&on_node["status"]["token"]));
    assert!(who(&client, &[]).await.is_ok());
    let (code, status) = send(&running.admin(), "DELETE", "/api/v1/nodes/n1", &[], &Value::Null).await;
    assert_eq!(code, 200, "{status}");
    assert_eq!(who(&client, &[]).await, Err(401));
    assert!(who(&running.with_token(in_pod), &[]).await.is_ok(), "its pod is still there");
    // Another Node of that name is not the one.
    create(&running, "/api/v1/nodes", json!({ "metadata": { "name": "n1" } })).await;
    assert_eq!(who(&client, &[]).await, Err(401));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lives_as_long_as_the_reply_says() {
    let mut authentication = Authentication::default();
    authentication.service_accounts.max_expiration = Some(7200);
    let running = start_authenticating(tempfile::tempdir().unwrap(), authentication).await;
    for (asked, given) in [(Value::Null, 3600), (json!(600), 600), (json!(100_000), 7200)] {
        let made = token(&running, json!({ "expirationSeconds": asked })).await;
        assert_eq!(made["spec"]["expirationSeconds"], given, "{asked}");
        let claims = claims(text(&made["status"]["token"]));
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), given);
        let end: jiff::Timestamp = text(&made["status"]["expirationTimestamp"]).parse().unwrap();
        assert_eq!(end.as_second(), claims["exp"].as_i64().unwrap());
    }
    for (body, code) in [
        (json!({ "spec": { "expirationSeconds": 599 } }), 422),
        (json!({ "spec": { "expirationSeconds": 4_294_967_297_i64 } }), 422),
        (json!({ "metadata": { "name": "other" }, "spec": {} }), 422),
        (json!({ "spec": { "audiences": "x" } }), 400),
        (json!({ "spec": { "boundObjectRef": { "apiVersion": "apps/v1", "kind": "Pod", "name": "p" } } }), 400),
    ] {
        assert_eq!(send(&running.admin(), "POST", TOKENS, &[], &body).await.0, code, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_based_token_is_good_while_the_secret_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    std::fs::create_dir(dir.path().join("pki")).unwrap();
    std::fs::write(dir.path().join("pki/sa.key"), &key).unwrap();
    let running = start_authenticating(dir, Authentication::default()).await;
    let account = account(&running).await;
    // What the controller of these Secrets does.
    let signer = causeway_authn::service_account::Tokens::new(&[&key], "x", &[]).unwrap();
    let of = causeway_authn::service_account::Account {
        namespace: "default".to_owned(),
        name: "default".to_owned(),
        uid: text(&account["metadata"]["uid"]).to_owned(),
    };
    let token = signer.issue_legacy(&of, "old").unwrap();
    let client = running.with_token(&token);
    assert_eq!(who(&client, &[]).await, Err(401));
    let secret = json!({ "metadata": { "name": "old",
            "annotations": { "kubernetes.io/service-account.name": "default" } },
        "type": "kubernetes.io/service-account-token", "data": { "token": STANDARD.encode(&token) } });
    create(&running, "/api/v1/namespaces/default/secrets", secret).await;
    assert_eq!(who(&client, &[]).await.unwrap()["username"], "system:serviceaccount:default:default");
    running.kubectl(&["label", "secret", "old", "kubernetes.io/legacy-token-invalid-since=2026-01-01"]).await;
    assert_eq!(who(&client, &[]).await, Err(401));
    running.kubectl(&["label", "secret", "old", "kubernetes.io/legacy-token-invalid-since-"]).await;
    assert!(who(&client, &[]).await.is_ok());
    let another = STANDARD.encode("another");
    running.kubectl(&["patch", "secret", "old", "-p", &json!({ "data": { "token": another } }).to_string()]).await;
    assert_eq!(who(&client, &[]).await, Err(401));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_older_keys_stay_good() {
    let running = start().await;
    let made = token(&running, json!({})).await;
    let old = text(&made["status"]["token"]).to_owned();
    let copy = |as_public: bool| -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        std::fs::create_dir(&pki).unwrap();
        for name in ["ca.crt", "ca.key"] {
            std::fs::copy(running.dir.path().join("pki").join(name), pki.join(name)).unwrap();
        }
        let key = std::fs::read_to_string(running.dir.path().join("pki/sa.key")).unwrap();
        let public = rcgen::KeyPair::from_pem(&key).unwrap().public_key_pem();
        let (name, text) = if as_public { ("sa-1.pub", public) } else { ("sa-1.key", key) };
        std::fs::write(pki.join(name), text).unwrap();
        dir
    };
    for as_public in [true, false] {
        let next = start_authenticating(copy(as_public), Authentication::default()).await;
        let (_, jwks) = send(&next.admin(), "GET", "/openid/v1/jwks", &[], &Value::Null).await;
        assert_eq!(jwks["keys"].as_array().unwrap().len(), 2);
        account(&next).await;
        // The account is another one in this store, and the review says that it is only that.
        let status = review(&next, &old, &[]).await;
        assert!(text(&status["error"]).contains("does not match claim"), "{status}");
        let new = token(&next, json!({})).await;
        let new = text(&new["status"]["token"]);
        assert_eq!(review(&next, new, &[]).await["authenticated"], json!(true));
        let status = review(&running, new, &[]).await;
        assert!(text(&status["error"]).contains("invalid signature"), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_with_a_plugin_for_credentials() {
    use std::os::unix::fs::PermissionsExt;
    let running = start().await;
    let made = token(&running, json!({})).await;
    let script = running.dir.path().join("plugin");
    let credential = json!({ "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": { "token": made["status"]["token"] } });
    std::fs::write(&script, format!("#!/bin/sh\ncat <<'END'\n{credential}\nEND\n")).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
        "clusters": [{ "name": "k", "cluster": { "server": format!("https://{}", running.address),
            "certificate-authority-data": STANDARD.encode(running.api.pki().ca_pem()) } }],
        "users": [{ "name": "u", "user": { "exec": { "apiVersion": "client.authentication.k8s.io/v1",
            "command": script, "interactiveMode": "Never" } } }] });
    let config = running.dir.path().join("with-plugin");
    std::fs::write(&config, file.to_string()).unwrap();
    let out = running.kubectl(&["--kubeconfig", config.to_str().unwrap(), "auth", "whoami", "-o", "json"]).await;
    let who: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(who["status"]["userInfo"]["username"], "system:serviceaccount:default:default");
}
