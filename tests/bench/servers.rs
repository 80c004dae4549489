//! Servers of the comparisons that are made of the same crates: the data plane of our ingress, fed with objects
//! directly, the least that can be written with Pingora, and backends. Each is a process of its own with one worker.

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use causeway_proxy::Limits;
use causeway_proxy::config::model::Settings;
use causeway_proxy::config::view::{Update, View};
use causeway_proxy::config::{Dirt, Planner, Shared};
use causeway_proxy::traffic::listen;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::runtime::watcher::Event;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::upstreams::peer::HttpPeer;
use serde_json::json;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// `serve causeway HTTP HTTPS BACKEND GRPC-BACKEND DIR`, `serve pingora HTTP BACKEND`, `serve grpc PORT`, `serve echo PORT`
/// (WebSockets): ports of 127.0.0.1, and the folder with the certificate.
pub fn run(args: &[String]) -> Result<()> {
    let at = |port: &String| Ok::<_, anyhow::Error>(SocketAddr::from(([127, 0, 0, 1], port.parse()?)));
    open_many()?;
    match args {
        [which, http, https, backend, grpc, dir] if which == "causeway" => {
            causeway([at(http)?, at(https)?], [at(backend)?, at(grpc)?], Path::new(dir))
        }
        [which, http, backend] if which == "pingora" => pingora(at(http)?, at(backend)?),
        [which, port] if which == "grpc" => grpc(at(port)?),
        [which, port] if which == "echo" => echo(at(port)?),
        _ => bail!("there is no server like {args:?}"),
    }
}

/// Lets this process and its children have as many files open as may be: says how many.
pub fn open_many() -> Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // More than the hard limit only with a privilege that root in a container may lack.
    let more = hard.max(60_000);
    if setrlimit(Resource::RLIMIT_NOFILE, more, more).is_ok() {
        return Ok(more);
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard.max(soft), hard).context("raising the limit of open files")?;
    Ok(hard)
}

fn causeway(listen: [SocketAddr; 2], [backend, grpc]: [SocketAddr; 2], dir: &Path) -> Result<()> {
    // As in the program: without it libraries would look for another way to tell what they do.
    tracing_subscriber::fmt().with_env_filter("info,pingora=warn,h2=warn").with_writer(std::io::stderr).init();
    drop(rustls::crypto::ring::default_provider().install_default());
    let shared = Arc::new(Shared::new()?);
    let settings = Settings { class: "causeway".to_owned(), default_class: true };
    let (mut planner, _reports) = Planner::new(Arc::clone(&shared), settings);
    let mut view = View::default();
    let mut dirt = Dirt::default();
    let bytes = |name: &str| Ok::<_, std::io::Error>(k8s_openapi::ByteString(std::fs::read(dir.join(name))?));
    let secret = json!({"metadata": {"name": "tls", "namespace": "bench"}, "type": "kubernetes.io/tls",
        "data": {"tls.crt": bytes("crt")?, "tls.key": bytes("key")?}});
    let paths = [("/bench.Echo", "grpc"), ("/", "web")].map(|(path, service)| {
        let backend = json!({"service": {"name": service, "port": {"number": 80}}});
        json!({"path": path, "pathType": "Prefix", "backend": backend})
    });
    let ingress = json!({"metadata": {"name": "bench", "namespace": "bench"}, "spec": {
        "rules": [{"host": "bench.localhost", "http": {"paths": paths}}], "tls": [{"secretName": "tls"}]}});
    let others = [
        Update::secret(serde_json::from_value(secret)?),
        Update::Ingress(Event::Apply(serde_json::from_value(ingress)?)),
    ];
    let services = [service("web", backend, None)?, service("grpc", grpc, Some("kubernetes.io/h2c"))?];
    for update in services.into_iter().flatten().chain(others) {
        dirt.merge(view.handle(update));
    }
    planner.apply(&view, &dirt);
    let [http, https] = listen.map(|at| TcpListener::bind(at).with_context(|| format!("listening on {at}")));
    let (http, https) = (vec![http?], vec![https?]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    // On a worker, as in the program: the thread that waits here only waits.
    let serving = runtime.spawn(async move {
        let limits = Limits { max_connections: 60_000, ..Limits::default() };
        listen::serve(shared, Arc::new(limits), http, https, None, CancellationToken::new()).await
    });
    runtime.block_on(serving)??;
    Ok(())
}

/// Answers every call with one message.
fn grpc(listen: SocketAddr) -> Result<()> {
    let answer = |call: http::Request<hyper::body::Incoming>| async {
        // Who answers before the call is complete breaks it off.
        call.into_body().collect().await.map_err(std::io::Error::other)?;
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        let frames = [Frame::data(crate::load::message()), Frame::trailers(trailers)];
        let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, Infallible>)));
        let answer = http::Response::builder().header("content-type", "application/grpc").body(body);
        answer.map_err(std::io::Error::other)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer));
            tokio::spawn(serving);
        }
    })
}

/// Says back what WebSocket clients say.
fn echo(listen: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        let listener = socket.listen(4096)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
                while let Some(Ok(said)) = socket.next().await {
                    if !said.is_close() && socket.send(said).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

/// A Service with one endpoint, which speaks HTTP/1.1 or what `protocol` says.
pub fn service(name: &str, backend: SocketAddr, protocol: Option<&str>) -> Result<[Update; 2]> {
    let at = json!({"name": name, "namespace": "bench", "labels": {"kubernetes.io/service-name": name}});
    let service = json!({"metadata": at, "spec": {"ports": [{"name": "http", "port": 80, "appProtocol": protocol}]}});
    let slice = json!({"metadata": at, "addressType": "IPv4", "ports": [{"name": "http", "port": backend.port()}],
        "endpoints": [{"addresses": [backend.ip()], "conditions": {"ready": true}}]});
    Ok([
        Update::Service(Event::Apply(Arc::new(serde_json::from_value(service)?))),
        Update::Slice(Event::Apply(Arc::new(serde_json::from_value(slice)?))),
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
