//! Image archives: an OCI layout or what `docker save` writes, as tar, plain or compressed. In: the file. Out: names
//! with their root descriptors, and the archive as a [`Source`] of blobs.

use super::{
    content::{Blob, Descriptor, chain},
    images::Source,
    manifest::{Manifest, digest_of, parse_reference},
};
use crate::types::{Result, RuntimeError};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};
use tokio_util::io::ReaderStream;

/// An archive, extracted into a folder of its own that goes with it.
pub(crate) struct Archive {
    folder: PathBuf,
    /// Full names and what they stand for.
    pub(crate) images: Vec<(String, Descriptor)>,
    files: HashMap<String, PathBuf>,
    documents: HashMap<String, Bytes>,
}

/// An entry of docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Drop for Archive {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Archive {
    /// Extracts and reads the archive; blocking.
    pub(crate) fn open(archive: &Path, scratch: &Path) -> Result<Self> {
        let folder = scratch.join(format!("load-{}", uuid::Uuid::new_v4()));
        let mut this = Self { folder, images: Vec::new(), files: HashMap::new(), documents: HashMap::new() };
        this.read(archive).map_err(|error| RuntimeError::Other {
            doing: format!("loading image archive {}", archive.display()),
            detail: chain(&error),
        })?;
        Ok(this)
    }

    fn read(&mut self, archive: &Path) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let file = File::open(archive)?;
        let mut tar = tar::Archive::new(check(decompress(file)?)?);
        tar.set_preserve_permissions(false);
        // Only the kind of error: the texts quote the bytes that were taken for a header.
        tar.unpack(&self.folder).map_err(|error| {
            io::Error::new(error.kind(), format!("it is damaged or cannot be unpacked: {}", error.kind()))
        })?;
        let fallback = archive.file_stem().and_then(|s| s.to_str()).unwrap_or("image").trim_end_matches(".tar");
        if self.folder.join("index.json").is_file() && self.read_layout(fallback)? {
            return Ok(());
        }
        if self.folder.join("manifest.json").is_file() {
            return self.read_docker();
        }
        Err(io::Error::other(
            "it has neither an index.json (OCI layout) nor a manifest.json (docker save) with an image",
        ))
    }

    /// An OCI layout; false when its images have no name but docker's manifest beside it may know them.
    fn read_layout(&mut self, fallback: &str) -> io::Result<bool> {
        let index: Manifest = read_json(&self.inside(Path::new("index.json"))?)?;
        let docker_knows = self.folder.join("manifest.json").is_file();
        for entry in index.manifests {
            let name = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
                .iter()
                .find_map(|key| entry.annotations.get(*key).cloned());
            let name = match name {
                Some(name) => name,
                None if docker_knows => {
                    self.images.clear();
                    return Ok(false);
                }
                None => format!("localhost/{}", fallback.to_lowercase()),
            };
            self.images.push((full(&name)?, entry));
        }
        Ok(!self.images.is_empty())
    }

    /// `docker save`: manifests are made here, as the archive has none.
    fn read_docker(&mut self) -> io::Result<()> {
        let images: Vec<DockerImage> = read_json(&self.inside(Path::new("manifest.json"))?)?;
        for image in images {
            let config = self.add_file(&image.config, "application/vnd.docker.container.image.v1+json")?;
            let mut layers = Vec::new();
            for layer in &image.layers {
                layers.push(self.add_file(layer, "application/vnd.docker.image.rootfs.diff.tar")?);
            }
            let media_type = "application/vnd.docker.distribution.manifest.v2+json";
            let manifest = serde_json::json!({
                "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers,
            });
            let bytes = Bytes::from(serde_json::to_vec(&manifest)?);
            let target = Descriptor {
                media_type: media_type.into(),
                digest: digest_of(&bytes),
                size: bytes.len() as i64,
                ..Default::default()
            };
            self.documents.insert(target.digest.clone(), bytes);
            for tag in image.repo_tags.unwrap_or_default() {
                self.images.push((full(&tag)?, target.clone()));
            }
        }
        if self.images.is_empty() {
            return Err(io::Error::other("its images have no names; save them with a name and tag"));
        }
        Ok(())
    }

    fn add_file(&mut self, path: &str, media_type: &str) -> io::Result<Descriptor> {
        let file = self.inside(Path::new(path))?;
        let mut reader = BufReader::with_capacity(1 << 20, File::open(&file)?);
        let (mut hash, mut size, mut magic) = (Sha256::new(), 0_i64, Vec::new());
        let mut buffer = vec![0_u8; 1 << 20];
        loop {
            let n = reader.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            if size == 0 {
                magic.extend_from_slice(&buffer[..n.min(4)]);
            }
            hash.update(&buffer[..n]);
            size += n as i64;
        }
        let digest = format!("sha256:{}", hash.finalize().iter().map(|b| format!("{b:02x}")).collect::<String>());
        let zipped = magic.starts_with(&[0x1f, 0x8b]) && media_type.ends_with(".tar");
        let media_type = if zipped { format!("{media_type}.gzip") } else { media_type.to_string() };
        self.files.insert(digest.clone(), file);
        Ok(Descriptor { media_type, digest, size, ..Default::default() })
    }

    /// A file of the archive; a link that leads out of it is refused.
    fn inside(&self, path: &Path) -> io::Result<PathBuf> {
        let file = self.folder.join(path).canonicalize()?;
        if file.starts_with(self.folder.canonicalize()?) {
            return Ok(file);
        }
        Err(io::Error::other(format!("{} leads out of the archive", path.display())))
    }
}

#[async_trait]
impl Source for Archive {
    async fn blob(&self, what: &Descriptor) -> Result<Blob> {
        if let Some(bytes) = self.documents.get(&what.digest) {
            return Ok(futures::stream::iter([Ok(bytes.clone())]).boxed());
        }
        let fail = |error: io::Error| RuntimeError::Other {
            doing: format!("reading {} from the archive", what.digest),
            detail: error.to_string(),
        };
        let file = match self.files.get(&what.digest) {
            Some(file) => file.clone(),
            None => {
                let (algorithm, hex) = what.digest.split_once(':').unwrap_or(("sha256", &what.digest));
                self.inside(&Path::new("blobs").join(algorithm).join(hex)).map_err(fail)?
            }
        };
        let file = tokio::fs::File::open(file).await.map_err(fail)?;
        Ok(ReaderStream::with_capacity(file, 1 << 20).boxed())
    }
}

fn decompress(mut file: File) -> io::Result<Box<dyn Read>> {
    let mut magic = [0_u8; 4];
    let n = file.read(&mut magic)?;
    io::Seek::rewind(&mut file)?;
    let reader = BufReader::with_capacity(1 << 20, file);
    Ok(match &magic[..n] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(reader)?),
        _ => Box::new(reader),
    })
}

/// Passes a tar archive on, and refuses what is none by its first header.
fn check(mut from: Box<dyn Read>) -> io::Result<impl Read> {
    let mut header = Vec::new();
    let read = from.by_ref().take(512).read_to_end(&mut header);
    if read.is_err() || header.get(257..262) != Some(b"ustar") {
        return Err(io::Error::other("it is not an OCI layout or docker archive (tar, also with gzip or zstd)"));
    }
    Ok(io::Cursor::new(header).chain(from))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<T> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    serde_json::from_slice(&std::fs::read(path)?).map_err(|error| io::Error::other(format!("{name}: {error}")))
}

fn full(name: &str) -> io::Result<String> {
    parse_reference(name).map(|reference| reference.whole()).map_err(io::Error::other)
}
