//! What an image is made of: manifests, indexes and configurations as JSON, names and identities. Pure. In: documents
//! and references. Out: which parts belong together, and what the kubelet wants to know of an image.

use super::content::{Descriptor, Labels};
use crate::types::{ImageInfo, Result, RuntimeError};
use oci_client::Reference;
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Manifest and index in one: an index has `manifests`, a manifest has `config` and `layers`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Manifest {
    pub config: Option<Descriptor>,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

/// The parts of an image configuration that running it needs.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct ImageConfig {
    #[serde(default)]
    config: Option<Execution>,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// An image's documents, read once: they never change under one digest.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub id: String,
    pub config: ImageConfig,
    pub layers: Vec<Descriptor>,
}

impl Image {
    /// The uncompressed layers' digests, lowest first.
    pub(crate) fn diff_ids(&self) -> &[String] {
        &self.config.rootfs.diff_ids
    }

    /// The snapshot that holds the whole root file system; empty for an image without layers.
    pub(crate) fn chain_id(&self) -> String {
        chain_ids(&self.config.rootfs.diff_ids).pop().unwrap_or_default()
    }
}

/// A reference in full (`nginx` → `docker.io/library/nginx:latest`).
pub(crate) fn parse_reference(reference: &str) -> Result<Reference> {
    reference
        .parse::<Reference>()
        .map_err(|error| RuntimeError::InvalidImageName { reference: reference.into(), detail: error.to_string() })
}

/// The names under which content is unpacked: each layer's depends on all below it.
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chains: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chains.last() {
            None => diff_id.clone(),
            Some(parent) => digest_of(format!("{parent} {diff_id}").as_bytes()),
        };
        chains.push(next);
    }
    chains
}

pub(crate) fn digest_of(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in hash {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The machine's architecture in Go's words.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The manifest of an index for this machine; an only entry without a platform is taken as it is.
pub(crate) fn choose(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let ours =
        |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture());
    manifests.iter().find(ours).or_else(|| match manifests {
        [only] if only.platform.is_none() => Some(only),
        _ => manifests.iter().find(|d| d.platform.is_none() && !d.media_type.ends_with("index.v1+json")),
    })
}

/// Labels by which the garbage collector sees what a manifest holds on to.
pub(crate) fn references(manifest: &Manifest, chosen: Option<&Descriptor>) -> Labels {
    let mut labels = Labels::new();
    if let Some(config) = &manifest.config {
        labels.insert("containerd.io/gc.ref.content.config".into(), config.digest.clone());
    }
    for (n, layer) in manifest.layers.iter().enumerate() {
        labels.insert(format!("containerd.io/gc.ref.content.l.{n}"), layer.digest.clone());
    }
    if let Some(chosen) = chosen {
        labels.insert("containerd.io/gc.ref.content.m.0".into(), chosen.digest.clone());
    }
    labels
}

/// Without names.
pub(crate) fn describe(image: &Image) -> ImageInfo {
    let execution = image.config.config.clone().unwrap_or_default();
    ImageInfo {
        id: image.id.clone(),
        names: Vec::new(),
        repo_digests: Vec::new(),
        size: image.layers.iter().map(|l| u64::try_from(l.size).unwrap_or(0)).sum(),
        entrypoint: execution.entrypoint.unwrap_or_default(),
        cmd: execution.cmd.unwrap_or_default(),
        env: execution.env.unwrap_or_default(),
        user: execution.user.unwrap_or_default(),
        working_dir: execution.working_dir.unwrap_or_default(),
        stop_signal: execution.stop_signal.filter(|s| !s.is_empty()),
    }
}

/// Files a name of the image under tags or digests.
pub(crate) fn add_name(info: &mut ImageInfo, name: &str, target: &str) {
    let Ok(reference) = name.parse::<Reference>() else { return };
    let by_digest = format!("{}/{}@{target}", reference.registry(), reference.repository());
    if reference.digest().is_none() && !info.names.iter().any(|n| n == name) {
        info.names.push(name.into());
    }
    if !info.repo_digests.contains(&by_digest) {
        info.repo_digests.push(by_digest);
    }
}

/// Whether this is an image id, with or without `sha256:`.
pub(crate) fn is_id(reference: &str) -> bool {
    let hex = reference.strip_prefix("sha256:").unwrap_or(reference);
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

pub(crate) fn same_id(id: &str, reference: &str) -> bool {
    id.strip_prefix("sha256:") == Some(reference.strip_prefix("sha256:").unwrap_or(reference))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_completed_as_docker_does() {
        let whole = |text: &str| parse_reference(text).map(|r| r.whole()).unwrap_or_else(|e| e.to_string());
        assert_eq!(whole("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(whole("a/b:1"), "docker.io/a/b:1");
        assert_eq!(whole("localhost:5000/x"), "localhost:5000/x:latest");
        assert!(matches!(parse_reference("UPPER case"), Err(RuntimeError::InvalidImageName { .. })));
        assert!(matches!(parse_reference(""), Err(RuntimeError::InvalidImageName { .. })));
    }

    #[test]
    fn chain_of_one_is_its_diff_id() {
        let chains = chain_ids(&["sha256:a".into(), "sha256:b".into()]);
        assert_eq!(chains[0], "sha256:a");
        assert_eq!(chains[1], digest_of(b"sha256:a sha256:b"));
    }

    #[test]
    fn the_machines_platform_is_chosen_over_others() {
        let entry = |digest: &str, os: &str, architecture: &str| Descriptor {
            digest: digest.into(),
            platform: Some(Platform { os: os.into(), architecture: architecture.into() }),
            ..Default::default()
        };
        let all =
            [entry("1", "windows", architecture()), entry("2", "linux", "s390x"), entry("3", "linux", architecture())];
        assert_eq!(choose(&all).map(|d| d.digest.as_str()), Some("3"));
        assert!(choose(&all[..2]).is_none());
        assert!(choose(&[Descriptor { digest: "4".into(), ..Default::default() }]).is_some());
    }

    use super::super::content::Platform;
}
