//! Single requests: routing, headers, protocols, error pages.

use crate::harness::*;
use bytes::Bytes;
use causeway_proxy::Limits;
use futures::{SinkExt, StreamExt};
use http::{Method, StatusCode};
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_by_host_and_path() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let mut lab = Lab::start(Limits::default());
    lab.apply([
        service("a"),
        service("b"),
        slice("a", a.address),
        slice("b", b.address),
        ingress(
            "one",
            &[
                ("shop.localhost", "/", "Prefix", "a", 80),
                ("shop.localhost", "/api", "Prefix", "b", 80),
                ("shop.localhost", "/api/exact", "Exact", "a", 80),
                ("*.wild.localhost", "/", "ImplementationSpecific", "b", 80),
                ("shop.localhost", "/gone", "Prefix", "missing", 80),
            ],
        ),
    ]);
    let mut client = Client::connect(lab.http).await;
    for (host, path, want) in [
        ("shop.localhost", "/", "a"),
        ("SHOP.localhost:8080", "/x?q=/api", "a"),
        ("shop.localhost.", "/api", "b"),
        ("shop.localhost", "/api/v1", "b"),
        ("shop.localhost", "/apiary", "a"),
        ("shop.localhost", "/api/exact", "a"),
        ("shop.localhost", "/api/exact/", "b"),
        ("shop.localhost", "/x/../api/v1", "b"),
        ("shop.localhost", "/x/%2e%2e/api", "b"),
        ("x.wild.localhost", "/any", "b"),
    ] {
        let (status, body) = client.get(host, path).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{host}{path}: {body}");
        let said = said(&body);
        assert_eq!(said["backend"], want, "{host}{path}");
        assert_eq!(said["path"], path.split('?').next().unwrap(), "the path is forwarded as it was sent");
    }
    for (host, path, want, text) in [
        ("other.localhost", "/", 404, "No Ingress has a rule for host other.localhost"),
        ("x.y.wild.localhost", "/", 404, "No Ingress"),
        ("shop.localhost", "/gone", 503, "Service t/missing is not there"),
        ("bad host", "/", 400, "not a host name"),
        ("a/b", "/", 400, "not a host name"),
        ("shop.localhost", "/a/..%2f..%2fetc", 400, "leaves its root"),
        ("shop.localhost", "/../x", 400, "leaves its root"),
    ] {
        // On one connection, which an error page does not cost, unless the request was malformed.
        let (status, body) = client.get(host, path).await.unwrap_or_else(|e| panic!("{host}{path}: {e}"));
        assert_eq!(status.as_u16(), want, "{host}{path}: {body}");
        assert!(body.contains(text), "{host}{path}: {body}");
        if want == 400 {
            client = Client::connect(lab.http).await;
        }
    }
    assert_eq!(lab.problems("one")[0].reason, "ServiceNotFound");
    let rendered = lab.shared.metrics.render();
    assert!(rendered.contains("causeway_ingress_requests_total{class=\"2xx\"} 10"), "{rendered}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn default_backend_and_rules_without_host() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let mut lab = Lab::start(Limits::default());
    let mut default = ingress("default", &[]);
    default["spec"] = json!({"defaultBackend": {"service": {"name": "b", "port": {"name": "http"}}}});
    lab.apply([
        service("a"),
        service("b"),
        slice("a", a.address),
        slice("b", b.address),
        default,
        ingress("any", &[("", "/everywhere", "Prefix", "a", 80)]),
    ]);
    for (host, path, want) in [("x.example", "/everywhere/1", "a"), ("y.example", "/nowhere", "b")] {
        let (_, body) = lab.get(host, path).await;
        assert_eq!(said(&body)["backend"], want);
    }
    // HTTP/1.0 may come without a host.
    let mut raw = tokio::net::TcpStream::connect(lab.http).await.unwrap();
    raw.write_all(b"GET /everywhere HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    raw.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"backend\":\"a\""), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_learn_who_asked() {
    let a = Backend::start("a");
    let lab = Lab::leading_to(a.address, Limits::default());
    let forged = [
        ("x-forwarded-for", "6.6.6.6"),
        ("x-real-ip", "6.6.6.6"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil"),
        ("forwarded", "for=6.6.6.6"),
        ("proxy", "http://evil"),
        ("x-kept", "yes"),
    ];
    let mut client = Client::connect(lab.http).await;
    let (_, body, _) =
        client.send(Method::POST, "h.localhost:8080", "/p?q=1", &forged, Bytes::from("body")).await.unwrap();
    let got = said(std::str::from_utf8(&body).unwrap());
    let headers = &got["headers"];
    assert_eq!(headers["host"], "h.localhost:8080");
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(headers["x-real-ip"], "127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"], "http");
    assert_eq!(headers["x-forwarded-host"], "h.localhost:8080");
    assert_eq!(headers["x-forwarded-port"], "8080");
    assert_eq!(headers["x-kept"], "yes");
    assert_eq!((&headers["forwarded"], &headers["proxy"]), (&json!(null), &json!(null)));
    assert_eq!((&got["query"], &got["body"], &got["method"]), (&json!("q=1"), &json!(4), &json!("POST")));

    // Behind another proxy that we were told to trust.
    let trusting = Limits { trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()], ..Limits::default() };
    let lab = Lab::leading_to(a.address, trusting);
    let mut client = Client::connect(lab.http).await;
    let (_, body, _) = client.send(Method::GET, "h.localhost", "/", &forged, Bytes::new()).await.unwrap();
    let headers = said(std::str::from_utf8(&body).unwrap())["headers"].clone();
    assert_eq!(headers["x-forwarded-for"], "6.6.6.6, 127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"], "https");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_in_the_clear_on_both_sides() {
    let a = Backend::start("a");
    let lab = Lab::leading_to(a.address, Limits::default());
    for (host, prior, downstream, upstream) in [
        ("h.localhost", "--http2-prior-knowledge", "2", "HTTP/1.1"),
        ("h2c.localhost", "--http2-prior-knowledge", "2", "HTTP/2.0"),
        ("h2c.localhost", "--http1.1", "1.1", "HTTP/2.0"),
    ] {
        let url = format!("http://{}/x", lab.http);
        let (ok, out) = curl(&[prior, "-H", &format!("Host: {host}"), "-w", " %{http_version}", &url]).await;
        assert!(ok, "{out}");
        let (body, version) = out.rsplit_once(' ').unwrap();
        assert_eq!(version, downstream, "{out}");
        assert_eq!(said(body)["version"], upstream);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_pass() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.unwrap();
            }
        }
    });
    let mut lab = Lab::start(Limits::default());
    lab.apply([service("ws"), slice("ws", address), ingress("i", &[("ws.localhost", "/", "Prefix", "ws", 80)])]);
    let stream = tokio::net::TcpStream::connect(lab.http).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://ws.localhost/chat", stream).await.unwrap();
    for i in 0..100 {
        let text = format!("message {i}");
        socket.send(Message::text(text.clone())).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().into_text().unwrap().as_str(), text);
    }
    let big = vec![7u8; 1 << 20];
    socket.send(Message::binary(big.clone())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap().into_data(), big);
    socket.close(None).await.unwrap();
    tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_arrive_whole() {
    let a = Backend::start("a");
    let lab = Lab::leading_to(a.address, Limits::default());
    let mut client = Client::connect(lab.http).await;
    for size in [0, 1, 100, 4096, 65_536, 5_000_000] {
        let body: Vec<u8> = (0..size).map(|i: u32| (i * 31 % 251) as u8).collect();
        let sent = Bytes::from(body);
        let (status, got, _) = client.send(Method::PUT, "h.localhost", "/mirror", &[], sent.clone()).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        assert!(got == sent, "{size} bytes came back as {}", got.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_backends_do_wrong() {
    // One that breaks off, one that talks nonsense, one that never answers, one that is not there.
    let odd = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let odd_address = odd.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = odd.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let n = stream.read(&mut buffer).await.unwrap_or(0);
            if buffer[..n].starts_with(b"GET /nonsense") {
                let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
            }
        }
    });
    let slow = Backend::start("slow");
    let refusing = listener().local_addr().unwrap();
    let limits = Limits { upstream_timeout: Duration::from_millis(300), ..Limits::default() };
    let mut lab = Lab::start(limits);
    lab.apply([
        service("odd"),
        service("slow"),
        service("refusing"),
        service("empty"),
        slice("odd", odd_address),
        slice("slow", slow.address),
        slice("refusing", refusing),
        ingress(
            "i",
            &[
                ("odd.localhost", "/", "Prefix", "odd", 80),
                ("slow.localhost", "/", "Prefix", "slow", 80),
                ("refusing.localhost", "/", "Prefix", "refusing", 80),
                ("empty.localhost", "/", "Prefix", "empty", 80),
            ],
        ),
    ]);
    for (host, path, want, text) in [
        ("odd.localhost", "/break", 502, "broke off"),
        ("odd.localhost", "/nonsense", 502, "no valid answer"),
        ("slow.localhost", "/never", 504, "did not answer in time"),
        ("refusing.localhost", "/", 502, "No endpoint of the service takes connections"),
        ("empty.localhost", "/", 503, "No endpoint of the service is ready (service t/empty port http)"),
    ] {
        let (status, body) = lab.get(host, path).await;
        assert_eq!(status.as_u16(), want, "{host}{path}: {body}");
        assert!(body.contains(text), "{host}{path}: {body}");
    }
    assert!(lab.problems("i").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_are_told_by_forwarded_too() {
    let a = Backend::start("a");
    for (trusted, always, want) in [
        (false, false, None),
        (false, true, Some("for=127.0.0.1;host=\"h.localhost\";proto=http")),
        (true, false, Some("for=x, for=127.0.0.1;host=\"h.localhost\";proto=http")),
    ] {
        let trusted_proxies = if trusted { vec!["127.0.0.0/8".parse().unwrap()] } else { Vec::new() };
        let limits = Limits { forwarded_header: always, trusted_proxies, ..Limits::default() };
        let lab = Lab::leading_to(a.address, limits);
        let headers = [("forwarded", "for=x")];
        let mut client = Client::connect(lab.http).await;
        let (_, body, _) = client.send(Method::GET, "h.localhost", "/", &headers, Bytes::new()).await.unwrap();
        assert_eq!(said(&String::from_utf8_lossy(&body))["headers"]["forwarded"].as_str(), want);
    }
}
