//! The pods and claims of a StatefulSet's ordinals. Pure.

use crate::meta::{Map, controlled_by, controller_ref, name, namespace, uid};
use crate::pods::from_template;
use crate::revision::HASH_LABEL;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::ops::Range;
use std::sync::Arc;

/// The label with the pod's name.
pub const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// The label with the pod's ordinal.
pub const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The ordinals that should have a pod.
pub fn ordinals(set: &StatefulSet) -> Range<i32> {
    let spec = set.spec.as_ref();
    let start = spec.and_then(|s| s.ordinals.as_ref()).and_then(|o| o.start).unwrap_or(0);
    start..start + spec.and_then(|s| s.replicas).unwrap_or(1)
}

/// `<set>-<ordinal>`.
pub fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", name(&set.metadata))
}

/// The ordinal in a pod's name, if it is named as this set's pods are.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let digits = name(&pod.metadata).strip_prefix(name(&set.metadata))?.strip_prefix('-')?;
    let canonical = digits == "0" || !digits.starts_with('0');
    (canonical && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// The labels that say which pod it is.
pub fn identity(set: &StatefulSet, ordinal: i32) -> Map {
    [(NAME_LABEL.to_owned(), pod_name(set, ordinal)), (INDEX_LABEL.to_owned(), ordinal.to_string())].into()
}

/// Whether a pod carries the labels of its ordinal.
pub fn identified(set: &StatefulSet, pod: &Pod) -> bool {
    ordinal(set, pod).is_none_or(|o| {
        let labels = pod.metadata.labels.as_ref();
        identity(set, o).iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
    })
}

/// The pod of an ordinal, from a revision's template.
pub fn build(set: &StatefulSet, template: &PodTemplateSpec, ordinal: i32, revision: &str) -> Pod {
    let mut pod = from_template(template, namespace(&set.metadata), controller_ref(set));
    let pod_name = pod_name(set, ordinal);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(pod_name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.extend(identity(set, ordinal));
    labels.insert(HASH_LABEL.to_owned(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(pod_name);
    spec.subdomain = set.spec.as_ref().and_then(|s| s.service_name.clone()).filter(|s| !s.is_empty());
    let claims = claims(set, ordinal);
    let templates = set.spec.iter().flat_map(|s| s.volume_claim_templates.iter().flatten());
    let volumes = spec.volumes.get_or_insert_default();
    for (template, claim) in templates.zip(claims) {
        let volume = name(&template.metadata).to_owned();
        volumes.retain(|v| v.name != volume);
        volumes.push(Volume {
            name: volume,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: name(&claim.metadata).to_owned(),
                read_only: None,
            }),
            ..Volume::default()
        });
    }
    if volumes.is_empty() {
        spec.volumes = None;
    }
    pod
}

/// The claims of an ordinal: `<template>-<set>-<ordinal>`.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selected = set.spec.as_ref().and_then(|s| s.selector.match_labels.clone()).unwrap_or_default();
    let templates = set.spec.iter().flat_map(|s| s.volume_claim_templates.iter().flatten());
    templates
        .map(|template| {
            let mut labels = template.metadata.labels.clone().unwrap_or_default();
            labels.extend(selected.clone());
            PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(format!("{}-{}", name(&template.metadata), pod_name(set, ordinal))),
                    namespace: set.metadata.namespace.clone(),
                    labels: Some(labels),
                    annotations: template.metadata.annotations.clone(),
                    ..ObjectMeta::default()
                },
                spec: template.spec.clone(),
                status: None,
            }
        })
        .collect()
}

/// The owners a claim of this set should have, when they differ from those it has. `None` also for others' claims.
pub fn claim_owners(
    set: &StatefulSet,
    claim: &PersistentVolumeClaim,
    pods: &[Arc<Pod>],
) -> Option<Vec<OwnerReference>> {
    let spec = set.spec.as_ref()?;
    let templates = spec.volume_claim_templates.as_ref()?;
    let set_name = name(&set.metadata);
    let ordinal: i32 = templates.iter().find_map(|t| {
        let rest = name(&claim.metadata).strip_prefix(name(&t.metadata))?.strip_prefix('-')?;
        rest.strip_prefix(set_name)?.strip_prefix('-')?.parse().ok()
    })?;
    let policy = spec.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
    let with_set = policy.when_deleted.as_deref() == Some("Delete");
    let condemned = !ordinals(set).contains(&ordinal);
    let with_pod = policy.when_scaled.as_deref() == Some("Delete") && condemned;
    let pod = pods.iter().find(|p| *p.metadata.name.as_deref().unwrap_or("") == pod_name(set, ordinal));
    let has = claim.metadata.owner_references.clone().unwrap_or_default();
    let ours = |r: &OwnerReference| {
        r.uid == uid(&set.metadata) || r.kind == "Pod" && r.api_version == "v1" && r.name == pod_name(set, ordinal)
    };
    let mut wants: Vec<_> = has.iter().filter(|r| !ours(r)).cloned().collect();
    let free = |r: OwnerReference| OwnerReference { controller: None, block_owner_deletion: None, ..r };
    match pod {
        Some(pod) if with_pod && controlled_by(&pod.metadata, uid(&set.metadata)) => {
            wants.push(free(controller_ref(&**pod)))
        }
        // The pod has gone already: the reference to it is what makes the collector take the claim.
        None if with_pod => wants.extend(has.iter().filter(|r| r.kind == "Pod" && ours(r)).cloned()),
        _ if with_set && !with_pod => wants.push(free(controller_ref(set))),
        _ => {}
    }
    (wants != has).then_some(wants)
}
