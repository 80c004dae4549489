//! The real caller against a real server: TLS names, authorities, bounds, times, redirects.

use super::super::*;
use crate::webhooks::http::{HttpCaller, Network};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

struct Loopback(SocketAddr);

#[async_trait]
impl Network for Loopback {
    async fn resolve(&self, namespace: &str, name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        assert_eq!(port, 443);
        if (namespace, name) == ("hooks", "x") { Ok(vec![self.0]) } else { Err(format!("service {name:?} not found")) }
    }

    async fn lookup(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![self.0])
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }
}

/// A server whose answer to every connection is one of these bytes, after the whole request was read. Gives its address,
/// its authority's certificate, and the requests.
async fn server(name: &str, answer: Vec<u8>) -> (SocketAddr, String, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, answer, sender) = (acceptor.clone(), answer.clone(), sender.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                let mut read = vec![0; 64 << 10];
                let mut length = 0;
                while !read[..length].ends_with(b"question") {
                    match stream.read(&mut read[length..]).await {
                        Ok(0) | Err(_) => return,
                        Ok(n) => length += n,
                    }
                }
                sender.send(String::from_utf8_lossy(&read[..length]).into_owned()).unwrap();
                if answer.is_empty() {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (address, authority.pem(), receiver)
}

fn http(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
}

fn service(name: &str, authority: &str) -> Target {
    let config = json!({"caBundle": STANDARD.encode(authority), "service": {"namespace": "hooks", "name": name, "path": "/admit"}});
    Target::read(&config).unwrap()
}

async fn call(address: SocketAddr, target: &Target, timeout: Duration) -> Result<Bytes, CallError> {
    let caller = HttpCaller::new(Arc::new(Loopback(address)), rustls::RootCertStore::empty()).unwrap();
    caller.call(target, Bytes::from_static(b"question"), timeout).await
}

const LONG: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_service_is_called_by_its_name() {
    let (address, authority, mut requests) = server("x.hooks.svc", http("200 OK", "", "answer")).await;
    assert_eq!(call(address, &service("x", &authority), LONG).await, Ok(Bytes::from_static(b"answer")));
    let request = requests.recv().await.unwrap();
    assert!(request.starts_with("POST /admit?timeout=10s HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("host: x.hooks.svc:443\r\n") && request.contains("content-type: application/json\r\n"));
    let missing = call(address, &service("y", &authority), LONG).await.unwrap_err().to_string();
    assert_eq!(missing, "Post \"https://y.hooks.svc:443/admit?timeout=10s\": service \"y\" not found");
}

#[tokio::test]
async fn a_url_is_called() {
    let (address, authority, mut requests) = server("hook.example.com", http("200 OK", "", "answer")).await;
    let config = json!({"caBundle": STANDARD.encode(&authority), "url": "https://hook.example.com:8443/a?b=c"});
    let target = Target::read(&config).unwrap();
    assert_eq!(call(address, &target, LONG).await, Ok(Bytes::from_static(b"answer")));
    assert!(
        requests
            .recv()
            .await
            .unwrap()
            .starts_with("POST /a?b=c&timeout=10s HTTP/1.1\r\nhost: hook.example.com:8443\r\n")
    );
}

#[tokio::test]
async fn nobody_else_is_trusted() {
    let (address, authority, _requests) = server("other.hooks.svc", http("200 OK", "", "answer")).await;
    let wrong_name = call(address, &service("x", &authority), LONG).await.unwrap_err().to_string();
    assert!(wrong_name.contains("tls:"), "{wrong_name}");
    let (address, _, _requests) = server("x.hooks.svc", http("200 OK", "", "answer")).await;
    for target in [service("x", &authority), service("x", "")] {
        let error = call(address, &target, LONG).await.unwrap_err().to_string();
        assert!(error.contains("tls:"), "{error}");
    }
    let garbage = call(address, &service("x", "no certificate"), LONG).await.unwrap_err().to_string();
    assert!(garbage.contains("unable to load root certificates"), "{garbage}");
}

#[tokio::test]
async fn bad_answers_are_errors() {
    let long =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", MAX_RESPONSE + 1, "x".repeat(MAX_RESPONSE + 1));
    let table: [(Vec<u8>, &str); 6] = [
        (http("302 Found", "location: https://x.hooks.svc/other\r\n", ""), "redirect"),
        (http("404 Not Found", "", ""), "the server could not find the requested resource"),
        (
            http("500 Internal Server Error", "", "oops"),
            "an error on the server (\"oops\") has prevented the request from succeeding",
        ),
        (long.into_bytes(), "longer than"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".to_vec(), "Post "),
        (b"no http\r\n\r\n".to_vec(), "Post "),
    ];
    for (answer, wanted) in table {
        let (address, authority, mut requests) = server("x.hooks.svc", answer).await;
        let error = call(address, &service("x", &authority), LONG).await.unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
        requests.recv().await.unwrap();
        assert!(requests.try_recv().is_err(), "{wanted}: one request and no more");
    }
}

#[tokio::test]
async fn time_is_short() {
    let (address, authority, _requests) = server("x.hooks.svc", Vec::new()).await;
    let begun = std::time::Instant::now();
    let error = call(address, &service("x", &authority), Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error, CallError::Timeout);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn targets() {
    let table = [
        (json!({"url": "http://a.io"}), "url must use scheme https"),
        (json!({"url": "https:///x"}), "url"),
        (json!({}), "exactly one of url or service is required"),
        (json!({"url": "https://a.io", "service": {"name": "a", "namespace": "b"}}), "exactly one of"),
        (json!({"service": {"name": "a", "namespace": "b", "port": 70000}}), "service.port"),
        (json!({"url": "https://a.io", "caBundle": "%"}), "caBundle"),
    ];
    for (config, wanted) in table {
        let error = Target::read(&config).unwrap_err();
        assert!(error.contains(wanted), "{config}: {error}");
    }
}
