//! Where the webhook is and how we show who we are. In: a kubeconfig file. Out: a [`Webhook`].
//!
//! Of a kubeconfig that is taken: `server` (https; http to this machine alone), `certificate-authority`,
//! `tls-server-name`, `client-certificate` with `client-key`, `token`, `tokenFile`; certificates and keys in files or
//! as data. Whatever else changes how a client connects is refused, not ignored.

use base64::Engine;
use http::Uri;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde_yaml_ng::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest kubeconfig, certificate, key or token file that is read, in bytes.
const MAX_FILE: usize = 1 << 20;

/// Why a kubeconfig is refused.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// A file is not readable.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Too large, no YAML, a field is missing or has a value it cannot have.
    #[error("{0}")]
    Invalid(String),
    /// A field that would change how we connect, and that we do not have.
    #[error("{0:?} is not supported for the audit webhook")]
    NotSupported(String),
}

/// A webhook: its address, its authority, and our credentials.
#[derive(Clone)]
pub struct Webhook {
    pub(super) host: String,
    pub(super) port: u16,
    /// `host:port` as it stands in the server's URL.
    pub(super) authority: String,
    pub(super) path: String,
    /// `None`: without TLS.
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(super) token: Token,
}

/// A bearer token; files are read anew for each connection, since they are renewed.
#[derive(Clone)]
pub(super) enum Token {
    None,
    Fixed(String),
    File(PathBuf),
}

#[derive(Deserialize)]
struct Kubeconfig {
    #[serde(rename = "current-context", default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<Named>,
    #[serde(default)]
    clusters: Vec<Named>,
    #[serde(default)]
    users: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// The fields of one entry, of which each is taken once; what is left at the end is refused.
struct Fields(BTreeMap<String, Value>);

impl Webhook {
    /// Reads a kubeconfig file of at most 1 MiB; files it names are looked for beside it.
    ///
    /// # Errors
    /// When it, or a file it names, is not readable or not valid, or asks for what is not supported.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, KubeconfigError> {
        let bytes = read(path)?;
        let config: Kubeconfig =
            serde_yaml_ng::from_slice(&bytes).map_err(|e| invalid(format!("{}: {e}", path.display())))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut context = match config.current_context.as_str() {
            "" if config.contexts.len() <= 1 && config.clusters.len() == 1 && config.users.len() <= 1 => None,
            "" => return Err(invalid("current-context is not set")),
            name => Some(entry(config.contexts, "context", name)?),
        };
        let mut named = |field: &str| match &mut context {
            Some(context) => context.text(field),
            None => Ok(None),
        };
        let (cluster, user) = (named("cluster")?, named("user")?);
        let single = |list: &[Named]| list.first().map(|n| n.name.clone());
        let cluster = cluster.or_else(|| single(&config.clusters)).ok_or_else(|| invalid("no cluster"))?;
        let user = match context {
            Some(_) => user,
            None => single(&config.users),
        };
        let mut cluster = entry(config.clusters, "cluster", &cluster)?;
        let mut user = match user {
            Some(name) if !name.is_empty() => entry(config.users, "user", &name)?,
            _ => Fields(BTreeMap::new()),
        };
        let webhook = Self::of(&mut cluster, &mut user, folder)?;
        cluster.nothing_left(&["extensions", "disable-compression", "insecure-skip-tls-verify"])?;
        user.nothing_left(&["extensions"])?;
        Ok(webhook)
    }

    fn of(cluster: &mut Fields, user: &mut Fields, folder: &Path) -> Result<Self, KubeconfigError> {
        if cluster.0.get("insecure-skip-tls-verify").is_some_and(|v| v != &Value::Bool(false)) {
            return Err(KubeconfigError::NotSupported("insecure-skip-tls-verify".to_owned()));
        }
        let server = cluster.text("server")?.ok_or_else(|| invalid("the cluster has no server"))?;
        let uri: Uri = server.parse().map_err(|e| invalid(format!("server {server:?}: {e}")))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let (ca, name) = (cluster.pem("certificate-authority", folder)?, cluster.text("tls-server-name")?);
        let (cert, key) = (user.pem("client-certificate", folder)?, user.pem("client-key", folder)?);
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if is_local(&host) => false,
            Some("http") => return Err(invalid(format!("server {server:?}: http is for this machine alone"))),
            _ => return Err(invalid(format!("server {server:?}: not an https URL"))),
        };
        if host.is_empty() || uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err(invalid(format!("server {server:?}: names no host, or a user")));
        }
        let tls = match https {
            true => Some((Arc::new(tls(ca, cert, key)?), server_name(name.as_deref().unwrap_or(&host))?)),
            false if ca.is_some() || cert.is_some() || key.is_some() || name.is_some() => {
                return Err(invalid("certificates need an https server"));
            }
            false => None,
        };
        let token = match (user.text("token")?, user.text("tokenFile")?) {
            // As upstream: the file, where both are there.
            (_, Some(file)) if !file.is_empty() => Token::File(folder.join(file)),
            (Some(token), _) if !token.is_empty() => Token::Fixed(token),
            _ => Token::None,
        };
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        Ok(Self { host, port, authority, path, tls, token })
    }
}

impl Token {
    /// The token as it is now.
    pub(super) fn now(&self) -> Result<Option<String>, KubeconfigError> {
        match self {
            Self::None => Ok(None),
            Self::Fixed(token) => Ok(Some(token.clone())),
            Self::File(path) => {
                let bytes = read(path)?;
                let text = std::str::from_utf8(&bytes).map_err(|_| invalid(format!("{}: no text", path.display())))?;
                Ok(Some(text.trim().to_owned()))
            }
        }
    }
}

impl Fields {
    fn text(&mut self, field: &str) -> Result<Option<String>, KubeconfigError> {
        match self.0.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(format!("{field} is not a text"))),
        }
    }

    /// What is in `{field}-data`, or in the file that `{field}` names.
    fn pem(&mut self, field: &str, folder: &Path) -> Result<Option<Vec<u8>>, KubeconfigError> {
        let (file, data) = (self.text(field)?, self.text(&format!("{field}-data"))?);
        if let Some(data) = data.filter(|d| !d.is_empty()) {
            let decoded = base64::engine::general_purpose::STANDARD.decode(data.trim());
            return decoded.map(Some).map_err(|e| invalid(format!("{field}-data: {e}")));
        }
        file.filter(|f| !f.is_empty()).map(|f| read(&folder.join(f))).transpose()
    }

    fn nothing_left(&self, harmless: &[&str]) -> Result<(), KubeconfigError> {
        match self.0.keys().find(|k| !harmless.contains(&k.as_str())) {
            Some(field) => Err(KubeconfigError::NotSupported(crate::text::cut(field, 128).into_owned())),
            None => Ok(()),
        }
    }
}

/// What stands under `kind` in the entry of this name.
fn entry(list: Vec<Named>, kind: &str, name: &str) -> Result<Fields, KubeconfigError> {
    let missing = || invalid(format!("no {kind} {:?}", crate::text::cut(name, 128)));
    let mut found = list.into_iter().find(|n| n.name == name).ok_or_else(missing)?;
    match found.rest.remove(kind) {
        Some(Value::Mapping(fields)) => {
            let text = |(key, value): (Value, Value)| Some((key.as_str()?.to_owned(), value));
            let fields: Option<BTreeMap<_, _>> = fields.into_iter().map(text).collect();
            fields.map(Fields).ok_or_else(|| invalid(format!("{kind} {name:?} has a field without a name")))
        }
        None | Some(Value::Null) => Ok(Fields(BTreeMap::new())),
        Some(_) => Err(invalid(format!("{kind} {name:?} is not a mapping"))),
    }
}

fn tls(ca: Option<Vec<u8>>, cert: Option<Vec<u8>>, key: Option<Vec<u8>>) -> Result<ClientConfig, KubeconfigError> {
    let ca = ca.ok_or_else(|| invalid("an https server needs a certificate-authority"))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&ca, "certificate-authority")? {
        roots.add(certificate).map_err(|e| invalid(format!("certificate-authority: {e}")))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| invalid(e.to_string()))?
        .with_root_certificates(roots);
    match (cert, key) {
        (Some(cert), Some(key)) => {
            let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| invalid(format!("client-key: {e}")))?;
            let chain = certificates(&cert, "client-certificate")?;
            builder.with_client_auth_cert(chain, key).map_err(|e| invalid(format!("client-certificate: {e}")))
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        _ => Err(invalid("client-certificate and client-key belong together")),
    }
}

fn certificates(pem: &[u8], field: &str) -> Result<Vec<CertificateDer<'static>>, KubeconfigError> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match list {
        Ok(list) if list.is_empty() => Err(invalid(format!("{field}: no certificate"))),
        Ok(list) => Ok(list),
        Err(error) => Err(invalid(format!("{field}: {error}"))),
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, KubeconfigError> {
    ServerName::try_from(host.to_owned()).map_err(|e| invalid(format!("server name {host:?}: {e}")))
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn read(path: &Path) -> Result<Vec<u8>, KubeconfigError> {
    let bytes = crate::text::read_bounded(path, MAX_FILE)
        .map_err(|source| KubeconfigError::Read { path: path.to_owned(), source })?;
    if bytes.len() > MAX_FILE {
        return Err(invalid(format!("{}: larger than {MAX_FILE} bytes", path.display())));
    }
    Ok(bytes)
}

fn invalid(why: impl Into<String>) -> KubeconfigError {
    KubeconfigError::Invalid(crate::text::cut(&why.into(), 1024).into_owned())
}
