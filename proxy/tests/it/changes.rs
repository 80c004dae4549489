//! Changes under load: no request may be lost.

use crate::harness::*;
use bytes::Bytes;
use causeway_proxy::Limits;
use http::{Method, StatusCode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Clients that ask without pause until they are told to stop.
struct Load {
    clients: JoinSet<Vec<String>>,
    done: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Load {
    fn start(address: SocketAddr, clients: usize, method: Method) -> Self {
        let (stop, done) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let mut set = JoinSet::new();
        for _ in 0..clients {
            let (stop, done, method) = (stop.clone(), Arc::clone(&done), method.clone());
            set.spawn(async move {
                let mut lost = Vec::new();
                let mut client = Client::connect(address).await;
                while !stop.is_cancelled() {
                    match client.send(method.clone(), "h.localhost", "/x", &[], Bytes::from("hello")).await {
                        Ok((StatusCode::OK, _, false)) => {}
                        Ok((StatusCode::OK, _, true)) => client = Client::connect(address).await,
                        Ok((status, body, _)) => {
                            lost.push(format!("{status}: {}", String::from_utf8_lossy(&body)));
                            client = Client::connect(address).await;
                        }
                        Err(error) => {
                            lost.push(error);
                            client = Client::connect(address).await;
                        }
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                lost
            });
        }
        Self { clients: set, done, stop }
    }

    /// Lets some more requests through.
    async fn progress(&self, requests: usize) {
        let target = self.done.load(Ordering::Relaxed) + requests;
        let start = Instant::now();
        while self.done.load(Ordering::Relaxed) < target {
            assert!(start.elapsed() < PATIENCE, "the load does not progress");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn finish(mut self) -> usize {
        self.stop.cancel();
        let mut lost = Vec::new();
        while let Some(result) = self.clients.join_next().await {
            lost.extend(result.unwrap());
        }
        let done = self.done.load(Ordering::Relaxed);
        assert!(lost.is_empty(), "{} of {done} requests lost, the first: {:?}", lost.len(), lost.first());
        done
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_swap_without_a_lost_request() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let mut lab = Lab::start(Limits::default());
    let to = |service: &str| ingress("i", &[("h.localhost", "/", "Prefix", service, 80)]);
    lab.apply([service("a"), service("b"), slice("a", a.address), slice("b", b.address), to("a")]);
    let load = Load::start(lab.http, 16, Method::POST);
    for i in 0..50 {
        lab.apply([
            to(if i % 2 == 0 { "b" } else { "a" }),
            ingress(&format!("other-{i}"), &[("o.localhost", "/", "Prefix", "a", 80)]),
        ]);
        load.progress(40).await;
    }
    let done = load.finish().await;
    let (a, b) = (a.served.load(Ordering::Relaxed), b.served.load(Ordering::Relaxed));
    assert!(done >= 2000 && a > 500 && b > 500, "{done} requests, a {a}, b {b}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_takes_effect_with_the_next_request() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let mut lab = Lab::start(Limits::default());
    lab.apply([service("s"), slice("s", a.address), ingress("i", &[("h.localhost", "/", "Prefix", "s", 80)])]);
    let mut client = Client::connect(lab.http).await;
    for _ in 0..20 {
        assert_eq!(said(&client.get("h.localhost", "/").await.unwrap().1)["backend"], "a");
        lab.apply([slice("s", b.address)]);
        lab.delete([slice("s", a.address)]);
        assert_eq!(said(&client.get("h.localhost", "/").await.unwrap().1)["backend"], "b");
        lab.apply([slice("s", a.address)]);
        lab.delete([slice("s", b.address)]);
    }
}

/// A rolling update as Kubernetes does it: the new pod is ready, the old leaves the slice, then it ends in good order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_loses_no_request() {
    let mut lab = Lab::start(Limits::default());
    let mut pods = vec![Backend::start("pod"), Backend::start("pod")];
    lab.apply([service("s"), ingress("i", &[("h.localhost", "/", "Prefix", "s", 80)])]);
    lab.apply(pods.iter().map(|p| slice("s", p.address)));
    let load = Load::start(lab.http, 16, Method::POST);
    for _ in 0..20 {
        let new = Backend::start("pod");
        lab.apply([slice("s", new.address)]);
        pods.push(new);
        load.progress(20).await;
        let old = pods.remove(0);
        lab.delete([slice("s", old.address)]);
        load.progress(60).await;
        old.stop();
        load.progress(20).await;
    }
    load.finish().await;
}

/// Pods that die at once, before the slices know: idempotent requests go elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_pods_lose_no_idempotent_request() {
    let mut lab = Lab::start(Limits::default());
    let mut pods = vec![Backend::start("pod"), Backend::start("pod"), Backend::start("pod")];
    lab.apply([service("s"), ingress("i", &[("h.localhost", "/", "Prefix", "s", 80)])]);
    lab.apply(pods.iter().map(|p| slice("s", p.address)));
    let load = Load::start(lab.http, 16, Method::PUT);
    for _ in 0..20 {
        let victim = pods.remove(0);
        victim.kill();
        load.progress(60).await;
        lab.delete([slice("s", victim.address)]);
        let new = Backend::start("pod");
        lab.apply([slice("s", new.address)]);
        pods.push(new);
        load.progress(60).await;
    }
    load.finish().await;
    assert!(lab.shared.metrics.retries.get() > 0, "nothing was retried: the test does not test");
}

/// No connection came about: even a POST was certainly not acted on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_connections_go_elsewhere_and_are_avoided() {
    let a = Backend::start("a");
    let mut lab = Lab::start(Limits::default());
    lab.apply([service("s"), slice("s", a.address), ingress("i", &[("h.localhost", "/", "Prefix", "s", 80)])]);
    lab.apply((0..3).map(|_| slice("s", listener().local_addr().unwrap())));
    let mut client = Client::connect(lab.http).await;
    for _ in 0..200 {
        let (status, body, _) = client.send(Method::POST, "h.localhost", "/", &[], Bytes::from("once")).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    }
    assert_eq!(a.served.load(Ordering::Relaxed), 200);
    let failures = lab.shared.metrics.connect_failures.get();
    assert!((1..100).contains(&failures), "{failures} refused connections for 200 requests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_lets_requests_finish() {
    let a = Backend::start("a");
    let mut lab = Lab::leading_to(a.address, Limits::default());
    let mut idle = Client::connect(lab.http).await;
    assert_eq!(idle.get("h.localhost", "/").await.unwrap().0, StatusCode::OK);
    let mut busy = Client::connect(lab.http).await;
    let under_way = tokio::spawn(async move { busy.get("h.localhost", "/slow").await });
    let url = format!("http://{}/slow", lab.http);
    let h2 = tokio::spawn(async move { curl(&["--http2-prior-knowledge", "-H", "Host: h.localhost", &url]).await });
    while a.served.load(Ordering::Relaxed) < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    lab.shutdown.cancel();
    assert_eq!(under_way.await.unwrap().unwrap().0, StatusCode::OK);
    let (ok, out) = h2.await.unwrap();
    assert!(ok && out.contains("\"backend\":\"a\""), "{out}");
    let serving = std::mem::replace(&mut lab.serving, tokio::spawn(async {}));
    tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(lab.http).await.is_err(), "still accepting");
    assert!(idle.get("h.localhost", "/").await.is_err(), "the idle connection is still open");
}
