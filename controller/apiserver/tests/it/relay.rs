//! The way to kubelets: a TLS peer that asks for the API server's certificate, speaks plain HTTP for logs and
//! WebSocket for exec.

use crate::support::{Running, start};
use causeway_api::identity::UserInfo;
use causeway_apiserver::pki::user_of_certificate;
use futures::{SinkExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, AttachParams, LogParams, PostParams};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Serves one connection after the other; returns its port and what it was asked.
async fn kubelet(running: &Running) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let pki = running.api.pki();
    let issued = pki.issue_server("kubelet-n1", &["127.0.0.1".to_owned()]).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, seen) = tokio::sync::mpsc::unbounded_channel();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = acceptor.accept(stream).await else { continue };
            let who = user_of_certificate(&tls.get_ref().1.peer_certificates().unwrap()[0]).unwrap().username;
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut start = [0u8; 15];
                tls.read_exact(&mut start).await.unwrap();
                if start.starts_with(b"GET /containerL") {
                    let mut rest = vec![0u8; 4096];
                    let n = tls.read(&mut rest).await.unwrap();
                    let head = String::from_utf8_lossy(&rest[..n]).into_owned();
                    asked.send(format!("{who} /containerL{}", head.split(' ').next().unwrap())).unwrap();
                    let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 6\r\n\r\nhello\n";
                    tls.write_all(answer.as_bytes()).await.unwrap();
                    return;
                }
                let whole = tokio_util::io::StreamReader::new(futures::stream::iter([Ok::<_, std::io::Error>(
                    bytes::Bytes::copy_from_slice(&start),
                )]));
                let (reader, writer) = tokio::io::split(tls);
                let stream = tokio::io::join(whole.chain(reader), writer);
                #[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
                let check = |request: &Request, mut response: Response| {
                    asked.send(format!("{who} {}", request.uri())).unwrap();
                    let protocol = "v5.channel.k8s.io".parse().unwrap();
                    response.headers_mut().insert("sec-websocket-protocol", protocol);
                    Ok(response)
                };
                let mut socket = tokio_tungstenite::accept_hdr_async(stream, check).await.unwrap();
                socket.send(Message::binary(b"\x01output".to_vec())).await.unwrap();
                // What comes on channel 0 goes back on channel 1.
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_binary() && message.into_data().starts_with(b"\x00in") {
                        let status = json!({ "metadata": {}, "status": "Success" }).to_string();
                        socket.send(Message::binary(b"\x01echo".to_vec())).await.unwrap();
                        socket.send(Message::binary([b"\x03".as_slice(), status.as_bytes()].concat())).await.unwrap();
                        socket.close(None).await.ok();
                        return;
                    }
                }
            });
        }
    });
    (port, seen)
}

async fn pod_on_node(running: &Running, port: u16) -> Api<Pod> {
    let nodes: Api<Node> = Api::all(running.admin());
    nodes.create(&PostParams::default(), &object(json!({ "metadata": { "name": "n1" } }))).await.unwrap();
    let status = kube::api::Patch::Merge(json!({ "status": {
        "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
    } }));
    nodes.patch_status("n1", &Default::default(), &status).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(running.over_tls(&UserInfo::admin()).await, "default");
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n1", "containers": [
        { "name": "one", "image": "i" }, { "name": "two", "image": "i" },
    ] } });
    pods.create(&PostParams::default(), &object(pod)).await.unwrap();
    pods
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_streams_pass_through() {
    let running = start().await;
    let (port, mut asked) = kubelet(&running).await;
    let pods = pod_on_node(&running, port).await;
    let which = pods.logs("p", &LogParams::default()).await.unwrap_err();
    assert!(which.to_string().contains("choose one of: [one two]"), "{which}");
    let params = LogParams { container: Some("two".to_owned()), tail_lines: Some(5), ..LogParams::default() };
    assert_eq!(pods.logs("p", &params).await.unwrap(), "hello\n");
    assert_eq!(asked.recv().await.unwrap(), "system:apiserver /containerLogs/default/p/two?tailLines=5");

    let params = AttachParams::default().container("one").stdin(true).stderr(false);
    let mut process = pods.exec("p", ["echo", "a b"], &params).await.unwrap();
    let asked = asked.recv().await.unwrap();
    assert_eq!(asked, "system:apiserver /exec/default/p/one?command=echo&command=a+b&input=1&output=1");
    let mut stdin = process.stdin().unwrap();
    stdin.write_all(b"in").await.unwrap();
    stdin.flush().await.unwrap();
    let mut out = process.stdout().unwrap();
    let mut text = String::new();
    let mut buffer = [0u8; 64];
    while text != "outputecho" {
        let n = tokio::time::timeout(Duration::from_secs(10), out.read(&mut buffer)).await.unwrap().unwrap();
        assert!(n > 0, "ended early: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    let status = process.take_status().unwrap().await.unwrap();
    assert_eq!(status.status.as_deref(), Some("Success"));
}
