//! Clients that mean no good: slow heads, large heads, smuggling, HTTP/2 abuse.

use crate::harness::*;
use causeway_proxy::Limits;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn lab(limits: Limits) -> (Lab, Backend) {
    let a = Backend::start("a");
    (Lab::leading_to(a.address, limits), a)
}

async fn answer_to(lab: &Lab, request: &[u8]) -> String {
    let mut raw = TcpStream::connect(lab.http).await.unwrap();
    // The server may answer and close before all of it is written.
    let _ = raw.write_all(request).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, raw.read_to_end(&mut answer)).await.expect("no end");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_dribbles_is_cut_off() {
    let (lab, _a) = lab(Limits { head_timeout: Duration::from_millis(400), ..Limits::default() }).await;
    for first in ["GET / HTTP/1.1\r\nHost: h.localhost\r\n", "P"] {
        let mut raw = TcpStream::connect(lab.http).await.unwrap();
        raw.write_all(first.as_bytes()).await.unwrap();
        let start = Instant::now();
        let (mut reader, mut writer) = raw.into_split();
        let dribble = tokio::spawn(async move {
            // A byte every now and then keeps a time-out that starts anew with each byte from ever ending.
            while writer.write_all(b"a").await.is_ok() && start.elapsed() < PATIENCE {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let mut answer = String::new();
        let _ = tokio::time::timeout(PATIENCE, reader.read_to_string(&mut answer)).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
        dribble.abort();
    }
    // Silence from the start.
    let mut raw = TcpStream::connect(lab.http).await.unwrap();
    let mut byte = [0];
    let read = tokio::time::timeout(PATIENCE, raw.read(&mut byte)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
    // And in the middle of TLS.
    let mut raw = TcpStream::connect(lab.https).await.unwrap();
    raw.write_all(&[22, 3, 1]).await.unwrap();
    let read = tokio::time::timeout(PATIENCE, raw.read(&mut byte)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_closed() {
    let limits =
        Limits { idle_timeout: Duration::from_millis(900), head_timeout: Duration::from_secs(60), ..Limits::default() };
    let (lab, _a) = lab(limits).await;
    let mut raw = TcpStream::connect(lab.http).await.unwrap();
    raw.write_all(b"GET / HTTP/1.1\r\nHost: h.localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, raw.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    // With TLS too, and not before: another request comes after a while.
    let mut client = tokio::process::Command::new("openssl")
        .args(["s_client", "-quiet", "-servername", "h.localhost", "-connect", &lab.https.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut requests = client.stdin.take().unwrap();
    for _ in 0..3 {
        requests.write_all(b"GET / HTTP/1.1\r\nHost: h.localhost\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let mut answers = String::new();
    let mut reader = client.stdout.take().unwrap();
    tokio::time::timeout(PATIENCE, reader.read_to_string(&mut answers)).await.unwrap().unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_are_bounded() {
    let (lab, _a) = lab(Limits { max_head: 16 * 1024, ..Limits::default() }).await;
    let large = format!("GET / HTTP/1.1\r\nHost: h.localhost\r\nX-Large: {}\r\n\r\n", "x".repeat(40_000));
    assert!(answer_to(&lab, large.as_bytes()).await.starts_with("HTTP/1.1 431"));
    let fits =
        format!("GET / HTTP/1.1\r\nHost: h.localhost\r\nX-Large: {}\r\nConnection: close\r\n\r\n", "x".repeat(8_000));
    assert!(answer_to(&lab, fits.as_bytes()).await.starts_with("HTTP/1.1 200"));
    let many: String = (0..300).map(|i| format!("X-{i}: 1\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\nHost: h.localhost\r\n{many}\r\n");
    assert!(answer_to(&lab, many.as_bytes()).await.starts_with("HTTP/1.1 400"));
    // The limit is a request's, not the connection's.
    let mut client = Client::connect(lab.http).await;
    let value = "y".repeat(8_000);
    for _ in 0..20 {
        let headers = [("x-large", value.as_str())];
        let sent = client.send(http::Method::GET, "h.localhost", "/", &headers, bytes::Bytes::new()).await;
        assert_eq!(sent.unwrap().0, http::StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ambiguous_requests_are_refused() {
    let (lab, a) = lab(Limits::default()).await;
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h.localhost\r\nHost: other\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h.localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: h.localhost\r\nContent-Length: x\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: h.localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nHost: h.localhost\r\n\r\n",
        "GET http://h.localhost@evil/ HTTP/1.1\r\nHost: h.localhost\r\n\r\n",
        "CONNECT h.localhost:80 HTTP/1.1\r\nHost: h.localhost\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let answer = answer_to(&lab, request.as_bytes()).await;
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 5");
        assert!(refused, "{request:?}: {answer}");
    }
    assert_eq!(a.served.load(std::sync::atomic::Ordering::Relaxed), 0, "a backend saw one of them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_allowed_wait() {
    let (lab, _a) = lab(Limits { max_connections: 4, ..Limits::default() }).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(lab.http).await;
        client.get("h.localhost", "/").await.unwrap();
        held.push(client);
    }
    let mut waiting = Client::connect(lab.http).await;
    let answer = tokio::spawn(async move { waiting.get("h.localhost", "/").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    if answer.is_finished() {
        panic!("a fifth connection was served: {:?}", answer.await);
    }
    held.pop();
    assert_eq!(answer.await.unwrap().unwrap().0, http::StatusCode::OK);
}
