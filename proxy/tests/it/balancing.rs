//! How endpoints are chosen and watched over, as the annotations of their Service ask.

use crate::harness::*;
use bytes::Bytes;
use causeway_proxy::Limits;
use causeway_proxy::traffic::checks;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// A Service `a` with annotations under our prefix.
fn annotated(pairs: Value) -> Value {
    let mut service = service("a");
    let pairs = pairs.as_object().unwrap().iter().map(|(k, v)| (format!("causeway.dev/{k}"), v.clone()));
    service["metadata"]["annotations"] = pairs.collect::<serde_json::Map<_, _>>().into();
    service
}

fn lab(service: Value, backends: &[&Backend]) -> Lab {
    let mut lab = Lab::start(Limits::default());
    let paths = [("a.localhost", "/", "Prefix", "a", 80), ("a.localhost", "/other", "Prefix", "a", 80)];
    let rule = ingress("one", &paths);
    lab.apply([service, rule].into_iter().chain(backends.iter().map(|b| slice("a", b.address))));
    lab
}

/// Who answers, and with what status.
async fn ask(client: &mut Client, headers: &[(&str, &str)]) -> (StatusCode, String) {
    let (status, body, _) = client.send(Method::GET, "a.localhost", "/", headers, Bytes::new()).await.unwrap();
    let body = String::from_utf8_lossy(&body).into_owned();
    let name = serde_json::from_str::<Value>(&body).ok().and_then(|v| Some(v["backend"].as_str()?.to_owned()));
    (status, name.unwrap_or(body))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_after_another() {
    let (a, b, c) = (Backend::start("a"), Backend::start("b"), Backend::start("c"));
    let mut lab = lab(annotated(json!({"load-balance": "round-robin"})), &[&a, &b, &c]);
    let mut client = Client::connect(lab.http).await;
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..30 {
        *count.entry(ask(&mut client, &[]).await.1).or_default() += 1;
    }
    assert_eq!(count.into_values().collect::<Vec<_>>(), [10, 10, 10]);
    // Settings are followed without anything else changing; what cannot be read is told.
    lab.apply([annotated(json!({"load-balance": "by-hand"}))]);
    let problems = lab.problems("one");
    assert!(problems.len() == 1 && problems[0].message.contains("Service t/a"), "{problems:?}");
    assert_eq!(ask(&mut client, &[]).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_has_an_endpoint_on_the_ring() {
    let backends = ["a", "b", "c", "d"].map(Backend::start);
    let all: Vec<&Backend> = backends.iter().collect();
    let mut lab = lab(annotated(json!({"load-balance": "ring-hash", "hash-by": "header x-user"})), &all);
    let mut client = Client::connect(lab.http).await;
    let users: Vec<String> = (0..60).map(|i| format!("user {i}")).collect();
    let mut homes = Vec::new();
    for user in &users {
        let home = ask(&mut client, &[("x-user", user)]).await.1;
        for _ in 0..3 {
            assert_eq!(ask(&mut client, &[("x-user", user)]).await.1, home);
        }
        homes.push(home);
    }
    assert_eq!(homes.iter().collect::<BTreeSet<_>>().len(), 4);
    lab.delete([slice("a", backends[1].address)]);
    for (user, home) in users.iter().zip(&homes) {
        let now = ask(&mut client, &[("x-user", user)]).await.1;
        assert!(if home == "b" { now != "b" } else { now == *home }, "{user} was at {home}, is at {now}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_answers_are_not_asked_for_again_and_again() {
    let (good, bad) = (Backend::start("good"), Backend::start("bad"));
    let lab = lab(annotated(json!({"load-balance": "round-robin", "eject-after": "3"})), &[&good, &bad]);
    let mut client = Client::connect(lab.http).await;
    let mut failed = 0;
    for _ in 0..40 {
        failed += usize::from(ask(&mut client, &[]).await.0 == StatusCode::INTERNAL_SERVER_ERROR);
    }
    assert_eq!(failed, 3);
    assert_eq!(lab.shared.metrics.ejections.get(), 1);
    assert_eq!(bad.served.load(Ordering::Relaxed), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_requests_at_a_time_than_the_service_may_have() {
    let a = Backend::start("a");
    let lab = lab(annotated(json!({"max-requests": "2"})), &[&a]);
    let slow = |at| async move { Client::connect(at).await.get("a.localhost", "/slow").await.unwrap().0 };
    let (one, two) = (tokio::spawn(slow(lab.http)), tokio::spawn(slow(lab.http)));
    let mut client = Client::connect(lab.http).await;
    until("both are served", || a.served.load(Ordering::Relaxed) == 2).await;
    let (status, text) = ask(&mut client, &[]).await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && text.contains("as many requests as it may have"), "{text}");
    assert_eq!((one.await.unwrap(), two.await.unwrap()), (StatusCode::OK, StatusCode::OK));
    assert_eq!(lab.get("a.localhost", "/").await.0, StatusCode::OK);
    assert_eq!((a.served.load(Ordering::Relaxed), lab.shared.metrics.overflows.get()), (3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_well_is_not_asked() {
    let (good, bad) = (Backend::start("good"), Backend::start("bad"));
    let checks = json!({"health-check-path": "/healthz", "health-check-interval": "100ms"});
    let lab = lab(annotated(checks), &[&good, &bad]);
    tokio::spawn(checks::run(Arc::clone(&lab.shared), lab.shutdown.clone()));
    let is_down = |name: &Backend| {
        let upstreams = lab.shared.registry.live();
        upstreams.iter().any(|u| u.endpoints().iter().any(|e| e.address == name.address && e.is_down()))
    };
    until("one is down", || is_down(&bad)).await;
    let mut client = Client::connect(lab.http).await;
    for _ in 0..20 {
        assert_eq!(ask(&mut client, &[]).await, (StatusCode::OK, "good".to_owned()));
    }
    assert!(!is_down(&good) && lab.shared.metrics.check_failures.get() >= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn near_endpoints_come_first() {
    let (near, far) = (Backend::start("near"), Backend::start("far"));
    let mut lab = lab(service("a"), &[]);
    let hinted = |backend: &Backend, zone: &str| {
        let mut slice = slice("a", backend.address);
        slice["endpoints"][0]["hints"] = json!({"forZones": [{"name": zone}]});
        slice
    };
    let node = |zone: &str| json!({"kind": "Node", "metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": zone}}});
    lab.apply([node("z1"), hinted(&near, "z1"), hinted(&far, "z2")]);
    let mut client = Client::connect(lab.http).await;
    for _ in 0..20 {
        assert_eq!(ask(&mut client, &[]).await.1, "near");
    }
    lab.apply([node("z3")]);
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        seen.insert(ask(&mut client, &[]).await.1);
    }
    assert_eq!(seen.len(), 2, "none is near: all are as good");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tcp_backend_is_told_who_the_client_is() {
    for version in ["v1", "v2"] {
        let backend = listener();
        backend.set_nonblocking(true).unwrap();
        let backend = tokio::net::TcpListener::from_std(backend).unwrap();
        let mut lab = Lab::with_gateways(Limits::default());
        lab.apply([
            annotated(json!({"proxy-protocol": version})),
            slice("a", backend.local_addr().unwrap()),
            json!({"kind": "Gateway", "metadata": {"name": "g", "namespace": "t", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"gatewayClassName": "causeway", "listeners": [{"name": "t", "port": 5000, "protocol": "TCP"}]}}),
            json!({"kind": "TCPRoute", "metadata": {"name": "r", "namespace": "t", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"parentRefs": [{"name": "g"}], "rules": [{"backendRefs": [{"name": "a", "port": 80}]}]}}),
        ]);
        let client = tokio::net::TcpStream::connect(lab.socket("g", 5000).await).await.unwrap();
        let (mut stream, _) = tokio::time::timeout(PATIENCE, backend.accept()).await.unwrap().unwrap();
        let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let mut head = vec![0; if version == "v1" { 6 } else { 28 }];
        stream.read_exact(&mut head).await.unwrap();
        if version == "v1" {
            let mut rest = vec![0; 1024];
            let n = stream.read(&mut rest).await.unwrap();
            head.extend(&rest[..n]);
            let (f, t) = (from.port(), to.port());
            assert_eq!(String::from_utf8(head).unwrap(), format!("PROXY TCP4 127.0.0.1 127.0.0.1 {f} {t}\r\n"));
        } else {
            let fixed = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01";
            assert_eq!(&head[..24], fixed);
            let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
            assert_eq!(head[24..], ports);
        }
    }
}

/// A backend that wants to be told who the client is: it answers with the port of its connection's client. Beside it, how many
/// such connections there were.
async fn told(version: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, connections) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut client = String::new();
                if version == "v1" {
                    while !client.ends_with("\r\n") {
                        client.push(stream.read_u8().await.unwrap().into());
                    }
                    assert!(client.starts_with("PROXY "), "{client:?}");
                    client = client.split(' ').nth(4).unwrap_or("ours").to_owned();
                } else {
                    let mut head = [0; 16];
                    stream.read_exact(&mut head).await.unwrap();
                    let mut rest = vec![0; usize::from(head[15])];
                    stream.read_exact(&mut rest).await.unwrap();
                    let port = rest.get(8..10).map(|p| u16::from_be_bytes([p[0], p[1]]));
                    client = port.map_or("ours".to_owned(), |p| p.to_string());
                }
                counted.fetch_add(usize::from(client != "ours"), Ordering::Relaxed);
                let service = hyper::service::service_fn(|_| {
                    let text = client.clone();
                    async move { Ok::<_, std::convert::Infallible>(http::Response::new(text)) }
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            });
        }
    });
    (address, connections)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_backend_is_told_who_the_client_is() {
    for version in ["v1", "v2"] {
        let (address, connections) = told(version).await;
        let asked = json!({"proxy-protocol": version, "health-check-path": "/", "health-check-interval": "100ms"});
        let mut lab = lab(annotated(asked), &[]);
        lab.apply([slice("a", address)]);
        tokio::spawn(checks::run(Arc::clone(&lab.shared), lab.shutdown.clone()));
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(Client::connect(lab.http).await);
        }
        // A connection to the backend is of one client, however often that asks, and in whatever order they do.
        for _ in 0..4 {
            for client in &mut clients {
                let (status, text) = ask(client, &[]).await;
                assert_eq!((status, text), (StatusCode::OK, client.local.port().to_string()));
            }
        }
        assert_eq!(connections.load(Ordering::Relaxed), 3);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let down = || lab.shared.registry.live().iter().any(|u| u.endpoints().iter().any(|e| e.is_down()));
        assert!(!down() && lab.shared.metrics.check_failures.get() == 0, "checks are told as ours");
    }
}
