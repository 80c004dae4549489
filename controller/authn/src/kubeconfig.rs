//! kubeconfig files that say how a webhook is reached. In: the file. Out: an address, a client, a credential.
//!
//! What is not supported (plugins for credentials, proxies, servers that nobody verifies) is an error.

use crate::remote::{Client, Identity};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Largest file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    clusters: Vec<Named<ClusterEntry>>,
    #[serde(default)]
    users: Vec<Named<UserEntry>>,
    #[serde(default)]
    contexts: Vec<Named<ContextEntry>>,
    #[serde(default)]
    current_context: String,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(flatten)]
    inner: T,
}

#[derive(Deserialize)]
struct ClusterEntry {
    cluster: Cluster,
}

#[derive(Deserialize)]
struct UserEntry {
    user: User,
}

#[derive(Deserialize)]
struct ContextEntry {
    context: Context,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

/// How a webhook is reached.
pub(crate) struct Endpoint {
    pub(crate) uri: Uri,
    pub(crate) client: Client,
    pub(crate) credential: Option<Credential>,
}

/// What goes into `Authorization`.
pub(crate) enum Credential {
    Fixed(HeaderValue),
    /// A bearer token that others renew.
    TokenFile(PathBuf),
}

impl Credential {
    /// The header's value.
    pub(crate) fn header(&self) -> Result<HeaderValue, String> {
        match self {
            Self::Fixed(value) => Ok(value.clone()),
            Self::TokenFile(path) => {
                let token = read(path)?;
                sensitive(&format!("Bearer {}", String::from_utf8_lossy(&token).trim()))
            }
        }
    }
}

fn sensitive(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text).map_err(|_| "the credential is no header value".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_FILE {
        return Err(format!("{}: more than {MAX_FILE} bytes", path.display()));
    }
    std::fs::read(path).map_err(failed)
}

/// Reads a file for its current context.
pub(crate) fn load(path: &Path, timeout: Duration, max_body: usize) -> Result<Endpoint, String> {
    let file: File = serde_yaml_ng::from_slice(&read(path)?).map_err(|e| format!("{}: {e}", path.display()))?;
    let context = named(&file.contexts, &file.current_context).ok_or("the current context is not in the file")?;
    let context = &context.context;
    let cluster = &named(&file.clusters, &context.cluster).ok_or("the context's cluster is not in the file")?.cluster;
    let nobody = User::default();
    let user = match context.user.as_str() {
        "" => &nobody,
        name => &named(&file.users, name).ok_or("the context's user is not in the file")?.user,
    };
    // Relative paths are relative to the file.
    let folder = path.parent().unwrap_or(Path::new("."));
    let pem = |data: &Option<String>, file: &Option<PathBuf>| match (data, file) {
        (Some(data), _) => {
            STANDARD.decode(data.trim()).map(Some).map_err(|_| "data in the file is not base64".to_owned())
        }
        (None, Some(file)) => read(&folder.join(file)).map(Some),
        (None, None) => Ok(None),
    };
    let ca = pem(&cluster.certificate_authority_data, &cluster.certificate_authority)?;
    let certificate = pem(&user.client_certificate_data, &user.client_certificate)?;
    let key = pem(&user.client_key_data, &user.client_key)?;
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
        (None, None) => None,
        _ => return Err("a client certificate needs its key, and a key its certificate".to_owned()),
    };
    let uri: Uri = cluster.server.parse().map_err(|_| format!("{:?} is no URL", cluster.server))?;
    let credential = credential(user, folder)?;
    let secure = uri.scheme_str() == Some("https");
    if !secure && (credential.is_some() || uri.scheme_str() != Some("http")) {
        return Err(format!("{:?}: must be https", cluster.server));
    }
    let mut client = Client::new(ca.as_deref(), identity.as_ref(), timeout, max_body)?;
    client.server_name.clone_from(&cluster.tls_server_name);
    Ok(Endpoint { uri, client, credential })
}

fn credential(user: &User, folder: &Path) -> Result<Option<Credential>, String> {
    Ok(match (&user.token, &user.token_file, &user.username) {
        (_, Some(file), _) => Some(Credential::TokenFile(folder.join(file))),
        (Some(token), None, _) => Some(Credential::Fixed(sensitive(&format!("Bearer {token}"))?)),
        (None, None, Some(name)) => {
            let pair = STANDARD.encode(format!("{name}:{}", user.password.as_deref().unwrap_or_default()));
            Some(Credential::Fixed(sensitive(&format!("Basic {pair}"))?))
        }
        (None, None, None) => None,
    })
}

fn named<'a, T>(list: &'a [Named<T>], name: &str) -> Option<&'a T> {
    list.iter().find(|entry| entry.name == name).map(|entry| &entry.inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(cluster: &str, user: &str) -> Result<Endpoint, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "from-file\n").unwrap();
        let path = folder.path().join("config");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{ name: c, context: {{ cluster: k, user: u }} }}]\nclusters: [{{ name: k, cluster: {cluster} }}]\nusers: [{{ name: u, user: {user} }}]\n"
        );
        std::fs::write(&path, text).unwrap();
        let endpoint = load(&path, Duration::from_secs(1), 1024)?;
        if let Some(Credential::TokenFile(_)) = &endpoint.credential {
            assert_eq!(endpoint.credential.as_ref().unwrap().header().unwrap(), "Bearer from-file");
        }
        Ok(endpoint)
    }

    #[test]
    fn credentials() {
        let header = |user| {
            loaded("{ server: 'https://hook/path' }", user).unwrap().credential.map(|c| match c {
                Credential::Fixed(value) => value.to_str().unwrap().to_owned(),
                Credential::TokenFile(_) => "file".to_owned(),
            })
        };
        assert_eq!(header("{}"), None);
        assert_eq!(header("{ token: abc }").as_deref(), Some("Bearer abc"));
        assert_eq!(header("{ token: abc, tokenFile: token }").as_deref(), Some("file"));
        assert_eq!(header("{ username: a, password: b }").as_deref(), Some("Basic YTpi"));
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        let bad = [
            ("{ server: 'https://hook', insecure-skip-tls-verify: true }", "{}"),
            ("{ server: 'https://hook', proxy-url: 'http://p' }", "{}"),
            ("{ server: 'https://hook', certificate-authority-data: '!' }", "{}"),
            ("{ server: 'https://hook', certificate-authority: none.pem }", "{}"),
            ("{ server: 'ftp://hook' }", "{}"),
            ("{ server: 'http://hook' }", "{ token: abc }"),
            ("{ server: 'https://hook' }", "{ exec: { command: x } }"),
            ("{ server: 'https://hook' }", "{ auth-provider: { name: x } }"),
            ("{ server: 'https://hook' }", "{ client-key-data: YQ== }"),
        ];
        for (cluster, user) in bad {
            assert!(loaded(cluster, user).is_err(), "{cluster} {user}");
        }
        assert!(loaded("{ server: 'http://127.0.0.1:1' }", "{}").is_ok());
    }
}
