//! An HTTPS server of the tests: what it answers is a function, and what it was asked is counted.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// One answer.
#[derive(Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
    pub delay: Duration,
    pub retry_after: Option<u32>,
}

impl Answer {
    pub fn json(value: &serde_json::Value) -> Self {
        Self::of(StatusCode::OK, value.to_string())
    }

    pub fn of(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { status, body: body.into(), delay: Duration::ZERO, retry_after: None }
    }
}

/// What was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    pub authorization: Option<String>,
    pub body: Bytes,
}

pub struct Server {
    pub url: String,
    pub ca_pem: String,
    pub asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    pub async fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let (ca_pem, tls) = tls();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer, acceptor) = (Arc::clone(&asked), Arc::new(answer), TlsAcceptor::from(Arc::new(tls)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer, acceptor) = (Arc::clone(&log), Arc::clone(&answer), acceptor.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| serve(request, Arc::clone(&log), Arc::clone(&answer)));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { url, ca_pem, asked }
    }

    pub fn count(&self, path: &str) -> usize {
        self.asked.lock().iter().filter(|asked| asked.path == path).count()
    }
}

async fn serve<F: Fn(&Asked) -> Answer>(
    request: Request<Incoming>,
    log: Arc<Mutex<Vec<Asked>>>,
    answer: Arc<F>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let authorization = request.headers().get("authorization").map(|v| v.to_str().unwrap().to_owned());
    let path = request.uri().path().to_owned();
    let asked = Asked { path, authorization, body: request.into_body().collect().await.unwrap().to_bytes() };
    log.lock().push(asked.clone());
    let answer = answer(&asked);
    tokio::time::sleep(answer.delay).await;
    let mut response = Response::builder().status(answer.status);
    if let Some(seconds) = answer.retry_after {
        response = response.header("retry-after", seconds);
    }
    Ok(response.body(Full::new(answer.body)).unwrap())
}

fn tls() -> (String, ServerConfig) {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = ca.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(ca, key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    (pem, builder.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key).unwrap())
}
