//! Settings of the ingress and of Gateways, with their documented defaults.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What can be set about them: `ingress` in the cluster's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressSettings {
    /// One line a request. Default off.
    pub access_log: AccessLog,
    /// Peers whose `X-Forwarded-*` headers are believed and extended instead of replaced, and whose PROXY protocol is
    /// read. Default none.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether trusted peers begin their connections with the PROXY protocol, version 1 or 2; then those that do not are
    /// closed. Default false.
    pub proxy_protocol: bool,
    /// Whether answers are compressed for clients that take it (gzip, brotli, zstd), where the backend has not done so
    /// and the type of the content gains by it. Default false: backends decide.
    pub compression: bool,
    /// Whether backends get the header `Forwarded` (RFC 7239) beside `X-Forwarded-*`. One that a trusted peer sent is
    /// extended in any case. Default false.
    pub forwarded_header: bool,
    /// Connections at a time; further ones wait. Default 16384.
    pub max_connections: usize,
    /// Bytes of a request's head; more gets 431. Default 65536.
    pub max_head_bytes: usize,
    /// Concurrent streams of one HTTP/2 connection. Default 128.
    pub max_http2_streams: u32,
    /// Seconds from the first byte of a request to the end of its head, and for a TLS handshake. Default 15.
    pub head_timeout_seconds: u32,
    /// Seconds that a connection may wait for the next request. Default 75.
    pub idle_timeout_seconds: u32,
    /// Seconds between two parts of a request's body, and for each write to a client. Default 60.
    pub client_timeout_seconds: u32,
    /// Seconds between two parts of a backend's answer, and for each write to it. Default 60.
    pub upstream_timeout_seconds: u32,
    /// Seconds that requests under way may take after shutdown was asked for. Default 10.
    pub drain_seconds: u32,
    /// The authority from which Ingresses and Gateways get certificates that ask for them. Default none.
    pub acme: Option<AcmeSettings>,
}

/// Certificates that come by themselves (RFC 8555).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AcmeSettings {
    /// The URL of the authority's directory, for example `https://acme-v02.api.letsencrypt.org/directory`.
    pub directory: String,
    /// Whom the authority may write to. Default nobody.
    #[serde(default)]
    pub email: Option<String>,
    /// How it is shown that a name is ours. Default `http-01`.
    #[serde(default)]
    pub challenge: AcmeChallenge,
    /// A file with the authority (PEM) that has signed the directory's own certificate. Default the well-known ones.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The authority's terms of service have been read and agreed to: must be `true`.
    #[serde(default)]
    pub terms_of_service_agreed: bool,
}

/// How it is shown that a name is ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AcmeChallenge {
    /// By a text at port 80.
    #[default]
    #[serde(rename = "http-01")]
    Http01,
    /// By a certificate at port 443 of the ingress (not of Gateways).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

/// How requests are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// Not at all.
    #[default]
    Off,
    /// As text for people.
    Text,
    /// As JSON, one object a line.
    Json,
}

impl AcmeSettings {
    fn check(&self) -> Result<(), String> {
        if !self.directory.starts_with("https://") {
            return Err(format!("ingress.acme.directory: {:?} is no URL that begins with https://", self.directory));
        }
        if !self.terms_of_service_agreed {
            return Err(
                "ingress.acme.termsOfServiceAgreed: read the authority's terms, then set this to true".to_owned()
            );
        }
        Ok(())
    }
}

impl Default for IngressSettings {
    fn default() -> Self {
        Self {
            access_log: AccessLog::Off,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            compression: false,
            forwarded_header: false,
            max_connections: 16384,
            max_head_bytes: 65536,
            max_http2_streams: 128,
            head_timeout_seconds: 15,
            idle_timeout_seconds: 75,
            client_timeout_seconds: 60,
            upstream_timeout_seconds: 60,
            drain_seconds: 10,
            acme: None,
        }
    }
}

impl IngressSettings {
    /// Whether the settings make sense; says which does not, and what it should be.
    pub fn check(&self) -> Result<(), String> {
        let counts = [
            ("maxConnections", self.max_connections),
            ("maxHeadBytes", self.max_head_bytes / 1024),
            ("maxHttp2Streams", self.max_http2_streams as usize),
            ("headTimeoutSeconds", self.head_timeout_seconds as usize),
            ("idleTimeoutSeconds", self.idle_timeout_seconds as usize),
            ("clientTimeoutSeconds", self.client_timeout_seconds as usize),
            ("upstreamTimeoutSeconds", self.upstream_timeout_seconds as usize),
        ];
        match counts.iter().find(|(_, value)| *value == 0) {
            Some((field, _)) => {
                Err(format!("ingress.{field}: give at least {}", if *field == "maxHeadBytes" { 1024 } else { 1 }))
            }
            None if self.proxy_protocol && self.trusted_proxies.is_empty() => {
                Err("ingress.proxyProtocol: say in ingress.trustedProxies whose word is taken".to_owned())
            }
            None => self.acme.as_ref().map_or(Ok(()), AcmeSettings::check),
        }
    }
}
