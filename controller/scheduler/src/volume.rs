//! Where a pod's claims let it run. In: claims, volumes and classes. Out: for each node whether the pod's volumes can
//! be there, and which claims wait for the scheduler's choice (`WaitForFirstConsumer`). Pure.

use crate::filter::node_term;
use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;
use k8s_openapi::api::core::v1::{NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

/// The annotation that tells the provisioner which node was chosen.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// Finds storage objects by name.
pub trait Storage {
    /// A claim of a namespace.
    fn claim(&self, namespace: &str, name: &str) -> Option<PersistentVolumeClaim>;
    /// A volume.
    fn volume(&self, name: &str) -> Option<PersistentVolume>;
    /// A class.
    fn class(&self, name: &str) -> Option<StorageClass>;
}

/// What a pod's claims ask for.
#[derive(Debug, Default)]
pub struct Volumes {
    /// Node requirements of bound volumes; each list is alternatives, all lists must be met.
    required: Vec<Vec<NodeSelectorTerm>>,
    /// A node was chosen for a claim before: only that one will do.
    selected: Option<String>,
    /// There are claims that wait for a node.
    pub waiting: bool,
    /// Those of them for which none was chosen yet.
    pub unselected: Vec<String>,
}

/// Looks the claims of a pod up. An error says why the pod cannot be placed anywhere yet.
pub fn of_pod(pod: &PodInfo, storage: &dyn Storage) -> Result<Volumes, String> {
    let mut all = Volumes::default();
    for name in &pod.claims {
        let Some(claim) = storage.claim(&pod.namespace, name) else {
            return Err(format!("persistentvolumeclaim \"{name}\" not found"));
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
            return Err(format!("persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume"));
        }
        let spec = claim.spec.as_ref();
        match spec.and_then(|s| s.volume_name.as_deref()).filter(|v| !v.is_empty()) {
            Some(volume) => {
                let Some(volume) = storage.volume(volume) else {
                    return Err(format!("persistentvolume \"{volume}\" not found"));
                };
                let affinity = volume.spec.and_then(|s| s.node_affinity).and_then(|a| a.required);
                all.required.extend(affinity.map(|r| r.node_selector_terms));
            }
            None => {
                let class = spec.and_then(|s| s.storage_class_name.as_deref()).unwrap_or("");
                let mode = storage.class(class).and_then(|c| c.volume_binding_mode);
                if mode.as_deref() != Some("WaitForFirstConsumer") {
                    return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
                }
                let chosen = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE));
                match chosen {
                    Some(node) => all.selected = Some(node.clone()),
                    None => all.unselected.push(name.clone()),
                }
                all.waiting = true;
            }
        }
    }
    Ok(all)
}

impl Volumes {
    /// The node that was chosen before is the only one that will do, unless the claims say another.
    pub fn keep_to(mut self, node: &str) -> Self {
        if self.waiting {
            self.selected.get_or_insert_with(|| node.to_owned());
        }
        self
    }

    /// Whether the volumes can be on a node.
    pub fn check(&self, node: &NodeInfo) -> Result<(), Vec<String>> {
        let reachable = self.required.iter().all(|terms| terms.iter().any(|t| node_term(t, node)));
        if !reachable {
            return Err(vec!["node(s) had volume node affinity conflict".to_owned()]);
        }
        if self.selected.as_ref().is_some_and(|s| *s != node.name) {
            return Err(vec!["node(s) didn't match the node selected for the pod's volumes".to_owned()]);
        }
        Ok(())
    }
}
