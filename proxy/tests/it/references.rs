//! What the ingress reads of Secrets and ConfigMaps, at a real API server behind a front that writes down each request and
//! refuses some: those that are referred to, by name, and nothing else.

use crate::api::{Node, api_server, create};
use crate::harness::*;
use crate::tls::{ask_at, pair, secret, with_tls};
use bytes::Bytes;
use causeway_api::identity::{USER_INGRESS, USER_NODE, UserInfo};
use causeway_apiserver::ApiServer;
use causeway_informers::Informers;
use causeway_proxy::ProxyConfig;
use causeway_proxy::status::PROBLEMS_ANNOTATION;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchParams,
};
use kube::client::Body;
use kube::core::GroupVersionKind;
use kube::{Client as KubeClient, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What has been asked, and of which paths and queries nothing is answered but an error.
#[derive(Default)]
struct Front {
    asked: Mutex<Vec<String>>,
    refused: Mutex<Option<&'static str>>,
}

impl Front {
    /// Passes requests on to the API server; says where.
    async fn open(self: &Arc<Self>, node: &Node, client: KubeClient) -> SocketAddr {
        let listener = node.run(async { tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap() }).await;
        let at = listener.local_addr().unwrap();
        let front = Arc::clone(self);
        node.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (front, client) = (Arc::clone(&front), client.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| Arc::clone(&front).pass_on(client.clone(), request));
                    let builder = auto::Builder::new(TokioExecutor::new()).http1_only();
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        at
    }

    async fn pass_on(
        self: Arc<Self>,
        client: KubeClient,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, kube::Error> {
        let what = request.uri().to_string();
        self.asked.lock().push(what.clone());
        if self.refused.lock().is_some_and(|refused| what.contains(refused)) {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500,
                "reason": "InternalError", "message": "refused by the test"});
            let mut response = Response::new(Body::from(status.to_string().into_bytes()));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return Ok(response);
        }
        let (parts, body) = request.into_parts();
        let body: Bytes = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        client.send(Request::from_parts(parts, Body::from(body))).await
    }

    /// The requests for objects of a kind, each once.
    fn of(&self, kind: &str) -> Vec<String> {
        let mut all: Vec<String> =
            self.asked.lock().iter().filter(|what| what.contains(&format!("/{kind}"))).cloned().collect();
        all.sort();
        all
    }
}

struct World {
    server: ApiServer,
    admin: KubeClient,
    node: Node,
    front: Arc<Front>,
    _folder: tempfile::TempDir,
}

/// An ingress that runs.
struct Running {
    http: SocketAddr,
    https: SocketAddr,
    ready: watch::Receiver<bool>,
    shutdown: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn named<K: serde::de::DeserializeOwned>(name: &str, more: Value) -> K {
    let mut object = json!({"metadata": {"name": name}});
    for (field, value) in more.as_object().unwrap() {
        object[field] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = api_server(folder.path()).await;
        let admin = server.client(UserInfo::admin());
        for name in ["t", "far"] {
            let namespace: Namespace = named(name, json!({}));
            Api::<Namespace>::all(admin.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        }
        Self { server, admin, node: Node::start().await, front: Arc::default(), _folder: folder }
    }

    async fn start(&self, gateways: bool) -> Running {
        let at = self.front.open(&self.node, self.server.client(UserInfo::component(USER_INGRESS, &[]))).await;
        let informers = Informers::new(self.server.client(UserInfo::component(USER_NODE, &[])));
        let (http, https) = (listener(), listener());
        let (ready_sender, ready) = watch::channel(false);
        let shutdown = CancellationToken::new();
        let running = Running {
            http: http.local_addr().unwrap(),
            https: https.local_addr().unwrap(),
            ready,
            shutdown: shutdown.clone(),
        };
        let config = ProxyConfig {
            http: vec![http],
            https: vec![https],
            gateway_address: gateways.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            node_name: Some("n".to_owned()),
            ready: Some(ready_sender),
            ..ProxyConfig::default()
        };
        self.node.spawn(async move {
            let api = kube::Config::new(format!("http://{at}").parse().unwrap());
            causeway_proxy::run(KubeClient::try_from(api).unwrap(), informers, config, shutdown).await
        });
        running
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.admin.clone(), "t")
    }

    /// As `kubectl apply`.
    async fn secret(&self, mut object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        (object["apiVersion"], object["kind"]) = (json!("v1"), json!("Secret"));
        self.secrets().patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&object)).await.unwrap();
    }

    async fn problems(&self, ingress: &str) -> String {
        let ingress = Api::<Ingress>::namespaced(self.admin.clone(), "t").get(ingress).await.unwrap();
        ingress.annotations().get(PROBLEMS_ANNOTATION).cloned().unwrap_or_default()
    }

    /// How many watches of a kind are open.
    async fn watches(&self, kind: &str) -> u64 {
        let text = self.admin.request_text(Request::get("/metrics").body(Vec::new()).unwrap()).await.unwrap();
        let label = format!("resource=\"{kind}\"");
        let lines = text.lines().filter(|l| l.starts_with("apiserver_longrunning_requests") && l.contains(&label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }
}

/// Waits until something is so, and says how long it took.
async fn took(what: &str, mut is_so: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

const SOON: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_read_by_name_and_followed() {
    let world = World::new().await;
    let a = world.node.backend("a").await;
    for some in (0..1000).collect::<Vec<_>>().chunks(50) {
        futures::future::join_all(some.iter().map(async |n| {
            let kind = if n % 2 == 0 { "kubernetes.io/tls" } else { "Opaque" };
            let data = json!({"tls.crt": "", "tls.key": "", "auth": ""});
            let object = named(&format!("unrelated-{n}"), json!({"type": kind, "stringData": data}));
            world.secrets().create(&PostParams::default(), &object).await.unwrap();
        }))
        .await;
    }
    create::<Service>(&world.admin, service("a")).await;
    create::<EndpointSlice>(&world.admin, slice("a", a.address)).await;
    let rules = [("shop.localhost", "/", "Prefix", "a", 80)];
    let tls = json!([{"hosts": ["shop.localhost"], "secretName": "shop"}]);
    create::<Ingress>(&world.admin, with_tls(ingress("shop", &rules), tls)).await;
    let mut guarded = ingress("guarded", &[("guarded.localhost", "/", "Prefix", "a", 80)]);
    guarded["metadata"]["annotations"] = json!({"causeway.dev/auth-type": "basic", "causeway.dev/auth-secret": "users", "causeway.dev/ssl-redirect": "false"});
    create::<Ingress>(&world.admin, guarded).await;
    let mut running = world.start(false).await;
    tokio::time::timeout(PATIENCE, running.ready.wait_for(|r| *r)).await.unwrap().unwrap();

    // Missing, made, changed, gone.
    let not_found = "SecretNotFound: Secret t/shop of type kubernetes.io/tls is not there";
    took("it is missing", async || world.problems("shop").await == not_found).await;
    let (first, second) = (pair("shop.localhost"), pair("shop.localhost"));
    world.secret(secret("shop", &first.crt, &first.key)).await;
    let shown = async |crt: &str| ask_at(running.https, "shop.localhost", crt, &[]).await.0;
    assert!(took("it is made", async || shown(&first.crt).await).await < SOON);
    assert!(took("all is well", async || world.problems("shop").await.is_empty()).await < SOON);
    world.secret(secret("shop", &second.crt, &second.key)).await;
    assert!(took("it is changed", async || shown(&second.crt).await).await < SOON);
    world.secrets().delete("shop", &DeleteParams::default()).await.unwrap();
    assert!(took("it is gone", async || !shown(&second.crt).await).await < SOON);
    took("it is missing again", async || world.problems("shop").await == not_found).await;

    let at = running.http.port().to_string();
    let resolve = format!("guarded.localhost:{at}:127.0.0.1");
    let url = format!("http://guarded.localhost:{at}/");
    let enter = async || {
        let code = ["-o", "/dev/null", "-w", "%{http_code}", "-u", "ali:hello", "--resolve", &resolve, &url];
        curl(&code).await.1
    };
    assert_eq!(enter().await, "403", "nobody is let in");
    let users = json!({"auth": ByteString(b"ali:{SHA}qvTGHdzF6KLavt4PO0gs2a6pQ00=".to_vec())});
    world.secret(json!({"metadata": {"name": "users"}, "type": "Opaque", "data": users})).await;
    assert!(took("who is known is let in", async || enter().await == "200").await < SOON);

    // All that was asked about Secrets: these two, each listed and watched.
    let asked = world.front.of("secrets");
    let by_name = |what: &String, name: &str| {
        what.starts_with("/api/v1/namespaces/t/secrets?")
            && what.contains(&format!("fieldSelector=metadata.name%3D{name}&"))
            || what.ends_with(&format!("fieldSelector=metadata.name%3D{name}"))
    };
    assert!(asked.iter().all(|what| by_name(what, "shop") || by_name(what, "users")), "{asked:#?}");
    assert_eq!(asked.len(), 4, "{asked:#?}");
    assert_eq!(world.watches("secrets").await, 2);
    assert_eq!(world.front.of("configmaps"), Vec::<String>::new());

    // Nobody refers to one of them any more.
    Api::<Ingress>::namespaced(world.admin.clone(), "t").delete("shop", &DeleteParams::default()).await.unwrap();
    let lingered = took("its watch ends", async || world.watches("secrets").await == 1).await;
    assert!(lingered > Duration::from_secs(5), "{lingered:?}");

    // And more than by name it may not ask.
    let own = world.server.client(UserInfo::component(USER_INGRESS, &[]));
    let one = ListParams::default().fields("metadata.name=users");
    let found = Api::<Secret>::namespaced(own.clone(), "t").list(&one).await.unwrap();
    assert_eq!(found.items.len(), 1);
    let refused = |error: kube::Error| matches!(error, kube::Error::Api(status) if status.code == 403);
    for api in [Api::<Secret>::all(own.clone()), Api::namespaced(own.clone(), "t")] {
        assert!(refused(api.list(&ListParams::default()).await.unwrap_err()));
        assert!(refused(api.list(&ListParams::default().fields("type=Opaque")).await.unwrap_err()));
        assert!(refused(api.list(&ListParams::default().fields("metadata.name!=users")).await.unwrap_err()));
        assert!(refused(api.watch(&WatchParams::default(), "0").await.map(drop).unwrap_err()));
    }
    assert!(refused(Api::<Secret>::all(own.clone()).list(&one).await.unwrap_err()), "not in all namespaces");
    assert!(refused(Api::<ConfigMap>::all(own).list(&ListParams::default()).await.unwrap_err()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_not_said_to_be_missing_and_holds_up_nobody_for_long() {
    let world = World::new().await;
    let a = world.node.backend("a").await;
    let shop = pair("shop.localhost");
    world.secret(secret("slow-1", &shop.crt, &shop.key)).await;
    create::<Service>(&world.admin, service("a")).await;
    create::<EndpointSlice>(&world.admin, slice("a", a.address)).await;
    let named = |n: u8, host: &str| {
        let tls = json!([{"hosts": [host], "secretName": format!("slow-{n}")}]);
        with_tls(ingress(&format!("i-{n}"), &[(host, "/", "Prefix", "a", 80)]), tls)
    };
    create::<Ingress>(&world.admin, named(1, "shop.localhost")).await;
    *world.front.refused.lock() = Some("slow-");
    let start = Instant::now();
    let mut running = world.start(false).await;
    tokio::time::timeout(PATIENCE, running.ready.wait_for(|r| *r)).await.unwrap().unwrap();
    assert!((5..15).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    took("it is told", async || {
        world.problems("i-1").await.starts_with("SecretNotRead: Secret t/slow-1: it cannot be read: ")
    })
    .await;

    // A change waits less, and what pods there are waits for nothing.
    create::<Ingress>(&world.admin, named(2, "other.localhost")).await;
    let http = running.http;
    let over_tls = async |host: &str| ask_at(running.https, host, &shop.crt, &["-k"]).await;
    let is_served = async || over_tls("other.localhost").await.1.contains("\"backend\":\"a\"");
    let waited = took("the other is served", is_served).await;
    assert!((1..5).contains(&waited.as_secs()), "{waited:?}");
    create::<Ingress>(&world.admin, named(3, "third.localhost")).await;
    let b = world.node.backend("b").await;
    create::<EndpointSlice>(&world.admin, slice("a", b.address)).await;
    let first = format!("a-{}", a.address.port());
    let slices = Api::<EndpointSlice>::namespaced(world.admin.clone(), "t");
    slices.delete(&first, &DeleteParams::default()).await.unwrap();
    let is_b = async || over_tls("shop.localhost").await.1.contains("\"backend\":\"b\"");
    let waited = took("b alone", is_b).await;
    assert!(waited < Duration::from_millis(1500), "{waited:?}");
    assert_eq!(Client::connect(http).await.get("third.localhost", "/").await.unwrap().0, StatusCode::NOT_FOUND);

    *world.front.refused.lock() = None;
    let is_shown = async || ask_at(running.https, "shop.localhost", &shop.crt, &[]).await.0;
    took("it is read", is_shown).await;
    took("all is well", async || world.problems("i-1").await.is_empty()).await;
    let events = Api::<Event>::namespaced(world.admin.clone(), "t").list(&ListParams::default()).await.unwrap();
    let about = |e: &Event| e.involved_object.name.as_deref() == Some("i-1");
    let said: Vec<_> = events.iter().filter(|e| about(e)).filter_map(|e| e.reason.clone()).collect();
    assert!(said.contains(&"SecretNotRead".to_owned()) && !said.contains(&"SecretNotFound".to_owned()), "{said:?}");
}

/// Applies an object of the Gateway API, as soon as there is the kind.
async fn gateway_object(world: &World, kind: &str, version: &str, namespace: &str, name: &str, spec: Value) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", version, kind));
    let resource = match kind {
        "BackendTLSPolicy" => ApiResource { plural: "backendtlspolicies".to_owned(), ..resource },
        _ => resource,
    };
    let api = Api::<DynamicObject>::namespaced_with(world.admin.clone(), namespace, &resource);
    let object = json!({"apiVersion": resource.api_version, "kind": kind, "metadata": {"name": name}, "spec": spec});
    let apply = async || api.patch(name, &PatchParams::apply("test"), &Patch::Apply(&object)).await.is_ok();
    took(&format!("{kind} is there"), apply).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_another_namespace_only_what_is_granted_is_read() {
    let world = World::new().await;
    let shop = pair("shop.localhost");
    let far: Secret = serde_json::from_value(secret("cert", &shop.crt, &shop.key)).unwrap();
    let far = Secret { metadata: named::<Secret>("cert", json!({})).metadata, ..far };
    Api::<Secret>::namespaced(world.admin.clone(), "far").create(&PostParams::default(), &far).await.unwrap();
    let mut running = world.start(true).await;
    tokio::time::timeout(PATIENCE, running.ready.wait_for(|r| *r)).await.unwrap().unwrap();
    let listener = json!({"name": "https", "port": 443, "protocol": "HTTPS",
        "tls": {"certificateRefs": [{"name": "cert", "namespace": "far"}]}});
    let spec = json!({"gatewayClassName": "causeway", "listeners": [listener]});
    gateway_object(&world, "Gateway", "v1", "t", "gw", spec).await;
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "Gateway"));
    let gateways = Api::<DynamicObject>::namespaced_with(world.admin.clone(), "t", &kind);
    let resolved = async || {
        let gateway = gateways.get("gw").await.unwrap();
        let all = gateway.data["status"]["listeners"][0]["conditions"].as_array().cloned().unwrap_or_default();
        all.iter().find(|c| c["type"] == "ResolvedRefs").map(|c| c["reason"].as_str().unwrap().to_owned())
    };
    took("it is not allowed", async || resolved().await.as_deref() == Some("RefNotPermitted")).await;
    assert_eq!(world.front.of("secrets"), Vec::<String>::new());

    let grant = json!({"from": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "t"}],
        "to": [{"group": "", "kind": "Secret"}]});
    gateway_object(&world, "ReferenceGrant", "v1beta1", "far", "grant", grant).await;
    // The first time, the kind itself may just have become known.
    took("it is allowed", async || resolved().await.as_deref() == Some("ResolvedRefs")).await;
    let asked = world.front.of("secrets");
    let is_cert = |what: &String| what.starts_with("/api/v1/namespaces/far/secrets?") && what.contains("name%3Dcert");
    assert!(asked.len() == 2 && asked.iter().all(is_cert), "{asked:#?}");

    // Authorities, likewise.
    let validation =
        json!({"hostname": "h.example", "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}]});
    let policy = json!({"targetRefs": [{"group": "", "kind": "Service", "name": "s"}], "validation": validation});
    gateway_object(&world, "BackendTLSPolicy", "v1", "t", "policy", policy).await;
    took("it is asked for", async || world.front.of("configmaps").len() == 2).await;
    let asked = world.front.of("configmaps");
    let is_ca = |what: &String| what.starts_with("/api/v1/namespaces/t/configmaps?") && what.contains("name%3Dca");
    assert!(asked.iter().all(is_ca), "{asked:#?}");
}
