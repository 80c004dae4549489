//! ControllerRevisions: the templates a StatefulSet or DaemonSet has had, so that pods of an older one can be told
//! from the newest and be made again, and `kubectl rollout undo` has something to go back to.

use crate::cache::{Cached, key_of};
use crate::claim::claim;
use crate::context::Context;
use crate::error::{Doing, Result, ignore_not_found};
use crate::meta::{controller_ref, fit, label, name, namespace, short_hash};
use causeway_api::selector::Selector;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Resource;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::sync::Arc;

/// The label on pods (and revisions) that names the revision.
pub const HASH_LABEL: &str = "controller-revision-hash";
/// The hash label upstream's StatefulSets put on revisions.
const HASH_LABEL_LONG: &str = "controller.kubernetes.io/hash";

/// The revisions of one owner.
pub struct History {
    /// All, oldest first, the update revision included.
    pub all: Vec<Arc<ControllerRevision>>,
    /// The one of the owner's present template.
    pub update: Arc<ControllerRevision>,
    /// Raised when another template had the same hash.
    pub collisions: Option<i32>,
}

/// The patch that brings a template back: `kubectl rollout undo` sends it as it is.
pub fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    if let Some(map) = template.as_object_mut() {
        map.insert("$patch".to_owned(), json!("replace"));
    }
    json!({ "spec": { "template": template } })
}

/// The template a revision stands for.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// The short hash of a revision.
pub fn hash_of(revision: &ControllerRevision) -> &str {
    label(&revision.metadata, HASH_LABEL).unwrap_or_else(|| name(&revision.metadata))
}

/// What to do so that the newest revision is the present template's. Pure.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// It is.
    Use(usize),
    /// It is there under an older number: give it the newest.
    Renumber(usize, i64),
    /// It is not there.
    Create(i64),
}

/// Decides on `sorted` (oldest first) and the present template's data.
pub fn step(sorted: &[Arc<ControllerRevision>], data: &Value) -> Step {
    let next = sorted.last().map_or(1, |r| r.revision + 1);
    match sorted.iter().rposition(|r| r.data.as_ref().is_some_and(|d| d.0 == *data)) {
        Some(i) if i + 1 == sorted.len() => Step::Use(i),
        Some(i) => Step::Renumber(i, next),
        None => Step::Create(next),
    }
}

/// Makes sure that the present template has a revision, the newest.
pub async fn sync<O>(
    context: &Context,
    owner: &O,
    selector: &Selector,
    template: &PodTemplateSpec,
    collisions: Option<i32>,
) -> Result<History>
where
    O: Cached + Resource<Scope = NamespaceResourceScope>,
{
    let candidates = context.caches.revisions.in_namespace(namespace(owner.meta()));
    let mut all = claim(context, owner, selector, candidates).await?;
    all.sort_by_key(|r| (r.revision, name(&r.metadata).to_owned()));
    let data = data_of(template);
    match step(&all, &data) {
        Step::Use(i) => Ok(History { update: all[i].clone(), all, collisions }),
        Step::Renumber(i, revision) => {
            let old = all.remove(i);
            let key = key_of(&*old);
            let patch =
                json!({ "metadata": { "resourceVersion": old.metadata.resource_version }, "revision": revision });
            let update = context
                .api::<ControllerRevision>(&key.namespace)
                .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
                .doing(|| format!("renumber ControllerRevision {key}"))?;
            let update = Arc::new(update);
            all.push(update.clone());
            Ok(History { all, update, collisions })
        }
        Step::Create(revision) => {
            let (update, collisions) = create(context, owner, template, data, revision, collisions).await?;
            let update = Arc::new(update);
            all.push(update.clone());
            Ok(History { all, update, collisions })
        }
    }
}

async fn create<O>(
    context: &Context,
    owner: &O,
    template: &PodTemplateSpec,
    data: Value,
    revision: i64,
    mut collisions: Option<i32>,
) -> Result<(ControllerRevision, Option<i32>)>
where
    O: Cached + Resource<Scope = NamespaceResourceScope>,
{
    let api = context.api::<ControllerRevision>(namespace(owner.meta()));
    loop {
        let hash = short_hash(&data, collisions);
        let revision_name = format!("{}-{hash}", fit(name(owner.meta()), 223));
        let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        labels.insert(HASH_LABEL.to_owned(), hash.clone());
        labels.insert(HASH_LABEL_LONG.to_owned(), hash);
        let wanted = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(revision_name.clone()),
                namespace: owner.meta().namespace.clone(),
                labels: Some(labels),
                annotations: owner.meta().annotations.clone(),
                owner_references: Some(vec![controller_ref(owner)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data.clone())),
            revision,
        };
        let made = api
            .create(&PostParams::default(), &wanted)
            .await
            .doing(|| format!("create ControllerRevision {revision_name}"));
        match made {
            Err(error) if error.is_already_exists() => {
                let there =
                    api.get(&revision_name).await.doing(|| format!("read ControllerRevision {revision_name}"))?;
                if there.data.as_ref().is_some_and(|d| d.0 == data) {
                    return Ok((there, collisions));
                }
                collisions = Some(collisions.unwrap_or(0) + 1);
            }
            other => return other.map(|r| (r, collisions)),
        }
    }
}

/// Deletes the oldest revisions beyond `limit` that are not `live`.
pub async fn truncate(context: &Context, history: &History, live: &[&str], limit: i32) -> Result<()> {
    let idle: Vec<_> = history.all.iter().filter(|r| !live.contains(&name(&r.metadata))).collect();
    let excess = idle.len().saturating_sub(limit.max(0) as usize);
    for revision in idle.into_iter().take(excess) {
        let key = key_of(&**revision);
        let result = context
            .api::<ControllerRevision>(&key.namespace)
            .delete(&key.name, &DeleteParams::default())
            .await
            .doing(|| format!("clean up ControllerRevision {key}"));
        ignore_not_found(result)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{meta, template};

    fn revision(image: &str, number: i64) -> Arc<ControllerRevision> {
        Arc::new(ControllerRevision {
            metadata: meta(&format!("r{number}")),
            data: Some(RawExtension(data_of(&template("web", image)))),
            revision: number,
        })
    }

    #[test]
    fn newest_template_gets_the_newest_number() {
        let all = [revision("a", 1), revision("b", 2)];
        assert_eq!(step(&[], &data_of(&template("web", "a"))), Step::Create(1));
        assert_eq!(step(&all, &data_of(&template("web", "b"))), Step::Use(1));
        assert_eq!(step(&all, &data_of(&template("web", "a"))), Step::Renumber(0, 3));
        assert_eq!(step(&all, &data_of(&template("web", "c"))), Step::Create(3));
        assert_eq!(template_of(&all[0]), Some(template("web", "a")));
    }
}
