//! The long-running half of the worker: making a sandbox, starting and stopping a container, removing a pod. Each is a
//! task of its own that ends with an [`Outcome`]; none keeps state, so any of them can be cut off and asked for again.

use crate::container::{self, Place};
use crate::context::Context;
use crate::images::{self, Refused};
use crate::model::{Record, Waiting};
use crate::objects::PodObjects;
use crate::volumes::{Mounted, host, mounts};
use crate::{cgroups, env, files, hooks, names, resources};
use causeway_api::events::EventType;
use causeway_network::{PodAddress, PodRef};
use causeway_runtime::{ContainerState, Mount, MountPropagation, RuntimeError};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long volumes may take to be brought up to date: then the next attempt has its turn.
const REFRESH_PATIENCE: Duration = Duration::from_secs(60);
/// Longest time for a hook beyond which it counts as failed.
const HOOK_LIMIT: Duration = Duration::from_secs(600);

/// How an operation ended.
#[derive(Debug)]
pub enum Outcome {
    /// The sandbox is there, or why not.
    SetUp(Result<Ready, String>),
    /// A start.
    Started {
        /// The container's name.
        name: String,
        /// Its result.
        result: Start,
    },
    /// A stop; the runtime has to be looked at.
    Stopped {
        /// The container's name.
        name: String,
        /// What went wrong, if anything.
        error: Option<String>,
    },
    /// The network was taken away.
    TornDown(Result<(), String>),
    /// Everything was removed.
    Cleaned(Result<(), String>),
    /// The content of volumes was brought up to date.
    Refreshed,
    /// Nothing to report.
    Done,
}

/// A sandbox that is there.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Addresses for the status.
    pub ips: Vec<IpAddr>,
    /// Where containers join.
    pub netns: Option<PathBuf>,
    /// The pod's volumes.
    pub mounted: Mounted,
}

/// How a start ended.
#[derive(Debug)]
pub enum Start {
    /// It runs, and its postStart hook has ended well.
    Running,
    /// It was not attempted.
    Refused(Refused),
    /// It was attempted and failed: counts as a run that ended.
    Failed(Box<Record>, Waiting),
    /// It runs, but its postStart hook failed.
    HookFailed {
        /// The runtime's id.
        id: String,
        /// For the event that tells of its end.
        message: String,
    },
}

fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true))
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or("")
}

/// Makes folders, network, files and volumes.
pub async fn set_up(ctx: Arc<Context>, pod: Arc<Pod>, objects: Arc<PodObjects>) -> Outcome {
    Outcome::SetUp(try_set_up(&ctx, &pod, &objects).await)
}

async fn try_set_up(ctx: &Context, pod: &Pod, objects: &PodObjects) -> Result<Ready, String> {
    let dir = ctx.config.pod_dir(uid(pod));
    let text = |what: &Path| {
        let what = what.display().to_string();
        move |e: std::io::Error| format!("failed to write {what}: {e}")
    };
    host::make_folder(&dir, 0o755).map_err(text(&dir))?;
    let (ips, netns) = if host_network(pod) {
        (ctx.config.node_ips.clone(), ctx.config.node_netns.clone())
    } else {
        let address = connect(ctx, pod).await?;
        (address.ips, Some(address.netns))
    };
    write_files(ctx, pod, &dir, &ips).map_err(text(&dir))?;
    let mounted = ctx.volumes.set_up(pod, &dir, &ctx.facts(&ips), objects).await.map_err(|e| {
        ctx.pod_event(pod, EventType::Warning, "FailedMount", e.to_string());
        e.to_string()
    })?;
    objects.settled();
    Ok(Ready { ips, netns, mounted })
}

async fn connect(ctx: &Context, pod: &Pod) -> Result<PodAddress, String> {
    let network = ctx.network.borrow().clone();
    let Some(network) = network else {
        let text = "network is not ready: the node has no pod CIDR yet";
        ctx.pod_event(pod, EventType::Warning, "NetworkNotReady", text);
        return Err(text.to_owned());
    };
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    let meta = &pod.metadata;
    let pod_ref = PodRef { uid: text(&meta.uid), namespace: text(&meta.namespace), name: text(&meta.name) };
    network.set_up(&pod_ref).await.map_err(|e| {
        let text = format!("Failed to create pod sandbox: {e}");
        ctx.pod_event(pod, EventType::Warning, "FailedCreatePodSandBox", text.clone());
        text
    })
}

/// `etc-hosts`, `resolv.conf` and `hostname` in the pod's folder. Written in place: containers have them bind-mounted.
fn write_files(ctx: &Context, pod: &Pod, dir: &Path, ips: &[IpAddr]) -> std::io::Result<()> {
    let config = &ctx.config;
    let (hostname, fqdn) = files::hostname(pod, &config.node_name, &config.cluster.domain);
    let aliases = pod.spec.as_ref().and_then(|s| s.host_aliases.clone()).unwrap_or_default();
    let host = host_network(pod).then(|| std::fs::read_to_string("/etc/hosts").unwrap_or_default());
    let hosts = files::hosts(host.as_deref(), ips, &hostname, fqdn.as_deref(), &aliases);
    let upstream = config.resolv_conf_upstream.as_ref().and_then(|p| std::fs::read_to_string(p).ok());
    let (resolv, omitted) = files::resolv_conf(pod, config.dns_ip, &config.cluster.domain, upstream.as_deref());
    for what in omitted {
        ctx.pod_event(pod, EventType::Warning, "DNSConfigForming", what);
    }
    for (name, text) in [("etc-hosts", hosts), ("resolv.conf", resolv), ("hostname", format!("{hostname}\n"))] {
        let path = dir.join(name);
        if std::fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            std::fs::write(&path, text)?;
        }
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// Starts one attempt of a container.
pub async fn start(
    ctx: Arc<Context>,
    pod: Arc<Pod>,
    objects: Arc<PodObjects>,
    c: Container,
    attempt: u32,
    ready: Ready,
) -> Outcome {
    let result = match try_start(&ctx, &pod, &objects, &c, attempt, &ready).await {
        Ok(result) => result,
        Err(refused) => Start::Refused(refused),
    };
    let counter = match &result {
        Start::Running => &ctx.metrics.started_containers,
        _ => &ctx.metrics.started_containers_errors,
    };
    counter.fetch_add(1, Ordering::Relaxed);
    Outcome::Started { name: c.name, result }
}

async fn try_start(
    ctx: &Context,
    pod: &Pod,
    objects: &PodObjects,
    c: &Container,
    attempt: u32,
    ready: &Ready,
) -> Result<Start, Refused> {
    let (image, image_name) = images::ensure(ctx, pod, c).await?;
    let wrong = |text: String| {
        ctx.container_event(pod, &c.name, EventType::Warning, "Failed", format!("Error: {text}"));
        Refused::new("CreateContainerConfigError", text, 3)
    };
    let vars = variables(ctx, pod, objects, c, &ready.ips).await.map_err(wrong)?;
    let dir = ctx.config.pod_dir(uid(pod));
    let mut all = mounts::mounts(pod, c, &ready.mounted, &vars, &dir).map_err(wrong)?;
    all.extend(own_mounts(c, &dir, attempt).map_err(|e| wrong(e.to_string()))?);
    let (namespace, name) =
        (pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""));
    let log_dir = ctx.config.log_dir(namespace, name, uid(pod)).join(&c.name);
    let place = Place {
        mounts: all,
        network_namespace: ready.netns.clone(),
        hostname: files::hostname(pod, &ctx.config.node_name, &ctx.config.cluster.domain).0,
        pod_cgroup: resources::pod_cgroup(&ctx.config.cgroup_parent, pod),
        log_path: log_dir.join(format!("{attempt}.log")),
    };
    let spec = container::spec(pod, c, attempt, &image, &image_name, &vars, place).map_err(wrong)?;
    if let Err(e) = ctx.runtime.create_container(&spec).await {
        let text = e.to_string();
        ctx.container_event(pod, &c.name, EventType::Warning, "Failed", format!("Error: {text}"));
        if let Err(error) = ctx.runtime.remove_container(&spec.id).await {
            tracing::debug!(%error, id = spec.id, "half-made container not removed");
        }
        return Err(Refused::new("CreateContainerError", text, 5));
    }
    ctx.container_event(pod, &c.name, EventType::Normal, "Created", format!("Created container: {}", c.name));
    if let Err(e) = ctx.runtime.start_container(&spec.id).await {
        return Ok(start_failed(ctx, pod, c, attempt, &spec, e).await);
    }
    ctx.container_event(pod, &c.name, EventType::Normal, "Started", format!("Started container {}", c.name));
    let Some(hook) = c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(Start::Running) };
    match hooks::run(ctx, c, &spec.id, ready.ips.first().copied(), hook, HOOK_LIMIT).await {
        Ok(()) => Ok(Start::Running),
        Err(text) => {
            ctx.container_event(
                pod,
                &c.name,
                EventType::Warning,
                "FailedPostStartHook",
                format!("PostStartHook failed: {text}"),
            );
            Ok(Start::HookFailed { id: spec.id, message: "FailedPostStartHook".to_owned() })
        }
    }
}

async fn start_failed(
    ctx: &Context,
    pod: &Pod,
    c: &Container,
    attempt: u32,
    spec: &causeway_runtime::ContainerSpec,
    e: RuntimeError,
) -> Start {
    let text = e.to_string();
    ctx.container_event(pod, &c.name, EventType::Warning, "Failed", format!("Error: {text}"));
    if let Err(error) = ctx.runtime.remove_container(&spec.id).await {
        tracing::debug!(%error, id = spec.id, "container whose start failed not removed");
    }
    let record = Record {
        id: spec.id.clone(),
        name: c.name.clone(),
        attempt,
        hash: names::spec_hash(c),
        image: spec.image.clone(),
        image_id: spec.labels.get(names::IMAGE_ID).cloned().unwrap_or_default(),
        state: ContainerState::Exited { code: 128, started_at: None, finished_at: Timestamp::now(), oom_killed: false },
        message: text.clone(),
        reason: Some("StartError"),
    };
    Start::Failed(Box::new(record), Waiting { reason: "RunContainerError".to_owned(), message: text })
}

async fn variables(
    ctx: &Context,
    pod: &Pod,
    objects: &PodObjects,
    c: &Container,
    ips: &[IpAddr],
) -> Result<std::collections::BTreeMap<String, String>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    let sources = objects.sources(env::needs(c)).await?;
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let services = env::services(&ctx.services.list(), namespace, links);
    let mut vars = env::build(pod, c, &sources, &services, &ctx.facts(ips))?;
    let hostname = files::hostname(pod, &ctx.config.node_name, &ctx.config.cluster.domain).0;
    vars.entry("HOSTNAME".to_owned()).or_insert(hostname);
    Ok(vars)
}

/// The file behind a container's termination message.
pub fn message_file(pod_dir: &Path, name: &str, attempt: u32) -> PathBuf {
    pod_dir.join("containers").join(name).join(attempt.to_string())
}

/// Hosts, name service and termination message, where no volume takes their place.
fn own_mounts(c: &Container, dir: &Path, attempt: u32) -> std::io::Result<Vec<Mount>> {
    use std::os::unix::fs::PermissionsExt;
    let taken = |path: &str| c.volume_mounts.iter().flatten().any(|m| m.mount_path.trim_end_matches('/') == path);
    let mount = |source: PathBuf, destination: &str| Mount {
        source,
        destination: destination.into(),
        read_only: false,
        propagation: MountPropagation::None,
    };
    let mut all = Vec::new();
    for (file, path) in
        [("etc-hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname")]
    {
        if !taken(path) {
            all.push(mount(dir.join(file), path));
        }
    }
    let message = message_file(dir, &c.name, attempt);
    if let Some(parent) = message.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&message, "")?;
    // Written by whatever user the container runs as.
    std::fs::set_permissions(&message, std::fs::Permissions::from_mode(0o666))?;
    let path = c.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/dev/termination-log");
    all.push(mount(message, path));
    Ok(all)
}

/// Stops a container: preStop hook, signal, kill.
pub async fn stop(
    ctx: Arc<Context>,
    pod: Arc<Pod>,
    c: Option<Container>,
    id: String,
    name: String,
    grace: SignedDuration,
    ip: Option<IpAddr>,
) -> Outcome {
    let began = Instant::now();
    let whole = Duration::try_from(grace).unwrap_or_default();
    if let Some((c, hook)) = c.as_ref().and_then(|c| Some((c, c.lifecycle.as_ref()?.pre_stop.as_ref()?)))
        && !whole.is_zero()
        && let Err(text) = hooks::run(&ctx, c, &id, ip, hook, whole).await
    {
        ctx.container_event(
            &pod,
            &name,
            EventType::Warning,
            "FailedPreStopHook",
            format!("PreStopHook failed: {text}"),
        );
    }
    // However long the hook took, the process gets a moment to end by itself.
    let least = Duration::from_secs(2).min(whole);
    let left = whole.saturating_sub(began.elapsed()).max(least);
    let error = ctx.runtime.stop_container(&id, None, left).await.err().map(|e| e.to_string());
    if error.is_some() {
        // It will be asked for again at once.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Outcome::Stopped { name, error }
}

/// Removes an ended container and its termination message.
pub async fn remove(ctx: Arc<Context>, pod: Arc<Pod>, record: Record) -> Outcome {
    if let Err(error) = ctx.runtime.remove_container(&record.id).await {
        tracing::warn!(%error, id = record.id, "ended container not removed yet");
        return Outcome::Done;
    }
    let _ = std::fs::remove_file(message_file(&ctx.config.pod_dir(uid(&pod)), &record.name, record.attempt));
    let meta = &pod.metadata;
    let logs =
        ctx.config.log_dir(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""), uid(&pod));
    let own = format!("{}.log", record.attempt);
    for entry in std::fs::read_dir(logs.join(&record.name)).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file == own || file.starts_with(&format!("{own}.")) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Outcome::Done
}

/// Takes the network of an ended pod away.
pub async fn tear_down(ctx: Arc<Context>, pod: Arc<Pod>) -> Outcome {
    Outcome::TornDown(disconnect(&ctx, &pod).await)
}

async fn disconnect(ctx: &Context, pod: &Pod) -> Result<(), String> {
    let network = ctx.network.borrow().clone();
    match network {
        Some(network) => network.tear_down(uid(pod)).await.map_err(|e| e.to_string()),
        // Without a network nothing was given out by this run; a later one repairs what an earlier run left.
        None => Ok(()),
    }
}

/// Removes everything of a pod from this node: containers, network, volumes, folders, cgroups.
pub async fn clean(ctx: Arc<Context>, pod: Arc<Pod>) -> Outcome {
    Outcome::Cleaned(try_clean(&ctx, &pod).await)
}

async fn try_clean(ctx: &Context, pod: &Pod) -> Result<(), String> {
    let uid = uid(pod).to_owned();
    let all = ctx.observer.fresh().await.map_err(|e| e.to_string())?;
    for info in all.get(&uid).into_iter().flatten() {
        if matches!(info.state, ContainerState::Running { .. }) {
            ctx.runtime.stop_container(&info.id, Some("SIGKILL"), Duration::ZERO).await.map_err(|e| e.to_string())?;
        }
        ctx.runtime.remove_container(&info.id).await.map_err(|e| e.to_string())?;
    }
    disconnect(ctx, pod).await?;
    let dir = ctx.config.pod_dir(&uid);
    let meta = &pod.metadata;
    let logs = ctx.config.log_dir(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""), &uid);
    let cgroup = resources::pod_cgroup(&ctx.config.cgroup_parent, pod);
    let removed = tokio::task::spawn_blocking(move || {
        host::remove_tree(&dir).map_err(|e| format!("failed to remove {}: {e}", dir.display()))?;
        host::remove_tree(&logs).map_err(|e| format!("failed to remove {}: {e}", logs.display()))?;
        cgroups::remove(&cgroup);
        Ok(())
    });
    ctx.volumes.forget(&uid);
    removed.await.map_err(|e| e.to_string())?
}

/// Brings the content of a pod's volumes up to date.
pub async fn refresh(ctx: Arc<Context>, pod: Arc<Pod>, objects: Arc<PodObjects>, ips: Vec<IpAddr>) -> Outcome {
    let dir = ctx.config.pod_dir(uid(&pod));
    let facts = ctx.facts(&ips);
    let refreshed = tokio::time::timeout(REFRESH_PATIENCE, ctx.volumes.refresh(&pod, &dir, &facts, &objects)).await;
    if refreshed.is_err() {
        tracing::warn!(pod = names::format_pod(&pod), "volumes were not brought up to date in {REFRESH_PATIENCE:?}");
    }
    Outcome::Refreshed
}
