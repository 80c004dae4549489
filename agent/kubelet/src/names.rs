//! How containers are named and labelled in the runtime, so that a restarted kubelet finds its pods again.

use causeway_runtime::ContainerInfo;
use k8s_openapi::api::core::v1::{Container, Pod};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Label: `metadata.uid` of the pod.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: `metadata.name` of the pod.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: `metadata.namespace` of the pod.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: the container's name in the pod.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Label: how many containers of that name this pod had before.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Label: fingerprint of what, when changed, needs a new container.
pub const SPEC_HASH: &str = "io.kubernetes.container.hash";
/// Label: what `status.containerStatuses[].imageID` shows.
pub const IMAGE_ID: &str = "causeway.dev/image-id";

/// The runtime's id for the `attempt`-th container of a name in a pod: the same question gives the same answer, so a
/// start that was cut off is taken up again instead of doubled.
pub fn container_id(uid: &str, name: &str, attempt: u32) -> String {
    hex(&Sha256::digest(format!("{uid}/{name}/{attempt}")))
}

/// Fingerprint of the fields of a running pod that may change (only the image) and need a new container then.
pub fn spec_hash(container: &Container) -> String {
    let text = format!("{}\0{}", container.name, container.image.as_deref().unwrap_or(""));
    hex(&Sha256::digest(text)[..8])
}

/// Labels of a container.
pub fn labels(pod: &Pod, container: &Container, attempt: u32, image_id: &str) -> BTreeMap<String, String> {
    let meta = &pod.metadata;
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    BTreeMap::from([
        (POD_UID.to_owned(), text(&meta.uid)),
        (POD_NAME.to_owned(), text(&meta.name)),
        (POD_NAMESPACE.to_owned(), text(&meta.namespace)),
        (CONTAINER_NAME.to_owned(), container.name.clone()),
        (RESTART_COUNT.to_owned(), attempt.to_string()),
        (SPEC_HASH.to_owned(), spec_hash(container)),
        (IMAGE_ID.to_owned(), image_id.to_owned()),
    ])
}

/// A label of a container, empty when it is missing.
pub fn label<'a>(info: &'a ContainerInfo, key: &str) -> &'a str {
    info.labels.get(key).map_or("", String::as_str)
}

/// `name_namespace(uid)`: how messages name a pod.
pub fn format_pod(pod: &Pod) -> String {
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    format!("{}_{}({})", text(&pod.metadata.name), text(&pod.metadata.namespace), text(&pod.metadata.uid))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_stable_and_short_enough() {
        let id = container_id("4f3c", "web", 0);
        assert_eq!(id, container_id("4f3c", "web", 0));
        assert_ne!(id, container_id("4f3c", "web", 1));
        assert_eq!(id.len(), 64);
    }
}
