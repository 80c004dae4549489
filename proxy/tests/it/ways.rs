//! The short way of a request through the proxy and Pingora's own: whichever it takes, backends and clients see the same.
//! A header about the connection, of which nothing is passed on, makes a request take the long one.

use crate::harness::*;
use bytes::Bytes;
use causeway_proxy::Limits;
use http::{Method, StatusCode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const LONG_WAY: (&str, &str) = ("keep-alive", "timeout=5");

/// The requests that a backend was sent, with the number of the connection.
type Heads = Arc<parking_lot::Mutex<Vec<(usize, String)>>>;

/// A backend that answers with these bytes, by the path, and closes the connection after those that end with a stop.
fn backend(answer: fn(&str) -> (&'static str, bool)) -> (SocketAddr, Heads) {
    let socket = listener();
    let address = socket.local_addr().unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = TcpListener::from_std(socket).unwrap();
    let heads = Heads::default();
    let all = Arc::clone(&heads);
    tokio::spawn(async move {
        for number in 0.. {
            let (mut stream, _) = socket.accept().await.unwrap();
            let all = Arc::clone(&all);
            tokio::spawn(async move {
                loop {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    let mut request = String::from_utf8(head).unwrap();
                    let (bytes, closes) = answer(request.split(' ').nth(1).unwrap());
                    let lower = request.to_lowercase();
                    if let Some(length) = lower.lines().find_map(|l| l.strip_prefix("content-length: ")) {
                        let mut body = vec![0; length.parse().unwrap()];
                        if stream.read_exact(&mut body).await.is_err() {
                            request.push_str("half a body");
                        }
                        request.push_str(&String::from_utf8(body).unwrap());
                    }
                    all.lock().push((number, request));
                    if stream.write_all(bytes.as_bytes()).await.is_err() || closes {
                        return;
                    }
                }
            });
        }
    });
    (address, heads)
}

fn lab(address: SocketAddr) -> Lab {
    Lab::leading_to(address, Limits { upstream_timeout: Duration::from_secs(5), ..Limits::default() })
}

/// The answer, once the proxy is through with the request: the backend's connection waits for the next one then.
async fn raw(lab: &Lab, request: &str) -> String {
    let metrics = &lab.shared.metrics;
    let before = metrics.answers(2);
    let mut stream = TcpStream::connect(lab.http).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok") {
        let n = tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("no answer").unwrap();
        assert!(n > 0, "it broke off: {}", String::from_utf8_lossy(&answer));
    }
    let through = async {
        while metrics.answers(2) == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, through).await.expect("the proxy is not through with it");
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_sees_the_same_by_both_ways() {
    let (address, heads) = backend(|_| ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false));
    let lab = lab(address);
    for head in [
        "GET / HTTP/1.1\r\nHost: h.localhost\r\n",
        "GET /a/%2f/b?c=d&e HTTP/1.1\r\nHOST: h.localhost:80\r\nUser-Agent: x\r\nx-Many: 1\r\nX-many: 2\r\n",
        "DELETE /a HTTP/1.1\r\nHost: h.localhost\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=x\r\nProxy: http://x\r\n",
        "GET / HTTP/1.1\r\nAccept: */*\r\nHost: h.localhost\r\nConnection: Keep-Alive\r\nCookie: a=1; b=2\r\n",
        "GET / HTTP/1.1\r\nHost: h.localhost\r\nConnection: close\r\n",
        "OPTIONS /a HTTP/1.1\r\nHost: H.localhost\r\nX-Odd: \u{e9}\r\n",
        "POST / HTTP/1.1\r\nHost: h.localhost\r\nContent-Length: 0\r\n",
        "POST / HTTP/1.1\r\nHost: h.localhost\r\nContent-Length: 9\r\nContent-Type: text/plain\r\n",
        "PATCH /a?b HTTP/1.1\r\nContent-Length: 65536\r\nHost: h.localhost\r\n",
        "GET / HTTP/1.1\r\nHost: h.localhost\r\nContent-Length: 00020000\r\n",
        "X-OWN / HTTP/1.1\r\nHost: h.localhost\r\nContent-Length: 1\r\n",
    ] {
        let length = head.split("Content-Length: ").nth(1).and_then(|l| l.lines().next()?.parse().ok());
        let body: String = ('a'..='z').cycle().take(length.unwrap_or(0)).collect();
        let short = raw(&lab, &format!("{head}\r\n{body}")).await;
        let long = raw(&lab, &format!("{head}{}: {}\r\n\r\n{body}", LONG_WAY.0, LONG_WAY.1)).await;
        let without_date = |answer: &str| {
            answer.split("\r\n").filter(|l| !l.starts_with("Date:")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(without_date(&short), without_date(&long), "{head}");
        let sent = std::mem::take(&mut *heads.lock());
        assert_eq!(sent.len(), 2, "{head}");
        // Each way keeps connections of its own, and all requests use them.
        assert_eq!((sent[0].0, sent[1].0), (0, 1), "{head}");
        assert_eq!(sent[0].1, sent[1].1, "{head}");
        assert!(sent[0].1.ends_with(&format!("\r\n\r\n{body}")), "{head}");
    }
    // What is not quite usual goes the long way.
    for head in [
        "GET http://h.localhost/a HTTP/1.1\r\nHost: h.localhost\r\n",
        "GET / HTTP/1.1\r\nHost: h.localhost\r\nTE: trailers\r\n",
        "GET / HTTP/1.1\r\nHost: h.localhost\r\nConnection: x-own\r\nX-Own: 1\r\n",
        "GET / HTTP/1.1\r\nHost: h.localhost\r\nConnection: keep-alive, x-own\r\nX-Own: 1\r\n",
    ] {
        raw(&lab, &format!("{head}\r\n")).await;
        let sent = std::mem::take(&mut *heads.lock());
        assert_eq!(sent.iter().map(|s| s.0).collect::<Vec<_>>(), [1], "{head}");
        assert!(!sent[0].1.to_lowercase().contains("x-own"), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_come_as_a_whole_or_not_at_all() {
    let (address, heads) = backend(|_| ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false));
    let limits = Limits { client_timeout: Duration::from_secs(1), ..Limits::default() };
    let lab = Lab::leading_to(address, limits);
    // In parts, and with the next request behind it.
    let mut client = TcpStream::connect(lab.http).await.unwrap();
    for part in ["POST /1 HTTP/1.1\r\nHost: h.localhost\r\nContent-Length: 6\r\n\r\nab", "c", "def"] {
        client.write_all(part.as_bytes()).await.unwrap();
        if part != "def" {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(heads.lock().len(), 0, "not before all of it is here");
        }
    }
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok") {
        assert!(client.read_buf(&mut answer).await.unwrap() > 0);
    }
    assert!(heads.lock()[0].1.ends_with("\r\n\r\nabcdef"));
    // The client says no more: it is told so, and nobody else.
    client.write_all(b"PUT /2 HTTP/1.1\r\nHost: h.localhost\r\nContent-Length: 6\r\n\r\nab").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let mut client = TcpStream::connect(lab.http).await.unwrap();
    client.write_all(b"PUT /3 HTTP/1.1\r\nHost: h.localhost\r\nContent-Length: 6\r\n\r\nab").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(!answer.contains(" 200 "), "{answer}");
    assert_eq!(heads.lock().len(), 1);
    // What is too large for it goes on as it comes, by the other way.
    let large = "x".repeat(100_000);
    let head = format!("POST /4 HTTP/1.1\r\nHost: h.localhost\r\nContent-Length: {}\r\n\r\n", large.len());
    raw(&lab, &format!("{head}{large}")).await;
    let sent = heads.lock().clone();
    assert_eq!(sent.iter().map(|s| s.0).collect::<Vec<_>>(), [0, 1]);
    assert!(sent[1].1.ends_with(&large));
    let url = format!("http://{}/5", lab.http);
    let (ok, out) = curl(&["--http2-prior-knowledge", "-H", "Host: h.localhost", "-d", "body", &url]).await;
    assert!(ok && out.ends_with("ok"), "{out}");
    let sent = heads.lock().clone();
    assert!(sent[2].0 == 0 && sent[2].1.ends_with("\r\n\r\nbody"), "{:?}", sent[2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_sees_the_same_by_both_ways() {
    let (address, heads) = backend(|path| match path {
        "/length" => ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false),
        "/chunked" => ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", false),
        "/until-closed" => ("HTTP/1.1 200 OK\r\n\r\nhello", true),
        "/old" => ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", true),
        "/none" => ("HTTP/1.1 204 No Content\r\n\r\n", false),
        "/same" => ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false),
        "/hints" => {
            ("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false)
        }
        "/too-much" => ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhello", false),
        "/too-little" => ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", true),
        "/broken-chunk" => ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\nz\r\n", true),
        "/unasked" => ("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", true),
        "/twice" => ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", true),
        "/nonsense" => ("220 mail.example ESMTP\r\n", true),
        _ => ("", true),
    });
    let lab = lab(address);
    let mut wrong = Vec::new();
    for (method, path) in [
        (Method::GET, "/length"),
        (Method::HEAD, "/same"),
        (Method::GET, "/chunked"),
        (Method::GET, "/until-closed"),
        (Method::GET, "/old"),
        (Method::GET, "/none"),
        (Method::GET, "/same"),
        (Method::GET, "/hints"),
        (Method::GET, "/too-much"),
        (Method::GET, "/too-little"),
        (Method::GET, "/broken-chunk"),
        (Method::GET, "/unasked"),
        (Method::GET, "/twice"),
        (Method::GET, "/nonsense"),
        (Method::GET, "/nothing"),
    ] {
        let mut said = Vec::new();
        for headers in [&[][..], &[LONG_WAY]] {
            let mut client = Client::connect(lab.http).await;
            let answer = client.send(method.clone(), "h.localhost", path, headers, Bytes::new()).await;
            let reused = client.get("h.localhost", "/length").await.is_ok();
            // How a client words it that something broke off depends on the moment.
            said.push((answer.map_err(|e| e.split(':').next().map(str::to_owned)), reused));
        }
        if said[0] != said[1] {
            wrong.push(format!("{method} {path}: {:?} by the short way, {:?} by the long one", said[0], said[1]));
        }
        let whole = matches!(path, "/length" | "/chunked" | "/until-closed" | "/old");
        let body = said[0].0.as_ref().map(|a| String::from_utf8_lossy(&a.1).into_owned()).unwrap_or_default();
        assert_eq!(body == "hello", whole, "{path}: {body}");
        if path == "/unasked" {
            assert!(said[0].0.as_ref().is_ok_and(|a| a.0 == StatusCode::BAD_GATEWAY), "{said:?}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(!heads.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_takes_its_request_with_it() {
    let waiting = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let lab = lab(waiting.local_addr().unwrap());
    let mut client = TcpStream::connect(lab.http).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: h.localhost\r\n\r\n").await.unwrap();
    let (mut stream, _) = waiting.accept().await.unwrap();
    let mut head = [0; 1024];
    assert!(stream.read(&mut head).await.unwrap() > 0);
    drop(client);
    let end = tokio::time::timeout(Duration::from_secs(4), stream.read(&mut head)).await;
    assert_eq!(end.expect("the backend still works for nobody").unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_a_backend_has_closed_cost_no_request() {
    let (address, heads) = backend(|_| ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", true));
    let lab = lab(address);
    let mut client = Client::connect(lab.http).await;
    for _ in 0..100 {
        let (status, body) = client.get("h.localhost", "/").await.unwrap();
        assert_eq!((status.as_u16(), &*body), (200, "hello"));
    }
    assert!(heads.lock().len() >= 100);
}

/// HTTP/2 clients may send cookies one by one, HTTP/1.1 backends expect one header (RFC 9113 section 8.2.3).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cookies_of_http2_are_joined() {
    let a = Backend::start("a");
    let lab = Lab::leading_to(a.address, Limits::default());
    let url = format!("http://{}/x", lab.http);
    for (host, more, want) in [
        ("h.localhost", &[][..], "a=1; b=2; c=3"),
        ("h.localhost", &["-d", "body"], "a=1; b=2; c=3"),
        // HTTP/2 on both sides: as they came, of which this backend tells the last.
        ("h2c.localhost", &[], "c=3"),
    ] {
        let host = format!("Host: {host}");
        let mut arguments = vec!["--http2-prior-knowledge", "-H", &host];
        arguments.extend(["-H", "Cookie: a=1; b=2", "-H", "Cookie: c=3", &url]);
        arguments.extend(more);
        let (ok, out) = curl(&arguments).await;
        assert!(ok, "{out}");
        assert_eq!(said(&out)["headers"]["cookie"], want, "{arguments:?}");
    }
}
