//! The whole loop, from watch events to packets, against a server that speaks just list and watch.

use crate::support::{Lab, Mode, VIP, at, service, slice, tcp};
use bytes::Bytes;
use causeway_informers::Informers;
use causeway_network::NetNs;
use causeway_services::{ServicesConfig, run};
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

type Feed = Arc<Mutex<Vec<mpsc::UnboundedSender<String>>>>;
type Body = StreamBody<futures::stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// Lists `items` once, then passes on what is fed.
fn answer(path: &str, query: &str, items: &Value, feed: &Feed) -> Response<Body> {
    let frame = |text: String| Ok(Frame::data(Bytes::from(text)));
    let stream = if query.contains("watch=true") {
        let (to, from) = mpsc::unbounded_channel();
        if path.ends_with("endpointslices") {
            feed.lock().unwrap().push(to);
            tokio_stream(from).map(frame).boxed()
        } else {
            // A watch that stays silent.
            futures::stream::pending().boxed()
        }
    } else {
        let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items});
        futures::stream::once(async move { frame(list.to_string()) }).boxed()
    };
    Response::new(StreamBody::new(stream))
}

fn tokio_stream(from: mpsc::UnboundedReceiver<String>) -> impl futures::Stream<Item = String> + Send {
    futures::stream::unfold(from, |mut from| async { from.recv().await.map(|text| (text, from)) })
}

/// What a server says to `GET path`, from a namespace.
fn get(from: &NetNs, to: SocketAddr, path: &str) -> String {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&to, crate::support::PATIENCE).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    from.run(ask).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_events_become_rules_and_health_says_so() {
    let lab = Lab::new(Mode::Nftables).await;
    let (client, a, b) = (lab.pod("one", "client").await, lab.pod("one", "a").await, lab.pod("two", "b").await);
    let labelled = |pods: &[&crate::support::Pod]| {
        let mut value = serde_json::to_value(slice(pods)).unwrap();
        value["metadata"]["labels"] = json!({"kubernetes.io/service-name": "s"});
        value["metadata"]["resourceVersion"] = json!("2");
        value
    };
    let node = json!({"metadata": {"name": "one"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}});
    let checked = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000});
    let mut svc = serde_json::to_value(service("s", checked)).unwrap();
    svc["metadata"]["resourceVersion"] = json!("1");
    let items = [("services", json!([svc])), ("endpointslices", json!([labelled(&[&a])])), ("nodes", json!([node]))];
    let feed = Feed::default();
    let fed = feed.clone();
    let api = tower::service_fn(move |request: Request<kube::client::Body>| {
        let path = request.uri().path().to_owned();
        // Of other kinds there are none.
        let known =
            items.iter().find(|(kind, _)| path.ends_with(kind)).map_or_else(|| json!([]), |(_, all)| all.clone());
        let response = answer(&path, request.uri().query().unwrap_or(""), &known, &fed);
        std::future::ready(Ok::<_, Infallible>(response))
    });

    let listener = lab.one.netns.bind_tcp(at("127.0.0.1", 10256)).unwrap();
    let (ready, mut is_ready) = watch::channel(false);
    let config = ServicesConfig {
        node_name: "one".into(),
        node_ips: vec![lab.one.ip],
        cluster: Default::default(),
        state_dir: lab.dir.path().join("run"),
        healthz_listener: Some(listener),
        registry: None,
        ready: Some(ready),
    };
    let shutdown = CancellationToken::new();
    let runtime = lab.one.netns.runtime("proxy", 2).unwrap();
    let stop = shutdown.clone();
    let running = runtime
        .handle()
        .spawn(async move { run(Informers::new(kube::Client::new(api, "default")), config, stop).await });
    is_ready.wait_for(|r| *r).await.unwrap();
    assert_eq!(tcp(&client.netns, at(VIP, 80)).unwrap().server, a.ip);
    let (lan, asked) = (lab.segment.lan(), at(lab.one.ip, 31000));
    let said = get(lan, asked, "/healthz");
    assert!(said.starts_with("HTTP/1.1 200") && said.contains("x-load-balancing-endpoint-weight: 1"), "{said}");
    let body: Value = serde_json::from_str(said.rsplit("\r\n").next().unwrap()).unwrap();
    let service = json!({"namespace": "d", "name": "s"});
    assert_eq!(body, json!({"service": service, "localEndpoints": 1, "serviceProxyHealthy": true}));

    let event = json!({"type": "MODIFIED", "object": labelled(&[&b])});
    let senders = loop {
        let senders = std::mem::take(&mut *feed.lock().unwrap());
        if !senders.is_empty() {
            break senders;
        }
        tokio::task::yield_now().await;
    };
    senders[0].send(format!("{event}\n")).unwrap();
    let patience = std::time::Instant::now() + crate::support::PATIENCE * 5;
    while tcp(&client.netns, at(VIP, 80)).unwrap().server != b.ip {
        assert!(std::time::Instant::now() < patience, "the change did not arrive");
    }
    // The balancer hears that nobody is here any more.
    while !get(lan, asked, "/").starts_with("HTTP/1.1 503") {
        assert!(std::time::Instant::now() < patience, "{}", get(lan, asked, "/"));
    }
    assert!(get(lan, asked, "/any").contains(r#""localEndpoints":0,"#));
    let own = at("127.0.0.1", 10256);
    let get = |path: &str| get(&lab.one.netns, own, path);
    assert!(get("/healthz").starts_with("HTTP/1.1 200"), "{}", get("/healthz"));
    assert!(get("/livez").starts_with("HTTP/1.1 200"), "{}", get("/livez"));
    let metrics = get("/metrics");
    for told in [
        "sync_proxy_rules_duration_seconds_count",
        "sync_full_proxy_rules_duration_seconds_count",
        "sync_partial_proxy_rules_duration_seconds_count",
        "network_programming_duration_seconds_count",
        "sync_proxy_rules_endpoint_changes_total 2",
        "sync_proxy_rules_endpoint_changes_pending 0",
        "sync_proxy_rules_service_changes_total 1",
        "sync_proxy_rules_service_changes_pending 0",
        "sync_proxy_rules_last_timestamp_seconds",
        "sync_proxy_rules_last_queued_timestamp_seconds",
        "sync_proxy_rules_nftables_sync_failures_total 0",
        "sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 2",
        "sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"} 0",
        "proxy_healthz_total{code=\"200\"}",
        "proxy_livez_total{code=\"200\"}",
        "conntrack_reconciler_deleted_entries_total",
    ] {
        assert!(metrics.contains(&format!("kubeproxy_{told}")), "{told} is not in\n{metrics}");
    }
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(tcp(&client.netns, at(VIP, 80)).unwrap().server, b.ip, "the rules stay");
}

/// An API that can go away: what is open breaks off, and what comes is refused.
#[derive(Default)]
struct Api {
    items: Mutex<std::collections::HashMap<&'static str, Value>>,
    /// What goes out on open watches; empty while the API is away.
    open: Mutex<Option<Vec<mpsc::UnboundedSender<String>>>>,
    refused: std::sync::atomic::AtomicUsize,
    /// Of lists. Watches from an older one get 410, as after a long time away.
    revision: std::sync::atomic::AtomicUsize,
}

impl Api {
    fn serve(&self, request: &Request<kube::client::Body>) -> Result<Response<Body>, std::io::Error> {
        let mut open = self.open.lock().unwrap();
        let Some(open) = open.as_mut() else {
            self.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        };
        let frame = |text: String| Ok(Frame::data(Bytes::from(text)));
        let query = request.uri().query().unwrap_or("");
        let revision = self.revision.load(std::sync::atomic::Ordering::Relaxed).to_string();
        if query.contains("watch=true") {
            let (to, from) = mpsc::unbounded_channel();
            if !query.split('&').any(|q| q.strip_prefix("resourceVersion=") == Some(&revision)) {
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "too old", "reason": "Expired", "code": 410});
                to.send(format!("{}\n", json!({"type": "ERROR", "object": status}))).unwrap();
            }
            open.push(to);
            return Ok(Response::new(StreamBody::new(tokio_stream(from).map(frame).boxed())));
        }
        let kind = request.uri().path().rsplit('/').next().unwrap();
        // Of other kinds there are none.
        let items = self.items.lock().unwrap().get(kind).cloned().unwrap_or_else(|| json!([]));
        let list =
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": revision}, "items": items});
        Ok(Response::new(StreamBody::new(futures::stream::once(async move { frame(list.to_string()) }).boxed())))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_stay_while_the_api_is_away() {
    let lab = Lab::new(Mode::Nftables).await;
    let (client, a, b) = (lab.pod("one", "client").await, lab.pod("one", "a").await, lab.pod("two", "b").await);
    let labelled = |pods: &[&crate::support::Pod]| {
        let mut value = serde_json::to_value(slice(pods)).unwrap();
        value["metadata"]["labels"] = json!({"kubernetes.io/service-name": "s"});
        value["metadata"]["resourceVersion"] = json!("2");
        json!([value])
    };
    let mut svc = serde_json::to_value(service("s", json!({}))).unwrap();
    svc["metadata"]["resourceVersion"] = json!("1");
    let api = Arc::new(Api { revision: 1.into(), ..Api::default() });
    *api.open.lock().unwrap() = Some(Vec::new());
    *api.items.lock().unwrap() = std::collections::HashMap::from([
        ("services", json!([svc])),
        ("endpointslices", labelled(&[&a])),
        ("nodes", json!([{"metadata": {"name": "one"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}}])),
    ]);
    let served = api.clone();
    let server = tower::service_fn(move |request| std::future::ready(served.serve(&request)));

    let (ready, mut is_ready) = watch::channel(false);
    let config = ServicesConfig {
        node_name: "one".into(),
        node_ips: vec![lab.one.ip],
        cluster: Default::default(),
        state_dir: lab.dir.path().join("run"),
        healthz_listener: None,
        registry: None,
        ready: Some(ready),
    };
    let shutdown = CancellationToken::new();
    let runtime = lab.one.netns.runtime("proxy", 2).unwrap();
    let stop = shutdown.clone();
    let running = runtime
        .handle()
        .spawn(async move { run(Informers::new(kube::Client::new(server, "default")), config, stop).await });
    is_ready.wait_for(|r| *r).await.unwrap();
    assert_eq!(tcp(&client.netns, at(VIP, 80)).unwrap().server, a.ip);

    // Away: all three watches end, and all are refused when they begin again. Traffic goes on all the while.
    *api.open.lock().unwrap() = None;
    let patience = std::time::Instant::now() + crate::support::PATIENCE * 10;
    while api.refused.load(std::sync::atomic::Ordering::Relaxed) < 6 {
        assert_eq!(tcp(&client.netns, at(VIP, 80)).unwrap().server, a.ip);
        assert!(std::time::Instant::now() < patience, "nobody looked for the API");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(tcp(&client.netns, at(VIP, 80)).unwrap().server, a.ip);

    // Back, with another endpoint in the meantime.
    api.items.lock().unwrap().insert("endpointslices", labelled(&[&b]));
    api.revision.store(2, std::sync::atomic::Ordering::Relaxed);
    *api.open.lock().unwrap() = Some(Vec::new());
    let patience = std::time::Instant::now() + crate::support::PATIENCE * 15;
    while tcp(&client.netns, at(VIP, 80)).unwrap().server != b.ip {
        assert!(std::time::Instant::now() < patience, "the change did not arrive");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
