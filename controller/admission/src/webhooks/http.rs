//! Calls webhooks over HTTP/1.1 and TLS, one connection for each call. Redirects are not followed: what they would
//! reach, nobody has configured.

use super::MAX_RESPONSE;
use super::call::{CallError, Caller, Place, Target};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// TLS configurations kept, one for each bundle of authorities.
const MAX_CONFIGURATIONS: usize = 64;
/// Addresses of one host that are tried.
const MAX_ADDRESSES: usize = 4;

/// The network that webhooks are in.
#[async_trait]
pub trait Network: Send + Sync {
    /// The addresses at which a service's port is reached, ready endpoints or the cluster IP.
    async fn resolve(&self, namespace: &str, name: &str, port: u16) -> Result<Vec<SocketAddr>, String>;

    /// The addresses of a host of a URL.
    async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }

    /// Connects to one of them.
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream>;
}

/// A bundle of authorities, and the configuration that trusts them.
type Known = (Arc<[u8]>, Arc<ClientConfig>);

/// The real [`Caller`].
pub struct HttpCaller {
    network: Arc<dyn Network>,
    system: Arc<ClientConfig>,
    configurations: Mutex<Vec<Known>>,
}

fn configuration(roots: RootCertStore) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder.map_err(|e| e.to_string())?.with_root_certificates(Arc::new(roots)).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl HttpCaller {
    /// With a network, and with the authorities that are trusted where a webhook names none.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(network: Arc<dyn Network>, system: RootCertStore) -> Result<Self, String> {
        Ok(Self { network, system: configuration(system)?, configurations: Mutex::new(Vec::new()) })
    }

    fn tls(&self, bundle: &Arc<[u8]>) -> Result<Arc<ClientConfig>, CallError> {
        if bundle.is_empty() {
            return Ok(Arc::clone(&self.system));
        }
        let mut known = self.configurations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, config)) = known.iter().find(|(b, _)| b == bundle) {
            return Ok(Arc::clone(config));
        }
        let failed = |why: String| CallError::Connection(format!("unable to load root certificates: {why}"));
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle) {
            let certificate = certificate.map_err(|e| failed(e.to_string()))?;
            roots.add(certificate).map_err(|e| failed(e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(failed("no certificate in caBundle".to_owned()));
        }
        let config = configuration(roots).map_err(failed)?;
        if known.len() >= MAX_CONFIGURATIONS {
            known.remove(0);
        }
        known.push((Arc::clone(bundle), Arc::clone(&config)));
        Ok(config)
    }

    async fn connect(&self, target: &Target, host: &str, port: u16) -> Result<TcpStream, CallError> {
        let addresses = match &target.place {
            Place::Service { namespace, name, port, .. } => self.network.resolve(namespace, name, *port).await,
            Place::Url(_) => self.network.lookup(host, port).await.map_err(|e| format!("lookup {host}: {e}")),
        };
        let addresses = addresses.map_err(CallError::Connection)?;
        let mut last = format!("no address for {host}");
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            match self.network.dial(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = format!("dial tcp {address}: {error}"),
            }
        }
        Err(CallError::Connection(last))
    }

    async fn exchange(&self, target: &Target, body: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        let (host, port, path) = target.address(timeout);
        let connection = |e: &dyn std::fmt::Display| CallError::Connection(e.to_string());
        let tls = TlsConnector::from(self.tls(&target.ca_bundle)?);
        let name = ServerName::try_from(host.clone()).map_err(|e| connection(&e))?;
        let tcp = self.connect(target, &host, port).await?;
        let _ = tcp.set_nodelay(true);
        let stream = tls.connect(name, tcp).await.map_err(|e| connection(&format_args!("tls: {e}")))?;
        let mut builder = hyper::client::conn::http1::Builder::new();
        builder.max_headers(100).max_buf_size(64 << 10);
        let (mut sender, driver) = builder.handshake(TokioIo::new(stream)).await.map_err(|e| connection(&e))?;
        // The guard ends the connection when the call is over, however it ends.
        let _driver = Guard(tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "connection to a webhook ended");
            }
        }));
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host };
        let request = Request::post(path)
            .header(header::HOST, format!("{bracketed}:{port}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(Full::new(body))
            .map_err(|e| connection(&e))?;
        let response = sender.send_request(request).await.map_err(|e| connection(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await;
        let body = body.map_err(|e| match e.downcast_ref::<LengthLimitError>() {
            Some(_) => CallError::TooLong(MAX_RESPONSE),
            None => CallError::Connection(e.to_string()),
        })?;
        let body = body.to_bytes();
        if status.is_success() { Ok(body) } else { Err(CallError::Status(said(status, &body))) }
    }
}

/// Ends a task with its owner.
struct Guard(tokio::task::JoinHandle<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What an answer other than success means, as the client library of Kubernetes words it.
fn said(status: StatusCode, body: &[u8]) -> String {
    let text: String =
        String::from_utf8_lossy(&body[..body.len().min(512)]).chars().filter(|c| !c.is_control()).collect();
    match status.as_u16() {
        404 => "the server could not find the requested resource".to_owned(),
        300..=399 => format!("the server answered with a redirect ({status}), which is not followed"),
        500..=599 => format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        _ => format!("the server rejected our request for an unknown reason ({status})"),
    }
}

#[async_trait]
impl Caller for HttpCaller {
    async fn call(&self, target: &Target, body: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        let result = tokio::time::timeout(timeout, self.exchange(target, body, timeout)).await;
        let (host, port, path) = target.address(timeout);
        // As Go's client words it: what was done and where, then why it failed.
        match result.map_err(|_| CallError::Timeout).and_then(|r| r) {
            Err(CallError::Connection(why)) => {
                Err(CallError::Connection(format!("Post \"https://{host}:{port}{path}\": {why}")))
            }
            other => other,
        }
    }
}
