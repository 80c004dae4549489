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

/// A client's side, again and again.
async fn ask(proxy: SocketAddr) {
    for round in 0..ROUNDS {
        let mut client = TcpStream::connect(proxy).await.unwrap();
        let request = "GET / HTTP/1.1\r\nHost: h.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        client.write_all(request.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\n") {
            assert_ne!(client.read_buf(&mut got).await.unwrap(), 0, "round {round}: no answer");
        }
        assert!(got.starts_with(b"HTTP/1.1 101 "), "round {round}: {}", got.escape_ascii());
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
    ask(lab.http).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_too() {
    let acceptor = acceptor(&[]);
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
    ask(lab.http).await;
}
