//! Requests to backends that speak HTTP/2: streams both ways, few connections, and what becomes of requests when a
//! backend refuses them, leaves, or is gone. Frame by frame, with the HTTP/2 library on both sides of the ingress.

use crate::harness::*;
use bytes::Bytes;
use causeway_proxy::Limits;
use futures::future::join_all;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::json;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Exchange = (Request<RecvStream>, SendResponse<Bytes>);

/// What a backend counts.
#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    ended: AtomicUsize,
    calls: AtomicUsize,
}

/// A backend whose every request is given to `serve`, with its number.
fn backend<F, A>(serve: F) -> (SocketAddr, Arc<Counts>)
where
    F: Fn(usize, Exchange) -> A + Clone + Send + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let socket = listener();
    socket.set_nonblocking(true).unwrap();
    let (address, socket) = (socket.local_addr().unwrap(), TcpListener::from_std(socket).unwrap());
    let counts = Arc::new(Counts::default());
    let counted = Arc::clone(&counts);
    tokio::spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.unwrap();
            counted.connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(connection(stream, Arc::clone(&counted), serve.clone()));
        }
    });
    (address, counts)
}

async fn connection<F, A>(stream: TcpStream, counts: Arc<Counts>, serve: F)
where
    F: Fn(usize, Exchange) -> A,
    A: Future<Output = ()> + Send + 'static,
{
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok(exchange)) = connection.accept().await {
        tokio::spawn(serve(counts.calls.fetch_add(1, Ordering::SeqCst), exchange));
    }
    counts.ended.fetch_add(1, Ordering::SeqCst);
}

/// Answers with what the request's body was.
async fn mirror(_: usize, (request, mut respond): Exchange) {
    let body = all(request.into_body()).await.unwrap();
    let mut answer = respond.send_response(Response::new(()), false).unwrap();
    answer.send_data(body, true).unwrap();
}

/// A body as a whole.
async fn all(mut body: RecvStream) -> Result<Bytes, h2::Error> {
    let mut whole = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        let _ = body.flow_control().release_capacity(part.len());
        whole.extend_from_slice(&part);
    }
    Ok(whole.into())
}

/// A client of the ingress.
async fn client(lab: &Lab) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(lab.http).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    requests.ready().await.unwrap()
}

fn post(path: &str) -> Request<()> {
    let request = Request::post(format!("http://h2c.localhost{path}"));
    request.header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap()
}

/// Sends a request with a small body; gives status and body.
async fn ask(requests: &SendRequest<Bytes>, body: &'static [u8]) -> (StatusCode, Bytes) {
    let mut requests = requests.clone().ready().await.unwrap();
    let asked = async {
        let (answer, mut stream) = requests.send_request(post("/"), false).unwrap();
        stream.send_data(Bytes::from_static(body), true).unwrap();
        let (head, body) = answer.await.unwrap().into_parts();
        (head.status, all(body).await.unwrap())
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("no answer in time")
}

#[tokio::test]
async fn streams_go_both_ways_at_once() {
    // Each part of the request is answered before the next one comes.
    let (address, _) = backend(async |_, (request, mut respond)| {
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.uri().to_string(), "http://h2c.localhost/talk?a=b");
        assert!(!request.headers().contains_key("host"));
        let mut body = request.into_body();
        let mut answer = respond.send_response(Response::new(()), false).unwrap();
        while let Some(part) = body.data().await {
            let part = part.unwrap();
            body.flow_control().release_capacity(part.len()).unwrap();
            answer.send_data(part, false).unwrap();
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "7".parse().unwrap());
        answer.send_trailers(trailers).unwrap();
    });
    let lab = Lab::leading_to(address, Limits::default());
    let mut requests = client(&lab).await;
    let (answer, mut stream) = requests.send_request(post("/talk?a=b"), false).unwrap();
    let talk = async {
        let mut body = answer.await.unwrap().into_body();
        for word in ["one", "two", "three"] {
            stream.send_data(Bytes::from_static(word.as_bytes()), false).unwrap();
            assert_eq!(body.data().await.unwrap().unwrap(), word);
        }
        stream.send_data(Bytes::new(), true).unwrap();
        assert!(body.data().await.is_none());
        assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "7");
    };
    tokio::time::timeout(PATIENCE, talk).await.expect("a part did not come through");
}

#[tokio::test]
async fn many_requests_share_a_connection_and_it_is_closed_when_none_comes() {
    let (address, counts) = backend(mirror);
    let lab = Lab::leading_to(address, Limits { upstream_idle: Duration::from_secs(1), ..Limits::default() });
    let requests = client(&lab).await;
    for _ in 0..3 {
        for (status, body) in join_all((0..50).map(|_| ask(&requests, b"hello"))).await {
            assert_eq!((status, &body[..]), (StatusCode::OK, &b"hello"[..]));
        }
    }
    assert_eq!(counts.calls.load(Ordering::SeqCst), 150);
    assert_eq!(counts.connections.load(Ordering::SeqCst), 1);
    until("the connection is closed", || counts.ended.load(Ordering::SeqCst) == 1).await;
    assert_eq!(ask(&requests, b"again").await, (StatusCode::OK, Bytes::from_static(b"again")));
    assert_eq!(counts.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_connection_takes_a_hundred_requests() {
    // Nobody is answered before all are there.
    let there = Arc::new(tokio::sync::Barrier::new(250));
    let (address, counts) = backend(move |number, exchange: Exchange| {
        let there = Arc::clone(&there);
        async move {
            there.wait().await;
            mirror(number, exchange).await;
        }
    });
    let mut lab = Lab::leading_to(address, Limits::default());
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(client(&lab).await);
    }
    let answers = join_all((0..250).map(|n| ask(&clients[n % 5], b"together"))).await;
    assert!(answers.iter().all(|(status, body)| *status == StatusCode::OK && body == "together"));
    assert_eq!(counts.connections.load(Ordering::SeqCst), 3);
    // Those of an endpoint that is gone do not wait for their time.
    lab.delete([slice("a", address)]);
    until("they are closed", || counts.ended.load(Ordering::SeqCst) == 3).await;
}

#[tokio::test]
async fn what_is_refused_unseen_is_sent_again() {
    let (address, counts) = backend(async |number, exchange: Exchange| match number {
        0 | 1 => {
            let (request, mut respond) = exchange;
            // Once with the body on its way, once without.
            if number == 0 {
                all(request.into_body()).await.unwrap();
            }
            respond.send_reset(Reason::REFUSED_STREAM);
        }
        _ => mirror(number, exchange).await,
    });
    let lab = Lab::leading_to(address, Limits::default());
    let requests = client(&lab).await;
    assert_eq!(ask(&requests, b"no idempotent request").await.0, StatusCode::OK);
    assert_eq!(counts.calls.load(Ordering::SeqCst), 3);
    assert_eq!(lab.shared.metrics.retries.get(), 2);
}

/// A backend that leaves says up to which request it has looked at them (RFC 9113 section 6.8).
#[tokio::test]
async fn who_leaves_loses_no_request() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let counts = Arc::new(Counts::default());
    let counted = Arc::clone(&counts);
    tokio::spawn(async move {
        let (mut first, _) = socket.accept().await.unwrap();
        first.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        // The connection's preface and at least the beginning of a request.
        let mut read = Vec::new();
        while !read.windows(4).any(|w| w == b"\x01\x04\x00\x00") {
            assert_ne!(first.read_buf(&mut read).await.unwrap(), 0);
        }
        // GOAWAY: the last stream that was looked at is none, no error.
        first.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
        let (second, _) = socket.accept().await.unwrap();
        connection(second, counted, mirror).await;
    });
    let lab = Lab::leading_to(address, Limits::default());
    let requests = client(&lab).await;
    assert_eq!(ask(&requests, b"twice").await, (StatusCode::OK, Bytes::from_static(b"twice")));
    assert_eq!(ask(&requests, b"and on").await.0, StatusCode::OK);
    assert_eq!(counts.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn what_was_looked_at_is_not_sent_again() {
    let (address, counts) = backend(async |_, (request, mut respond): Exchange| {
        all(request.into_body()).await.unwrap();
        respond.send_reset(Reason::INTERNAL_ERROR);
    });
    let lab = Lab::leading_to(address, Limits::default());
    assert_eq!(ask(&client(&lab).await, b"once").await.0, StatusCode::BAD_GATEWAY);
    assert_eq!(counts.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_that_goes_takes_its_call_with_it() {
    let gone = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&gone);
    let (address, counts) = backend(move |_, (_, mut respond): Exchange| {
        let seen = Arc::clone(&seen);
        async move {
            let mut answer = respond.send_response(Response::new(()), false).unwrap();
            let reason = std::future::poll_fn(|cx| answer.poll_reset(cx)).await.unwrap();
            assert_eq!(reason, Reason::CANCEL);
            seen.fetch_add(1, Ordering::SeqCst);
        }
    });
    let lab = Lab::leading_to(address, Limits::default());
    let requests = client(&lab).await;
    for ended in [true, false] {
        let mut requests = requests.clone().ready().await.unwrap();
        let (answer, mut stream) = requests.send_request(post("/"), ended).unwrap();
        let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
        stream.send_reset(Reason::CANCEL);
        drop(answer);
        until("the backend hears of it", || gone.load(Ordering::SeqCst) == 1 + usize::from(!ended)).await;
    }
    assert_eq!(counts.connections.load(Ordering::SeqCst), 1, "the connection goes on");
}

/// Large bodies go through whole, and one that nobody takes is neither heaped up nor in the way of others.
#[tokio::test]
async fn a_slow_reader_holds_up_nobody_else() {
    const ENDLESS: usize = 64 << 20;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let (address, counts) = backend(move |number, exchange: Exchange| {
        let counted = Arc::clone(&counted);
        async move {
            if exchange.0.uri().path() != "/endless" {
                return large(number, exchange).await;
            }
            let (_, mut respond) = exchange;
            let mut answer = respond.send_response(Response::new(()), false).unwrap();
            while counted.load(Ordering::SeqCst) < ENDLESS {
                answer.reserve_capacity(16 << 10);
                let room = std::future::poll_fn(|cx| answer.poll_capacity(cx)).await.unwrap().unwrap();
                answer.send_data(Bytes::from(vec![0; room]), false).unwrap();
                counted.fetch_add(room, Ordering::SeqCst);
            }
        }
    });
    let lab = Lab::leading_to(address, Limits::default());
    let requests = client(&lab).await;
    let mut first = requests.clone().ready().await.unwrap();
    let (answer, _stream) = first.send_request(post("/endless"), true).unwrap();
    let unread = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
    // Another client, as this one's own window is full of what it does not read.
    let other = client(&lab).await;
    let mut other = other.ready().await.unwrap();
    let body = Bytes::from(vec![7; 5 << 20]);
    let (answer, mut stream) = other.send_request(post("/large"), false).unwrap();
    let up = async {
        send(&mut stream, body.clone()).await;
        stream.send_data(Bytes::new(), true).unwrap();
    };
    let down = async { all(answer.await.unwrap().into_body()).await.unwrap() };
    let both = tokio::time::timeout(PATIENCE, futures::future::join(up, down));
    assert!(both.await.expect("it is held up").1 == body, "other bytes came back");
    assert_eq!(counts.connections.load(Ordering::SeqCst), 1);
    let heaped = sent.load(Ordering::SeqCst);
    assert!(heaped < 4 << 20, "{heaped} bytes were taken for a client that reads nothing");
    drop(unread);
}

/// Sends a part of a body as the reader has room for it.
async fn send(stream: &mut SendStream<Bytes>, mut part: Bytes) {
    while !part.is_empty() {
        stream.reserve_capacity(part.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
        stream.send_data(part.split_to(room.min(part.len())), false).unwrap();
    }
}

/// Answers with the body as it comes.
async fn large(_: usize, (request, mut respond): Exchange) {
    let mut body = request.into_body();
    let mut answer = respond.send_response(Response::new(()), false).unwrap();
    while let Some(part) = body.data().await {
        let part = part.unwrap();
        let length = part.len();
        send(&mut answer, part).await;
        body.flow_control().release_capacity(length).unwrap();
    }
    answer.send_data(Bytes::new(), true).unwrap();
}

#[tokio::test]
async fn clients_of_http_1_are_answered_from_http_2() {
    let (address, counts) = backend(async |_, (request, mut respond): Exchange| {
        let status = request.uri().path()[1..].parse::<u16>().unwrap();
        let body = all(request.into_body()).await.unwrap();
        let head = Response::builder().status(status).body(()).unwrap();
        let mut answer = respond.send_response(head, body.is_empty()).unwrap();
        if !body.is_empty() {
            answer.send_data(body, true).unwrap();
        }
    });
    let lab = Lab::leading_to(address, Limits::default());
    let mut client = Client::connect(lab.http).await;
    for (status, body) in [(200, "a body"), (200, ""), (204, ""), (404, "none such")] {
        let path = format!("/{status}");
        let sent = client.send(http::Method::POST, "h2c.localhost", &path, &[], Bytes::from(body)).await.unwrap();
        assert_eq!((sent.0.as_u16(), &sent.1[..], sent.2), (status, body.as_bytes(), false));
    }
    assert_eq!(counts.connections.load(Ordering::SeqCst), 1);
}

/// A backend need not read a request to answer it.
#[tokio::test]
async fn an_answer_may_come_before_the_request_is_over() {
    let (address, counts) = backend(async |_, (request, mut respond): Exchange| {
        let mut answer = respond.send_response(Response::new(()), false).unwrap();
        // The library ends the request with that: a reset that says that it is no error follows the answer.
        answer.send_data(Bytes::from_static(b"not needed"), true).unwrap();
        drop(request);
    });
    let lab = Lab::leading_to(address, Limits::default());
    for _ in 0..20 {
        let mut client = Client::connect(lab.http).await;
        let body = Bytes::from(vec![b'x'; 1 << 20]);
        let answer = client.send(http::Method::POST, "h2c.localhost", "/", &[], body).await.unwrap();
        assert_eq!((answer.0, &answer.1[..]), (StatusCode::OK, &b"not needed"[..]));
        assert_eq!(ask(&self::client(&lab).await, b"small").await.1, "not needed");
    }
    assert_eq!(counts.calls.load(Ordering::SeqCst), 40);
}

/// An answer with two lengths would be two answers to somebody.
#[tokio::test]
async fn an_answer_has_one_length() {
    let (address, _) = backend(async |_, (_, mut respond): Exchange| {
        let head = Response::builder().header("content-length", "2").header("content-length", "5").body(()).unwrap();
        let mut answer = respond.send_response(head, false).unwrap();
        answer.send_data(Bytes::from_static(b"hi"), true).unwrap();
    });
    let lab = Lab::leading_to(address, Limits::default());
    assert_eq!(lab.get("h2c.localhost", "/").await.0, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn a_backend_that_says_nothing_is_given_up() {
    let (address, _) = backend(async |number, exchange: Exchange| match number {
        0 => std::future::pending().await,
        _ => mirror(number, exchange).await,
    });
    let lab = Lab::leading_to(address, Limits { upstream_timeout: Duration::from_secs(1), ..Limits::default() });
    let requests = client(&lab).await;
    assert_eq!(ask(&requests, b"anybody?").await.0, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(ask(&requests, b"anybody?").await.0, StatusCode::OK);
}

/// On a BackendTLSPolicy's terms too, requests share a connection, and one of HTTP/1.1 is kept for the next.
#[tokio::test]
async fn a_proven_backend_is_asked_over_one_connection() {
    let made = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).unwrap();
    let acceptor = acceptor_with(&made, &["h2", "http/1.1"]);
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let handshakes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&handshakes);
    tokio::spawn(async move {
        loop {
            let stream = acceptor.accept(socket.accept().await.unwrap().0).await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(
                auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(
                        TokioIo::new(stream),
                        service_fn(async |request: Request<Incoming>| {
                            let said = format!("{:?} {:?}", request.version(), request.uri().scheme_str());
                            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(said))))
                        }),
                    )
                    .into_owned(),
            );
        }
    });
    let mut lab = Lab::with_gateways(Limits::default());
    let listeners = json!([{"name": "http", "port": 80, "protocol": "HTTP"}]);
    let to = |path: &str, port: u16| json!({"matches": [{"path": {"value": path}}], "backendRefs": [{"name": "a", "port": port}]});
    let rules = json!([to("/1", 80), to("/2", 81)]);
    lab.apply([service("a"), slice("a", address), gateway("gw", listeners), route("r", rules)]);
    lab.apply(terms("a", "a.test", &made));
    let mut client = Client::connect(lab.socket("gw", 80).await).await;
    for (path, said, connections) in [("/1", "HTTP/1.1 None", 1), ("/2", "HTTP/2.0 Some(\"https\")", 2)] {
        for _ in 0..5 {
            let answer = client.send(http::Method::POST, "a", path, &[], Bytes::from("proven")).await.unwrap();
            assert_eq!((answer.0, &answer.1[..]), (StatusCode::OK, said.as_bytes()));
        }
        assert_eq!(handshakes.load(Ordering::SeqCst), connections);
    }
}
