//! From the wish for a container to its record in containerd: the image's snapshot, the user, the OCI specification.
//! In: a [`ContainerSpec`]. Out: a container that can be started, or the reason why not and nothing left behind.

use super::{
    Inner,
    content::{Labels, Lease},
    manifest::Image,
    record::{CGROUP, LOG, PREFIX, STDIN, STDIN_ONCE, STOP_SIGNAL, TTY},
    rpc::{self, SHORT},
    signals,
    spec::{self, Machine},
    users::{Layers, resolve},
};
use crate::{
    cgroup,
    types::{ContainerSpec, Result, RuntimeError},
};
use containerd_client::{
    services::v1::{
        Container, CreateContainerRequest, container,
        snapshots::{MountsRequest, PrepareSnapshotRequest},
    },
    types::Mount,
};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};
use prost::Message;
use std::{
    collections::HashMap,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};
use tonic::Code;

const RUNTIME: &str = "io.containerd.runc.v2";

/// `containerd.runc.v1.Options`, as far as we set them.
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    #[prost(string, tag = "7")]
    root: String,
}

impl Inner {
    pub(super) async fn create(&self, spec: &ContainerSpec) -> Result<()> {
        let fail = |detail: String| RuntimeError::Create { id: spec.id.clone(), detail };
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if spec.id.is_empty() || spec.id.len() > 76 || !spec.id.bytes().all(valid) || spec.id.starts_with('.') {
            return Err(fail("its id must be 1 to 76 characters of [A-Za-z0-9_.-]".into()));
        }
        if self.find(&spec.id).await?.is_some() {
            return Ok(());
        }
        let image = self.images.find(&spec.image).await?;
        let lease = Lease::new(&self.api).await?;
        let mounts = self.prepare(&spec.id, &image, &lease).await?;
        let built = self.specification(spec, &mounts).await.map_err(fail);
        let created = match built {
            Ok(container) => {
                let request = CreateContainerRequest { container: Some(container) };
                match self.api.containers().create(self.api.leased(request, &lease.id, SHORT)).await {
                    Ok(_) => return Ok(()),
                    Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
                    Err(status) if status.code() == Code::Unavailable => Err(self.api.fail("creating", &status)),
                    Err(status) => Err(fail(rpc::words(&status))),
                }
            }
            Err(error) => Err(error),
        };
        let _ = self.remove_snapshot(&spec.id).await;
        created
    }

    /// The container's own layer above the image's. Left-overs of an attempt that did not get further are used.
    async fn prepare(&self, id: &str, image: &Image, lease: &Lease) -> Result<Vec<Mount>> {
        for attempt in 0..2 {
            let request = PrepareSnapshotRequest {
                snapshotter: self.config.snapshotter.clone(),
                key: id.into(),
                parent: image.chain_id(),
                labels: Labels::new(),
            };
            let prepared = self.api.snapshots().prepare(self.api.leased(request, &lease.id, SHORT)).await;
            match prepared {
                Ok(answer) => return Ok(answer.into_inner().mounts),
                Err(status) if status.code() == Code::AlreadyExists => return self.mounts(id).await,
                // The image is there but was unpacked for another snapshotter, or the snapshot was removed by hand.
                Err(status) if status.code() == Code::NotFound && attempt == 0 => {
                    self.images.unpack(image, lease).await?;
                }
                Err(status) => return Err(self.api.fail(format!("preparing the file system of {id}"), &status)),
            }
        }
        Err(RuntimeError::Create {
            id: id.into(),
            detail: "the image cannot be unpacked; remove and pull it again".into(),
        })
    }

    pub(super) async fn mounts(&self, id: &str) -> Result<Vec<Mount>> {
        let request = MountsRequest { snapshotter: self.config.snapshotter.clone(), key: id.into() };
        let answer = self.api.snapshots().mounts(self.api.ask(request, SHORT)).await;
        answer
            .map(|answer| answer.into_inner().mounts)
            .map_err(|s| self.api.fail(format!("finding the file system of {id}"), &s))
    }

    async fn specification(&self, wish: &ContainerSpec, mounts: &[Mount]) -> Result<Container, String> {
        let layers = Layers::of(mounts);
        let text = |path: &str| layers.read(path).unwrap_or_default();
        let who = resolve(&wish.user, &text("/etc/passwd"), &text("/etc/group"))?;
        let mut wish = wish.clone();
        if wish.cgroup_path.is_empty() {
            wish.cgroup_path = format!("/{}/{}", self.config.namespace, wish.id);
        }
        let built = spec::build(&wish, &who, &machine(&self.config.node_network, wish.privileged))?;
        let mut labels: HashMap<String, String> = wish.labels.clone().into_iter().collect();
        let mut own = |name: &str, value: String| labels.insert(format!("{PREFIX}{name}"), value);
        own(LOG, wish.log_path.to_string_lossy().into_owned());
        own(CGROUP, wish.cgroup_path.clone());
        own(TTY, wish.tty.to_string());
        own(STDIN, wish.stdin.to_string());
        own(STDIN_ONCE, wish.stdin_once.to_string());
        if let Some(signal) = &wish.stop_signal {
            signals::number(signal).ok_or_else(|| format!("unknown stop signal {signal:?}"))?;
            own(STOP_SIGNAL, signal.clone());
        }
        let options = self.config.runc_root.as_ref().map(|root| prost_types::Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: RuncOptions { root: root.to_string_lossy().into_owned() }.encode_to_vec(),
        });
        Ok(Container {
            id: wish.id.clone(),
            labels,
            image: wish.image.clone(),
            runtime: Some(container::Runtime { name: RUNTIME.into(), options }),
            spec: Some(prost_types::Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
                value: serde_json::to_vec(&built).map_err(|error| error.to_string())?,
            }),
            snapshotter: self.config.snapshotter.clone(),
            snapshot_key: wish.id,
            ..Default::default()
        })
    }
}

fn machine(node_network: &Option<PathBuf>, privileged: bool) -> Machine {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let mut devices = Vec::new();
    if privileged {
        host_devices(Path::new("/dev"), 0, &mut devices);
    }
    Machine {
        cgroup_v2: cgroup::is_v2(),
        capabilities: bits.and_then(|b| u64::from_str_radix(b.trim(), 16).ok()).unwrap_or(0),
        devices,
        node_network: node_network.clone(),
    }
}

/// The machine's devices, without terminals and what every container has of its own.
fn host_devices(folder: &Path, depth: u32, out: &mut Vec<LinuxDevice>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(meta) = entry.metadata() else { continue };
        let kind = meta.file_type();
        if kind.is_dir() {
            let own = ["pts", "shm", "fd", "mqueue", ".lxc", ".udev"];
            if depth < 4 && !own.iter().any(|o| name == *o) {
                host_devices(&path, depth + 1, out);
            }
            continue;
        }
        let typ = match (kind.is_block_device(), kind.is_char_device()) {
            (true, _) => LinuxDeviceType::B,
            (_, true) => LinuxDeviceType::C,
            _ => continue,
        };
        if ["console", "ptmx"].iter().any(|n| name == *n) {
            continue;
        }
        let device = LinuxDeviceBuilder::default()
            .path(path)
            .typ(typ)
            .major(i64::try_from(nix::sys::stat::major(meta.rdev())).unwrap_or(0))
            .minor(i64::try_from(nix::sys::stat::minor(meta.rdev())).unwrap_or(0))
            .file_mode(meta.mode() & 0o7777)
            .uid(meta.uid())
            .gid(meta.gid())
            .build();
        out.extend(device.ok());
    }
}
