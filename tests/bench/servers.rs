//! Proxies of the comparison that are made of the same crates: the data plane of our ingress, fed with objects
//! directly, and the least that can be written with Pingora. Each is a process of its own with one worker thread.

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use causeway_proxy::Limits;
use causeway_proxy::config::model::Settings;
use causeway_proxy::config::view::{Update, View};
use causeway_proxy::config::{Dirt, Planner, Shared};
use causeway_proxy::traffic::listen;
use kube::runtime::watcher::Event;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::upstreams::peer::HttpPeer;
use serde_json::json;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// `serve causeway|pingora LISTEN BACKEND`
pub fn run(args: &[String]) -> Result<()> {
    let [which, listen, backend] = args else { bail!("serve causeway|pingora LISTEN BACKEND") };
    let (listen, backend) = (listen.parse()?, backend.parse()?);
    match which.as_str() {
        "causeway" => causeway(listen, backend),
        "pingora" => pingora(listen, backend),
        other => bail!("there is no server {other:?}"),
    }
}

fn causeway(listen: SocketAddr, backend: SocketAddr) -> Result<()> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let shared = Arc::new(Shared::new()?);
    let settings = Settings { class: "causeway".to_owned(), default_class: true };
    let (mut planner, _reports) = Planner::new(Arc::clone(&shared), settings);
    let mut view = View::default();
    let mut dirt = Dirt::default();
    for update in service("web", backend)?.into_iter().chain([rule("web", "bench.localhost", "web")?]) {
        dirt.merge(view.handle(update));
    }
    planner.apply(&view, &dirt);
    let socket = TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    // On a worker, as in the program: the thread that waits here only waits.
    let serving = runtime.spawn(async move {
        listen::serve(shared, Arc::new(Limits::default()), vec![socket], Vec::new(), None, CancellationToken::new())
            .await
    });
    runtime.block_on(serving)??;
    Ok(())
}

/// A Service with one endpoint.
pub fn service(name: &str, backend: SocketAddr) -> Result<[Update; 2]> {
    let at = json!({"name": name, "namespace": "bench", "labels": {"kubernetes.io/service-name": name}});
    let service = json!({"metadata": at, "spec": {"ports": [{"name": "http", "port": 80}]}});
    let slice = json!({"metadata": at, "addressType": "IPv4", "ports": [{"name": "http", "port": backend.port()}],
        "endpoints": [{"addresses": [backend.ip()], "conditions": {"ready": true}}]});
    Ok([
        Update::Service(Box::new(Event::Apply(serde_json::from_value(service)?))),
        Update::Slice(Event::Apply(serde_json::from_value(slice)?)),
    ])
}

/// An Ingress that leads a host to a Service.
pub fn rule(name: &str, host: &str, service: &str) -> Result<Update> {
    let target = json!({"service": {"name": service, "port": {"number": 80}}});
    let ingress = json!({
        "metadata": {"name": name, "namespace": "bench", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"rules": [{"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": target}]}}]}});
    Ok(Update::Ingress(Event::Apply(serde_json::from_value(ingress)?)))
}

/// Sends everything to one address.
struct Plain(SocketAddr);

#[async_trait]
impl ProxyHttp for Plain {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut Self::CTX) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}

fn pingora(listen: SocketAddr, backend: SocketAddr) -> Result<()> {
    let mut server = Server::new(None)?;
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Plain(backend));
    service.add_tcp(&listen.to_string());
    server.add_service(service);
    server.run_forever()
}
