//! Requests that ask for another protocol, to backends that answer before they have read them: what Pingora hears first,
//! the answer or the request's end, must make no difference.

use crate::harness::*;
use causeway_proxy::Limits;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// So many that one lost in two cannot stay unseen.
const ROUNDS: usize = 40;

/// A backend's side: the answer, whatever is asked, and a pong.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"ping") {
        if stream.read_buf(&mut got).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let _ = stream.write_all(b"pong").await;
    let _ = stream.flush().await;
}

/// A header about the connection: with it a request takes Pingora's own way.
const LONG_WAY: &str = "Keep-Alive: timeout=5\r\n";

/// A client's side, again and again, with more headers.
async fn ask(proxy: SocketAddr, more: &str) {
    for round in 0..ROUNDS {
        let mut client = TcpStream::connect(proxy).await.unwrap();
        let request = "GET / HTTP/1.1\r\nHost: h.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
        client.write_all(format!("{request}{more}\r\n").as_bytes()).await.unwrap();
        let (answer, _) = read(&mut client, 0).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "round {round}: {answer}");
        client.write_all(b"ping").await.unwrap();
        let mut pong = [0; 4];
        client.read_exact(&mut pong).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(&pong, b"pong");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_may_be_answered_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let lab = Lab::leading_to(listener.local_addr().unwrap(), Limits::default());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    ask(lab.http, "").await;
    ask(lab.http, LONG_WAY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_too() {
    let made = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).unwrap();
    let acceptor = acceptor_with(&made, &[]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    answer(stream).await;
                }
            });
        }
    });
    let mut lab = Lab::start(Limits::default());
    let mut secure: Value = ingress("i", &[("h.localhost", "/", "Prefix", "a", 80)]);
    secure["metadata"]["annotations"] = json!({"causeway.dev/backend-protocol": "HTTPS"});
    lab.apply([service("a"), slice("a", address), secure]);
    ask(lab.http, "").await;
    // And on the backend's own terms.
    let mut lab = Lab::with_gateways(Limits::default());
    let listeners = json!([{"name": "http", "port": 80, "protocol": "HTTP"}]);
    let rules = json!([{"backendRefs": [{"name": "a", "port": 80}]}]);
    lab.apply([service("a"), slice("a", address), gateway("gw", listeners), route("r", rules)]);
    lab.apply(terms("a", "a.test", &made));
    let gateway = lab.socket("gw", 80).await;
    ask(gateway, "").await;
    ask(gateway, LONG_WAY).await;
}

/// A request for another protocol, but for its last line.
const HEAD: &str = "GET /chat HTTP/1.1\r\nHost: h.localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\n";

/// What a client reads until it has `bytes` behind the head, or all of it.
async fn read(client: &mut (impl AsyncRead + Unpin), bytes: usize) -> (String, Vec<u8>) {
    let mut got = Vec::new();
    loop {
        let head = got.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
        if let Some(head) = head.filter(|head| got.len() >= head + bytes) {
            let body = got.split_off(head);
            return (String::from_utf8(got).unwrap(), body);
        }
        let n = tokio::time::timeout(PATIENCE, client.read_buf(&mut got)).await.expect("nothing came").unwrap();
        assert_ne!(n, 0, "it broke off: {}", got.escape_ascii());
    }
}

/// A proxy in front of a backend that answers every connection's head with `answer`; these connections with their heads.
async fn answering(answer: &'static str, limits: Limits) -> (Lab, tokio::sync::mpsc::Receiver<(String, TcpStream)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let lab = Lab::leading_to(listener.local_addr().unwrap(), limits);
    let (tell, told) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (head, _) = read(&mut stream, 0).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            tell.send((head, stream)).await.unwrap();
        }
    });
    (lab, told)
}

const AGREED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Own: 1\r\n\r\nfirst";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_way_both_sides_see_the_same() {
    let (lab, mut told) = answering(AGREED, Limits::default()).await;
    let mut seen = Vec::new();
    for more in ["", LONG_WAY] {
        let mut client = TcpStream::connect(lab.http).await.unwrap();
        client.write_all(format!("{HEAD}{more}\r\n").as_bytes()).await.unwrap();
        let (answer, first) = read(&mut client, 5).await;
        assert_eq!(first, b"first");
        let (asked, _backend) = told.recv().await.unwrap();
        // Their order may differ.
        let mut asked: Vec<_> = asked.lines().map(str::to_lowercase).collect();
        asked.sort();
        seen.push((asked, answer));
    }
    assert_eq!(seen[0], seen[1]);
    assert!(seen[0].0.contains(&"connection: upgrade".to_owned()), "{:?}", seen[0].0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_side_may_say_much_and_end_on_its_own() {
    let (lab, mut told) = answering(AGREED, Limits::default()).await;
    let mut client = TcpStream::connect(lab.http).await.unwrap();
    client.write_all(format!("{HEAD}\r\n").as_bytes()).await.unwrap();
    read(&mut client, 5).await;
    let (_, backend) = told.recv().await.unwrap();
    let (mut from_client, mut to_client) = backend.into_split();
    let (mut from_backend, mut to_backend) = client.into_split();
    assert_eq!(lab.shared.metrics.answers(1), 0);
    let much: Vec<u8> = (0..5_000_000).map(|i| (i % 251) as u8).collect();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let both = async {
        tokio::join!(
            async {
                to_backend.write_all(&much).await.unwrap();
                to_backend.shutdown().await.unwrap();
            },
            async {
                from_client.read_to_end(&mut up).await.unwrap();
                to_client.write_all(&much[1..]).await.unwrap();
                to_client.shutdown().await.unwrap();
            },
            from_backend.read_to_end(&mut down),
        )
    };
    let ((), (), read) = tokio::time::timeout(PATIENCE, both).await.expect("one side still waits");
    read.unwrap();
    assert!(up == much, "{} bytes", up.len());
    assert!(down == much[1..], "{} bytes", down.len());
    // Only now the request is over.
    until("it is counted", || lab.shared.metrics.answers(1) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_for_too_long_is_cut_off() {
    let limits = Limits { upgraded_timeout: std::time::Duration::from_millis(300), ..Limits::default() };
    let (lab, mut told) = answering(AGREED, limits).await;
    let mut client = TcpStream::connect(lab.http).await.unwrap();
    client.write_all(format!("{HEAD}\r\n").as_bytes()).await.unwrap();
    read(&mut client, 5).await;
    let (_, mut backend) = told.recv().await.unwrap();
    let mut rest = Vec::new();
    let ends = async { (client.read_buf(&mut rest).await.unwrap(), backend.read_u8().await.is_err()) };
    assert_eq!(tokio::time::timeout(PATIENCE, ends).await.expect("both wait forever"), (0, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_may_refuse_and_a_client_may_go() {
    let refusal = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
    let (lab, mut told) = answering(refusal, Limits::default()).await;
    let mut client = TcpStream::connect(lab.http).await.unwrap();
    for _ in 0..2 {
        // The connection is still one for HTTP.
        client.write_all(format!("{HEAD}\r\n").as_bytes()).await.unwrap();
        let (answer, body) = read(&mut client, 2).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && body == b"no", "{answer}");
        told.recv().await.unwrap();
    }
    let (lab, mut told) = answering("", Limits::default()).await;
    let mut client = TcpStream::connect(lab.http).await.unwrap();
    client.write_all(format!("{HEAD}\r\n").as_bytes()).await.unwrap();
    let (_, mut backend) = told.recv().await.unwrap();
    drop(client);
    let end = tokio::time::timeout(PATIENCE, backend.read_u8()).await.expect("nobody told the backend");
    assert!(end.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_backend_hears_of_a_change_to_http_2() {
    for (answer, status) in [("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "200"), (AGREED, "502")] {
        let (lab, mut told) = answering(answer, Limits::default()).await;
        for more in [
            "Connection: Upgrade\r\nUpgrade: h2c\r\n",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: websocket, H2C\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
            "Connection: keep-alive\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        ] {
            let mut client = TcpStream::connect(lab.http).await.unwrap();
            client.write_all(format!("GET / HTTP/1.1\r\nHost: h.localhost\r\n{more}\r\n").as_bytes()).await.unwrap();
            let (answer, _) = read(&mut client, 1).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{more}: {answer}");
            let (asked, _) = told.recv().await.unwrap();
            assert!(!asked.to_lowercase().contains("upgrade") && !asked.to_lowercase().contains("http2"), "{asked}");
        }
    }
}
