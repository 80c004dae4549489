//! How a webhook is reached: its address and how a call may fail. The real way is [`super::HttpCaller`].

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Where a webhook is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// An `https` address.
    Url(http::Uri),
    /// A service of the cluster; its certificate is for `name.namespace.svc`.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its port.
        port: u16,
        /// What is asked for there; begins with `/`.
        path: String,
    },
}

/// A webhook's address and whom to trust there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where it is.
    pub place: Place,
    /// Certificates in PEM of the authorities that are trusted; those of the system when empty.
    pub ca_bundle: Arc<[u8]>,
}

impl Target {
    /// Reads a `clientConfig`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn read(config: &Value) -> Result<Self, String> {
        let bundle = config["caBundle"].as_str().unwrap_or("");
        let ca_bundle = STANDARD.decode(bundle).map_err(|e| format!("caBundle is not base64: {e}"))?.into();
        let service = &config["service"];
        let place = match (config["url"].as_str(), service.is_object()) {
            (Some(url), false) => {
                let uri: http::Uri = url.parse().map_err(|e| format!("url: {e}"))?;
                if uri.scheme_str() != Some("https") || uri.host().is_none() {
                    return Err("url must use scheme https and name a host".to_owned());
                }
                Place::Url(uri)
            }
            (None, true) => {
                let text = |key: &str| service[key].as_str().unwrap_or("").to_owned();
                let port = service["port"].as_u64().unwrap_or(443);
                let port = u16::try_from(port).ok().filter(|p| *p != 0).ok_or("service.port is not valid")?;
                let path = match text("path") {
                    path if path.starts_with('/') => path,
                    path => format!("/{path}"),
                };
                Place::Service { namespace: text("namespace"), name: text("name"), port, path }
            }
            _ => return Err("exactly one of url or service is required".to_owned()),
        };
        Ok(Self { place, ca_bundle })
    }

    /// The host, the port and what is asked for, with the time the webhook has as Kubernetes tells it.
    pub(crate) fn address(&self, timeout: Duration) -> (String, u16, String) {
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        match &self.place {
            Place::Url(uri) => {
                let path = uri.path();
                let query = uri.query().map(|q| format!("{q}&")).unwrap_or_default();
                let host = uri.host().unwrap_or("").trim_matches(['[', ']']).to_owned();
                (host, uri.port_u16().unwrap_or(443), format!("{path}?{query}timeout={seconds}s"))
            }
            Place::Service { namespace, name, port, path } => {
                (format!("{name}.{namespace}.svc"), *port, format!("{path}?timeout={seconds}s"))
            }
        }
    }
}

/// Why a webhook gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Not in time.
    #[error("context deadline exceeded")]
    Timeout,
    /// Not reached, not trusted, or it broke off.
    #[error("{0}")]
    Connection(String),
    /// It answered with another status than 200.
    #[error("{0}")]
    Status(String),
    /// It answered with too much.
    #[error("the response is longer than {0} bytes")]
    TooLong(usize),
}

/// Calls webhooks.
#[async_trait]
pub trait Caller: Send + Sync {
    /// Posts a question in JSON and reads the whole answer, at most [`super::MAX_RESPONSE`] bytes of it.
    async fn call(&self, target: &Target, body: Bytes, timeout: Duration) -> Result<Bytes, CallError>;
}
