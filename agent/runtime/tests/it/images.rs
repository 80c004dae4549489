//! Images: loading, pulling, naming, refusing, removing.

use crate::{
    house::{BUSYBOX, House, busybox_image},
    registry::{Content, serve},
};
use base64::Engine;
use causeway_runtime::{ContainerSpec, RegistryAuth, Runtime, RuntimeError, oci_build::ImageBuilder};
use sha2::Digest;
use std::{io::Write, path::Path};

fn sha(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loaded_images_are_described_and_removed() {
    let house = House::new().await;
    let info = house.runtime.image("busybox:test").await.unwrap().unwrap();
    assert_eq!(info.names, [BUSYBOX]);
    assert_eq!(info.cmd, ["/bin/sh"]);
    assert!(info.env.contains(&"GREETING=hello".to_string()));
    assert!(info.size > 100_000);
    assert!(info.repo_digests[0].starts_with("docker.io/library/busybox@sha256:"));
    assert_eq!(house.runtime.image(&info.id).await.unwrap().unwrap().id, info.id);
    assert!(house.runtime.image("busybox:other").await.unwrap().is_none());
    assert_eq!(house.runtime.images().await.unwrap().len(), 1);
    // Again is harmless, also compressed; a container can be made by image id.
    let plain = std::fs::read(house.dir.path().join("busybox.tar")).unwrap();
    let zipped = house.dir.path().join("busybox.tar.gz");
    let mut encoder =
        flate2::write::GzEncoder::new(std::fs::File::create(&zipped).unwrap(), flate2::Compression::fast());
    encoder.write_all(&plain).unwrap();
    encoder.finish().unwrap();
    house.runtime.load_image(&zipped).await.unwrap();
    house.run(&ContainerSpec { image: info.id.clone(), ..house.spec("a", "echo hi") }).await;
    assert_eq!(house.exit("a").await.0, 0);
    house.runtime.remove_container("a").await.unwrap();
    for _ in 0..2 {
        house.runtime.remove_image("busybox:test").await.unwrap();
    }
    assert!(house.runtime.images().await.unwrap().is_empty());
    // What was collected with the image comes back with it.
    house.runtime.load_image(&zipped).await.unwrap();
    house.run(&house.spec("a", "echo hi")).await;
    assert_eq!(house.exit("a").await.0, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_archives_load_and_damaged_ones_do_not() {
    let house = House::new().await;
    let path = house.dir.path().join("docker.tar");
    docker_archive(&path);
    assert_eq!(house.runtime.load_image(&path).await.unwrap(), ["docker.io/library/hello:1"]);
    let spec = ContainerSpec {
        image: "hello:1".into(),
        args: vec!["/bin/busybox".into(), "cat".into(), "/text".into()],
        ..house.spec("d", "")
    };
    house.run(&spec).await;
    assert_eq!(house.exit("d").await.0, 0);
    assert!(house.text("d").contains("from docker"));

    // One byte of a layer is changed.
    let good = house.dir.path().join("good.tar");
    let words = "a text that is easy to find in the archive";
    ImageBuilder::new("bad:1").file("/x", words, 0o644).write(&good).unwrap();
    let mut bytes = std::fs::read(&good).unwrap();
    let at = bytes.windows(words.len()).position(|w| w == words.as_bytes()).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&good, bytes).unwrap();
    let error = house.runtime.load_image(&good).await.unwrap_err();
    assert!(error.to_string().contains("sha256"), "{error}");
    assert!(house.runtime.image("bad:1").await.unwrap().is_none());
    let error = house.runtime.load_image(Path::new("/etc/hostname")).await.unwrap_err();
    assert!(error.to_string().contains("/etc/hostname"), "{error}");
    // Whatever it is, nothing of it is shown.
    let secret = "password:hunter2\n".repeat(100);
    let plain = house.dir.path().join("no-archive");
    std::fs::write(&plain, &secret).unwrap();
    let zipped = house.dir.path().join("no-archive.gz");
    let mut encoder = flate2::write::GzEncoder::new(std::fs::File::create(&zipped).unwrap(), Default::default());
    encoder.write_all(secret.as_bytes()).unwrap();
    encoder.finish().unwrap();
    let mut bytes = std::fs::read(house.dir.path().join("docker.tar")).unwrap();
    bytes[1024..1024 + secret.len()].copy_from_slice(secret.as_bytes());
    let damaged = house.dir.path().join("damaged.tar");
    std::fs::write(&damaged, bytes).unwrap();
    for (file, words) in [
        (&plain, "not an OCI layout or docker archive"),
        (&zipped, "not an OCI layout or docker archive"),
        (&damaged, "cannot be unpacked"),
    ] {
        let error = house.runtime.load_image(file).await.unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("hunter2"), "{error}");
    }
    // Neither through a link that leads out of it.
    let linked = house.dir.path().join("linked.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&linked).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "index.json", &plain).unwrap();
    tar.finish().unwrap();
    let error = house.runtime.load_image(&linked).await.unwrap_err().to_string();
    assert!(error.contains("leads out of the archive"), "{error}");
    let left: Vec<_> = std::fs::read_dir(house.dir.path().join("runtime")).unwrap().flatten().collect();
    assert!(left.iter().all(|e| !e.file_name().to_string_lossy().starts_with("load-")), "{left:?}");
}

fn docker_archive(path: &Path) {
    let mut layer = tar::Builder::new(Vec::new());
    for (name, bytes) in [("bin/busybox", std::fs::read("/bin/busybox").unwrap()), ("text", b"from docker\n".to_vec())]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        layer.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    let layer = layer.into_inner().unwrap();
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64", "config": {"Entrypoint": ["/bin/busybox"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha(&layer))]},
    })
    .to_string();
    let manifest = r#"[{"Config":"c.json","RepoTags":["hello:1"],"Layers":["l/layer.tar"]}]"#;
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in
        [("c.json", config.as_bytes()), ("manifest.json", manifest.as_bytes()), ("l/layer.tar", &layer)]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    }
    tar.finish().unwrap();
}

/// An index for several platforms, with layers in gzip and zstd.
fn multi_platform(dir: &Path) -> Content {
    let archive = dir.join("r.tar");
    busybox_image(&archive);
    let mut content = Content::from_archive(&archive, "plain");
    let mut manifest: serde_json::Value = serde_json::from_slice(&content.manifests["plain"].1).unwrap();
    let layer = content.blobs[manifest["layers"][0]["digest"].as_str().unwrap()].clone();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&layer).unwrap();
    for (tag, kind, blob) in
        [("gzip", "gzip", gzip.finish().unwrap()), ("zstd", "zstd", zstd::encode_all(layer.as_slice(), 1).unwrap())]
    {
        let digest = format!("sha256:{}", sha(&blob));
        manifest["layers"][0] = serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar+{kind}"), "digest": digest, "size": blob.len(),
        });
        content.blobs.insert(digest, blob);
        let bytes = manifest.to_string().into_bytes();
        let digest = format!("sha256:{}", sha(&bytes));
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
                {"mediaType": media_type, "digest": format!("sha256:{}", "0".repeat(64)), "size": 1,
                 "platform": {"os": "linux", "architecture": "s390x"}},
                {"mediaType": media_type, "digest": digest, "size": bytes.len(),
                 "platform": {"os": "linux", "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }}},
            ],
        });
        content.manifests.insert(digest, (media_type.into(), bytes));
        let media_type = "application/vnd.oci.image.index.v1+json".to_string();
        content.manifests.insert(tag.into(), (media_type, index.to_string().into_bytes()));
    }
    content
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_from_a_registry() {
    let house = House::new().await;
    house.runtime.remove_image(BUSYBOX).await.unwrap();
    let address = serve(multi_platform(house.dir.path())).await;
    for tag in ["zstd", "gzip", "plain"] {
        let name = format!("{address}/team/busybox:{tag}");
        let info = house.runtime.pull_image(&name, None).await.unwrap();
        assert_eq!(info.names, std::slice::from_ref(&name));
        let id = format!("c-{tag}");
        house.run(&ContainerSpec { image: name.clone(), ..house.spec(&id, "echo hi") }).await;
        assert_eq!(house.exit(&id).await.0, 0);
        house.runtime.remove_container(&id).await.unwrap();
        house.runtime.remove_image(&name).await.unwrap();
    }
    // By digest: no tag, but a container runs.
    let tagged = house.runtime.pull_image(&format!("{address}/team/busybox:plain"), None).await.unwrap();
    let by_digest = tagged.repo_digests[0].clone();
    let info = house.runtime.pull_image(&by_digest, None).await.unwrap();
    assert_eq!((info.id, info.repo_digests), (tagged.id, vec![by_digest.clone()]));
    house.run(&ContainerSpec { image: by_digest, ..house.spec("c", "echo hi") }).await;
    assert_eq!(house.exit("c").await.0, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_pulls_tell_why() {
    let house = House::new().await;
    let address = serve(Content::from_archive(&house.dir.path().join("busybox.tar"), "1")).await;
    let pull = async |name: &str| house.runtime.pull_image(name, None).await.unwrap_err();
    let error = pull(&format!("{address}/none:2")).await;
    assert!(matches!(error, RuntimeError::ImagePull { .. }) && error.to_string().contains("not found"), "{error}");
    // A port where nobody listens any more.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = pull(&format!("{free}/x:1")).await;
    assert!(error.to_string().contains("onnection refused"), "{error}");
    let error = pull("Not Valid").await;
    assert!(matches!(error, RuntimeError::InvalidImageName { .. }), "{error}");

    let encoded = base64::engine::general_purpose::STANDARD.encode("user:secret");
    let content = Content {
        password: Some(format!("Basic {encoded}")),
        ..Content::from_archive(&house.dir.path().join("busybox.tar"), "1")
    };
    let address = serve(content).await;
    let name = format!("{address}/private:1");
    let error = pull(&name).await;
    assert!(error.to_string().contains("authoriz"), "{error}");
    let auth = RegistryAuth { username: "user".into(), password: "secret".into() };
    assert_eq!(house.runtime.pull_image(&name, Some(&auth)).await.unwrap().names, [name]);
}

/// A layer whose bytes are not what the manifest says is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_lies_is_caught() {
    let house = House::new().await;
    let archive = house.dir.path().join("lie.tar");
    ImageBuilder::new("lie:1").file("/x", vec![7_u8; 5000], 0o644).write(&archive).unwrap();
    let mut content = Content::from_archive(&archive, "1");
    for blob in content.blobs.values_mut().filter(|b| b.len() > 5000) {
        blob[3000] ^= 1;
    }
    let address = serve(content).await;
    let error = house.runtime.pull_image(&format!("{address}/lie:1"), None).await.unwrap_err();
    assert!(error.to_string().contains("igest"), "{error}");
}
