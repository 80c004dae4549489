//! ConfigMaps and Secrets that pods mention, read one by one as the node's right allows.

use crate::env::Sources;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use std::collections::BTreeSet;

/// Reads a ConfigMap; `None` when there is none.
pub async fn config_map(client: &Client, namespace: &str, name: &str) -> Result<Option<ConfigMap>, String> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    api.get_opt(name).await.map_err(|e| format!("failed to read configmap \"{name}\": {e}"))
}

/// Reads a Secret; `None` when there is none.
pub async fn secret(client: &Client, namespace: &str, name: &str) -> Result<Option<Secret>, String> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    api.get_opt(name).await.map_err(|e| format!("failed to read secret \"{name}\": {e}"))
}

/// Reads all of them.
pub async fn sources(
    client: &Client,
    namespace: &str,
    (maps, secrets): (BTreeSet<String>, BTreeSet<String>),
) -> Result<Sources, String> {
    let mut all = Sources::default();
    for name in maps {
        let found = config_map(client, namespace, &name).await?;
        all.config_maps.insert(name, found);
    }
    for name in secrets {
        let found = secret(client, namespace, &name).await?;
        all.secrets.insert(name, found);
    }
    Ok(all)
}
