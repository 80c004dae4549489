//! Runs against servers that behave and servers that do not.

use bytes::Bytes;
use causeway_load::stats::Failure;
use causeway_load::{Plan, Report, plot, run};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

#[derive(Clone)]
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    /// Requests are held between these.
    pause: Option<(Instant, Instant)>,
}

async fn server(tls: Option<TlsAcceptor>, pause: Option<(Duration, Duration)>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let begin = Instant::now();
    let this = Server {
        address: listener.local_addr().unwrap(),
        connections: Arc::default(),
        requests: Arc::default(),
        pause: pause.map(|(from, to)| (begin + from, begin + to)),
    };
    let served = this.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            served.connections.fetch_add(1, Ordering::Relaxed);
            let (served, tls) = (served.clone(), tls.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(served.clone(), request));
                let builder = auto::Builder::new(TokioExecutor::new());
                match tls {
                    None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                    Some(tls) => {
                        let Ok(stream) = tls.accept(stream).await else { return };
                        drop(builder.serve_connection(TokioIo::new(stream), service).await);
                    }
                }
            });
        }
    });
    this
}

async fn answer(server: Server, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    server.requests.fetch_add(1, Ordering::Relaxed);
    if let Some((from, to)) = server.pause
        && (from..to).contains(&Instant::now())
    {
        tokio::time::sleep_until(to.into()).await;
    }
    let mut response = Response::new(Full::new(Bytes::from_static(b"0123456789")));
    match request.uri().path() {
        "/never" => std::future::pending().await,
        "/broken" => *response.status_mut() = StatusCode::BAD_GATEWAY,
        "/close" => drop(response.headers_mut().insert("connection", "close".parse().unwrap())),
        _ => {}
    }
    Ok(response)
}

fn plan(server: &Server, path: &str) -> Plan {
    Plan {
        rate: Some(200.0),
        duration: Duration::from_secs(1),
        connections: 4,
        ..Plan::new(&format!("http://{}{path}", server.address)).unwrap()
    }
}

async fn go(plan: Plan) -> Report {
    run(plan, |_| {}).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_is_sent_and_counted_once() {
    let server = server(None, None).await;
    let mut told = 0;
    let report = run(Plan { warmup: Duration::from_millis(500), ..plan(&server, "/") }, |_| told += 1).await.unwrap();
    assert_eq!((report.stats.answered(), report.stats.failed()), (200, 0), "{report}");
    assert_eq!(report.stats.bytes, 2000);
    assert_eq!(server.requests.load(Ordering::Relaxed), 300, "with those that warm up");
    assert_eq!(server.connections.load(Ordering::Relaxed), 4);
    assert!(told >= 2 && report.is_clean());
    let svg = plot::svg(&report).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("latency by percentile") && svg.matches("<polyline").count() >= 4);

    let fresh = go(Plan { fresh: true, ..plan(&server, "/") }).await;
    assert_eq!(fresh.stats.answered(), 200);
    assert_eq!(server.connections.load(Ordering::Relaxed), 204, "a connection for each request");
    let closing = go(plan(&server, "/close")).await;
    assert!(closing.is_clean() && closing.stats.answered() == 200, "{closing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_is_seen_by_all_it_delays() {
    let pause = Some((Duration::from_millis(400), Duration::from_millis(900)));
    let server = server(None, pause).await;
    let report = go(plan(&server, "/")).await;
    assert_eq!(report.stats.answered(), 200);
    // About half of the requests were due while nothing was answered. Who counts only what was under way sees four.
    assert!(report.stats.percentile(75.0) > 100_000, "{report}");
    assert!(report.stats.percentile(98.0) > 300_000, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_counted_by_kind() {
    let server = server(None, None).await;
    let short = Plan { timeout: Duration::from_millis(300), ..plan(&server, "/never") };
    let silent = go(Plan { connections: 2, ..short.clone() }).await;
    let failures = &silent.stats.failures;
    assert_eq!(silent.stats.answered() + silent.stats.failed(), 200, "{silent}");
    assert!(failures[&Failure::Timeout] >= 4, "{failures:?}");
    assert!(!silent.is_clean());
    let broken = go(plan(&server, "/broken")).await;
    assert_eq!(broken.stats.statuses[&502], 200);
    assert!(!broken.is_clean());
    // Nobody listens: that is said at once.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nobody = Plan { connect_to: Some(gone), ..short };
    let error = run(nobody, |_| {}).await.unwrap_err();
    assert!(format!("{error:#}").contains("connecting to http://"), "{error:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_and_tls_and_a_closed_loop() {
    let plain = server(None, None).await;
    let h2 = Plan { http2: true, streams: 8, connections: 2, ..plan(&plain, "/") };
    let report = go(h2.clone()).await;
    assert_eq!((report.stats.answered(), plain.connections.load(Ordering::Relaxed)), (200, 2), "{report}");

    let made = rcgen::generate_simple_self_signed(vec!["shop.localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = server(Some(Arc::new(config).into()), None).await;
    let url = format!("https://shop.localhost:{}/", tls.address.port());
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let secure = Plan { ca: Some(ca), ..h2 };
    let secure = Plan { url: Plan::new(&url).unwrap().url, ..secure };
    assert!(go(secure.clone()).await.is_clean());
    assert!(go(Plan { http2: false, streams: 1, ca: None, insecure: true, ..secure.clone() }).await.is_clean());
    let other = rcgen::generate_simple_self_signed(vec!["shop.localhost".to_owned()]).unwrap();
    std::fs::write(secure.ca.as_ref().unwrap(), other.cert.pem()).unwrap();
    assert!(run(secure, |_| {}).await.is_err(), "a certificate of somebody else's authority");

    let closed = go(Plan { rate: None, duration: Duration::from_millis(300), ..plan(&plain, "/") }).await;
    assert!(closed.is_clean() && closed.stats.answered() > 10, "{closed}");
    assert!(closed.to_string().contains("closed loop"));
}
