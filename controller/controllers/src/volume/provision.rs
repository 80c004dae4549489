//! Local volumes: a directory on one node for one claim. Pure.

use super::{LOCAL_PATH_FINALIZER, NODE_LABEL, VOLUME_PROTECTION};
use crate::meta::{label, name, namespace, uid};
use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::path::Path;
use std::sync::Arc;

/// Our provisioner.
pub const PROVISIONER: &str = "causeway.dev/local-path";
/// The node the scheduler chose for a claim's first pod.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Whether volumes of this class are made here.
pub fn is_ours(class: &StorageClass) -> bool {
    class.provisioner == PROVISIONER
}

/// The class `local-path`, the cluster's default.
pub fn default_class() -> StorageClass {
    StorageClass {
        metadata: ObjectMeta {
            name: Some("local-path".to_owned()),
            annotations: Some([("storageclass.kubernetes.io/is-default-class".to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        provisioner: PROVISIONER.to_owned(),
        reclaim_policy: Some("Delete".to_owned()),
        volume_binding_mode: Some("WaitForFirstConsumer".to_owned()),
        ..StorageClass::default()
    }
}

/// A node for a claim that is bound before any pod asks for it: always the same one for the same claim.
pub fn any_node(nodes: &[Arc<Node>], claim: &PersistentVolumeClaim) -> Option<Arc<Node>> {
    let mut usable: Vec<_> =
        nodes.iter().filter(|n| n.spec.as_ref().and_then(|s| s.unschedulable) != Some(true)).collect();
    usable.sort_by_key(|n| name(&n.metadata));
    let pick = uid(&claim.metadata).bytes().map(usize::from).sum::<usize>().checked_rem(usable.len())?;
    usable.get(pick).map(|n| (*n).clone())
}

/// Whether a volume can be reached from a node of this name.
pub fn node_fits(volume: &PersistentVolume, node: &str) -> bool {
    let required = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    required.is_none_or(|r| {
        r.node_selector_terms.iter().any(|t| {
            t.match_expressions
                .iter()
                .flatten()
                .all(|e| e.key != HOSTNAME || e.operator != "In" || e.values.iter().flatten().any(|v| v == node))
        })
    })
}

/// The volume for a claim on a node, below `directory`.
pub fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
    directory: &Path,
) -> Result<PersistentVolume, String> {
    let spec = claim.spec.as_ref().ok_or("the claim has no spec")?;
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("failed to provision volume: local-path volumes are directories; volumeMode Block is not \
                    supported"
            .to_owned());
    }
    let shared =
        spec.access_modes.iter().flatten().find(|m| !matches!(m.as_str(), "ReadWriteOnce" | "ReadWriteOncePod"));
    if let Some(mode) = shared {
        return Err(format!(
            "failed to provision volume: local-path volumes are on one node and support only ReadWriteOnce and \
             ReadWriteOncePod, not {mode}"
        ));
    }
    let volume_name = format!("pvc-{}", uid(&claim.metadata));
    let node_name = name(&node.metadata).to_owned();
    let hostname = label(&node.metadata, HOSTNAME).unwrap_or(&node_name).to_owned();
    let folder = format!("{volume_name}_{}_{}", namespace(&claim.metadata), name(&claim.metadata));
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(volume_name),
            labels: Some([(NODE_LABEL.to_owned(), node_name)].into()),
            annotations: Some([("pv.kubernetes.io/provisioned-by".to_owned(), PROVISIONER.to_owned())].into()),
            finalizers: Some(vec![VOLUME_PROTECTION.to_owned(), LOCAL_PATH_FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes.clone(),
            capacity: spec.resources.as_ref().and_then(|r| r.requests.clone()),
            claim_ref: Some(super::binding::reference(claim)),
            host_path: Some(HostPathVolumeSource {
                path: directory.join(folder).to_string_lossy().into_owned(),
                type_: Some("DirectoryOrCreate".to_owned()),
            }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector {
                    node_selector_terms: vec![NodeSelectorTerm {
                        match_expressions: Some(vec![NodeSelectorRequirement {
                            key: HOSTNAME.to_owned(),
                            operator: "In".to_owned(),
                            values: Some(vec![hostname]),
                        }]),
                        match_fields: None,
                    }],
                }),
            }),
            persistent_volume_reclaim_policy: Some(class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned())),
            storage_class_name: class.metadata.name.clone(),
            mount_options: class.mount_options.clone(),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}
