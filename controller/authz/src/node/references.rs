//! What pods and volumes refer to, by the fields that a kubelet follows.
//!
//! In: a Pod or a PersistentVolume. Out: names. What has another shape than the API's is passed over: the API server has
//! validated it, and what is not understood gives no reach.

use serde_json::Value;

/// Kinds of objects that a pod gives its node reach to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The pod itself.
    Pod,
    /// A Secret.
    Secret,
    /// A ConfigMap.
    ConfigMap,
    /// A PersistentVolumeClaim.
    Claim,
    /// A ServiceAccount.
    Account,
    /// A ResourceClaim.
    ResourceClaim,
}

/// The annotation of pods that mirror a static pod of a node.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// A text in an object; empty where there is none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn list<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    object.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// Whether a pod is a mirror pod.
pub fn is_mirror(pod: &Value) -> bool {
    pod.pointer("/metadata/annotations").is_some_and(|a| a.get(MIRROR).is_some())
}

/// The account of a pod, also by the field's old name.
pub fn account(pod: &Value) -> &str {
    match text(pod, "/spec/serviceAccountName") {
        "" => text(pod, "/spec/serviceAccount"),
        name => name,
    }
}

/// Everything in its own namespace that a pod refers to, itself excepted; a name may come more than once.
pub fn of_pod(pod: &Value) -> Vec<(Kind, String)> {
    let mut found = Vec::new();
    let mut add = |kind, name: &str| {
        if !name.is_empty() {
            found.push((kind, name.to_owned()));
        }
    };
    add(Kind::Account, account(pod));
    let Some(spec) = pod.get("spec") else { return found };
    for secret in list(spec, "imagePullSecrets") {
        add(Kind::Secret, text(secret, "/name"));
    }
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list(spec, field) {
            for env in list(container, "env") {
                add(Kind::Secret, text(env, "/valueFrom/secretKeyRef/name"));
                add(Kind::ConfigMap, text(env, "/valueFrom/configMapKeyRef/name"));
            }
            for from in list(container, "envFrom") {
                add(Kind::Secret, text(from, "/secretRef/name"));
                add(Kind::ConfigMap, text(from, "/configMapRef/name"));
            }
        }
    }
    let name = text(pod, "/metadata/name");
    for volume in list(spec, "volumes") {
        of_volume(volume, name, &mut add);
    }
    resource_claims(pod, &mut add);
    found
}

/// Where a volume names a Secret.
const VOLUME_SECRETS: [&str; 10] = [
    "/azureFile/secretName",
    "/cephfs/secretRef/name",
    "/cinder/secretRef/name",
    "/csi/nodePublishSecretRef/name",
    "/flexVolume/secretRef/name",
    "/iscsi/secretRef/name",
    "/rbd/secretRef/name",
    "/scaleIO/secretRef/name",
    "/secret/secretName",
    "/storageos/secretRef/name",
];

fn of_volume(volume: &Value, pod: &str, add: &mut impl FnMut(Kind, &str)) {
    for place in VOLUME_SECRETS {
        add(Kind::Secret, text(volume, place));
    }
    add(Kind::ConfigMap, text(volume, "/configMap/name"));
    for source in volume.get("projected").into_iter().flat_map(|p| list(p, "sources")) {
        add(Kind::Secret, text(source, "/secret/name"));
        add(Kind::ConfigMap, text(source, "/configMap/name"));
    }
    if volume.get("persistentVolumeClaim").is_some_and(Value::is_object) {
        add(Kind::Claim, text(volume, "/persistentVolumeClaim/claimName"));
    } else if volume.get("ephemeral").is_some_and(Value::is_object) && !text(volume, "/name").is_empty() {
        add(Kind::Claim, &format!("{pod}-{}", text(volume, "/name")));
    }
}

/// Devices' claims: named, or made from a template and then named in the status by their controller.
fn resource_claims(pod: &Value, add: &mut impl FnMut(Kind, &str)) {
    for claim in pod.get("spec").into_iter().flat_map(|s| list(s, "resourceClaims")) {
        match text(claim, "/resourceClaimName") {
            "" => {
                let statuses = pod.get("status").into_iter().flat_map(|s| list(s, "resourceClaimStatuses"));
                let own = |s: &&Value| text(s, "/name") == text(claim, "/name");
                for status in statuses.filter(own) {
                    add(Kind::ResourceClaim, text(status, "/resourceClaimName"));
                }
            }
            name => add(Kind::ResourceClaim, name),
        }
    }
    add(Kind::ResourceClaim, text(pod, "/status/extendedResourceClaimStatus/resourceClaimName"));
}

/// Where the source of a PersistentVolume names a Secret that a kubelet reads, and where its namespace.
const PERSISTENT_SECRETS: [(&str, &str); 10] = [
    ("/azureFile/secretName", "/azureFile/secretNamespace"),
    ("/cephfs/secretRef/name", "/cephfs/secretRef/namespace"),
    ("/cinder/secretRef/name", "/cinder/secretRef/namespace"),
    ("/csi/nodeExpandSecretRef/name", "/csi/nodeExpandSecretRef/namespace"),
    ("/csi/nodePublishSecretRef/name", "/csi/nodePublishSecretRef/namespace"),
    ("/csi/nodeStageSecretRef/name", "/csi/nodeStageSecretRef/namespace"),
    ("/flexVolume/secretRef/name", "/flexVolume/secretRef/namespace"),
    ("/iscsi/secretRef/name", "/iscsi/secretRef/namespace"),
    ("/rbd/secretRef/name", "/rbd/secretRef/namespace"),
    ("/scaleIO/secretRef/name", "/scaleIO/secretRef/namespace"),
];

/// Namespace and name.
pub type Name = (String, String);

/// The claim that a PersistentVolume is for, and the Secrets of its source; the
/// namespace of a Secret is the claim's where the source does not name one.
pub fn of_persistent_volume(volume: &Value) -> Option<(Name, Vec<Name>)> {
    let spec = volume.get("spec")?;
    let (namespace, claim) = (text(spec, "/claimRef/namespace"), text(spec, "/claimRef/name"));
    if claim.is_empty() || namespace.is_empty() {
        return None;
    }
    let mut secrets: Vec<Name> = Vec::new();
    let all = PERSISTENT_SECRETS.iter().chain(&[("/storageos/secretRef/name", "/storageos/secretRef/namespace")]);
    for (name, place) in all {
        let (name, of) = (text(spec, name), text(spec, place));
        if !name.is_empty() {
            secrets.push((if of.is_empty() { namespace } else { of }.to_owned(), name.to_owned()));
        }
    }
    secrets.sort();
    secrets.dedup();
    Some(((namespace.to_owned(), claim.to_owned()), secrets))
}

/// The audiences of tokens that the projected volumes of a pod ask for; empty stands for the API server.
pub fn audiences(pod: &Value) -> impl Iterator<Item = &str> {
    let volumes = pod.get("spec").into_iter().flat_map(|s| list(s, "volumes"));
    let sources = volumes.filter_map(|v| v.get("projected")).flat_map(|p| list(p, "sources"));
    sources.filter_map(|s| s.get("serviceAccountToken")).filter(|t| t.is_object()).map(|t| text(t, "/audience"))
}
