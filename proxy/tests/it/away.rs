//! The API goes away under a serving ingress, and comes back: the table stays, and then follows.

use crate::api::{Node, api_server, create};
use crate::harness::*;
use bytes::Bytes;
use causeway_apiserver::ApiServer;
use causeway_informers::Informers;
use causeway_proxy::ProxyConfig;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use kube::Client as KubeClient;
use kube::api::{Api, DeleteParams, PostParams};
use kube::client::Body;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// Where the API is in the node's own network.
const API: &str = "127.0.0.1:6443";

/// Passes requests on to the API server until it is aborted, which breaks off everything that is open.
async fn front(node: &Node, client: KubeClient, up: Arc<AtomicUsize>) -> JoinHandle<()> {
    let listener = node.run(async { TcpListener::bind(API).await.unwrap() }).await;
    node.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let stream = listener.accept().await.unwrap().0;
            let (client, up) = (client.clone(), up.clone());
            connections.spawn(async move {
                let service = service_fn(move |request| {
                    up.fetch_add(1, Ordering::Relaxed);
                    pass_on(client.clone(), request)
                });
                let _ = auto::Builder::new(TokioExecutor::new())
                    .http1_only()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}

async fn pass_on(client: KubeClient, request: Request<Incoming>) -> Result<Response<Body>, kube::Error> {
    let (parts, body) = request.into_parts();
    let body: Bytes = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    client.send(Request::from_parts(parts, Body::from(body))).await
}

async fn until(what: &str, http: SocketAddr, wanted: impl Fn(u16, &str) -> bool) {
    let start = Instant::now();
    loop {
        let (status, body) = Client::connect(http).await.get("h.localhost", "/").await.unwrap();
        if wanted(status.as_u16(), &body) {
            return;
        }
        assert!(start.elapsed() < PATIENCE * 2, "never happened: {what}; now {status} {body}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn objects(server: &ApiServer, backend: &Backend) -> KubeClient {
    let admin = server.client(causeway_api::identity::UserInfo::admin());
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "t"}})).unwrap();
    Api::<Namespace>::all(admin.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    create::<Service>(&admin, service("s")).await;
    create::<Ingress>(&admin, ingress("i", &[("h.localhost", "/", "Prefix", "s", 80)])).await;
    create::<EndpointSlice>(&admin, slice("s", backend.address)).await;
    admin
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_stays_while_the_api_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let server = api_server(folder.path()).await;
    let node = Node::start().await;
    let (a, b) = (node.backend("a").await, node.backend("b").await);
    let admin = objects(&server, &a).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let running_front = front(&node, admin.clone(), asked.clone()).await;

    let http = listener();
    let address = http.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let config = ProxyConfig { http: vec![http], ..ProxyConfig::default() };
    let stop = shutdown.clone();
    let running = node.spawn(async move {
        let api = kube::Config::new(format!("http://{API}").parse().unwrap());
        let client = KubeClient::try_from(api).unwrap();
        causeway_proxy::run(client.clone(), Informers::new(client), config, stop).await
    });
    // The socket is open from the beginning, and answers from the first table on.
    until("200", address, |status, body| status == 200 && said(body)["backend"] == "a").await;

    // Watches break off, and nothing listens there any more. Meanwhile the endpoint is exchanged for another.
    running_front.abort();
    assert!(running_front.await.unwrap_err().is_cancelled());
    let before = asked.load(Ordering::Relaxed);
    create::<EndpointSlice>(&admin, slice("s", b.address)).await;
    let first = format!("s-{}", a.address.port());
    Api::<EndpointSlice>::namespaced(admin.clone(), "t").delete(&first, &DeleteParams::default()).await.unwrap();
    let away = Instant::now();
    let mut kept = Client::connect(address).await;
    while away.elapsed() < Duration::from_secs(3) {
        for client in [&mut kept, &mut Client::connect(address).await] {
            let (status, body) = client.get("h.localhost", "/").await.unwrap();
            assert_eq!((status.as_u16(), said(&body)["backend"].as_str()), (200, Some("a")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(asked.load(Ordering::Relaxed), before, "somebody reached the API");

    // It comes back, and what was missed is seen.
    let running_front = front(&node, admin, asked).await;
    until("b alone", address, |status, body| status == 200 && said(body)["backend"] == "b").await;
    for _ in 0..5 {
        let (_, body) = Client::connect(address).await.get("h.localhost", "/").await.unwrap();
        assert_eq!(said(&body)["backend"], "b");
    }
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
    running_front.abort();
}
