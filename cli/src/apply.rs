//! `causeway apply`: brings manifests into a cluster without kubectl. In: YAML or JSON from files, folders or standard
//! input. Out: server-side apply, one object after another, a line for each, and with `--wait` an answer when the
//! workloads among them are ready.

mod manifest;
mod rollout;

use crate::args::Cluster;
use crate::kubeconfig;
use crate::paths::Paths;
use crate::progress::Progress;
use anyhow::{Context, Result, anyhow, bail};
use kube::api::{Api, DynamicObject, Patch, PatchParams, ValidationDirective};
use kube::core::GroupVersionKind;
use kube::discovery::{self, ApiCapabilities, ApiResource, Scope};
use manifest::Manifest;
use rollout::State;
use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The field manager by which our fields are told from those of others.
const MANAGER: &str = "causeway";
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(300);
/// The API answers a look within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A CustomResourceDefinition is served within this.
const ESTABLISHED_WITHIN: Duration = Duration::from_secs(10);

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
    /// It was ready at the last look.
    was_ready: bool,
}

/// Runs the command. What can be applied is applied; fails if anything could not, or is not ready in time.
pub fn run(args: &ApplyArgs, paths: &Paths) -> Result<()> {
    let mut manifests = manifest::read(&args.files)?;
    // What others need goes first: namespaces, then definitions of kinds.
    manifests.sort_by_key(|m| match m.kind().kind.as_str() {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        _ => 2,
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = kubeconfig::client_that_warns(paths).await?;
        let (mut found, mut applied, mut failed) = (Found::new(), Vec::new(), 0);
        for manifest in &manifests {
            match apply(&client, &mut found, manifest, args).await {
                Ok((outcome, object)) => {
                    // Whoever has stopped reading still gets everything applied.
                    let _ = writeln!(std::io::stdout(), "{} {outcome}", object.name);
                    applied.push(object);
                }
                Err(error) => {
                    let _ = writeln!(std::io::stderr(), "{}: {error:#}", manifest.origin);
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
        found.insert(key.clone(), find(client, &kind).await?);
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
    let before = api.get_opt(manifest.name()).await.map_err(plain).with_context(|| format!("reading {name}"))?;
    let params = PatchParams {
        force: args.force_conflicts,
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply(MANAGER)
    };
    let after = api.patch(manifest.name(), &params, &Patch::Apply(&manifest.value)).await;
    let after = after.map_err(plain).with_context(|| format!("applying {name}"))?;
    let outcome = match before {
        None => "created",
        Some(before) if before.metadata.resource_version == after.metadata.resource_version => "unchanged",
        Some(_) => "configured",
    };
    if resource.kind == "CustomResourceDefinition" {
        established(&api, manifest.name()).await?;
    }
    Ok((outcome, Applied { name, api, object: after, was_ready: false }))
}

/// The kind, as the cluster serves it.
async fn find(client: &kube::Client, kind: &GroupVersionKind) -> Result<(ApiResource, ApiCapabilities)> {
    use kube::error::DiscoveryError;
    match discovery::pinned_kind(client, kind).await {
        Ok(found) => Ok(found),
        Err(kube::Error::Api(status)) if status.code == 404 => Err(unknown(kind)),
        Err(kube::Error::Discovery(
            DiscoveryError::MissingKind(_) | DiscoveryError::MissingApiGroup(_) | DiscoveryError::MissingResource(_),
        )) => Err(unknown(kind)),
        Err(error) => Err(plain(error)).with_context(|| format!("asking for the kinds of {}", kind.api_version())),
    }
}

fn unknown(kind: &GroupVersionKind) -> anyhow::Error {
    let (version, kind) = (kind.api_version(), &kind.kind);
    anyhow!("the cluster does not know kind {kind} of {version}; is its CustomResourceDefinition applied?")
}

/// Waits until a CustomResourceDefinition is served: objects of its kind may come next.
async fn established(api: &Api<DynamicObject>, name: &str) -> Result<()> {
    let begin = Instant::now();
    loop {
        let definition = api.get(name).await.map_err(plain).with_context(|| format!("reading {name}"))?;
        let conditions = definition.data["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is = |kind: &str, status: &str| conditions.iter().find(|c| c["type"] == kind && c["status"] == status);
        if is("Established", "True").is_some() {
            return Ok(());
        }
        if let Some(refused) = is("NamesAccepted", "False") {
            bail!("the names of {name} are not accepted: {}", refused["message"].as_str().unwrap_or_default());
        }
        if begin.elapsed() > ESTABLISHED_WITHIN {
            bail!("{name} is not established after {} s", ESTABLISHED_WITHIN.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the API server said, without what kube puts around it.
fn plain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => anyhow!("{}", status.message),
        other => other.into(),
    }
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
    let all = open.len();
    let mut waiting = Vec::new();
    match tokio::time::timeout(within, all_ready(open, &mut waiting)).await {
        Ok(Ok(progress)) => {
            progress.done(&format!("{all} of {all} workloads ready"));
            Ok(())
        }
        Ok(Err(error)) => Err(error),
        Err(_) => bail!("not ready within {} s: {}", within.as_secs(), waiting.join("; ")),
    }
}

async fn all_ready(mut open: Vec<Applied>, waiting: &mut Vec<String>) -> Result<Progress> {
    let all = open.len();
    let mut progress = Progress::new();
    loop {
        let (mut still, mut reasons) = (Vec::new(), Vec::new());
        for mut one in open {
            match look(&mut one).await {
                State::Ready => {}
                State::Waiting(why) => {
                    reasons.push(format!("{}: {why}", one.name));
                    still.push(one);
                }
                State::Failed(why) => bail!("{} failed: {why}", one.name),
            }
        }
        open = still;
        if open.is_empty() {
            return Ok(progress);
        }
        progress.step(&format!("{} of {all} workloads ready; {}", all - open.len(), reasons.join("; ")));
        *waiting = reasons;
        tokio::time::sleep(LOOK).await;
    }
}

/// One look. An API that does not answer for a while is no reason to give up.
async fn look(one: &mut Applied) -> State {
    let name = one.object.metadata.name.clone().unwrap_or_default();
    match tokio::time::timeout(ANSWER_WITHIN, one.api.get(&name)).await {
        Ok(Ok(object)) => one.object = object,
        // A Job may be deleted as soon as it has finished.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
            let ends_so = one.object.data["spec"]["ttlSecondsAfterFinished"].is_number();
            return if ends_so { State::Ready } else { State::Failed("it was deleted".to_owned()) };
        }
        Ok(Err(error)) => return State::Waiting(format!("the API cannot be asked: {}", plain(error))),
        Err(_) => return State::Waiting(format!("the API does not answer within {} s", ANSWER_WITHIN.as_secs())),
    }
    let state = rollout::state(&one.object);
    let was_ready = std::mem::replace(&mut one.was_ready, state == State::Ready);
    match state {
        State::Ready if !was_ready && rollout::is_to_be_seen_twice(&one.object) => {
            State::Waiting("it has just become ready".to_owned())
        }
        state => state,
    }
}
