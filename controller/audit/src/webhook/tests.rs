//! A webhook on this machine, with and without TLS.

use super::*;
use crate::auditor::{Auditor, Config, RequestFacts, User};
use crate::policy::Policy;
use crate::webhook::kubeconfig::KubeconfigError;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What the webhook got: its `Authorization` and the list.
type Got = Arc<Mutex<Vec<(String, Value)>>>;

struct Server {
    port: u16,
    got: Got,
    connections: Arc<std::sync::atomic::AtomicUsize>,
}

/// Answers with these codes, then with 200; a code of 0 is no answer at all.
async fn server(codes: &[u16], tls: Option<TlsAcceptor>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let codes = Arc::new(Mutex::new(VecDeque::from(codes.to_vec())));
    let (got, connections) = (Got::default(), Arc::default());
    let server = Server { port, got: Arc::clone(&got), connections: Arc::clone(&connections) };
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.fetch_add(1, Relaxed);
            let (codes, got, tls) = (Arc::clone(&codes), Arc::clone(&got), tls.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(request, Arc::clone(&codes), Arc::clone(&got)));
                let http = hyper::server::conn::http1::Builder::new();
                match tls {
                    Some(tls) => {
                        let Ok(stream) = tls.accept(stream).await else { return };
                        drop(http.serve_connection(TokioIo::new(stream), service).await);
                    }
                    None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                }
            });
        }
    });
    server
}

async fn answer(
    request: http::Request<hyper::body::Incoming>,
    codes: Arc<Mutex<VecDeque<u16>>>,
    got: Got,
) -> Result<http::Response<Full<Bytes>>, hyper::Error> {
    let token = request.headers().get("authorization").map_or("", |v| v.to_str().unwrap()).to_owned();
    assert_eq!(
        (request.uri().path(), &request.headers()["content-type"]),
        ("/audit", &"application/json".parse().unwrap())
    );
    let body = request.into_body().collect().await?.to_bytes();
    let code = codes.lock().pop_front().unwrap_or(200);
    if code == 0 {
        sleep(Duration::from_secs(3600)).await;
    }
    if code == 200 {
        got.lock().push((token, serde_json::from_slice(&body).unwrap()));
    }
    let huge = Bytes::from(vec![b'x'; if code == 307 { 1 << 20 } else { 10 }]);
    let mut response = http::Response::new(Full::new(huge));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
    Ok(response)
}

fn kubeconfig(dir: &Path, cluster: &str, user: &str) -> Result<Webhook, KubeconfigError> {
    let path = dir.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: a, user: u}}}}]\n\
         clusters: [{{name: a, cluster: {cluster}}}]\nusers: [{{name: u, user: {user}}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    Webhook::from_kubeconfig(&path)
}

fn quick(webhook: Webhook) -> WebhookConfig {
    WebhookConfig {
        backoff: Duration::from_millis(1),
        batch_wait: Duration::from_millis(20),
        timeout: Duration::from_millis(300),
        throttle: None,
        ..WebhookConfig::new(webhook)
    }
}

fn start(webhook: WebhookConfig) -> Auditor {
    let policy =
        b"{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata, omitStages: [RequestReceived]}]}";
    Auditor::start(Config { webhook: Some(webhook), ..Config::new(Policy::parse(policy).unwrap()) }).unwrap()
}

fn ask(auditor: &Auditor, name: &str) {
    let extra = BTreeMap::new();
    let facts = RequestFacts {
        audit_id: name,
        uri: "/",
        path: "/",
        verb: "get",
        user: Some(User { name: "alice", uid: "", groups: &[], extra: &extra }),
        source_ips: &[],
        user_agent: "",
        resource: None,
        received: jiff::Timestamp::UNIX_EPOCH,
        long_running: false,
    };
    auditor.begin(&facts).unwrap().unwrap().complete(200, None);
}

fn ids(got: &Got) -> Vec<Vec<String>> {
    let id = |event: &Value| {
        assert!(event.get("kind").is_none(), "items have no type of their own");
        event["auditID"].as_str().unwrap().to_owned()
    };
    let list = |(_, list): &(String, Value)| {
        assert_eq!((&list["kind"], &list["apiVersion"]), (&"EventList".into(), &"audit.k8s.io/v1".into()));
        list["items"].as_array().unwrap().iter().map(id).collect()
    };
    got.lock().iter().map(list).collect()
}

#[tokio::test]
async fn batches_arrive_in_order_over_one_connection() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&[], None).await;
    std::fs::write(dir.path().join("token"), "from-file\n").unwrap();
    let cluster = format!("{{server: 'http://127.0.0.1:{}/audit'}}", server.port);
    let webhook = kubeconfig(dir.path(), &cluster, "{token: fixed, tokenFile: token}").unwrap();
    let auditor = start(WebhookConfig { batch_events: 3, ..quick(webhook) });
    let names: Vec<String> = (0..7).map(|i| format!("id-{i}")).collect();
    names.iter().for_each(|name| ask(&auditor, name));
    assert_eq!(auditor.shutdown(Duration::from_secs(10)).await, 0);
    let arrived = ids(&server.got);
    assert_eq!(arrived.concat(), names);
    assert_eq!(arrived.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
    assert_eq!(server.got.lock()[0].0, "Bearer from-file");
    assert_eq!(server.connections.load(Relaxed), 1);
    assert_eq!(auditor.figures().sent, 7);
}

#[tokio::test]
async fn failures_are_tried_again_and_given_up() {
    let dir = tempfile::tempdir().unwrap();
    // No redirect is followed, and its huge body not read.
    for (codes, arrives) in [(&[500, 0, 307, 429][..], true), (&[500, 503, 403, 404, 500][..], false)] {
        let server = server(codes, None).await;
        let cluster = format!("{{server: 'http://localhost:{}/audit'}}", server.port);
        let auditor = start(quick(kubeconfig(dir.path(), &cluster, "{}").unwrap()));
        ask(&auditor, "a");
        assert_eq!(auditor.shutdown(Duration::from_secs(10)).await, 0);
        assert_eq!(ids(&server.got).concat(), if arrives { vec!["a"] } else { vec![] }, "{codes:?}");
        let figures = auditor.figures();
        assert_eq!((figures.sent, figures.webhook_failed), (u64::from(arrives), u64::from(!arrives)), "{codes:?}");
    }
}

#[tokio::test]
async fn a_webhook_that_is_away_holds_neither_requests_nor_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&[0; 100], None).await;
    let cluster = format!("{{server: 'http://127.0.0.1:{}/audit'}}", server.port);
    let webhook = kubeconfig(dir.path(), &cluster, "{}").unwrap();
    let limits = QueueLimits { events: 4, bytes: 1 << 20 };
    let auditor =
        start(WebhookConfig { queue: limits, batch_events: 1, timeout: Duration::from_secs(60), ..quick(webhook) });
    ask(&auditor, "a");
    while server.connections.load(Relaxed) == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    (0..20).for_each(|_| ask(&auditor, "b"));
    assert_eq!(auditor.figures().webhook_overflowed, 16);
    let begin = Instant::now();
    assert_eq!(auditor.shutdown(Duration::from_millis(100)).await, 5);
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(auditor.figures().webhook_failed, 5);
}

#[tokio::test]
async fn the_throttle_holds_batches_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&[], None).await;
    let cluster = format!("{{server: 'http://127.0.0.1:{}/audit'}}", server.port);
    let webhook = kubeconfig(dir.path(), &cluster, "{}").unwrap();
    let throttle = Some(Throttle { qps: 20.0, burst: 2 });
    let auditor = start(WebhookConfig { batch_events: 1, throttle, ..quick(webhook) });
    let begin = Instant::now();
    (0..6).for_each(|_| ask(&auditor, "a"));
    assert_eq!(auditor.shutdown(Duration::from_secs(10)).await, 0);
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(190), "two at once, four more at 20 a second: {took:?}");
    assert_eq!(server.got.lock().len(), 6);
}

/// An authority and a certificate it has signed, as PEM: authority, certificate, key.
fn issue(name: &str) -> [String; 3] {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    [authority, params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem()]
}

fn acceptor([_, cert, key]: &[String; 3], client_authority: &str) -> TlsAcceptor {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(client_authority.as_bytes()).unwrap()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn tls_checks_the_server_and_shows_our_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (hook, ours, strangers) = (issue("audit.example"), issue("us"), issue("audit.example"));
    let server = server(&[], Some(acceptor(&hook, &ours[0]))).await;
    for (name, text) in [("ca", &hook[0]), ("other-ca", &strangers[0]), ("cert", &ours[1]), ("key", &ours[2])] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let base64 = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    let data = format!("{{client-certificate-data: {}, client-key-data: {}}}", base64(&ours[1]), base64(&ours[2]));
    let files = "{client-certificate: cert, client-key: key}".to_owned();
    let cases = [
        ("ca", "audit.example", &files, true),
        ("ca", "audit.example", &data, true),
        ("ca", "another.example", &files, false),
        ("other-ca", "audit.example", &files, false),
        ("ca", "audit.example", &"{}".to_owned(), false),
    ];
    for (ca, name, user, arrives) in cases {
        server.got.lock().clear();
        let port = server.port;
        let cluster = format!(
            "{{server: 'https://127.0.0.1:{port}/audit', certificate-authority: {ca}, tls-server-name: {name}}}"
        );
        let webhook = kubeconfig(dir.path(), &cluster, user).unwrap();
        let auditor = start(WebhookConfig { attempts: 2, ..quick(webhook) });
        ask(&auditor, "a");
        assert_eq!(auditor.shutdown(Duration::from_secs(10)).await, 0);
        assert_eq!(server.got.lock().len(), usize::from(arrives), "{ca} {name} {user}");
    }
}

#[test]
fn kubeconfigs_that_ask_for_more_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = issue("x")[0].clone();
    std::fs::write(dir.path().join("ca"), &ca).unwrap();
    std::fs::write(dir.path().join("empty"), "").unwrap();
    let https = |more: &str| format!("{{server: 'https://h/', certificate-authority: ca{more}}}");
    let cases = [
        (https(", insecure-skip-tls-verify: true"), "{}", "\"insecure-skip-tls-verify\" is not supported"),
        (https(", proxy-url: 'http://p'"), "{}", "\"proxy-url\" is not supported"),
        (https(""), "{exec: {command: x}}", "\"exec\" is not supported"),
        (https(""), "{username: a, password: b}", "is not supported"),
        (https(""), "{as: admin}", "\"as\" is not supported"),
        (https(""), "{client-certificate: ca}", "belong together"),
        (https(""), "{client-certificate: ca, client-key: missing}", "missing: No such file"),
        (https(""), "{token: 5}", "token is not a text"),
        ("{server: 'https://h/'}".to_owned(), "{}", "needs a certificate-authority"),
        ("{server: 'https://h/', certificate-authority: empty}".to_owned(), "{}", "no certificate"),
        ("{server: 'http://h/'}".to_owned(), "{}", "http is for this machine alone"),
        ("{server: 'http://127.0.0.1/', certificate-authority: ca}".to_owned(), "{}", "need an https server"),
        ("{server: 'ftp://h/'}".to_owned(), "{}", "not an https URL"),
        ("{server: 'https://a:b@h/', certificate-authority: ca}".to_owned(), "{}", "names no host, or a user"),
        ("{}".to_owned(), "{}", "no server"),
    ];
    for (cluster, user, expected) in cases {
        let error = kubeconfig(dir.path(), &cluster, user).map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{cluster} {user}: {error}");
    }
    assert!(kubeconfig(dir.path(), &https(", insecure-skip-tls-verify: false"), "{token: t}").is_ok());
    let read = |text: &str| {
        let path: PathBuf = dir.path().join("other");
        std::fs::write(&path, text).unwrap();
        Webhook::from_kubeconfig(&path).map(drop).map_err(|e| e.to_string())
    };
    assert!(read("clusters: [{name: a, cluster: {server: 'http://[::1]:9/x'}}]").is_ok());
    assert!(read("current-context: gone").unwrap_err().contains("no context \"gone\""));
    assert!(read("a: [").is_err());
    assert!(read(&"#".repeat((1 << 20) + 1)).unwrap_err().contains("larger than"));
}
