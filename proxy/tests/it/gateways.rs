//! Gateways' ports: rules, filters and changes, at real sockets. What the API demands beyond is in `tests/conformance`.

use crate::harness::*;
use bytes::Bytes;
use causeway_proxy::Limits;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn to(service: &str) -> Value {
    json!([{"name": service, "port": 80}])
}

async fn lab(limits: Limits, rules: Value) -> (Lab, Backend, Backend, std::net::SocketAddr) {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let mut lab = Lab::with_gateways(limits);
    let listeners = json!([{"name": "http", "port": 80, "protocol": "HTTP"}]);
    lab.apply([service("a"), slice("a", a.address), service("b"), slice("b", b.address)]);
    lab.apply([gateway("gw", listeners), route("r", rules)]);
    let at = lab.socket("gw", 80).await;
    (lab, a, b, at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_filters_and_what_backends_are_told() {
    let rules = json!([
        {"matches": [{"path": {"value": "/old"}}], "backendRefs": to("a"), "filters": [
            {"type": "URLRewrite", "urlRewrite": {"hostname": "inner.example",
                "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}}},
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "X-Set", "value": "1"}]}}]},
        {"matches": [{"queryParams": [{"name": "who", "value": "b"}]}], "backendRefs": to("b")},
        {"matches": [{"path": {"value": "/nowhere"}}]},
        {"backendRefs": to("a")},
    ]);
    let (lab, _a, _b, at) = lab(Limits::default(), rules).await;
    let mut client = Client::connect(at).await;
    let (status, body) = client.get("shop.example", "/old/x?y=1").await.unwrap();
    let said_back = said(&body);
    assert_eq!((status, &said_back["path"], &said_back["query"]), (StatusCode::OK, &json!("/new/x"), &json!("y=1")));
    assert_eq!(said_back["headers"]["host"], "inner.example");
    assert_eq!(said_back["headers"]["x-set"], "1");
    assert_eq!(said_back["headers"]["x-forwarded-host"], "shop.example");
    assert_eq!(said_back["headers"]["x-forwarded-port"], "80", "the Gateway's port, not the socket's");
    assert_eq!(said(&client.get("h", "/?who=b").await.unwrap().1)["backend"], "b");
    assert_eq!(client.get("h", "/nowhere").await.unwrap().0, StatusCode::INTERNAL_SERVER_ERROR);
    // The ingress' own sockets know nothing of a Gateway's routes.
    assert_eq!(lab.get("shop.example", "/old").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_is_served_at_the_ingress_sockets_where_it_asks_for_it() {
    let (mut lab, a, _b, _) = lab(Limits::default(), json!([{"backendRefs": to("a")}])).await;
    assert_eq!(lab.get("any.example", "/").await.0, StatusCode::NOT_FOUND);
    let pair = rcgen::generate_simple_self_signed(vec!["tls.example".to_owned()]).unwrap();
    let secret = json!({"kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "s", "namespace": "t"},
        "data": {
            "tls.crt": base64(&pair.cert.pem()), "tls.key": base64(&pair.signing_key.serialize_pem())}});
    let mut open = gateway(
        "gw",
        json!([
        {"name": "http", "port": 80, "protocol": "HTTP"},
        {"name": "https", "port": 443, "protocol": "HTTPS", "hostname": "tls.example",
            "tls": {"certificateRefs": [{"name": "s"}]}}]),
    );
    open["metadata"]["annotations"] = json!({causeway_proxy::gateway::LOCAL_ANNOTATION: "true"});
    lab.apply([secret, open, ingress("i", &[("own.example", "/", "Prefix", "b", 80)])]);
    assert_eq!(said(&lab.get("any.example", "/").await.1)["backend"], "a");
    assert_eq!(said(&lab.get("own.example", "/").await.1)["backend"], "b", "an Ingress goes first");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, pair.cert.pem()).unwrap();
    let resolve = format!("tls.example:{}:127.0.0.1", lab.https.port());
    let url = format!("https://tls.example:{}/", lab.https.port());
    let (ok, text) = curl(&["--cacert", file.to_str().unwrap(), "--resolve", &resolve, &url]).await;
    assert!(ok, "{text}");
    assert_eq!(said(&text)["backend"], "a");
    drop(a);
}

fn base64(text: &str) -> String {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_keeps_its_backend() {
    let rules = json!([{"sessionPersistence": {"sessionName": "s", "type": "Header"},
        "backendRefs": [{"name": "a", "port": 80}, {"name": "b", "port": 80}]}]);
    let (_lab, _a, _b, at) = lab(Limits::default(), rules).await;
    let url = format!("http://{at}/");
    let (_, first) = curl(&["-i", &url]).await;
    let token = first.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("s: ").map(str::to_owned)).unwrap();
    let backend = said(first.lines().last().unwrap())["backend"].clone();
    let mut client = Client::connect(at).await;
    for _ in 0..20 {
        let (_, body, _) = client.send(Method::GET, "h", "/", &[("s", token.trim())], Bytes::new()).await.unwrap();
        assert_eq!(said(&String::from_utf8_lossy(&body))["backend"], backend);
    }
    // Without it requests are shared.
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        seen.insert(said(&client.get("h", "/").await.unwrap().1)["backend"].to_string());
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_get_copies_with_bodies_and_time_runs_out() {
    let rules = json!([
        {"matches": [{"path": {"value": "/never"}}], "timeouts": {"request": "300ms"}, "backendRefs": to("a")},
        {"backendRefs": to("a"),
            "filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "b", "port": 80}}}]},
    ]);
    let (_lab, _a, b, at) = lab(Limits::default(), rules).await;
    let mut client = Client::connect(at).await;
    for _ in 0..5 {
        let sent = client.send(Method::POST, "h", "/", &[], Bytes::from(vec![7; 1000])).await.unwrap();
        assert_eq!(sent.0, StatusCode::OK);
    }
    let copied = async {
        while b.served.load(Ordering::Relaxed) < 5 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, copied).await.expect("no copies");
    assert_eq!(client.get("h", "/never").await.unwrap().0, StatusCode::GATEWAY_TIMEOUT);
}

/// Answers 503 twice, then 200, over and over.
async fn flaky(listener: TcpListener) {
    let mut count = 0;
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = [0; 2048];
        while stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {
            count += 1;
            let line = if count % 3 == 0 { "200 OK" } else { "503 Service Unavailable" };
            let answer = format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_asked_for_again_as_the_route_says() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(flaky(listener));
    let retry =
        |attempts| json!([{"retry": {"codes": [503], "attempts": attempts, "backoff": "5ms"}, "backendRefs": to("f")}]);
    let (mut lab, _a, _b, at) = lab(Limits::default(), retry(2)).await;
    lab.apply([service("f"), slice("f", address)]);
    let mut client = Client::connect(at).await;
    assert_eq!(client.get("h", "/").await.unwrap().0, StatusCode::OK, "the third try");
    lab.apply([route("r", retry(1))]);
    let mut client = Client::connect(at).await;
    assert_eq!(client.get("h", "/").await.unwrap().0, StatusCode::SERVICE_UNAVAILABLE, "two tries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_changes_lose_no_request_and_a_gateway_that_goes_is_gone() {
    let (mut lab, _a, _b, at) = lab(Limits::default(), json!([{"backendRefs": to("a")}])).await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            tokio::spawn(async move {
                let mut client = Client::connect(at).await;
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    let (status, _) = client.get("h", "/").await.unwrap();
                    assert_eq!(status, StatusCode::OK);
                    count += 1;
                }
                count
            })
        })
        .collect();
    for i in 0..1000 {
        let path = format!("/p{}", i % 7);
        lab.apply([route(
            &format!("x{}", i % 20),
            json!([{"matches": [{"path": {"value": path}}], "backendRefs": to("b")}]),
        )]);
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 10);
    }
    assert_eq!(lab.socket("gw", 80).await, at, "the socket stays");
    lab.delete([gateway("gw", json!([]))]);
    let closed = async {
        while TcpStream::connect(at).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("still open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_protocol_says_who_the_client_is() {
    let limits =
        Limits { proxy_protocol: true, trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()], ..Limits::default() };
    let (_lab, _a, _b, at) = lab(limits, json!([{"backendRefs": to("a")}])).await;
    let ask = |head: &'static str| async move {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let request = format!("{head}GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap();
        answer
    };
    let answer = ask("PROXY TCP4 192.0.2.7 127.0.0.1 5555 80\r\n").await;
    assert_eq!(said(answer.lines().last().unwrap())["headers"]["x-real-ip"], "192.0.2.7", "{answer}");
    assert_eq!(ask("").await, "", "a trusted proxy that says nothing is not served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_compressed_where_that_is_asked_for() {
    let rules = || {
        json!([{"backendRefs": to("a"), "filters": [{"type": "ResponseHeaderModifier",
        "responseHeaderModifier": {"set": [{"name": "content-type", "value": "text/plain"}]}}]}])
    };
    for (compression, encoded) in [(true, true), (false, false)] {
        let (_lab, _a, _b, at) = lab(Limits { compression, ..Limits::default() }, rules()).await;
        let long = format!("x-long: {}", "y".repeat(4000));
        let url = format!("http://{at}/");
        let (_, answer) = curl(&["--compressed", "-D", "-", "-H", &long, &url]).await;
        assert_eq!(answer.to_ascii_lowercase().contains("content-encoding: "), encoded, "{answer}");
        assert!(answer.contains("\"backend\":\"a\""), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_taken_up_again_after_a_change() {
    let a = Backend::start("a");
    let made = rcgen::generate_simple_self_signed(vec!["h.example".to_owned()]).unwrap();
    let encode = |text: String| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    let secret = json!({"kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "c", "namespace": "t"},
        "data": {"tls.crt": encode(made.cert.pem()), "tls.key": encode(made.signing_key.serialize_pem())}});
    let mut lab = Lab::with_gateways(Limits::default());
    let tls = json!({"certificateRefs": [{"name": "c"}]});
    lab.apply([secret, service("a"), slice("a", a.address), route("r", json!([{"backendRefs": to("a")}]))]);
    lab.apply([gateway("gw", json!([{"name": "s", "port": 443, "protocol": "HTTPS", "tls": tls}]))]);
    let at = lab.socket("gw", 443).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let connect = || async {
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&config));
        let stream = TcpStream::connect(at).await.unwrap();
        let mut stream = connector.connect("h.example".try_into().unwrap(), stream).await.unwrap();
        // Tickets come with the answer.
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h.example\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        stream.get_ref().1.handshake_kind().unwrap()
    };
    assert_eq!(connect().await, rustls::HandshakeKind::Full);
    lab.apply([route("r", json!([{"matches": [{"path": {"value": "/"}}], "backendRefs": to("a")}]))]);
    // The socket takes the change over in a moment.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(connect().await, rustls::HandshakeKind::Resumed);
}
