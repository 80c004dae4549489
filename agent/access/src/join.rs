//! How a machine becomes a node, and stays one. In: the API's address, and a token the first time. Out: a
//! [`Membership`]: the node's identity, from the disk if it is there, and the cluster's settings;
//! [`Membership::keep`] gets the kubelet's own certificate and renews both before their end.

use crate::certificate::{self, Purpose, renew_at, validity};
use crate::connect::{self, Endpoint, client, client_with};
use crate::disk::Disk;
use crate::{Identity, discover};
use anyhow::{Context, Result, bail};
use causeway_api::bootstrap_token::{NAMESPACE, SETTINGS, SETTINGS_KEY};
use causeway_api::config::ClusterConfig;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const CA: &str = "ca.crt";
const NODE: &str = "node";
const CLIENT: &str = "client.pem";
const SERVING: &str = "serving.pem";
const CLUSTER: &str = "cluster.json";
/// How long the newest settings are asked for before the last ones are taken.
const SETTINGS_PATIENCE: Duration = Duration::from_secs(5);
/// How often certificates are looked at.
const LOOK: Duration = Duration::from_secs(600);
/// After a renewal that failed.
const RETRY: Duration = Duration::from_secs(5);

/// What a machine joins with.
#[derive(Debug, Clone)]
pub struct JoinConfig {
    /// The API's address.
    pub server: String,
    /// A bootstrap token; not needed where the identity is on the disk.
    pub token: Option<String>,
    /// The hash that the authority must have: `sha256:…`.
    pub ca_hash: Option<String>,
    /// The first time may do without that hash: whoever has the token, an administrator of another cluster among them,
    /// can then be taken for this cluster.
    pub skip_ca_hash: bool,
    /// The node's name.
    pub node_name: String,
    /// Where the identity is kept.
    pub dir: PathBuf,
    /// How long certificates shall be good; `None`: as long as the cluster gives.
    pub life: Option<Duration>,
}

/// A machine that is a node.
#[derive(Clone)]
pub struct Membership {
    /// Where the API is, and who signs for it.
    pub endpoint: Endpoint,
    /// The node towards the API.
    pub identity: Arc<Identity>,
    /// The kubelet as a server; empty until [`Membership::keep`] has it.
    pub serving: Arc<Identity>,
    /// The cluster's settings.
    pub settings: ClusterConfig,
    /// The node's name.
    pub node: String,
    life: Option<Duration>,
    disk: Disk,
}

/// Takes the identity from the disk, or gets one with the token.
pub async fn join(config: JoinConfig) -> Result<Membership> {
    let disk = Disk::open(&config.dir)?;
    if let Some(name) = disk.read(NODE)?.filter(|n| n.trim() != config.node_name) {
        bail!(
            "this machine is node {:?} already, not {:?}; to make it another one, stop it and remove {}",
            name.trim(),
            config.node_name,
            disk.path().display()
        );
    }
    let now = Timestamp::now().as_second();
    let kept = match (disk.read(CA)?, disk.read(CLIENT)?) {
        (Some(ca), Some(pair)) if validity(&pair).is_some_and(|(_, end)| end > now) => Some((ca, pair)),
        (Some(_), Some(_)) if config.token.is_none() => bail!(
            "the node's certificate in {} has expired; make a token on the server (causeway token create) and give it \
             with --token",
            disk.path().display()
        ),
        _ => None,
    };
    let (ca, pair) = match kept {
        Some(kept) => kept,
        None => first_time(&config, &disk).await.with_context(|| format!("joining {}", config.server))?,
    };
    let endpoint = Endpoint::new(&config.server, &ca)?;
    let identity = Arc::new(Identity::new(&pair, &pair).context("the node's certificate")?);
    let settings = settings(&endpoint, &identity, &disk).await?;
    Ok(Membership {
        endpoint,
        identity,
        serving: Arc::default(),
        settings,
        node: config.node_name,
        life: config.life,
        disk,
    })
}

async fn first_time(config: &JoinConfig, disk: &Disk) -> Result<(String, String)> {
    let Some(token) = &config.token else {
        bail!(
            "this machine is no node yet: make a token on the server (causeway token create) and give it with --token"
        );
    };
    if config.ca_hash.is_none() && !config.skip_ca_hash {
        bail!(
            "a token alone does not say which cluster is meant: give the hash of its authority with --ca-hash (causeway \
             token create prints it), or --unsafe-skip-ca-hash"
        );
    }
    let url = Endpoint::new(&config.server, "")?.url;
    let ca = discover::authority(&url, token, config.ca_hash.as_deref()).await?;
    let joiner = client_with(&url, connect::tls(&ca)?, Some(token))?;
    let issued = certificate::request(&joiner, &config.node_name, &Purpose::Client, config.life).await;
    let issued = issued.map_err(|error| match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) if status.code == 401 => anyhow::anyhow!(
            "the token is refused: it is wrong or has expired; make a new one on the server: causeway token create"
        ),
        _ => error,
    })?;
    disk.write(NODE, &config.node_name)?;
    disk.write(CA, &ca)?;
    disk.write_pair(CLIENT, &issued)?;
    tracing::info!(node = config.node_name, "joined");
    Ok((ca, format!("{}{}", issued.cert_pem, issued.key_pem)))
}

/// The settings from the API; where it is away, those of the last time.
async fn settings(endpoint: &Endpoint, identity: &Arc<Identity>, disk: &Disk) -> Result<ClusterConfig> {
    let maps: Api<ConfigMap> = Api::namespaced(client(endpoint, Some(identity.clone()))?, NAMESPACE);
    let asked = async {
        let map = maps.get(SETTINGS).await.context("reading the cluster's settings")?;
        map.data.and_then(|mut d| d.remove(SETTINGS_KEY)).context("the cluster's settings are empty")
    };
    let asked = match tokio::time::timeout(SETTINGS_PATIENCE, asked).await {
        Ok(asked) => asked,
        Err(_) => Err(anyhow::anyhow!("the API does not answer within {} s", SETTINGS_PATIENCE.as_secs())),
    };
    let text = match (asked, disk.read(CLUSTER)?) {
        (Ok(text), _) => {
            disk.write(CLUSTER, &text)?;
            text
        }
        (Err(error), Some(text)) => {
            tracing::warn!("{error:#}; going on with the settings of the last time");
            text
        }
        (Err(error), None) => return Err(error),
    };
    serde_json::from_str(&text).context("the cluster's settings are of a version that this program does not know")
}

impl Membership {
    /// Gets the kubelet's certificate for the node's name and addresses, and renews both certificates, until stopped.
    pub async fn keep(&self, ips: &[IpAddr], stop: CancellationToken) -> Result<()> {
        let api = client(&self.endpoint, Some(self.identity.clone()))?;
        let mut names = vec![self.node.clone()];
        names.extend(ips.iter().map(ToString::to_string));
        let serving = Purpose::Serving(names.clone());
        // Certificates for other addresses are no good; which ones the one on disk is for stands beside it.
        let stamp = names.join(",");
        let fits = self.disk.read("serving.names")?.as_deref() == Some(stamp.as_str());
        if let Some(pair) = self.disk.read(SERVING)?.filter(|_| fits) {
            self.serving.replace(&pair, &pair)?;
        } else {
            drop(std::fs::remove_file(self.disk.path().join(SERVING)));
            self.disk.write("serving.names", &stamp)?;
        }
        loop {
            let mut pause = LOOK;
            for (file, purpose, identity) in
                [(CLIENT, &Purpose::Client, &self.identity), (SERVING, &serving, &self.serving)]
            {
                let renewed = tokio::select! {
                    // Bounded: a request that waits for a person must not keep the other from being renewed.
                    renewed = tokio::time::timeout(LOOK, self.renew(&api, file, purpose, identity)) => {
                        renewed.context("nobody approved it").and_then(|r| r)
                    }
                    () = stop.cancelled() => return Ok(()),
                };
                if let Err(error) = renewed {
                    tracing::warn!("renewing {file}: {error:#}; trying again");
                    pause = RETRY;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Renews one certificate if it is time.
    async fn renew(&self, api: &kube::Client, file: &str, purpose: &Purpose, identity: &Identity) -> Result<()> {
        let life = self.disk.read(file)?.as_deref().and_then(validity);
        if life.is_some_and(|life| renew_at(life) > Timestamp::now().as_second()) {
            return Ok(());
        }
        let issued = certificate::request(api, &self.node, purpose, self.life).await?;
        self.disk.write_pair(file, &issued)?;
        identity.replace(&issued.cert_pem, &issued.key_pem)?;
        tracing::info!(file, "certificate issued");
        Ok(())
    }
}
