//! Which claim takes which volume, and what phase each is in. Pure.

use super::provision::{SELECTED_NODE, is_ours, node_fits};
use super::{LOCAL_PATH_FINALIZER, VOLUME_PROTECTION};
use crate::meta::{annotation, has_finalizer, name, namespace, uid};
use crate::queue::Key;
use causeway_api::quantity;
use causeway_api::selector::Selector;
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus,
};
use k8s_openapi::api::storage::v1::StorageClass;
use std::sync::Arc;

/// What to do about a claim.
#[derive(Debug, Clone, PartialEq)]
pub enum ClaimStep {
    /// It stands.
    Nothing,
    /// Only its status is behind.
    Status(PersistentVolumeClaimStatus),
    /// A free volume fits: put the claim's name on it first.
    ReserveVolume(Arc<PersistentVolume>),
    /// The volume carries the claim's name: bind.
    Bind(Arc<PersistentVolume>),
    /// Make a volume.
    Provision(Arc<StorageClass>),
    /// Nothing can be done now, and why.
    Wait {
        /// The event's reason.
        reason: &'static str,
        /// Its message.
        message: String,
    },
}

/// What to do about a volume.
#[derive(Debug, Clone, PartialEq)]
pub enum VolumeStep {
    /// It stands.
    Nothing,
    /// Add the protection finalizer.
    Protect,
    /// Take a finalizer off.
    Unprotect(&'static str),
    /// A reference made by hand gets the claim's uid.
    CompleteReference(ObjectReference),
    /// Show this phase.
    Phase(&'static str, Option<String>),
    /// Its claim is gone and the policy says delete.
    Delete,
}

/// The claim a volume is reserved for.
pub fn claim_key(volume: &PersistentVolume) -> Option<Key> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(Key::new(reference.namespace.as_deref().unwrap_or(""), reference.name.as_deref().unwrap_or("")))
}

/// Bound, or lost for good.
pub fn is_settled(claim: &PersistentVolumeClaim) -> bool {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).is_some_and(|v| !v.is_empty())
        && claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
}

/// The class a claim asks for; the empty string asks for none.
pub fn class_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(&claim.metadata, "volume.beta.kubernetes.io/storage-class")
        .or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref())
        .filter(|c| !c.is_empty())
}

/// A reference to the claim, as a volume carries it.
pub fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// A claim's status in a phase; a bound one shows what it got.
pub fn claim_status(phase: &str, volume: Option<&PersistentVolume>) -> PersistentVolumeClaimStatus {
    let spec = volume.and_then(|v| v.spec.as_ref());
    PersistentVolumeClaimStatus {
        phase: Some(phase.to_owned()),
        access_modes: spec.and_then(|s| s.access_modes.clone()),
        capacity: spec.and_then(|s| s.capacity.clone()),
        ..PersistentVolumeClaimStatus::default()
    }
}

/// Decides about one claim.
pub fn claim_step(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    volumes: &[Arc<PersistentVolume>],
) -> ClaimStep {
    let wanted = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).filter(|v| !v.is_empty());
    if let Some(wanted) = wanted {
        return named(claim, volumes.iter().find(|v| name(&v.metadata) == wanted));
    }
    if let Some(reserved) = volumes.iter().find(|v| is_reserved_for(v, claim)) {
        return if has_uid(reserved, claim) {
            ClaimStep::Bind(reserved.clone())
        } else {
            ClaimStep::ReserveVolume(reserved.clone())
        };
    }
    let late = class.and_then(|c| c.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer");
    let selected = annotation(&claim.metadata, SELECTED_NODE);
    if late && selected.is_none() {
        return ClaimStep::Wait {
            reason: "WaitForFirstConsumer",
            message: "waiting for first consumer to be created before binding".to_owned(),
        };
    }
    let mut free: Vec<_> =
        volumes.iter().filter(|v| fits(v, claim) && selected.is_none_or(|n| node_fits(v, n))).collect();
    free.sort_by_key(|v| (capacity(v), name(&v.metadata).to_owned()));
    if let Some(best) = free.first() {
        return ClaimStep::ReserveVolume((*best).clone());
    }
    match (class_name(claim), class) {
        (Some(_), Some(class)) if is_ours(class) => ClaimStep::Provision(Arc::new(class.clone())),
        (Some(_), Some(class)) => ClaimStep::Wait {
            reason: "ExternalProvisioning",
            message: format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the \
                 system administrator. If volume creation is delayed, please verify that the provisioner is running \
                 and correctly registered.",
                class.provisioner
            ),
        },
        (Some(missing), None) => ClaimStep::Wait {
            reason: "ProvisioningFailed",
            message: format!("storageclass.storage.k8s.io {missing:?} not found"),
        },
        (None, _) => ClaimStep::Wait {
            reason: "FailedBinding",
            message: "no persistent volumes available for this claim and no storage class is set".to_owned(),
        },
    }
}

/// A claim that names its volume.
fn named(claim: &PersistentVolumeClaim, volume: Option<&Arc<PersistentVolume>>) -> ClaimStep {
    let completed = annotation(&claim.metadata, "pv.kubernetes.io/bind-completed").is_some();
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("");
    let Some(volume) = volume else {
        return match (completed, phase) {
            (true, "Lost") => ClaimStep::Nothing,
            (true, _) => ClaimStep::Status(claim_status("Lost", None)),
            (false, _) => ClaimStep::Wait {
                reason: "FailedBinding",
                message: "the volume this claim names does not exist yet".to_owned(),
            },
        };
    };
    if has_uid(volume, claim) {
        let status = claim_status("Bound", Some(volume));
        return match (completed, claim.status.as_ref()) {
            (false, _) => ClaimStep::Bind(volume.clone()),
            (true, Some(s)) if s.phase == status.phase && s.capacity == status.capacity => ClaimStep::Nothing,
            (true, _) => ClaimStep::Status(status),
        };
    }
    if !completed && (claim_key(volume).is_none() || is_reserved_for(volume, claim)) {
        return ClaimStep::ReserveVolume(volume.clone());
    }
    match (completed, phase) {
        (true, "Lost") => ClaimStep::Nothing,
        (true, _) => ClaimStep::Status(claim_status("Lost", None)),
        (false, _) => ClaimStep::Wait {
            reason: "FailedBinding",
            message: format!("volume {:?} already bound to a different claim.", name(&volume.metadata)),
        },
    }
}

fn has_uid(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    is_reserved_for(volume, claim) && reference.and_then(|r| r.uid.as_deref()) == Some(uid(&claim.metadata))
}

/// The volume carries the claim's name, and its uid or none.
fn is_reserved_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return false };
    reference.namespace.as_deref() == Some(namespace(&claim.metadata))
        && reference.name.as_deref() == Some(name(&claim.metadata))
        && reference.uid.as_deref().is_none_or(|u| u.is_empty() || u == uid(&claim.metadata))
}

/// Whether a free volume offers what the claim asks for.
fn fits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(v), Some(c)) = (volume.spec.as_ref(), claim.spec.as_ref()) else { return false };
    if v.claim_ref.is_some() || volume.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let class = v.storage_class_name.as_deref().filter(|c| !c.is_empty());
    let mode = |m: &Option<String>| m.as_deref().unwrap_or("Filesystem").to_owned();
    let offered = v.access_modes.as_deref().unwrap_or_default();
    let asked = c.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.get("storage"));
    let asked = asked.and_then(|q| quantity::units(&q.0)).unwrap_or(0);
    let selected = match c.selector.as_ref().map(Selector::from_object) {
        None => true,
        Some(Ok(selector)) => selector.matches_option(volume.metadata.labels.as_ref()),
        Some(Err(_)) => false,
    };
    class == class_name(claim)
        && mode(&v.volume_mode) == mode(&c.volume_mode)
        && c.access_modes.iter().flatten().all(|m| offered.contains(m))
        && capacity(volume) >= asked
        && selected
}

fn capacity(volume: &PersistentVolume) -> i128 {
    let all = volume.spec.as_ref().and_then(|s| s.capacity.as_ref());
    all.and_then(|c| c.get("storage")).and_then(|q| quantity::units(&q.0)).unwrap_or(0)
}

/// Decides about one volume. `claim` is the one its reference names, if that exists.
pub fn volume_step(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>, node_there: bool) -> VolumeStep {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let ref_uid = reference.and_then(|r| r.uid.as_deref()).unwrap_or("");
    let owner = claim.filter(|c| ref_uid.is_empty() || uid(&c.metadata) == ref_uid);
    let bound = owner.is_some_and(|c| {
        !ref_uid.is_empty() && c.spec.as_ref().and_then(|s| s.volume_name.as_deref()) == Some(name(&volume.metadata))
    });
    if volume.metadata.deletion_timestamp.is_some() {
        if !bound && has_finalizer(&volume.metadata, VOLUME_PROTECTION) {
            return VolumeStep::Unprotect(VOLUME_PROTECTION);
        }
        if !bound && !node_there && has_finalizer(&volume.metadata, LOCAL_PATH_FINALIZER) {
            return VolumeStep::Unprotect(LOCAL_PATH_FINALIZER);
        }
        return VolumeStep::Nothing;
    }
    if !has_finalizer(&volume.metadata, VOLUME_PROTECTION) {
        return VolumeStep::Protect;
    }
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("");
    let show = |wanted: &'static str| match phase == wanted {
        true => VolumeStep::Nothing,
        false => VolumeStep::Phase(wanted, None),
    };
    if reference.is_none() || ref_uid.is_empty() {
        return show("Available");
    }
    if bound {
        return show("Bound");
    }
    if owner.is_some() {
        // Reserved; the claim binds next.
        return if phase.is_empty() { show("Available") } else { VolumeStep::Nothing };
    }
    if phase != "Released" && phase != "Failed" {
        return VolumeStep::Phase("Released", None);
    }
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let ours = annotation(&volume.metadata, "pv.kubernetes.io/provisioned-by") == Some(super::provision::PROVISIONER);
    if policy == Some("Delete") && ours { VolumeStep::Delete } else { VolumeStep::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::meta;
    use crate::volume::provision::{self, PROVISIONER};
    use k8s_openapi::api::core::v1::{
        PersistentVolumeClaimSpec, PersistentVolumeSpec, PersistentVolumeStatus, VolumeResourceRequirements,
    };
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    fn storage(text: &str) -> Option<std::collections::BTreeMap<String, Quantity>> {
        Some([("storage".to_owned(), Quantity(text.to_owned()))].into())
    }

    fn claim(class: Option<&str>, size: &str) -> PersistentVolumeClaim {
        PersistentVolumeClaim {
            metadata: meta("data"),
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
                storage_class_name: class.map(str::to_owned),
                resources: Some(VolumeResourceRequirements { requests: storage(size), limits: None }),
                ..PersistentVolumeClaimSpec::default()
            }),
            status: None,
        }
    }

    fn volume(volume_name: &str, class: Option<&str>, size: &str) -> PersistentVolume {
        let mut metadata = meta(volume_name);
        metadata.finalizers = Some(vec![VOLUME_PROTECTION.to_owned()]);
        PersistentVolume {
            metadata,
            spec: Some(PersistentVolumeSpec {
                access_modes: Some(vec!["ReadWriteOnce".to_owned(), "ReadOnlyMany".to_owned()]),
                storage_class_name: class.map(str::to_owned),
                capacity: storage(size),
                persistent_volume_reclaim_policy: Some("Delete".to_owned()),
                ..PersistentVolumeSpec::default()
            }),
            status: None,
        }
    }

    #[test]
    fn the_smallest_volume_that_fits_is_taken() {
        let volumes: Vec<_> = [volume("big", None, "9Gi"), volume("right", None, "2Gi"), volume("small", None, "1Gi")]
            .into_iter()
            .map(Arc::new)
            .collect();
        let step = claim_step(&claim(None, "1500Mi"), None, &volumes);
        assert_eq!(step, ClaimStep::ReserveVolume(volumes[1].clone()));
        let other_class = vec![Arc::new(volume("v", Some("fast"), "9Gi"))];
        assert!(matches!(
            claim_step(&claim(None, "1Gi"), None, &other_class),
            ClaimStep::Wait { reason: "FailedBinding", .. }
        ));
    }

    #[test]
    fn reserve_then_bind_then_stand() {
        let mut c = claim(None, "1Gi");
        let mut v = volume("v", None, "1Gi");
        v.spec.as_mut().unwrap().claim_ref = Some(reference(&c));
        let reserved = Arc::new(v.clone());
        assert_eq!(claim_step(&c, None, std::slice::from_ref(&reserved)), ClaimStep::Bind(reserved.clone()));
        assert_eq!(volume_step(&v, Some(&c), true), VolumeStep::Phase("Available", None));
        c.spec.as_mut().unwrap().volume_name = Some("v".to_owned());
        c.metadata.annotations = Some([("pv.kubernetes.io/bind-completed".to_owned(), "yes".to_owned())].into());
        assert_eq!(volume_step(&v, Some(&c), true), VolumeStep::Phase("Bound", None));
        let status = claim_status("Bound", Some(&v));
        assert_eq!(claim_step(&c, None, std::slice::from_ref(&reserved)), ClaimStep::Status(status.clone()));
        c.status = Some(status);
        assert_eq!(claim_step(&c, None, &[reserved]), ClaimStep::Nothing);
        assert_eq!(claim_step(&c, None, &[]), ClaimStep::Status(claim_status("Lost", None)));
    }

    #[test]
    fn a_local_class_waits_for_its_consumer_then_provisions() {
        let class = provision::default_class();
        let mut c = claim(Some("local-path"), "1Gi");
        assert!(matches!(claim_step(&c, Some(&class), &[]), ClaimStep::Wait { reason: "WaitForFirstConsumer", .. }));
        c.metadata.annotations = Some([(SELECTED_NODE.to_owned(), "n1".to_owned())].into());
        assert_eq!(claim_step(&c, Some(&class), &[]), ClaimStep::Provision(Arc::new(class)));
        assert!(matches!(claim_step(&c, None, &[]), ClaimStep::Wait { reason: "ProvisioningFailed", .. }));
    }

    #[test]
    fn release_and_deletion() {
        let c = claim(Some("local-path"), "1Gi");
        let mut v = volume("v", Some("local-path"), "1Gi");
        v.spec.as_mut().unwrap().claim_ref = Some(reference(&c));
        v.metadata.annotations = Some([("pv.kubernetes.io/provisioned-by".to_owned(), PROVISIONER.to_owned())].into());
        v.metadata.finalizers.get_or_insert_default().push(LOCAL_PATH_FINALIZER.to_owned());
        v.status = Some(PersistentVolumeStatus { phase: Some("Bound".to_owned()), ..Default::default() });
        assert_eq!(volume_step(&v, None, true), VolumeStep::Phase("Released", None));
        v.status = Some(PersistentVolumeStatus { phase: Some("Released".to_owned()), ..Default::default() });
        assert_eq!(volume_step(&v, None, true), VolumeStep::Delete);
        v.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(volume_step(&v, None, true), VolumeStep::Unprotect(VOLUME_PROTECTION));
        v.metadata.finalizers = Some(vec![LOCAL_PATH_FINALIZER.to_owned()]);
        assert_eq!(volume_step(&v, None, true), VolumeStep::Nothing, "the node removes the directory");
        assert_eq!(volume_step(&v, None, false), VolumeStep::Unprotect(LOCAL_PATH_FINALIZER), "the node is gone");
        // A new claim of the same name does not inherit the data.
        let mut newer = claim(Some("local-path"), "1Gi");
        newer.metadata.uid = Some("other".to_owned());
        v.metadata.deletion_timestamp = None;
        v.metadata.finalizers = Some(vec![VOLUME_PROTECTION.to_owned()]);
        assert_eq!(volume_step(&v, Some(&newer), true), VolumeStep::Delete);
    }
}
