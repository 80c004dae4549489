//! The node's part in giving local volumes back: a released volume of provisioner `causeway.dev/local-path` waits
//! with its finalizer until the node it is labelled with has removed the folder. Nobody else touches the folder.

use futures::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::json;
use std::path::{Component, Path};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const FINALIZER: &str = "causeway.dev/local-path";
const PROTECTION: &str = "kubernetes.io/pv-protection";
const NODE_LABEL: &str = "causeway.dev/node";
/// Until a failed removal is tried again.
const RETRY: Duration = Duration::from_secs(15);

/// Watches this node's local volumes until shutdown.
pub async fn run(client: Client, node: String, shutdown: CancellationToken) {
    let api: Api<PersistentVolume> = Api::all(client.clone());
    let config = watcher::Config::default().labels(&format!("{NODE_LABEL}={node}"));
    while !shutdown.is_cancelled() {
        let mut stream = std::pin::pin!(causeway_api::watch::applied(api.clone(), config.clone()));
        let mut again = false;
        loop {
            let next = tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY), if again => break,
                next = stream.next() => next,
            };
            match next {
                Some(Ok(volume)) if due(&volume) => {
                    if let Err(error) = reclaim(&api, &volume).await {
                        tracing::warn!(volume = %volume.name_any(), %error, "local volume not removed yet");
                        again = true;
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => tracing::debug!(%error, "watching local volumes"),
                None => break,
            }
        }
    }
}

fn due(volume: &PersistentVolume) -> bool {
    let has = |f: &str| volume.finalizers().iter().any(|x| x == f);
    volume.metadata.deletion_timestamp.is_some() && has(FINALIZER) && !has(PROTECTION)
}

async fn reclaim(api: &Api<PersistentVolume>, volume: &PersistentVolume) -> anyhow::Result<()> {
    if let Some(path) = volume.spec.as_ref().and_then(|s| s.host_path.as_ref()).map(|h| h.path.clone()) {
        remove(&path).await?;
    }
    let left: Vec<&String> = volume.finalizers().iter().filter(|f| *f != FINALIZER).collect();
    let patch = json!({"metadata": {"resourceVersion": volume.resource_version(), "finalizers": left}});
    match api.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

async fn remove(path: &str) -> anyhow::Result<()> {
    let folder = Path::new(path).to_path_buf();
    let depth = folder.components().filter(|c| matches!(c, Component::Normal(_))).count();
    let plain = folder.is_absolute() && !folder.components().any(|c| matches!(c, Component::ParentDir));
    // A volume made by hand could point anywhere; a top-level folder is never ours to remove.
    anyhow::ensure!(plain && depth >= 2, "refusing to remove {path:?}: not a folder of a local volume");
    tokio::task::spawn_blocking(move || super::host::remove_tree(&folder)).await??;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn never_removes_top_level_folders() {
        for path in ["/", "/var", "relative/x", "/a/../../etc"] {
            assert!(super::remove(path).await.is_err(), "{path}");
        }
    }
}
