//! Which objects belong to a controller: owned ones that still match its selector stay, owned ones that no longer
//! match are released, and orphans that match are adopted.
//!
//! In: an owner, its selector, the objects of its namespace. Out: the objects it controls now.

use crate::cache::{Cached, key_of};
use crate::context::Context;
use crate::error::{Doing, Result, ignore_not_found};
use crate::meta::{controller_of, controller_ref, uid};
use crate::queue::Key;
use causeway_api::selector::Selector;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use std::sync::Arc;

/// What to do about one candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is ours and stays so.
    Keep,
    /// Nobody's, and it matches.
    Adopt,
    /// Ours, but it no longer matches.
    Release,
    /// Not our business.
    Ignore,
}

/// Judges one candidate. Pure.
pub fn judge(owner: &ObjectMeta, selector: &Selector, candidate: &ObjectMeta) -> Verdict {
    let matches = !selector.is_empty() && selector.matches_option(candidate.labels.as_ref());
    match controller_of(candidate) {
        Some(controller) if controller.uid != uid(owner) => Verdict::Ignore,
        Some(_) if matches => Verdict::Keep,
        Some(_) if owner.deletion_timestamp.is_some() || candidate.deletion_timestamp.is_some() => Verdict::Ignore,
        Some(_) => Verdict::Release,
        None if matches && owner.deletion_timestamp.is_none() && candidate.deletion_timestamp.is_none() => {
            Verdict::Adopt
        }
        None => Verdict::Ignore,
    }
}

/// Adopts and releases, and returns what `owner` controls.
pub async fn claim<O, K>(context: &Context, owner: &O, selector: &Selector, all: Vec<Arc<K>>) -> Result<Vec<Arc<K>>>
where
    O: Cached + Resource<Scope = NamespaceResourceScope>,
    K: Cached + Resource<Scope = NamespaceResourceScope>,
{
    let (mut owned, mut may_adopt) = (Vec::new(), None);
    for object in all {
        match judge(owner.meta(), selector, object.meta()) {
            Verdict::Keep => owned.push(object),
            Verdict::Ignore => {}
            Verdict::Release => {
                let rest: Vec<_> = references(object.meta()).filter(|r| r.uid != uid(owner.meta())).cloned().collect();
                set_owners(context, &*object, rest).await?;
            }
            Verdict::Adopt => {
                if may_adopt.is_none() {
                    may_adopt = Some(still_there(context, owner).await?);
                }
                if may_adopt != Some(true) {
                    continue;
                }
                let mut all: Vec<_> = references(object.meta()).cloned().collect();
                all.push(controller_ref(owner));
                if let Some(adopted) = set_owners(context, &*object, all).await? {
                    owned.push(Arc::new(adopted));
                }
            }
        }
    }
    Ok(owned)
}

fn references(meta: &ObjectMeta) -> impl Iterator<Item = &OwnerReference> {
    meta.owner_references.iter().flatten()
}

/// Adopting for an owner that has just been deleted would give its orphans to the garbage collector: ask the API.
async fn still_there<O>(context: &Context, owner: &O) -> Result<bool>
where
    O: Cached + Resource<Scope = NamespaceResourceScope>,
{
    let key = key_of(owner);
    let fresh = context
        .api::<O>(&key.namespace)
        .get_opt(&key.name)
        .await
        .doing(|| format!("read {} {key} before adopting for it", O::kind(&())))?;
    Ok(fresh.is_some_and(|f| f.meta().uid == owner.meta().uid && f.meta().deletion_timestamp.is_none()))
}

async fn set_owners<K>(context: &Context, object: &K, owners: Vec<OwnerReference>) -> Result<Option<K>>
where
    K: Cached + Resource<Scope = NamespaceResourceScope>,
{
    let key: Key = key_of(object);
    let patch = json!({ "metadata": {
        "uid": object.meta().uid,
        "resourceVersion": object.meta().resource_version,
        "ownerReferences": owners,
    }});
    let result = context
        .api::<K>(&key.namespace)
        .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .doing(|| format!("set the owner of {} {key}", K::kind(&())));
    ignore_not_found(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn verdicts() {
        let meta = |uid: &str, label: &str, owner: Option<&str>, gone: bool| ObjectMeta {
            uid: Some(uid.to_owned()),
            labels: Some([("app".to_owned(), label.to_owned())].into()),
            owner_references: owner.map(|u| {
                vec![OwnerReference { uid: u.to_owned(), controller: Some(true), ..OwnerReference::default() }]
            }),
            deletion_timestamp: gone.then_some(Time(Timestamp::UNIX_EPOCH)),
            ..ObjectMeta::default()
        };
        let selector = Selector::parse("app=web").unwrap();
        let owner = meta("me", "", None, false);
        for (candidate, want) in [
            (meta("a", "web", Some("me"), false), Verdict::Keep),
            (meta("a", "web", Some("me"), true), Verdict::Keep),
            (meta("a", "api", Some("me"), false), Verdict::Release),
            (meta("a", "api", Some("me"), true), Verdict::Ignore),
            (meta("a", "web", Some("you"), false), Verdict::Ignore),
            (meta("a", "web", None, false), Verdict::Adopt),
            (meta("a", "web", None, true), Verdict::Ignore),
            (meta("a", "api", None, false), Verdict::Ignore),
        ] {
            assert_eq!(judge(&owner, &selector, &candidate), want, "{candidate:?}");
        }
        let dying = meta("me", "", None, true);
        assert_eq!(judge(&dying, &selector, &meta("a", "web", None, false)), Verdict::Ignore);
        assert_eq!(judge(&owner, &Selector::default(), &meta("a", "web", None, false)), Verdict::Ignore);
    }
}
