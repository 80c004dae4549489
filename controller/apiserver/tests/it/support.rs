//! A server on a store of its own, in a folder that goes away with it.

use causeway_api::config::ClusterConfig;
use causeway_api::identity::UserInfo;
use causeway_apiserver::{ApiServer, ApiServerConfig, DirectDialer};
use causeway_store::{SledOptions, SledStore, Store};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub struct Running {
    pub api: Arc<ApiServer>,
    pub store: Arc<dyn Store>,
    pub address: SocketAddr,
    pub dir: TempDir,
    pub shutdown: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub async fn start() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SledStore::open(&dir.path().join("store"), SledOptions::default()).unwrap());
    start_on(dir, store).await
}

pub async fn start_on(dir: TempDir, store: Arc<dyn Store>) -> Running {
    start_as(dir, store, ClusterConfig::default()).await
}

/// A server with a configuration of its own.
pub async fn start_with(cluster: ClusterConfig) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SledStore::open(&dir.path().join("store"), SledOptions::default()).unwrap());
    start_as(dir, store, cluster).await
}

pub async fn start_as(dir: TempDir, store: Arc<dyn Store>, cluster: ClusterConfig) -> Running {
    start_set(dir, store, cluster, causeway_apiserver::Settings::default()).await
}

/// A server with another authentication, in a folder that may have files already.
pub async fn start_authenticating(dir: TempDir, authentication: causeway_apiserver::Authentication) -> Running {
    let store = Arc::new(SledStore::open(&dir.path().join("store"), SledOptions::default()).unwrap());
    let settings = causeway_apiserver::Settings { authentication, ..Default::default() };
    start_set(dir, store, ClusterConfig::default(), settings).await
}

pub async fn start_set(
    dir: TempDir,
    store: Arc<dyn Store>,
    cluster: ClusterConfig,
    settings: causeway_apiserver::Settings,
) -> Running {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let config = ApiServerConfig {
        cluster,
        pki_dir: dir.path().join("pki"),
        advertise: SocketAddr::from(([10, 90, 0, 1], 6443)),
        extra_sans: Vec::new(),
        kubelet_dialer: Arc::new(DirectDialer),
        settings,
    };
    let api = Arc::new(ApiServer::start(config, store.clone()).await.unwrap());
    let shutdown = CancellationToken::new();
    let (serving, stop) = (api.clone(), shutdown.clone());
    tokio::spawn(async move { serving.serve(vec![listener], stop).await });
    Running { api, store, address, dir, shutdown }
}

impl Running {
    pub fn admin(&self) -> kube::Client {
        self.api.client(UserInfo::admin())
    }

    /// A client over TLS with a certificate for `user`.
    pub async fn over_tls(&self, user: &UserInfo) -> kube::Client {
        let text = self.api.kubeconfig(&format!("https://{}", self.address), "test", user).unwrap();
        let file = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap();
        kube::Client::try_from(config).unwrap()
    }

    /// A client over TLS with a bearer token.
    pub fn with_token(&self, token: &str) -> kube::Client {
        let authority = x509_parser::pem::parse_x509_pem(self.api.pki().ca_pem().as_bytes()).unwrap().1.contents;
        let mut config = kube::Config::new(format!("https://{}", self.address).parse().unwrap());
        config.root_cert = Some(vec![authority]);
        config.auth_info.token = Some(token.to_owned().into());
        kube::Client::try_from(config).unwrap()
    }

    /// A client over TLS as a new service account, `default/robot`.
    pub async fn as_service_account(&self) -> kube::Client {
        use k8s_openapi::api::authentication::v1::TokenRequest;
        let accounts: kube::Api<k8s_openapi::api::core::v1::ServiceAccount> =
            kube::Api::namespaced(self.admin(), "default");
        let request: TokenRequest =
            serde_json::from_value(serde_json::json!({ "spec": { "audiences": [], "expirationSeconds": 3600 } }))
                .unwrap();
        let account = serde_json::from_value(serde_json::json!({ "metadata": { "name": "robot" } })).unwrap();
        accounts.create(&Default::default(), &account).await.unwrap();
        let token = accounts.create_token_request("robot", &Default::default(), &request).await.unwrap();
        self.with_token(&token.status.unwrap().token)
    }

    pub fn kubeconfig_file(&self, user: &UserInfo) -> std::path::PathBuf {
        let text = self.api.kubeconfig(&format!("https://{}", self.address), "test", user).unwrap();
        let path = self.dir.path().join("kubeconfig");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs the real kubectl with input on stdin; the outcome with both outputs.
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> (bool, String, String) {
        use tokio::io::AsyncWriteExt;
        let config = self.kubeconfig_file(&UserInfo::admin());
        let mut child = tokio::process::Command::new("kubectl")
            .args(arguments)
            .env("KUBECONFIG", config)
            .env("HOME", self.dir.path())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let out = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await.unwrap().unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        (out.status.success(), text(&out.stdout), text(&out.stderr))
    }

    /// As [`Self::kubectl_with`]; must succeed.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        let (ok, out, err) = self.kubectl_with(arguments, "").await;
        assert!(ok, "kubectl {arguments:?} failed:\n{out}\n{err}");
        out
    }
}

/// Waits until something holds.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    for _ in 0..200 {
        if let Some(value) = check().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 10 s: {what}");
}
