//! The ingress: routing table from the API, traffic on Pingora.
//!
//! [`config`] and [`gateway`] turn the objects of the API into immutable tables,
//! [`route`] is that table and its lookup, [`traffic`] moves the bytes, [`status`] tells the API what came of it.
//! Requests go straight to pod addresses, never through a Service's virtual address.

pub mod acme;
pub mod admin;
pub mod config;
pub mod gateway;
pub mod metrics;
pub mod route;
pub mod status;
pub mod traffic;

use acme::issue::Issuer;
use causeway_api::events::Recorder;
use causeway_api::ingress::AcmeSettings;
use causeway_handover::Sockets;
use causeway_informers::Informers;
use config::model::Settings;
use config::{Planner, Shared, names, watch};
use kube::Client;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::watch as watch_channel;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use traffic::Limits;

/// How the ingress runs.
#[derive(Debug)]
pub struct ProxyConfig {
    /// Sockets for HTTP in clear text, already listening.
    pub http: Vec<TcpListener>,
    /// Sockets for HTTPS, already listening.
    pub https: Vec<TcpListener>,
    /// A socket for `/healthz`, `/readyz`, `/metrics` and `/debug/routes`.
    pub admin: Option<TcpListener>,
    /// Addresses or names for `status.loadBalancer`; none: the status is left alone.
    pub publish_addresses: Vec<String>,
    /// The name of our IngressClass (controller `causeway.dev/ingress`), created when it is not there.
    pub ingress_class: String,
    /// Whether that class is made the default one.
    pub default_class: bool,
    /// The address on which sockets of Gateways are opened, one of the node's own; none: Gateways are not served.
    pub gateway_address: Option<IpAddr>,
    /// The name of our GatewayClass (controller `causeway.dev/gateway`), created when it is not there.
    pub gateway_class: String,
    /// The node we run on, for events and for the EndpointSlices of Gateways.
    pub node_name: Option<String>,
    /// Name servers for Services of type ExternalName, usually cluster DNS; none: the machine's resolver.
    pub name_servers: Vec<IpAddr>,
    /// Where the sockets of Gateways come from and go to when this program takes over from another one.
    pub sockets: Arc<Sockets>,
    /// The authority that certificates come from, and the runtime from which it can be reached; none: certificates are
    /// brought by others.
    pub acme: Option<(AcmeSettings, Handle)>,
    /// Limits and time-outs.
    pub limits: Limits,
    /// Turns true when the first complete configuration is in force and connections are accepted.
    pub ready: Option<watch_channel::Sender<bool>>,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            http: Vec::new(),
            https: Vec::new(),
            admin: None,
            publish_addresses: Vec::new(),
            ingress_class: "causeway".to_owned(),
            default_class: true,
            gateway_address: None,
            gateway_class: "causeway".to_owned(),
            node_name: None,
            name_servers: Vec::new(),
            sockets: Arc::default(),
            acme: None,
            limits: Limits::default(),
            ready: None,
        }
    }
}

/// Runs the ingress on the current runtime until shutdown. Connections to pods are made from the network namespace of
/// the runtime's threads; listening sockets may come from another one. Nothing is accepted before the first complete
/// configuration is in force; when the API goes away, the last good one stays.
///
/// `client` writes, and reads what nobody else on the node reads; `informers` are the node's copies of all else.
pub async fn run(
    client: Client,
    informers: Informers,
    config: ProxyConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let shared = Arc::new(Shared::new()?);
    let settings = Settings { class: config.ingress_class.clone(), default_class: config.default_class };
    let (mut planner, reports) = Planner::new(Arc::clone(&shared), settings);
    let resolver = names::Resolver::new(&config.name_servers)?;
    let (synced, mut is_synced) = watch_channel::channel(false);

    // Ends after the data plane, which still learns of endpoints while it drains.
    let background = CancellationToken::new();
    let tasks = TaskTracker::new();
    if let Some(socket) = config.admin {
        let serving = admin::serve(socket, Arc::clone(&shared), is_synced.clone(), background.clone());
        tasks.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "no administrative listener");
            }
        });
    }
    let class = status::ensure_class(client.clone(), config.ingress_class, config.default_class, background.clone());
    tasks.spawn(class);
    let recorder = Recorder::new(client.clone(), "causeway-ingress", config.node_name.as_deref());
    tasks.spawn(status::run(client.clone(), recorder, config.publish_addresses, reports, background.clone()));
    if let Some((settings, outside)) = config.acme {
        let recorder = Recorder::new(client.clone(), "causeway-acme", config.node_name.as_deref());
        let challenges = Arc::clone(&shared.challenges);
        let issuer = Issuer { client: client.clone(), recorder, settings, challenges, outside };
        tasks.spawn(issuer.run(planner.with_acme(), background.clone()));
    }
    if let Some(address) = config.gateway_address {
        let node = config.node_name.clone().unwrap_or_default();
        let output = planner.with_gateways(gateway::Settings { node, address });
        let recorder = Recorder::new(client.clone(), "causeway-gateway", config.node_name.as_deref());
        tasks.spawn(gateway::install::run(client.clone(), config.gateway_class, background.clone()));
        tasks.spawn(gateway::status::run(client.clone(), recorder, output.reports, background.clone()));
        tasks.spawn(gateway::expose::run(client.clone(), output.writes, background.clone()));
    }
    tasks.spawn(traffic::checks::run(Arc::clone(&shared), background.clone()));
    tasks.spawn(names::run(Arc::clone(&shared), resolver, background.clone()));
    tasks.spawn(watch::run(client, informers, config.node_name.clone(), planner, synced, background.clone()));
    tasks.close();

    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        true = async { is_synced.wait_for(|s| *s).await.is_ok() } => {
            tracing::info!(routes = shared.table.load().len(), "ingress is serving");
            if let Some(ready) = &config.ready {
                ready.send_replace(true);
            }
            let gateways = config.gateway_address.map(|address| (address, config.sockets));
            let limits = Arc::new(config.limits);
            traffic::listen::serve(shared, limits, config.http, config.https, gateways, shutdown.clone()).await
        }
        else => Ok(()),
    };
    background.cancel();
    tasks.wait().await;
    Ok(result?)
}
