//! Our own components, each as a process of its own: what a peer is, so that memory and CPU time compare.
//!
//! `bench-net role proxy MODE KUBECONFIG STATE` and `bench-net role dns KUBECONFIG PORT ADMIN-PORT`, in the namespace that they are
//! started in. They run the same functions as `causeway up` does, with a client over TLS.

use crate::cluster::config;
use crate::lab::{NODE, NODE_IP};
use anyhow::{Context, Result, bail};
use causeway_api::config::{IptablesFlavour, ProxyMode};
use causeway_dns::{DnsConfig, run as run_dns};
use causeway_informers::Informers;
use causeway_services::{ServicesConfig, run as run_proxy};
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// Where ours serves its metrics, as kube-proxy serves its health.
pub const PROXY_METRICS: u16 = 10256;

/// Runs until killed.
pub fn run(args: &[String]) -> Result<()> {
    tracing_subscriber::fmt().with_env_filter("info,hyper=warn,kube=warn").with_writer(std::io::stderr).init();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["proxy", mode, kubeconfig, state] => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(proxy(mode, Path::new(kubeconfig), Path::new(state)))
        }
        ["dns", kubeconfig, port, admin] => {
            // One core is all it gets.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
            runtime.block_on(dns(Path::new(kubeconfig), port.parse()?, admin.parse()?))
        }
        _ => bail!("role proxy MODE KUBECONFIG STATE, or role dns KUBECONFIG PORT ADMIN-PORT"),
    }
}

async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

async fn proxy(mode: &str, kubeconfig: &Path, state: &Path) -> Result<()> {
    let mut cluster = config();
    (cluster.proxy_mode, cluster.iptables_flavour) = match mode {
        "nftables" => (ProxyMode::Nftables, IptablesFlavour::Auto),
        "iptables-legacy" => (ProxyMode::Iptables, IptablesFlavour::Legacy),
        "iptables-nft" => (ProxyMode::Iptables, IptablesFlavour::Nft),
        _ => bail!("there is no mode {mode}"),
    };
    let config = ServicesConfig {
        node_name: NODE.to_owned(),
        node_ips: vec![NODE_IP.into()],
        cluster,
        state_dir: state.to_owned(),
        healthz_listener: Some(listener(PROXY_METRICS)?),
        registry: None,
        ready: None,
    };
    run_proxy(Informers::new(client(kubeconfig).await?), config, CancellationToken::new()).await
}

async fn dns(kubeconfig: &Path, port: u16, admin: u16) -> Result<()> {
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).context("binding DNS")?;
    udp.set_nonblocking(true)?;
    let config = DnsConfig {
        cluster: config(),
        node_name: NODE.to_owned(),
        node_ips: vec![NODE_IP.into()],
        udp: vec![udp],
        tcp: vec![listener(port)?],
        admin: Some(listener(admin)?),
        forward_on: None,
        publish: false,
        state_dir: None,
    };
    let client = client(kubeconfig).await?;
    run_dns(client.clone(), Informers::new(client), config, CancellationToken::new()).await
}

fn listener(port: u16) -> Result<TcpListener> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = TcpListener::bind(address).with_context(|| format!("listening at {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
