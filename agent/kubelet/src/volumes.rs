//! A pod's volumes on this node. In: the pod's `volumes`, and the objects they mention. Out: a path for each volume,
//! kept up to date while the pod lives. The layout below the pod's folder is Kubernetes' own
//! (`volumes/kubernetes.io~<plugin>/<name>`).

pub mod atomic;
pub mod host;
pub mod local_path;
pub mod mounts;
pub mod payload;

use crate::downward::Facts;
use crate::names;
use crate::objects::{Kind, PodObjects};
use atomic::{File, Payload};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, KeyToPath, PersistentVolume, PersistentVolumeClaim, Pod, ProjectedVolumeSource,
    ServiceAccount, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Where each volume of a pod is.
pub type Mounted = BTreeMap<String, PathBuf>;

/// A volume that cannot be made.
#[derive(Debug, Clone, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {detail}")]
pub struct MountError {
    /// `volumes[].name`.
    pub volume: String,
    /// Why.
    pub detail: String,
}

#[derive(Clone)]
struct Token {
    text: String,
    renew_at: Timestamp,
}

/// Makes volumes.
pub struct Volumes {
    client: Client,
    /// By pod uid, volume and path.
    tokens: Mutex<HashMap<(String, String, String), Token>>,
}

impl Volumes {
    /// Getting tokens through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, tokens: Mutex::default() }
    }

    /// Makes all volumes of a pod. Idempotent.
    pub async fn set_up(
        &self,
        pod: &Pod,
        pod_dir: &Path,
        facts: &Facts,
        objects: &PodObjects,
    ) -> Result<Mounted, MountError> {
        let mut mounted = Mounted::new();
        for volume in volumes(pod) {
            let path = self
                .one(pod, volume, pod_dir, facts, objects)
                .await
                .map_err(|detail| MountError { volume: volume.name.clone(), detail })?;
            mounted.insert(volume.name.clone(), path);
        }
        Ok(mounted)
    }

    /// Brings the content of a pod's volumes up to date, of each that can be. The others keep theirs, and are brought up to
    /// date when what is missing is there.
    pub async fn refresh(&self, pod: &Pod, pod_dir: &Path, facts: &Facts, objects: &PodObjects) {
        for volume in volumes(pod).filter(|v| changes(v)) {
            if let Err(error) = self.one(pod, volume, pod_dir, facts, objects).await {
                let pod = names::format_pod(pod);
                tracing::debug!(pod, volume = volume.name, error, "a volume keeps its content");
            }
        }
    }

    /// Whether a pod has volumes whose content changes while it runs.
    pub fn live(pod: &Pod) -> bool {
        volumes(pod).any(changes)
    }

    /// Forgets a pod's tokens.
    pub fn forget(&self, uid: &str) {
        self.tokens.lock().retain(|(pod, _, _), _| pod != uid);
    }

    async fn one(
        &self,
        pod: &Pod,
        v: &Volume,
        pod_dir: &Path,
        facts: &Facts,
        objects: &PodObjects,
    ) -> Result<PathBuf, String> {
        let dir = |plugin: &str| pod_dir.join("volumes").join(format!("kubernetes.io~{plugin}")).join(&v.name);
        let group = fs_group(pod);
        let text = |e: std::io::Error| e.to_string();
        if let Some(source) = &v.empty_dir {
            return empty_dir(&dir("empty-dir"), source, group).map_err(text);
        }
        if let Some(source) = &v.host_path {
            return host_path(source);
        }
        if let Some(source) = &v.config_map {
            let mode = source.default_mode.unwrap_or(payload::DEFAULT_MODE);
            let optional = source.optional == Some(true);
            let files =
                content(objects, payload::config_map_data, &source.name, source.items.as_ref(), mode, optional).await?;
            atomic::write(&dir("configmap"), &files, group).map_err(text)?;
            return Ok(dir("configmap"));
        }
        if let Some(source) = &v.secret {
            let mode = source.default_mode.unwrap_or(payload::DEFAULT_MODE);
            let name = source.secret_name.as_deref().unwrap_or("");
            let optional = source.optional == Some(true);
            let files = content(objects, payload::secret_data, name, source.items.as_ref(), mode, optional).await?;
            host::tmpfs(&dir("secret"), None, 0o777).map_err(text)?;
            atomic::write(&dir("secret"), &files, group).map_err(text)?;
            return Ok(dir("secret"));
        }
        if let Some(source) = &v.downward_api {
            let mode = source.default_mode.unwrap_or(payload::DEFAULT_MODE);
            let files = payload::downward(pod, source.items.as_ref(), mode, facts)?;
            atomic::write(&dir("downward-api"), &files, group).map_err(text)?;
            return Ok(dir("downward-api"));
        }
        if let Some(source) = &v.projected {
            let files = self.projected(pod, &v.name, source, facts, objects).await?;
            host::tmpfs(&dir("projected"), None, 0o777).map_err(text)?;
            atomic::write(&dir("projected"), &files, group).map_err(text)?;
            return Ok(dir("projected"));
        }
        if let Some(source) = &v.persistent_volume_claim {
            return claim(objects, &source.claim_name, group).await;
        }
        Err("this kind of volume is not supported by this version; use emptyDir, hostPath, configMap, secret, \
             downwardAPI, projected or persistentVolumeClaim"
            .to_owned())
    }

    async fn projected(
        &self,
        pod: &Pod,
        volume: &str,
        p: &ProjectedVolumeSource,
        facts: &Facts,
        objects: &PodObjects,
    ) -> Result<Payload, String> {
        let mode = p.default_mode.unwrap_or(payload::DEFAULT_MODE);
        let mut all = Payload::new();
        for source in p.sources.iter().flatten() {
            all.extend(self.projection(pod, volume, source, mode, facts, objects).await?);
        }
        Ok(all)
    }

    async fn projection(
        &self,
        pod: &Pod,
        volume: &str,
        p: &VolumeProjection,
        mode: i32,
        facts: &Facts,
        objects: &PodObjects,
    ) -> Result<Payload, String> {
        if let Some(s) = &p.config_map {
            return content(
                objects,
                payload::config_map_data,
                &s.name,
                s.items.as_ref(),
                mode,
                s.optional == Some(true),
            )
            .await;
        }
        if let Some(s) = &p.secret {
            return content(objects, payload::secret_data, &s.name, s.items.as_ref(), mode, s.optional == Some(true))
                .await;
        }
        if let Some(s) = &p.downward_api {
            return payload::downward(pod, s.items.as_ref(), mode, facts);
        }
        if let Some(s) = &p.service_account_token {
            let token = self.token(pod, volume, s).await?;
            let file = File { data: token.into_bytes(), mode: payload::mode(mode) };
            return Ok(Payload::from([(s.path.clone(), file)]));
        }
        Err("a projected source of a kind that this version does not support".to_owned())
    }

    /// A token bound to the pod; renewed when 80 % of its life (or 24 hours) have gone.
    async fn token(&self, pod: &Pod, volume: &str, p: &ServiceAccountTokenProjection) -> Result<String, String> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let key = (uid.clone(), volume.to_owned(), p.path.clone());
        let now = Timestamp::now();
        let known = self.tokens.lock().get(&key).cloned();
        if let Some(token) = known.as_ref().filter(|t| t.renew_at > now) {
            return Ok(token.text.clone());
        }
        let account =
            pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".to_owned());
        let api: Api<ServiceAccount> =
            Api::namespaced(self.client.clone(), pod.metadata.namespace.as_deref().unwrap_or(""));
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: p.audience.iter().filter(|a| !a.is_empty()).cloned().collect(),
                expiration_seconds: Some(p.expiration_seconds.unwrap_or(3600)),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: Some(uid),
                }),
            },
            ..TokenRequest::default()
        };
        let answer = match api.create_token_request(&account, &PostParams::default(), &request).await {
            Ok(answer) => answer,
            // An old token is better than none while the API is away.
            Err(_) if known.is_some() => return Ok(known.map(|t| t.text).unwrap_or_default()),
            Err(e) => return Err(format!("failed to fetch token: {e}")),
        };
        let Some(status) = answer.status else {
            return Err("failed to fetch token: the answer has no status".to_owned());
        };
        let life = status.expiration_timestamp.0.duration_since(now).as_secs();
        let wait = SignedDuration::from_secs((life * 8 / 10).clamp(1, 24 * 3600));
        let renew_at = now.saturating_add(wait).unwrap_or(now);
        self.tokens.lock().insert(key, Token { text: status.token.clone(), renew_at });
        Ok(status.token)
    }
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten())
}

/// Its content changes while the pod runs. That of others is the pod's own, and where a claim leads stays as it is.
fn changes(v: &Volume) -> bool {
    v.config_map.is_some() || v.secret.is_some() || v.projected.is_some() || v.downward_api.is_some()
}

/// The files of a ConfigMap or a Secret; `data` is what it holds.
async fn content<K: Kind>(
    objects: &PodObjects,
    data: fn(&K) -> payload::Data,
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    match objects.read::<K>(name).await? {
        Some(object) => payload::keys(&data(&object), items, mode, optional, K::WHAT),
        None if optional => Ok(Payload::new()),
        None => Err(format!("{} \"{name}\" not found", K::WHAT)),
    }
}

/// Where a claim's volume is.
async fn claim(objects: &PodObjects, name: &str, group: Option<u32>) -> Result<PathBuf, String> {
    let claim = objects.read::<PersistentVolumeClaim>(name).await?;
    let Some(claim) = claim else { return Err(format!("persistentvolumeclaim \"{name}\" not found")) };
    let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let volume = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|v| bound && !v.is_empty());
    let Some(volume) = volume else { return Err(format!("PersistentVolumeClaim is not bound: \"{name}\"")) };
    let found = objects.read::<PersistentVolume>(&volume).await?;
    let Some(spec) = found.as_ref().and_then(|v| v.spec.as_ref()) else {
        return Err(format!("persistentvolume \"{volume}\" not found"));
    };
    let path = match (&spec.host_path, &spec.local) {
        (Some(source), _) => host_path(source)?,
        (None, Some(local)) => {
            let path = PathBuf::from(&local.path);
            host::check_host_path(&path, "Directory")?;
            path
        }
        (None, None) => {
            return Err(format!(
                "persistentvolume \"{volume}\" is of a kind that this version does not support; use hostPath or local"
            ));
        }
    };
    if let Some(group) = group.filter(|_| spec.local.is_some()) {
        host::give_to_group(&path, group).map_err(|e| e.to_string())?;
    }
    Ok(path)
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, String> {
    let path = PathBuf::from(&source.path);
    host::check_host_path(&path, source.type_.as_deref().unwrap_or(""))?;
    Ok(path)
}

fn empty_dir(
    dir: &Path,
    source: &k8s_openapi::api::core::v1::EmptyDirVolumeSource,
    group: Option<u32>,
) -> std::io::Result<PathBuf> {
    match source.medium.as_deref() {
        Some("Memory") => host::tmpfs(dir, source.size_limit.as_ref(), 0o777)?,
        _ if dir.is_dir() => {}
        _ => host::make_folder(dir, 0o777)?,
    }
    if let Some(group) = group {
        host::give_to_group(dir, group)?;
    }
    Ok(dir.to_path_buf())
}
