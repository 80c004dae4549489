//! An ingress fed with objects directly, backends that say who they are, and a client that keeps its connection.

use bytes::Bytes;
use causeway_proxy::Limits;
use causeway_proxy::config::model::{Problem, Report, Settings};
use causeway_proxy::config::outbox::Outbox;
use causeway_proxy::config::references::Which;
use causeway_proxy::config::view::{Update, View};
use causeway_proxy::config::{Dirt, Planner, Shared};
use causeway_proxy::gateway::view::Update as GatewayUpdate;
use causeway_proxy::route::ObjectKey;
use causeway_proxy::route::front::FrontKey;
use causeway_proxy::traffic::listen;
use futures::FutureExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// An ingress without an API server.
pub struct Lab {
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub shared: Arc<Shared>,
    pub shutdown: CancellationToken,
    pub serving: JoinHandle<()>,
    view: View,
    planner: Planner,
    reports: Arc<Outbox<Option<Report>>>,
    told: HashMap<String, Vec<Problem>>,
    /// What is read by name: all that there is, and what the ingress has asked for.
    named: HashMap<Which, Value>,
    needed: BTreeSet<Which>,
}

impl Lab {
    pub fn start(limits: Limits) -> Self {
        Self::start_with(limits, None)
    }

    /// With a Service of one backend: HTTP/1.1 by the host h.localhost, HTTP/2 by h2c.localhost.
    pub fn leading_to(backend: SocketAddr, limits: Limits) -> Self {
        let mut lab = Self::start(limits);
        let rules = [("h.localhost", "/", "Prefix", "a", 80), ("h2c.localhost", "/", "Prefix", "a", 81)];
        lab.apply([service("a"), slice("a", backend), ingress("i", &rules)]);
        lab
    }

    /// With Gateways, whose sockets are opened on loopback.
    pub fn with_gateways(limits: Limits) -> Self {
        let mut lab = Self::start_with(limits, Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let class = json!({"kind": "GatewayClass", "metadata": {"name": "causeway"},
            "spec": {"controllerName": causeway_proxy::gateway::CONTROLLER}});
        lab.apply([class]);
        lab
    }

    fn start_with(limits: Limits, gateways: Option<IpAddr>) -> Self {
        let shared = Arc::new(Shared::new().unwrap());
        let settings = Settings { class: "causeway".to_owned(), default_class: true };
        let (mut planner, reports) = Planner::new(Arc::clone(&shared), settings);
        if let Some(address) = gateways {
            planner.with_gateways(causeway_proxy::gateway::Settings { node: "n".to_owned(), address });
        }
        let (http, https) = (listener(), listener());
        let (http_address, https_address) = (http.local_addr().unwrap(), https.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let serve = listen::serve(
            Arc::clone(&shared),
            Arc::new(limits),
            vec![http],
            vec![https],
            gateways.map(|a| (a, Arc::default())),
            shutdown.clone(),
        );
        let serving = tokio::spawn(async move { serve.await.unwrap() });
        Self {
            http: http_address,
            https: https_address,
            shared,
            shutdown,
            serving,
            view: View::default(),
            planner,
            reports,
            told: HashMap::new(),
            named: HashMap::new(),
            needed: BTreeSet::new(),
        }
    }

    /// As `kubectl apply` of all of them in one go.
    pub fn apply(&mut self, objects: impl IntoIterator<Item = Value>) {
        self.change(objects, true);
    }

    pub fn delete(&mut self, objects: impl IntoIterator<Item = Value>) {
        self.change(objects, false);
    }

    fn change(&mut self, objects: impl IntoIterator<Item = Value>, apply: bool) {
        fn event<K: serde::de::DeserializeOwned>(object: Value, apply: bool) -> Event<K> {
            let object = serde_json::from_value(object).unwrap();
            if apply { Event::Apply(object) } else { Event::Delete(object) }
        }
        fn shared<K: serde::de::DeserializeOwned>(object: Value, apply: bool) -> Event<Arc<K>> {
            let object = Arc::new(serde_json::from_value(object).unwrap());
            if apply { Event::Apply(object) } else { Event::Delete(object) }
        }
        let gateway = |update| Update::Gateway(Box::new(update));
        let mut dirt = Dirt::default();
        for object in objects {
            if let Some(which) = which(&object) {
                if apply {
                    self.named.insert(which, object)
                } else {
                    self.named.remove(&which)
                };
                continue;
            }
            dirt.merge(self.view.handle(match object["kind"].as_str().unwrap() {
                "Ingress" => Update::Ingress(event(object, apply)),
                "Service" => Update::Service(shared(object, apply)),
                "Node" => Update::Node(shared(object, apply)),
                "EndpointSlice" => Update::Slice(shared(object, apply)),
                "GatewayClass" => gateway(GatewayUpdate::Class(event(object, apply))),
                "Gateway" => gateway(GatewayUpdate::Gateway(Box::new(event(object, apply)))),
                "HTTPRoute" => gateway(GatewayUpdate::Http(event(object, apply))),
                "BackendTLSPolicy" => gateway(GatewayUpdate::Policy(event(object, apply))),
                "TCPRoute" => gateway(GatewayUpdate::Tcp(event(object, apply))),
                other => panic!("no such kind here: {other}"),
            }));
        }
        if let Some(needed) = self.planner.needed(&self.view, &mut dirt) {
            self.needed.difference(&needed).for_each(|which| self.view.forget(which));
            self.needed = needed;
        }
        let mut read = Dirt::default();
        for which in &self.needed {
            let found = self.named.get(which);
            read.merge(self.view.handle(match which {
                Which::Secret(key) => Update::Secret(key.clone(), Ok(found.map(read_as))),
                Which::ConfigMap(key) => gateway(GatewayUpdate::ConfigMap(key.clone(), Ok(found.map(read_as)))),
            }));
        }
        assert!(self.planner.needed(&self.view, &mut read).is_none(), "what is read makes nothing else needed");
        dirt.merge(read);
        self.planner.apply(&self.view, &dirt);
        for (key, report) in self.reports.take().now_or_never().into_iter().flatten() {
            self.told.insert(key.name.to_string(), report.map(|r| r.problems).unwrap_or_default());
        }
    }

    /// Problems reported for an Ingress.
    pub fn problems(&self, ingress: &str) -> Vec<Problem> {
        self.told.get(ingress).cloned().unwrap_or_default()
    }

    /// The socket of a Gateway's port, once it is open.
    pub async fn socket(&self, gateway: &str, port: u16) -> SocketAddr {
        let mut opened = self.shared.opened.subscribe();
        let is = |key: &FrontKey| &*key.gateway.name == gateway && key.port == port;
        let find = opened.wait_for(|all| all.keys().any(is));
        let all = tokio::time::timeout(PATIENCE, find).await.expect("not opened").unwrap();
        *all.iter().find(|(key, _)| is(key)).unwrap().1
    }

    /// One request on a connection of its own.
    pub async fn get(&self, host: &str, path: &str) -> (StatusCode, String) {
        let mut client = Client::connect(self.http).await;
        client.get(host, path).await.unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What is followed by name, not listed.
fn which(object: &Value) -> Option<Which> {
    let part = |field: &str| object["metadata"][field].as_str().unwrap();
    let key = || ObjectKey::new(part("namespace"), part("name"));
    match object["kind"].as_str().unwrap() {
        "Secret" => Some(Which::Secret(key())),
        "ConfigMap" => Some(Which::ConfigMap(key())),
        _ => None,
    }
}

fn read_as<K: serde::de::DeserializeOwned>(object: &Value) -> K {
    serde_json::from_value(object.clone()).unwrap()
}

pub fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

pub fn service(name: &str) -> Value {
    json!({"kind": "Service", "metadata": {"name": name, "namespace": "t"},
        "spec": {"ports": [{"name": "http", "port": 80}, {"name": "h2c", "port": 81, "appProtocol": "kubernetes.io/h2c"}]}})
}

/// A slice a backend: they all have the same address and differ in their port.
pub fn slice(service: &str, backend: SocketAddr) -> Value {
    let port = backend.port();
    json!({"kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-{port}"), "namespace": "t", "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": "http", "port": port}, {"name": "h2c", "port": port}],
        "endpoints": [{"addresses": [backend.ip().to_string()], "conditions": {"ready": true}}]})
}

/// An Ingress of rules (host, path, pathType, service, port).
pub fn ingress(name: &str, rules: &[(&str, &str, &str, &str, u16)]) -> Value {
    let rules: Vec<_> = rules
        .iter()
        .map(|(host, path, kind, service, port)| {
            let backend = json!({"service": {"name": service, "port": {"number": port}}});
            let mut rule = json!({"http": {"paths": [{"path": path, "pathType": kind, "backend": backend}]}});
            if !host.is_empty() {
                rule["host"] = json!(host);
            }
            rule
        })
        .collect();
    json!({"kind": "Ingress", "metadata": {"name": name, "namespace": "t", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"rules": rules}})
}

/// A server that answers with its name and what it was sent.
pub struct Backend {
    pub address: SocketAddr,
    pub served: Arc<AtomicUsize>,
    /// Ends every connection at once.
    kill: CancellationToken,
    /// Stops taking connections and ends those there are after their current request.
    stop: CancellationToken,
}

impl Backend {
    pub fn start(name: &'static str) -> Self {
        Self::start_on(name, listener())
    }

    pub fn start_on(name: &'static str, listener: TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (kill, stop) = (CancellationToken::new(), CancellationToken::new());
        let served = Arc::new(AtomicUsize::new(0));
        let backend = Self { address, served: Arc::clone(&served), kill: kill.clone(), stop: stop.clone() };
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    () = kill.cancelled() => return,
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let (kill, stop, served) = (kill.clone(), stop.clone(), Arc::clone(&served));
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        served.fetch_add(1, Ordering::Relaxed);
                        echo(name, request)
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let connection = builder.serve_connection(TokioIo::new(stream), service);
                    tokio::pin!(connection);
                    tokio::select! {
                        () = kill.cancelled() => {}
                        _ = connection.as_mut() => {}
                        () = stop.cancelled() => {
                            connection.as_mut().graceful_shutdown();
                            tokio::select! { () = kill.cancelled() => {}, _ = connection => {} }
                        }
                    }
                });
            }
        });
        backend
    }

    /// As a pod that is killed.
    pub fn kill(&self) {
        self.kill.cancel();
    }

    /// As a pod that ends in good order.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

async fn echo(name: &str, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    match parts.uri.path() {
        "/slow" => tokio::time::sleep(Duration::from_millis(300)).await,
        "/never" => std::future::pending().await,
        "/mirror" => return Ok(Response::new(Full::new(body))),
        _ => {}
    }
    let headers: serde_json::Map<String, Value> =
        parts.headers.iter().map(|(k, v)| (k.to_string(), json!(String::from_utf8_lossy(v.as_bytes())))).collect();
    let text = json!({
        "backend": name, "method": parts.method.as_str(), "path": parts.uri.path(), "query": parts.uri.query(),
        "version": format!("{:?}", parts.version), "headers": headers, "body": body.len(),
    });
    let mut answer = Response::new(Full::new(Bytes::from(text.to_string())));
    if name == "bad" {
        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    Ok(answer)
}

/// One HTTP/1.1 connection.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    /// Where it comes from.
    pub local: SocketAddr,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let local = stream.local_addr().unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender, local }
    }

    pub async fn get(&mut self, host: &str, path: &str) -> Result<(StatusCode, String), String> {
        let (status, body, _) = self.send(Method::GET, host, path, &[], Bytes::new()).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Sends a request; answers status, body, and whether the server closes the connection.
    pub async fn send(
        &mut self,
        method: Method,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(StatusCode, Bytes, bool), String> {
        let mut request = Request::builder().method(method).uri(path).header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).unwrap();
        let exchange = async {
            self.sender.ready().await.map_err(|e| format!("not ready: {e}"))?;
            let response = self.sender.send_request(request).await.map_err(|e| format!("no answer: {e}"))?;
            let closes = response.headers().get("connection").is_some_and(|v| v == "close");
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|e| format!("no body: {e}"))?.to_bytes();
            Ok((status, body, closes))
        };
        tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| "no answer in time".to_owned())?
    }
}

/// What the echoing backend said.
pub fn said(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|_| panic!("not from a backend: {body}"))
}

/// Waits until something is so.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

/// Runs curl in a thread of its own and gives its standard output.
pub async fn curl(arguments: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new("curl");
    command.args(["-sS", "--max-time", "15"]).args(arguments);
    let output = command.output().await.unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// A Gateway with these listeners.
pub fn gateway(name: &str, listeners: Value) -> Value {
    json!({"kind": "Gateway", "metadata": {"name": name, "namespace": "t", "generation": 1},
        "spec": {"gatewayClassName": "causeway", "listeners": listeners}})
}

/// An HTTPRoute of the Gateway gw with these rules.
pub fn route(name: &str, rules: Value) -> Value {
    json!({"kind": "HTTPRoute", "metadata": {"name": name, "namespace": "t", "generation": 1},
        "spec": {"parentRefs": [{"name": "gw"}], "rules": rules}})
}

/// A BackendTLSPolicy by which a Service has this certificate, for this host.
pub fn terms(service: &str, host: &str, made: &rcgen::CertifiedKey<rcgen::KeyPair>) -> [Value; 2] {
    let ca = json!([{"group": "", "kind": "ConfigMap", "name": "ca"}]);
    [
        json!({"kind": "ConfigMap", "metadata": {"name": "ca", "namespace": "t"}, "data": {"ca.crt": made.cert.pem()}}),
        json!({"kind": "BackendTLSPolicy", "metadata": {"name": service, "namespace": "t", "generation": 1},
            "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": service}],
                "validation": {"hostname": host, "caCertificateRefs": ca}}}),
    ]
}

/// The TLS of a backend whose certificate nobody has signed, which offers these protocols.
pub fn acceptor(protocols: &[&str]) -> tokio_rustls::TlsAcceptor {
    acceptor_with(&rcgen::generate_simple_self_signed(vec!["whoever".to_owned()]).unwrap(), protocols)
}

/// The TLS of a backend with this certificate, which offers these protocols.
pub fn acceptor_with(made: &rcgen::CertifiedKey<rcgen::KeyPair>, protocols: &[&str]) -> tokio_rustls::TlsAcceptor {
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config))
}
