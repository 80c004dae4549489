//! What a machine must know to join: where the API is and who signs for it (`kube-public/cluster-info`, readable by
//! everybody, signed with every token by the controllers), and the cluster's settings (`kube-system/causeway-config`).

use crate::engine::Engine;
use crate::status::{ApiError, ApiResult};
use crate::upkeep::bootstrap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use causeway_api::bootstrap_token::{
    CLUSTER_INFO, CLUSTER_INFO_KEY, CLUSTER_INFO_NAMESPACE, NAMESPACE, SETTINGS, SETTINGS_KEY,
};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(30);

/// What is told.
pub struct Info {
    /// Where the API is reached.
    pub advertise: SocketAddr,
    /// The authority's certificate.
    pub ca_pem: String,
}

impl Info {
    /// Keeps both in place until shutdown.
    pub async fn run(self, engine: Arc<Engine>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = shutdown.cancelled() => return,
            }
            if let Err(error) = self.ensure(&engine).await {
                tracing::warn!(%error, "the cluster's information is not checked; trying again");
            }
        }
    }

    /// Creates what is missing and mends what differs.
    pub async fn ensure(&self, engine: &Engine) -> ApiResult<()> {
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config",
            "clusters": [{ "name": "", "cluster": {
                "server": format!("https://{}", self.advertise),
                "certificate-authority-data": STANDARD.encode(&self.ca_pem),
            } }],
            "contexts": [], "current-context": "", "preferences": {}, "users": [],
        });
        let kubeconfig = serde_yaml_ng::to_string(&kubeconfig).map_err(ApiError::internal)?;
        let info = (CLUSTER_INFO_NAMESPACE, CLUSTER_INFO, CLUSTER_INFO_KEY, kubeconfig);
        let settings = serde_json::to_string(&engine.cluster).map_err(ApiError::internal)?;
        for (namespace, name, key, text) in [info, (NAMESPACE, SETTINGS, SETTINGS_KEY, settings)] {
            bootstrap::put_key(engine, namespace, name, key, &text).await?;
        }
        Ok(())
    }
}
