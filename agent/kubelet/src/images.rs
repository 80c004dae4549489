//! Images for containers: pull policy, credentials, back-off, and the words of `ErrImagePull` and its kin.

use crate::backoff::Backoff;
use crate::context::Context;
use crate::model::Waiting;
use crate::objects;
use base64::Engine;
use causeway_api::events::EventType;
use causeway_runtime::{ImageInfo, RegistryAuth, RuntimeError};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Instant;
use tokio::sync::Semaphore;

/// Pulls at the same time.
const PARALLEL_PULLS: usize = 5;
/// Until the state turns from `ErrImagePull` to `ImagePullBackOff`.
const SHOW_ERROR: SignedDuration = SignedDuration::from_secs(2);

/// Why a container cannot be started yet, and when to try again.
#[derive(Debug, Clone)]
pub struct Refused {
    /// `state.waiting`.
    pub waiting: Waiting,
    /// Not before.
    pub retry_at: Timestamp,
}

impl Refused {
    /// To be tried again after `seconds`.
    pub fn new(reason: &str, message: impl Into<String>, seconds: i64) -> Self {
        let retry_at = Timestamp::now().saturating_add(SignedDuration::from_secs(seconds));
        Self {
            waiting: Waiting { reason: reason.to_owned(), message: message.into() },
            retry_at: retry_at.unwrap_or(Timestamp::MAX),
        }
    }
}

/// The node's pulls and their back-offs.
pub struct Images {
    permits: Semaphore,
    failures: Mutex<HashMap<String, (Backoff, Timestamp)>>,
}

impl Default for Images {
    fn default() -> Self {
        Self { permits: Semaphore::new(PARALLEL_PULLS), failures: Mutex::default() }
    }
}

/// Makes the container's image available as its pull policy wants.
pub async fn ensure(ctx: &Context, pod: &Pod, c: &Container) -> Result<(ImageInfo, String), Refused> {
    let name = c.image.clone().unwrap_or_default();
    let warn = |reason: &str, text: String| ctx.container_event(pod, &c.name, EventType::Warning, reason, text);
    let present = match ctx.runtime.image(&name).await {
        Ok(found) => found,
        Err(RuntimeError::InvalidImageName { detail, .. }) => {
            let text =
                format!("Failed to apply default image tag \"{name}\": couldn't parse image name \"{name}\": {detail}");
            warn("InspectFailed", text.clone());
            warn("Failed", "Error: InvalidImageName".to_owned());
            return Err(Refused::new("InvalidImageName", text, 15));
        }
        Err(e) => {
            warn("Failed", format!("Error: ImageInspectError: {e}"));
            return Err(Refused::new("ImageInspectError", e.to_string(), 5));
        }
    };
    let policy = c.image_pull_policy.as_deref().filter(|p| !p.is_empty()).unwrap_or_else(|| default_policy(&name));
    match (policy, present) {
        ("IfNotPresent" | "Never", Some(image)) => {
            let text = format!("Container image \"{name}\" already present on machine");
            ctx.container_event(pod, &c.name, EventType::Normal, "Pulled", text);
            Ok((image, name))
        }
        ("Never", None) => {
            let text = format!("Container image \"{name}\" is not present with pull policy of Never");
            warn("ErrImageNeverPull", text.clone());
            warn("Failed", "Error: ErrImageNeverPull".to_owned());
            Err(Refused::new("ErrImageNeverPull", text, 10))
        }
        _ => pull(ctx, pod, c, &name).await.map(|image| (image, name)),
    }
}

async fn pull(ctx: &Context, pod: &Pod, c: &Container, name: &str) -> Result<ImageInfo, Refused> {
    let event = |type_, reason: &str, text: String| ctx.container_event(pod, &c.name, type_, reason, text);
    let now = Timestamp::now();
    let held = ctx.images.failures.lock().get(name).map(|(b, at)| b.ready_at(*at)).filter(|t| *t > now);
    if let Some(retry_at) = held {
        let text = format!("Back-off pulling image \"{name}\"");
        event(EventType::Normal, "BackOff", text.clone());
        event(EventType::Warning, "Failed", "Error: ImagePullBackOff".to_owned());
        return Err(Refused { waiting: Waiting { reason: "ImagePullBackOff".to_owned(), message: text }, retry_at });
    }
    let asked = Instant::now();
    let _permit = ctx.images.permits.acquire().await;
    event(EventType::Normal, "Pulling", format!("Pulling image \"{name}\""));
    let began = Instant::now();
    let result = pull_with_secrets(ctx, pod, name).await;
    match result {
        Ok(image) => {
            ctx.images.failures.lock().remove(name);
            let text = format!(
                "Successfully pulled image \"{name}\" in {:.3}s ({:.3}s including waiting). Image size: {} bytes.",
                began.elapsed().as_secs_f64(),
                asked.elapsed().as_secs_f64(),
                image.size
            );
            event(EventType::Normal, "Pulled", text);
            Ok(image)
        }
        Err(e) => {
            let failed = Timestamp::now();
            {
                let mut failures = ctx.images.failures.lock();
                if failures.len() > 1024 {
                    failures.clear();
                }
                let entry = failures.entry(name.to_owned()).or_insert((Backoff::default(), failed));
                entry.0.step(failed);
                entry.1 = failed;
            }
            let detail = match &e {
                RuntimeError::ImagePull { detail, .. } => detail.clone(),
                other => other.to_string(),
            };
            let text = format!("failed to pull image \"{name}\": {detail}");
            event(EventType::Warning, "Failed", format!("Failed to pull image \"{name}\": {detail}"));
            event(EventType::Warning, "Failed", "Error: ErrImagePull".to_owned());
            let retry_at = failed.saturating_add(SHOW_ERROR).unwrap_or(failed);
            Err(Refused { waiting: Waiting { reason: "ErrImagePull".to_owned(), message: text }, retry_at })
        }
    }
}

async fn pull_with_secrets(ctx: &Context, pod: &Pod, name: &str) -> causeway_runtime::Result<ImageInfo> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let mut last = None;
    for r in pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()) {
        let secret = match objects::secret(&ctx.client, namespace, &r.name).await {
            Ok(Some(secret)) => secret,
            Ok(None) | Err(_) => {
                let text = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    r.name
                );
                ctx.pod_event(pod, EventType::Warning, "FailedToRetrieveImagePullSecret", text);
                continue;
            }
        };
        for auth in credentials(&secret, name) {
            match ctx.runtime.pull_image(name, Some(&auth)).await {
                Ok(image) => return Ok(image),
                Err(e) => last = Some(e),
            }
        }
    }
    match last {
        Some(e) => Err(e),
        None => ctx.runtime.pull_image(name, None).await,
    }
}

/// `Always` for `latest` and for no tag at all, as Kubernetes defaults it.
fn default_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

/// The registry part of an image name.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// Credentials of a pull secret that are meant for the image's registry.
pub fn credentials(secret: &Secret, image: &str) -> Vec<RegistryAuth> {
    let data = secret.data.as_ref();
    let get =
        |key: &str| data.and_then(|d| d.get(key)).and_then(|v| serde_json::from_slice::<serde_json::Value>(&v.0).ok());
    let auths = match get(".dockerconfigjson") {
        Some(config) => config.get("auths").cloned().unwrap_or_default(),
        None => get(".dockercfg").unwrap_or_default(),
    };
    let host = registry(image);
    let full = if image.starts_with(host) { image.to_owned() } else { format!("{host}/{image}") };
    let matches = |key: &str| {
        let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        let key = key.trim_end_matches("/v1").trim_end_matches("/v2");
        let key = if key == "index.docker.io" { "docker.io" } else { key };
        full == key || full.starts_with(&format!("{key}/"))
    };
    let mut found: Vec<(usize, RegistryAuth)> = auths
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| matches(key))
        .filter_map(|(key, entry)| credential(entry).map(|auth| (key.len(), auth)))
        .collect();
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn credential(entry: &serde_json::Value) -> Option<RegistryAuth> {
    let text = |key: &str| entry.get(key).and_then(|v| v.as_str()).filter(|t| !t.is_empty());
    if let (Some(username), Some(password)) = (text("username"), text("password")) {
        return Some(RegistryAuth { username: username.to_owned(), password: password.to_owned() });
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")?).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (username, password) = decoded.split_once(':')?;
    Some(RegistryAuth { username: username.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn policies() {
        for (image, want) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.2", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("a/b@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(default_policy(image), want, "{image}");
        }
    }

    #[test]
    fn pull_secrets_match_their_registry() {
        let json = r#"{"auths":{"registry.test:5000":{"auth":"dTpwOnE="},"https://index.docker.io/v1/":{"username":"d","password":"x"}}}"#;
        let secret = Secret {
            data: Some([(".dockerconfigjson".to_owned(), ByteString(json.as_bytes().to_vec()))].into()),
            ..Secret::default()
        };
        let users = |image: &str| -> Vec<(String, String)> {
            credentials(&secret, image).into_iter().map(|a| (a.username, a.password)).collect()
        };
        assert_eq!(users("registry.test:5000/a/b:1"), [("u".to_owned(), "p:q".to_owned())]);
        assert_eq!(users("nginx"), [("d".to_owned(), "x".to_owned())]);
        assert!(users("other.test/x").is_empty());
    }
}
