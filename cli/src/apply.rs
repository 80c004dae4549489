//! `causeway apply`: brings manifests into a cluster without kubectl. In: YAML or JSON from files, folders or standard
//! input. Out: server-side apply, one object after another, a line for each, and with `--wait` an answer when the
//! workloads among them are ready.

mod manifest;
mod rollout;

use crate::args::Cluster;
use crate::kubeconfig;
use crate::paths::Paths;
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::discovery::{self, ApiCapabilities, ApiResource, Scope};
use manifest::Manifest;
use rollout::State;
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The field manager by which our fields are told from those of others.
const MANAGER: &str = "causeway";
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(300);

/// `causeway apply`.
#[derive(Debug, Clone, clap::Args)]
pub struct ApplyArgs {
    /// A file, a folder (its *.yaml, *.yml and *.json, by name), or - for standard input; repeatable.
    #[arg(short = 'f', long = "filename", value_name = "PATH", required = true)]
    pub files: Vec<PathBuf>,
    /// Namespace of objects that name none.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Take over fields that another manager has set to something else, instead of failing.
    #[arg(long)]
    pub force_conflicts: bool,
    /// Wait until the Deployments, StatefulSets, DaemonSets, Jobs and Pods applied are ready.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 180, requires = "wait")]
    pub timeout: u64,
    #[command(flatten)]
    pub cluster: Cluster,
}

/// Where objects of one kind are found.
type Found = HashMap<(String, String), (ApiResource, ApiCapabilities)>;

/// Something to wait for.
struct Applied {
    name: String,
    api: Api<DynamicObject>,
    object: DynamicObject,
}

/// Runs the command. What can be applied is applied; fails if anything could not, or is not ready in time.
pub fn run(args: &ApplyArgs, paths: &Paths) -> Result<()> {
    let manifests = manifest::read(&args.files)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = kubeconfig::client(paths).await?;
        let (mut found, mut applied, mut failed) = (Found::new(), Vec::new(), 0);
        for manifest in &manifests {
            match apply(&client, &mut found, manifest, args).await {
                Ok((outcome, object)) => {
                    println!("{} {outcome}", object.name);
                    applied.push(object);
                }
                Err(error) => {
                    eprintln!("{}: {error:#}", manifest.origin);
                    failed += 1;
                }
            }
        }
        if failed > 0 {
            bail!("{failed} of {} objects could not be applied", manifests.len());
        }
        if args.wait {
            wait(applied, Duration::from_secs(args.timeout)).await?;
        }
        Ok(())
    })
}

async fn apply(
    client: &kube::Client,
    found: &mut Found,
    manifest: &Manifest,
    args: &ApplyArgs,
) -> Result<(&'static str, Applied)> {
    let kind = manifest.kind();
    let key = (kind.api_version(), kind.kind.clone());
    if !found.contains_key(&key) {
        let known = discovery::pinned_kind(client, &kind).await.with_context(|| {
            format!("the cluster does not know kind {} of {}; is its definition applied?", key.1, key.0)
        })?;
        found.insert(key.clone(), known);
    }
    let (resource, capabilities) = &found[&key];
    let name = display(resource, manifest);
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Namespaced => {
            let namespace = manifest.namespace().unwrap_or(&args.namespace);
            Api::namespaced_with(client.clone(), namespace, resource)
        }
        Scope::Cluster => Api::all_with(client.clone(), resource),
    };
    let before = api.get_opt(manifest.name()).await.with_context(|| format!("reading {name}"))?;
    let params = PatchParams { force: args.force_conflicts, ..PatchParams::apply(MANAGER) };
    let after = api.patch(manifest.name(), &params, &Patch::Apply(&manifest.value)).await;
    let after = after.with_context(|| format!("applying {name}"))?;
    let outcome = match before {
        None => "created",
        Some(before) if before.metadata.resource_version == after.metadata.resource_version => "unchanged",
        Some(_) => "configured",
    };
    Ok((outcome, Applied { name, api, object: after }))
}

/// `deployment.apps/web`, as kubectl calls it.
fn display(resource: &ApiResource, manifest: &Manifest) -> String {
    let kind = resource.kind.to_lowercase();
    let dot = if resource.group.is_empty() { "" } else { "." };
    format!("{kind}{dot}{}/{}", resource.group, manifest.name())
}

/// Looks again and again until everything is ready; what failed for good, or is not ready in time, is said by name.
async fn wait(mut open: Vec<Applied>, within: Duration) -> Result<()> {
    open.retain(|one| rollout::is_waited_for(&one.object));
    let (all, begin) = (open.len(), Instant::now());
    let mut progress = Progress::new();
    loop {
        let mut waiting = Vec::new();
        let mut still = Vec::new();
        for mut one in open {
            let name = one.object.metadata.name.clone().unwrap_or_default();
            one.object = one.api.get(&name).await.with_context(|| format!("reading {}", one.name))?;
            match rollout::state(&one.object) {
                State::Ready => {}
                State::Waiting(why) => {
                    waiting.push(format!("{}: {why}", one.name));
                    still.push(one);
                }
                State::Failed(why) => bail!("{} failed: {why}", one.name),
            }
        }
        open = still;
        if open.is_empty() {
            progress.done(&format!("{all} of {all} workloads ready"));
            return Ok(());
        }
        if begin.elapsed() > within {
            bail!("not ready within {} s: {}", within.as_secs(), waiting.join("; "));
        }
        progress.step(&format!("{} of {all} workloads ready; {}", all - open.len(), waiting.join("; ")));
        tokio::time::sleep(LOOK).await;
    }
}
