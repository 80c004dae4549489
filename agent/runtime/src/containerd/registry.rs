//! Pulling: a registry as a [`Source`] of blobs. In: a reference and credentials. Out: manifests and layers as the
//! registry sends them, or its refusal in the words that Kubernetes users know.

use super::{
    content::{Blob, Descriptor, chain},
    images::Source,
};
use crate::types::{RegistryAuth, Result, RuntimeError};
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    manifest::OciDescriptor,
    secrets,
};
use std::{net::IpAddr, time::Duration};

const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// One image of one registry.
pub(crate) struct Registry {
    client: Client,
    image: Reference,
    auth: secrets::RegistryAuth,
    root: (Descriptor, bytes::Bytes),
}

impl Registry {
    /// Resolves the reference to the digest that it has now.
    pub(crate) async fn resolve(image: Reference, auth: Option<&RegistryAuth>, insecure: &[String]) -> Result<Self> {
        let registry = image.resolve_registry().to_string();
        let mut plain = insecure.to_vec();
        if is_loopback(&registry) {
            plain.push(registry);
        }
        let client = Client::new(ClientConfig {
            protocol: ClientProtocol::HttpsExcept(plain),
            connect_timeout: Some(Duration::from_secs(15)),
            read_timeout: Some(Duration::from_secs(60)),
            user_agent: concat!("causeway/", env!("CARGO_PKG_VERSION")),
            ..Default::default()
        });
        let auth = match auth {
            Some(auth) => secrets::RegistryAuth::Basic(auth.username.clone(), auth.password.clone()),
            None => secrets::RegistryAuth::Anonymous,
        };
        let (bytes, digest) = client
            .pull_manifest_raw(&image, &auth, ACCEPTED)
            .await
            .map_err(|error| pull_error(&image, "failed to resolve reference", &error))?;
        let media_type = media_type(&bytes);
        let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        let root = (Descriptor { media_type, digest, size, ..Default::default() }, bytes);
        Ok(Self { client, image, auth, root })
    }

    pub(crate) fn root(&self) -> Descriptor {
        self.root.0.clone()
    }
}

#[async_trait]
impl Source for Registry {
    async fn blob(&self, what: &Descriptor) -> Result<Blob> {
        if what.digest == self.root.0.digest {
            return Ok(futures::stream::iter([Ok(self.root.1.clone())]).boxed());
        }
        let fail = |error| pull_error(&self.image, &format!("failed to copy {}", what.digest), &error);
        if ACCEPTED.contains(&what.media_type.as_str()) {
            let image = self.image.clone_with_digest(what.digest.clone());
            let (bytes, _) = self.client.pull_manifest_raw(&image, &self.auth, ACCEPTED).await.map_err(fail)?;
            return Ok(futures::stream::iter([Ok(bytes)]).boxed());
        }
        let descriptor = OciDescriptor {
            digest: what.digest.clone(),
            media_type: what.media_type.clone(),
            size: what.size,
            ..Default::default()
        };
        let blob = self.client.pull_blob_stream(&self.image, &descriptor).await.map_err(fail)?;
        Ok(blob.stream.map_err(std::io::Error::other).boxed())
    }
}

fn media_type(manifest: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(manifest).unwrap_or_default();
    match value["mediaType"].as_str() {
        Some(stated) => stated.to_string(),
        None if value["manifests"].is_array() => ACCEPTED[0].to_string(),
        None => ACCEPTED[2].to_string(),
    }
}

fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn pull_error(image: &Reference, doing: &str, error: &OciDistributionError) -> RuntimeError {
    let whole = image.whole();
    let detail = match error {
        OciDistributionError::ImageManifestNotFoundError(_) => format!("{doing} \"{whole}\": {whole}: not found"),
        OciDistributionError::UnauthorizedError { url } => format!(
            "{doing} \"{whole}\": pull access denied, repository does not exist or may require authorization: \
             {url}: 401 Unauthorized"
        ),
        OciDistributionError::AuthenticationFailure(words) => {
            format!("{doing} \"{whole}\": pull access denied, authorization failed: {words}")
        }
        OciDistributionError::RegistryError { envelope, url } => {
            let said: Vec<String> =
                envelope.errors.iter().map(|e| format!("{:?}: {}", e.code, e.message).trim().to_string()).collect();
            let missing = envelope.errors.iter().any(|e| format!("{:?}", e.code).ends_with("Unknown"));
            let end = if missing { format!("{whole}: not found") } else { url.clone() };
            format!("{doing} \"{whole}\": {end} ({})", said.join("; "))
        }
        OciDistributionError::ServerError { code: 404, .. } => format!("{doing} \"{whole}\": {whole}: not found"),
        other => format!("{doing} \"{whole}\": {}", chain(other)),
    };
    RuntimeError::ImagePull { reference: whole, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_plain_by_default() {
        assert!(is_loopback("localhost:5000"));
        assert!(is_loopback("127.0.0.1:80"));
        assert!(is_loopback("[::1]:5000"));
        assert!(!is_loopback("registry.example:5000"));
        assert!(!is_loopback("10.0.0.1"));
    }

    #[test]
    fn media_type_is_told_or_derived() {
        assert_eq!(media_type(br#"{"mediaType":"x"}"#), "x");
        assert_eq!(media_type(br#"{"manifests":[]}"#), ACCEPTED[0]);
        assert_eq!(media_type(br#"{"config":{}}"#), ACCEPTED[2]);
    }
}
