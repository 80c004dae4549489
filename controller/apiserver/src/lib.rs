//! The API server: Kubernetes' API over the store, for sockets and for clients in the same process.
//!
//! In: requests, the store's log. Out: objects, watch streams, and the cluster's own objects kept in place.
//! [`ApiServer`] wires the parts, from the outside in: [`front`] (the way of a request), [`authn`] (who), [`authz`] (who
//! may), [`endpoints`] (where requests end), [`engine`] (every verb on every kind) with [`admission`] and [`services`]
//! behind its hooks, [`feed`] (the watch cache), [`catalog`] (what is served); [`upkeep`] works by itself.

mod admission;
mod authn;
mod authz;
mod catalog;
mod dialer;
mod endpoints;
mod engine;
mod exchange;
mod feed;
mod front;
mod metrics;
mod object;
pub mod pki;
mod request;
mod serialization;
pub mod services;
mod status;
mod upkeep;

pub use authn::{Authentication, RequestHeader, ServiceAccountTokens, TokenWebhook, service_account_issuer};
pub use causeway_admission::pod_security;
pub use causeway_audit as audit;
pub use causeway_authn::config::AuthenticationConfiguration;
pub use dialer::{DirectDialer, NodeDialer};
pub use pki::{CertKey, Pki, PkiError};

use crate::authn::{Authenticator, External, ServiceAccounts};
use crate::catalog::Catalog;
use crate::endpoints::Endpoints;
use crate::endpoints::relay::NodeRelay;
use crate::engine::Engine;
use crate::feed::Feed;
use crate::front::{FlowControl, Front, memory::InMemory, tls};
use crate::services::Allocator;
use crate::upkeep::{bootstrap, cluster_info, custom, flow, plugins, roles, signing};
use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use causeway_admission::pod_security::PodSecurity;
use causeway_api::config::ClusterConfig;
use causeway_api::events::Recorder;
use causeway_api::identity::{self, UserInfo};
use causeway_flowcontrol::{Budgets, Dispatcher, Limits};
use causeway_store::{Revision, Store};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What an API server is started with.
pub struct ApiServerConfig {
    /// Ranges and names.
    pub cluster: ClusterConfig,
    /// Where the authority and the certificates are.
    pub pki_dir: PathBuf,
    /// Where pods and nodes reach it: the endpoint of the Service `kubernetes`.
    pub advertise: SocketAddr,
    /// More names and addresses in its certificate.
    pub extra_sans: Vec<String>,
    /// The way into the network of the nodes.
    pub kubelet_dialer: Arc<dyn NodeDialer>,
    /// What an operator may choose.
    pub settings: Settings,
}

/// What an operator may choose of an API server. The default is right for most.
#[derive(Default)]
pub struct Settings {
    /// What is recorded of requests, and where; nothing without it.
    pub audit: Option<causeway_audit::Config>,
    /// What holds for pods where their namespace says nothing, and who is exempt.
    pub pod_security: PodSecurity,
    /// Who else is believed about who callers are.
    pub authentication: Authentication,
}

/// A running API server. Its background work ends when it is dropped.
pub struct ApiServer {
    front: Arc<Front>,
    pki: Arc<Pki>,
    sans: Vec<String>,
    runtime: tokio::runtime::Handle,
    stop: CancellationToken,
}

impl ApiServer {
    /// Reads the store, creates what every cluster has, and starts the background work. Listens nowhere yet.
    pub async fn start(mut config: ApiServerConfig, store: Arc<dyn Store>) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let pki = Arc::new(Pki::open_or_create(&config.pki_dir)?);
        let catalog = Arc::new(Catalog::new(causeway_registry::builtin()));
        let rules = Arc::new(authz::Rules::default());
        let feed = Feed::start(store.clone(), vec![rules.clone()], stop.clone()).await.context("reading the store")?;
        rules.follow(&feed);
        let reach = admission::dynamic::Reach::new(config.kubelet_dialer.clone());
        let dynamic = Arc::new(admission::dynamic::new(&reach, rules.clone())?);
        let engine = Arc::new(Engine {
            store,
            feed,
            catalog,
            allocation: Arc::new(Allocator::new(&config.cluster)),
            admission: Arc::new(admission::Chain {
                rules: rules.clone(),
                security: std::mem::take(&mut config.settings.pod_security),
                dynamic: dynamic.clone(),
            }),
            cluster: config.cluster.clone(),
        });
        reach.set(&engine);
        let user = UserInfo::component(identity::USER_APISERVER, &[]);
        let to_kubelets = pki.issue_client(&user)?;
        let authenticator = Arc::new(authenticator(&config, &pki, &engine)?);
        let authorizer: Arc<dyn authz::Authorizer> = rules;
        let (address_connections, connections) = front::STRANGERS;
        let flow = FlowControl {
            dispatcher: Dispatcher::new(flow::SEATS),
            budgets: Budgets::new(Limits::default()),
            strangers: Budgets::new(Limits { address_connections, connections, ..Limits::default() }),
        };
        let dispatcher = flow.dispatcher.clone();
        let front = Arc::new(Front {
            flow,
            auditor: config
                .settings
                .audit
                .take()
                .map(causeway_audit::Auditor::start)
                .transpose()
                .context("starting audit")?,
            authenticator: authenticator.clone(),
            authorizer: authorizer.clone(),
            endpoints: Arc::new(Endpoints {
                authenticator,
                authorizer,
                relay: NodeRelay::new(config.kubelet_dialer.clone(), tls::client_tls(pki.ca_pem(), &to_kubelets)?),
                metrics: Arc::new(metrics::Metrics::new(&*engine.store)?),
                engine: engine.clone(),
                shutdown: stop.clone(),
            }),
        });
        let runtime = tokio::runtime::Handle::current();
        bootstrap::ensure(&engine, config.advertise).await.context("creating the system objects")?;
        roles::ensure(&engine).await.context("creating the default roles")?;
        flow::ensure(&engine).await.context("creating the default flow schemas and priority levels")?;
        let info = cluster_info::Info { advertise: config.advertise, ca_pem: pki.ca_pem().to_owned() };
        info.ensure(&engine).await.context("creating the cluster's information for machines that join")?;
        custom::sync(&engine, &mut BTreeSet::new()).await;
        tokio::spawn(bootstrap::run(engine.clone(), config.advertise, stop.clone()));
        tokio::spawn(info.run(engine.clone(), stop.clone()));
        let signer = InMemory::new(front.clone(), user.clone(), runtime.clone());
        tokio::spawn(signing::run(kube::Client::new(signer, "default"), pki.clone(), stop.clone()));
        tokio::spawn(flow::run(engine.clone(), dispatcher, stop.clone()));
        plugins::apply(&engine, &dynamic).await.context("putting webhooks and policies in force")?;
        tokio::spawn(plugins::run(engine.clone(), dynamic, stop.clone()));
        tokio::spawn(roles::run(engine.clone(), stop.clone()));
        tokio::spawn(custom::run(engine.clone(), stop.clone()));
        let client = kube::Client::new(InMemory::new(front.clone(), user, runtime.clone()), "default");
        let events = Recorder::new(client, "ipallocator-repair-controller", None);
        tokio::spawn(services::repair::run(engine.clone(), events, stop.clone()));
        guard.disarm();
        let sans = sans(&config);
        Ok(Self { front, pki, sans, runtime, stop })
    }

    /// A client in this process that speaks as `user`: no socket, no TLS. The work is done on the server's runtime,
    /// wherever the client is used.
    pub fn client(&self, user: UserInfo) -> kube::Client {
        let _entered = self.runtime.enter();
        kube::Client::new(InMemory::new(self.front.clone(), user, self.runtime.clone()), "default")
    }

    /// Serves HTTPS (HTTP/1.1 and HTTP/2) on the listeners until shutdown.
    pub async fn serve(
        &self,
        listeners: Vec<std::net::TcpListener>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        tls::serve(self.front.clone(), self.pki.clone(), self.sans.clone(), listeners, shutdown).await
    }

    /// The cluster's certificate authority.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Names and addresses by which it is reached: no node may have them.
    pub fn hosts(&self) -> &[String] {
        &self.sans
    }

    /// The newest revision of the store.
    pub async fn revision(&self) -> anyhow::Result<Revision> {
        Ok(self.front.endpoints.engine.store.revision().await?)
    }

    /// The engine, for those who measure it.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.front.endpoints.engine
    }

    /// A kubeconfig with a client certificate for `user`.
    pub fn kubeconfig(&self, server: &str, cluster_name: &str, user: &UserInfo) -> anyhow::Result<String> {
        let issued = self.pki.issue_client(user)?;
        let name = format!("{}@{cluster_name}", user.username);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": cluster_name, "cluster": {
                "server": server, "certificate-authority-data": STANDARD.encode(self.pki.ca_pem()),
            } }],
            "users": [{ "name": name, "user": {
                "client-certificate-data": STANDARD.encode(issued.cert_pem),
                "client-key-data": STANDARD.encode(issued.key_pem),
            } }],
            "contexts": [{ "name": cluster_name, "context": { "cluster": cluster_name, "user": name } }],
            "current-context": cluster_name,
        });
        Ok(serde_yaml_ng::to_string(&config)?)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn authenticator(config: &ApiServerConfig, pki: &Pki, engine: &Arc<Engine>) -> anyhow::Result<Authenticator> {
    let settings = &config.settings.authentication;
    let keys = pki.service_account_keys();
    let accounts = Arc::new(ServiceAccounts::new(keys, &config.cluster.domain, &settings.service_accounts)?);
    let external = External::new(settings, accounts.issuer(), accounts.api_audiences());
    let external = external.context("starting authentication")?;
    Ok(Authenticator { engine: engine.clone(), accounts, external, refusals: authn::Throttle::default() })
}

fn sans(config: &ApiServerConfig) -> Vec<String> {
    let domain = &config.cluster.domain;
    let mut sans: Vec<String> =
        ["localhost", "127.0.0.1", "::1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .map(str::to_owned)
            .to_vec();
    sans.push(format!("kubernetes.default.svc.{domain}"));
    sans.push(config.cluster.kubernetes_ip().to_string());
    sans.push(config.advertise.ip().to_string());
    sans.extend(config.extra_sans.iter().cloned());
    sans
}
