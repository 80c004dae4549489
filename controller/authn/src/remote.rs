//! Requests to issuers and webhooks: HTTPS (or HTTP where configured), one connection each, bounded in time and size.
//!
//! No redirects are followed and no proxies used: what is asked is what the configuration says.

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest head of an answer, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error("{0}")]
    Address(String),
    #[error("connecting: {0}")]
    Connect(String),
    #[error("no answer within {0:?}")]
    Slow(Duration),
    #[error("the answer has more than {0} bytes, or broke off")]
    Body(usize),
    #[error("asking: {0}")]
    Exchange(String),
}

/// Who is asked, and within what bounds.
#[derive(Clone)]
pub(crate) struct Client {
    tls: Arc<ClientConfig>,
    /// Another name than the address's for TLS.
    pub(crate) server_name: Option<String>,
    /// For everything: name look-up, connection, TLS, request, answer.
    pub(crate) timeout: Duration,
    /// Largest body of an answer, in bytes.
    pub(crate) max_body: usize,
}

/// A certificate and its key, in PEM.
pub(crate) struct Identity {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

/// The certificates in a PEM text; an error when there is none or one is bad, as Kubernetes words it.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("data does not contain any valid RSA or ECDSA certificates".to_owned()),
        Ok(found) => Ok(found),
        Err(e) => Err(format!("error parsing certificates: {e}")),
    }
}

/// Roots from a PEM text.
pub(crate) fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|e| format!("error parsing certificates: {e}"))?;
    }
    Ok(roots)
}

impl Client {
    /// With the roots in `ca` (PEM), or the system's.
    pub(crate) fn new(
        ca: Option<&[u8]>,
        identity: Option<&Identity>,
        timeout: Duration,
        max_body: usize,
    ) -> Result<Self, String> {
        let roots = match ca {
            Some(pem) => roots(pem)?,
            None => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                roots
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| e.to_string())?.with_root_certificates(roots);
        let tls = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(|e| format!("client key: {e}"))?;
                let chain = certificates(&identity.certificate)?;
                builder.with_client_auth_cert(chain, key).map_err(|e| format!("client certificate: {e}"))?
            }
        };
        Ok(Self { tls: Arc::new(tls), server_name: None, timeout, max_body })
    }

    /// One request. Its URI is absolute; `Host` is added.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, RemoteError> {
        tokio::time::timeout(self.timeout, self.exchange(request)).await.map_err(|_| RemoteError::Slow(self.timeout))?
    }

    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Bytes>, RemoteError> {
        let Address { host, port, secure, authority, path } = Address::of(request.uri())?;
        let authority =
            authority.parse().map_err(|_| RemoteError::Address("the host is no header value".to_owned()))?;
        request.headers_mut().insert(http::header::HOST, authority);
        *request.uri_mut() = path;
        let connect = |e: std::io::Error| RemoteError::Connect(e.to_string());
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(connect)?;
        if !secure {
            return self.over(stream, request).await;
        }
        let name = self.server_name.clone().unwrap_or(host);
        let name = ServerName::try_from(name).map_err(|e| RemoteError::Address(e.to_string()))?;
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await.map_err(connect)?;
        self.over(stream, request).await
    }

    async fn over<S>(&self, stream: S, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, RemoteError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let asking = |e: hyper::Error| RemoteError::Exchange(e.to_string());
        let mut builder = http1::Builder::new();
        let (mut sender, connection) =
            builder.max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await.map_err(asking)?;
        let exchange = async {
            let (head, body) = sender.send_request(request).await.map_err(asking)?.into_parts();
            let body = Limited::new(body, self.max_body).collect().await;
            let body = body.map_err(|_| RemoteError::Body(self.max_body))?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        // The connection has to be driven until the answer is complete.
        tokio::pin!(connection, exchange);
        let mut open = true;
        loop {
            tokio::select! {
                answer = &mut exchange => return answer,
                ended = &mut connection, if open => {
                    open = false;
                    if let Err(e) = ended {
                        return Err(asking(e));
                    }
                }
            }
        }
    }
}

/// Where a URI leads.
struct Address {
    host: String,
    port: u16,
    secure: bool,
    authority: String,
    path: Uri,
}

impl Address {
    fn of(uri: &Uri) -> Result<Self, RemoteError> {
        let bad = |why: &str| RemoteError::Address(format!("{uri}: {why}"));
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad("the scheme is neither https nor http")),
        };
        let authority = uri.authority().filter(|a| !a.as_str().contains('@')).ok_or_else(|| bad("no good host"))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            secure,
            authority: authority.as_str().to_owned(),
            path: path.parse().map_err(|_| bad("no good path"))?,
        })
    }
}
