//! Images in containerd: from descriptors and blobs to content, an image record and unpacked snapshots that its garbage
//! collector keeps. In: a [`Source`] of blobs and the name. Out: an [`Image`] that containers can be made of.

use super::{
    content::{self, Blob, Descriptor, Labels, Lease},
    manifest::{
        Image, ImageConfig, Manifest, add_name, architecture, chain_ids, choose, describe, is_id, parse_reference,
        references, same_id,
    },
    rpc::{Api, LONG, SHORT, gone_is_fine},
};
use crate::types::{ImageInfo, Result, RuntimeError};
use async_trait::async_trait;
use containerd_client::services::v1::{
    ApplyRequest, CreateImageRequest, DeleteImageRequest, GetImageRequest, Image as ImageRecord, ListImagesRequest,
    UpdateImageRequest,
    snapshots::{CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest},
};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tonic::Code;

/// Manifests and configurations beyond this are not images but mischief.
pub(crate) const MAX_DOCUMENT: usize = 8 << 20;
/// How many layers are fetched at the same time.
const PARALLEL: usize = 3;

/// Where the blobs of an image come from.
#[async_trait]
pub(crate) trait Source: Send + Sync {
    async fn blob(&self, what: &Descriptor) -> Result<Blob>;
}

/// The images of one containerd namespace.
#[derive(Clone)]
pub(crate) struct Images {
    api: Api,
    snapshotter: String,
    known: Arc<Mutex<HashMap<String, Arc<Image>>>>,
}

impl Images {
    pub(crate) fn new(api: Api, snapshotter: String) -> Self {
        Self { api, snapshotter, known: Arc::default() }
    }

    fn other(&self, doing: impl Into<String>, detail: impl std::fmt::Display) -> RuntimeError {
        RuntimeError::Other { doing: doing.into(), detail: detail.to_string() }
    }

    /// Stores what `root` describes, unpacks it and names it.
    pub(crate) async fn store(&self, name: &str, root: Descriptor, source: &dyn Source) -> Result<Arc<Image>> {
        let lease = Lease::new(&self.api).await?;
        let (target, manifest) = self.store_manifests(&lease, root, source).await?;
        let config = manifest.config.clone().ok_or_else(|| {
            self.other(format!("reading the manifest of {name}"), "it has no config; is this a container image?")
        })?;
        futures::stream::iter(std::iter::once(&config).chain(&manifest.layers).cloned().collect::<Vec<_>>())
            .map(|what| self.store_blob(&lease, what, source))
            .buffer_unordered(PARALLEL)
            .try_collect::<Vec<()>>()
            .await?;
        let image = self.documents(&target.digest).await?;
        self.unpack(&image, &lease).await?;
        self.record(name, &target).await?;
        Ok(image)
    }

    async fn store_blob(&self, lease: &Lease, what: Descriptor, source: &dyn Source) -> Result<()> {
        if content::adopt(&self.api, &what.digest, &Labels::new()).await? {
            return Ok(());
        }
        content::write(&self.api, &lease.id, &what, Labels::new(), source.blob(&what).await?).await
    }

    /// Walks index → manifest, storing each with labels for what it refers to. Returns the root and the manifest.
    async fn store_manifests(
        &self,
        lease: &Lease,
        root: Descriptor,
        source: &dyn Source,
    ) -> Result<(Descriptor, Manifest)> {
        let mut what = root.clone();
        for _ in 0..4 {
            let bytes = self.document(&what, source).await?;
            let manifest: Manifest = serde_json::from_slice(&bytes)
                .map_err(|error| self.other(format!("reading the manifest {}", what.digest), error))?;
            let next = match &manifest.config {
                Some(_) => None,
                None => Some(choose(&manifest.manifests).cloned().ok_or_else(|| {
                    self.other(
                        format!("choosing from {}", what.digest),
                        format!("no match for platform linux/{} in manifest: not found", architecture()),
                    )
                })?),
            };
            let labels = references(&manifest, next.as_ref());
            if !content::adopt(&self.api, &what.digest, &labels).await? {
                let blob = futures::stream::iter([Ok(bytes.into())]).boxed();
                content::write(&self.api, &lease.id, &what, labels, blob).await?;
            }
            match next {
                None => return Ok((root, manifest)),
                Some(next) => what = next,
            }
        }
        Err(self.other(format!("reading the index {}", root.digest), "indexes are nested too deeply"))
    }

    async fn document(&self, what: &Descriptor, source: &dyn Source) -> Result<Vec<u8>> {
        if let Some(bytes) = content::read(&self.api, &what.digest, MAX_DOCUMENT).await? {
            return Ok(bytes);
        }
        let (mut blob, mut out) = (source.blob(what).await?, Vec::new());
        while let Some(bytes) = blob.next().await {
            let bytes = bytes.map_err(|e| self.other(format!("reading {}", what.digest), content::chain(&e)))?;
            out.extend_from_slice(&bytes);
            if out.len() > MAX_DOCUMENT {
                return Err(self.other(format!("reading {}", what.digest), "the manifest is larger than 8 MiB"));
            }
        }
        Ok(out)
    }

    /// Manifest and configuration of what is in the store.
    async fn documents(&self, target: &str) -> Result<Arc<Image>> {
        if let Some(image) = self.known.lock().get(target) {
            return Ok(image.clone());
        }
        let mut digest = target.to_string();
        for _ in 0..4 {
            let manifest: Manifest = self.parse(&digest).await?;
            if let Some(config) = manifest.config {
                let parsed: ImageConfig = self.parse(&config.digest).await?;
                let image = Image { id: config.digest.clone(), config: parsed, layers: manifest.layers };
                if image.diff_ids().len() != image.layers.len() {
                    return Err(self.other(
                        format!("reading image configuration {}", config.digest),
                        "it does not have one diff id per layer",
                    ));
                }
                let image = Arc::new(image);
                self.known.lock().insert(target.to_string(), image.clone());
                return Ok(image);
            }
            digest = choose(&manifest.manifests).map(|d| d.digest.clone()).unwrap_or_default();
        }
        Err(self.other(format!("reading image {target}"), "indexes are nested too deeply"))
    }

    async fn parse<T: serde::de::DeserializeOwned>(&self, digest: &str) -> Result<T> {
        let bytes = content::read(&self.api, digest, MAX_DOCUMENT).await?;
        let bytes = bytes.ok_or_else(|| self.other(format!("reading {digest}"), "it is not in the content store"))?;
        serde_json::from_slice(&bytes).map_err(|error| self.other(format!("reading {digest}"), error))
    }

    /// Makes one committed snapshot per layer; finished ones are found again.
    pub(crate) async fn unpack(&self, image: &Image, lease: &Lease) -> Result<()> {
        let diff_ids = image.diff_ids();
        let chains = chain_ids(diff_ids);
        let mut parent = String::new();
        for ((layer, diff_id), chain) in image.layers.iter().zip(diff_ids).zip(&chains) {
            let stat = StatSnapshotRequest { snapshotter: self.snapshotter.clone(), key: chain.clone() };
            let found = gone_is_fine(self.api.snapshots().stat(self.api.ask(stat, SHORT)).await)
                .map_err(|s| self.api.fail(format!("looking up snapshot {chain}"), &s))?;
            if found.is_none() {
                self.unpack_layer(layer, diff_id, &parent, chain, lease).await?;
            }
            parent.clone_from(chain);
        }
        let Some(last) = chains.last() else { return Ok(()) };
        let key = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
        content::label(&self.api, &image.id, &HashMap::from([(key, last.clone())])).await
    }

    async fn unpack_layer(
        &self,
        layer: &Descriptor,
        diff_id: &str,
        parent: &str,
        chain: &str,
        lease: &Lease,
    ) -> Result<()> {
        let key = format!("unpack-{} {chain}", uuid::Uuid::new_v4());
        let fail = |s: &tonic::Status| self.api.fail(format!("unpacking layer {}", layer.digest), s);
        let prepare = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.clone(),
            parent: parent.into(),
            labels: Labels::new(),
        };
        let prepare = self.api.leased(prepare, &lease.id, SHORT);
        let mounts = self.api.snapshots().prepare(prepare).await.map_err(|s| fail(&s))?.into_inner().mounts;
        let apply = ApplyRequest { diff: Some(layer.to_proto()), mounts, ..Default::default() };
        let applied = self.api.diff().apply(self.api.leased(apply, &lease.id, LONG)).await;
        let done = match applied {
            Err(status) => Err(fail(&status)),
            Ok(answer) => match answer.into_inner().applied {
                Some(got) if got.digest == diff_id => Ok(()),
                got => Err(self.other(
                    format!("unpacking layer {}", layer.digest),
                    format!(
                        "its content has digest {} but the image says {diff_id}",
                        got.map(|d| d.digest).unwrap_or_default()
                    ),
                )),
            },
        };
        if done.is_ok() {
            let commit = CommitSnapshotRequest {
                snapshotter: self.snapshotter.clone(),
                name: chain.into(),
                key: key.clone(),
                labels: Labels::new(),
            };
            match self.api.snapshots().commit(self.api.leased(commit, &lease.id, SHORT)).await {
                Ok(_) => return Ok(()),
                // Another pull of the same layer was faster.
                Err(status) if status.code() == Code::AlreadyExists => {}
                Err(status) => return Err(fail(&status)),
            }
        }
        let remove = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key };
        let _ = self.api.snapshots().remove(self.api.ask(remove, SHORT)).await;
        done
    }

    /// Points a name at content; an older image of that name loses it.
    pub(crate) async fn record(&self, name: &str, target: &Descriptor) -> Result<()> {
        let image = ImageRecord { name: name.into(), target: Some(target.to_proto()), ..Default::default() };
        let create = CreateImageRequest { image: Some(image.clone()), ..Default::default() };
        match self.api.images().create(self.api.ask(create, SHORT)).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(self.api.fail(format!("recording image {name}"), &status)),
        }
        let update_mask = Some(prost_types::FieldMask { paths: vec!["target".into()] });
        let update = UpdateImageRequest { image: Some(image), update_mask, ..Default::default() };
        self.api
            .images()
            .update(self.api.ask(update, SHORT))
            .await
            .map(drop)
            .map_err(|s| self.api.fail(format!("recording image {name}"), &s))
    }

    async fn records(&self) -> Result<Vec<ImageRecord>> {
        let request = self.api.ask(ListImagesRequest::default(), SHORT);
        let answer = self.api.images().list(request).await.map_err(|s| self.api.fail("listing images", &s))?;
        Ok(answer.into_inner().images)
    }

    /// All images, names of one image together. One whose content is damaged is left out with a warning.
    pub(crate) async fn list(&self) -> Result<Vec<ImageInfo>> {
        let records = self.records().await?;
        let mut infos: HashMap<String, ImageInfo> = HashMap::new();
        for record in &records {
            let Some(target) = &record.target else { continue };
            let image = match self.documents(&target.digest).await {
                Ok(image) => image,
                Err(error @ RuntimeError::Unavailable { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(image = record.name, %error, "image cannot be read; load or pull it again");
                    continue;
                }
            };
            let info = infos.entry(image.id.clone()).or_insert_with(|| describe(&image));
            add_name(info, &record.name, &target.digest);
        }
        let targets: Vec<&str> = records.iter().filter_map(|r| r.target.as_ref()).map(|t| t.digest.as_str()).collect();
        self.known.lock().retain(|digest, _| targets.contains(&digest.as_str()));
        let mut infos: Vec<_> = infos.into_values().collect();
        infos.sort_by(|a, b| (&a.names, &a.repo_digests, &a.id).cmp(&(&b.names, &b.repo_digests, &b.id)));
        Ok(infos)
    }

    /// By name, or by image id.
    pub(crate) async fn info(&self, reference: &str) -> Result<Option<ImageInfo>> {
        if is_id(reference) {
            return Ok(self.list().await?.into_iter().find(|info| same_id(&info.id, reference)));
        }
        let name = parse_reference(reference)?.whole();
        let Some((image, target)) = self.named(&name).await? else { return Ok(None) };
        let mut info = describe(&image);
        add_name(&mut info, &name, &target);
        Ok(Some(info))
    }

    async fn named(&self, name: &str) -> Result<Option<(Arc<Image>, String)>> {
        let request = self.api.ask(GetImageRequest { name: name.into() }, SHORT);
        let found = gone_is_fine(self.api.images().get(request).await)
            .map_err(|s| self.api.fail(format!("looking up image {name}"), &s))?;
        let target = found.and_then(|answer| answer.into_inner().image).and_then(|image| image.target);
        match target {
            None => Ok(None),
            Some(target) => Ok(Some((self.documents(&target.digest).await?, target.digest))),
        }
    }

    /// The documents of an image that a container is to be made of.
    pub(crate) async fn find(&self, reference: &str) -> Result<Arc<Image>> {
        let missing = || RuntimeError::ImageMissing { reference: reference.into() };
        if !is_id(reference) {
            let name = parse_reference(reference)?.whole();
            return self.named(&name).await?.map(|(image, _)| image).ok_or_else(missing);
        }
        for record in self.records().await? {
            let Some(target) = record.target else { continue };
            match self.documents(&target.digest).await {
                Ok(image) if same_id(&image.id, reference) => return Ok(image),
                _ => {}
            }
        }
        Err(missing())
    }

    /// Removes a name, or all names of an image id; content goes when nothing refers to it.
    pub(crate) async fn remove(&self, reference: &str) -> Result<()> {
        let names = if is_id(reference) {
            let info = self.info(reference).await?;
            info.map(|i| i.names.into_iter().chain(i.repo_digests).collect()).unwrap_or_default()
        } else {
            vec![parse_reference(reference)?.whole()]
        };
        for name in names {
            let request = DeleteImageRequest { name: name.clone(), sync: true, ..Default::default() };
            gone_is_fine(self.api.images().delete(self.api.ask(request, LONG)).await)
                .map_err(|s| self.api.fail(format!("removing image {name}"), &s))?;
        }
        Ok(())
    }
}
