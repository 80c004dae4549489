//! One connection and the requests on it. In: a [`Plan`] and where to go. Out: status and size of an answer, or why there
//! is none. A connection that breaks is made anew with the next request.

use crate::plan::{Plan, Target};
use crate::stats::Failure;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What all connections share.
pub struct Shared {
    plan: Plan,
    target: Target,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    request: Request<()>,
    next: AtomicUsize,
}

/// The sending side of a connection.
#[derive(Clone)]
enum Sender {
    H1(Arc<tokio::sync::Mutex<http1::SendRequest<Full<Bytes>>>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

/// A connection, or the place for one; several requests may share it with HTTP/2.
pub struct Connection {
    shared: Arc<Shared>,
    sender: tokio::sync::Mutex<Option<Sender>>,
}

impl Shared {
    /// Prepares what every request has alike.
    pub fn new(plan: Plan, target: Target) -> Result<Self> {
        let tls = match &target.tls {
            None => None,
            Some(name) => {
                let name = ServerName::try_from(name.clone()).with_context(|| format!("{name} is no name for TLS"))?;
                Some((TlsConnector::from(Arc::new(tls_config(&plan)?)), name))
            }
        };
        let authority = plan.url.authority().context("the URL has no host")?.as_str();
        let uri = if plan.http2 {
            plan.url.clone()
        } else {
            Uri::from(plan.url.path_and_query().cloned().context("the URL has no path")?)
        };
        let mut request = Request::builder().method(plan.method.clone()).uri(uri).body(())?;
        let headers = request.headers_mut();
        if !plan.http2 {
            headers.insert(header::HOST, HeaderValue::from_str(authority)?);
        }
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("causeway-bench/", env!("CARGO_PKG_VERSION"))),
        );
        for (name, value) in &plan.headers {
            headers.insert(name.clone(), value.clone());
        }
        Ok(Self { plan, target, tls, request, next: AtomicUsize::new(0) })
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let (parts, ()) = self.request.clone().into_parts();
        Request::from_parts(parts, Full::new(self.plan.body.clone()))
    }

    async fn connect(&self) -> Result<Sender> {
        let all = &self.target.addresses;
        let address = all[self.next.fetch_add(1, Ordering::Relaxed) % all.len()];
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => self.handshake(stream).await,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await?;
                if self.plan.http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                    bail!("the server does not speak HTTP/2");
                }
                self.handshake(stream).await
            }
        }
    }

    async fn handshake(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Sender> {
        let io = TokioIo::new(stream);
        if self.plan.http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            return Ok(Sender::H2(sender));
        }
        let (sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(Sender::H1(Arc::new(tokio::sync::Mutex::new(sender))))
    }
}

impl Connection {
    /// Not made yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, sender: tokio::sync::Mutex::new(None) }
    }

    /// Makes it, so that the first request finds it; says why not.
    pub async fn open(&self) -> Result<()> {
        let mut sender = self.sender.lock().await;
        if sender.is_none() {
            *sender = Some(self.shared.connect().await?);
        }
        Ok(())
    }

    /// Sends a request and reads its answer to the end.
    pub async fn ask(&self) -> Result<(u16, u64), Failure> {
        let sender = {
            let mut place = self.sender.lock().await;
            match &*place {
                Some(sender) if !self.shared.plan.fresh => sender.clone(),
                _ => {
                    let made = self.shared.connect().await.map_err(|_| Failure::Connect)?;
                    *place = Some(made.clone());
                    made
                }
            }
        };
        let outcome = exchange(&sender, self.shared.request()).await;
        if !matches!(outcome, Ok((_, _, true))) {
            self.forget().await;
        }
        outcome.map(|(status, bytes, _)| (status, bytes)).map_err(|_| Failure::Broken)
    }

    /// Drops the connection, after a failure or a time-out: what comes on it later belongs to nobody.
    pub async fn forget(&self) {
        *self.sender.lock().await = None;
    }
}

/// Status, bytes of the body, and whether the connection can be used again.
async fn exchange(sender: &Sender, request: Request<Full<Bytes>>) -> hyper::Result<(u16, u64, bool)> {
    let (response, is_h2) = match sender {
        Sender::H1(sender) => {
            let mut sender = sender.lock().await;
            sender.ready().await?;
            (sender.send_request(request).await?, false)
        }
        Sender::H2(sender) => (sender.clone().send_request(request).await?, true),
    };
    let status = response.status().as_u16();
    let closes =
        response.headers().get(header::CONNECTION).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"close"));
    let mut body = response.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, |d| d.len() as u64);
    }
    Ok((status, bytes, is_h2 || !closes))
}

fn tls_config(plan: &Plan) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let mut config = if plan.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider))).with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        match &plan.ca {
            Some(path) => {
                let file = File::open(path).with_context(|| format!("reading --ca {}", path.display()))?;
                for certificate in rustls_pemfile::certs(&mut BufReader::new(file)) {
                    let certificate = certificate.with_context(|| format!("reading --ca {}", path.display()))?;
                    roots.add(certificate).with_context(|| format!("in --ca {}", path.display()))?;
                }
                if roots.is_empty() {
                    bail!("--ca {} has no certificate", path.display());
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    bail!("this machine has no certificate authorities; give --ca FILE, or --insecure");
                }
            }
        }
        builder.with_root_certificates(roots).with_no_client_auth()
    };
    config.alpn_protocols = vec![if plan.http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(config)
}

/// Believes every certificate: `--insecure`.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
