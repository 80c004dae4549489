//! An API server alone, for developing against with kubectl: `cargo run -p causeway-apiserver --example serve -- DIR PORT`.
//! Writes `DIR/kubeconfig`.

use causeway_api::config::ClusterConfig;
use causeway_api::identity::UserInfo;
use causeway_apiserver::{ApiServer, ApiServerConfig, DirectDialer};
use causeway_store::{SledOptions, SledStore};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().unwrap_or_else(|| "/tmp/causeway-serve".to_owned()));
    let port: u16 = arguments.next().map_or(Ok(16443), |p| p.parse())?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = TcpListener::bind(address)?;
    let store = Arc::new(SledStore::open(&dir.join("store"), SledOptions::default())?);
    let config = ApiServerConfig {
        cluster: ClusterConfig::default(),
        pki_dir: dir.join("pki"),
        advertise: address,
        extra_sans: Vec::new(),
        kubelet_dialer: Arc::new(DirectDialer),
        settings: causeway_apiserver::Settings::default(),
    };
    let api = ApiServer::start(config, store).await?;
    let file = dir.join("kubeconfig");
    std::fs::write(&file, api.kubeconfig(&format!("https://{address}"), "serve", &UserInfo::admin())?)?;
    println!("export KUBECONFIG={}", file.display());
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    api.serve(vec![listener], shutdown).await
}
