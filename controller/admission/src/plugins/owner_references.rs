//! OwnerReferencesPermissionEnforcement: who makes an object die with another must be allowed to delete it, and who
//! keeps an owner from going must be allowed to.
//!
//! In: the old and the new object. Out: questions for the authorizer, and the words of refusals.

use crate::read::{at, list, text};
use crate::request::{Facts, Operation};
use serde_json::Value;

/// What the authorizer is asked for the request's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// `delete` or `update`.
    pub verb: &'static str,
    /// API group; `*` for any.
    pub group: String,
    /// API version; `*` for any.
    pub version: String,
    /// Plural; `*` for any.
    pub resource: String,
    /// For example `finalizers`.
    pub subresource: String,
    /// Empty for cluster-scoped owners.
    pub namespace: String,
    /// Name; `*` for any.
    pub name: String,
}

/// A resource an owner's kind stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerResource {
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural.
    pub resource: String,
    /// Owners in namespaces are in the same one as what they own.
    pub namespaced: bool,
}

/// What is to be asked, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Questions {
    /// Must be allowed; else refuse with [`cannot_delete`].
    pub delete: Option<Question>,
    /// When there are owners that are now kept from going: all must be allowed, or [`anything`] at once; else refuse
    /// with [`cannot_finalize`]. `Err` is the refusal when even an allowed question is missing: an unknown kind.
    pub finalize: Option<Result<Vec<Question>, String>>,
}

/// The questions for a create or update. `version` and `name` are those of the request; `find` gives the resources of
/// an owner's `apiVersion` and `kind`.
pub fn questions(
    facts: &Facts<'_>,
    version: &str,
    name: &str,
    new: &Value,
    old: Option<&Value>,
    find: impl Fn(&str, &str) -> Vec<OwnerResource>,
) -> Questions {
    let none = Questions { delete: None, finalize: None };
    // The kubelet may not delete a pod, yet writes its status.
    let status_of_pod = (facts.group, facts.resource, facts.subresource) == ("", "pods", "status");
    let (owners, before) = (owners(new), old.map_or(&[][..], owners));
    if status_of_pod || owners == before {
        return none;
    }
    let delete = (facts.operation != Operation::Create).then(|| Question {
        verb: "delete",
        group: facts.group.to_owned(),
        version: version.to_owned(),
        resource: facts.resource.to_owned(),
        subresource: facts.subresource.to_owned(),
        namespace: facts.namespace.to_owned(),
        name: name.to_owned(),
    });
    let blocks = |owner: &Value| at(owner, "blockOwnerDeletion") == &Value::Bool(true);
    let blocked_before = |owner: &Value| {
        // Upstream indexes by uid, so the last of equals counts.
        before.iter().rev().find(|b| text(b, "uid") == text(owner, "uid")).is_some_and(blocks)
    };
    let newly: Vec<&Value> = owners.iter().filter(|o| blocks(o) && !blocked_before(o)).collect();
    let finalize = (!newly.is_empty()).then(|| finalizers(facts, &newly, find));
    Questions { delete, finalize }
}

fn owners(object: &Value) -> &[Value] {
    list(object, "metadata.ownerReferences")
}

fn finalizers(
    facts: &Facts<'_>,
    owners: &[&Value],
    find: impl Fn(&str, &str) -> Vec<OwnerResource>,
) -> Result<Vec<Question>, String> {
    let mut all = Vec::new();
    for owner in owners {
        let (api_version, kind) = (text(owner, "apiVersion"), text(owner, "kind"));
        let found = find(api_version, kind);
        if found.is_empty() {
            return Err(format!(
                "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion \
                 {api_version} Kind {kind}: no matches for kind {kind:?} in version {api_version:?}"
            ));
        }
        all.extend(found.into_iter().map(|found| Question {
            verb: "update",
            group: found.group,
            version: found.version,
            resource: found.resource,
            subresource: "finalizers".to_owned(),
            namespace: if found.namespaced { facts.namespace.to_owned() } else { String::new() },
            name: text(owner, "name").to_owned(),
        }));
    }
    Ok(all)
}

/// The question whose yes spares all others about finalizers.
pub fn anything() -> Question {
    let any = || "*".to_owned();
    let subresource = "finalizers".to_owned();
    let namespace = String::new();
    Question { verb: "update", group: any(), version: any(), resource: any(), subresource, namespace, name: any() }
}

/// The refusal when the object may not be deleted; `reason` is the authorizer's.
pub fn cannot_delete(reason: &str) -> String {
    format!("cannot set an ownerRef on a resource you can't delete: {reason}, <nil>")
}

/// The refusal when an owner's finalizers may not be set; `reason` is the authorizer's.
pub fn cannot_finalize(reason: &str) -> String {
    format!(
        "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: \
         {reason}, <nil>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn owned(owners: Value) -> Value {
        json!({"metadata": {"ownerReferences": owners}})
    }

    fn owner(uid: &str, kind: &str, block: Value) -> Value {
        json!({"uid": uid, "apiVersion": "apps/v1", "kind": kind, "name": uid, "blockOwnerDeletion": block})
    }

    fn find(api_version: &str, kind: &str) -> Vec<OwnerResource> {
        if api_version != "apps/v1" || kind == "Unknown" {
            return Vec::new();
        }
        let namespaced = kind != "Global";
        let resource = format!("{}s", kind.to_lowercase());
        vec![OwnerResource { group: "apps".into(), version: "v1".into(), resource, namespaced }]
    }

    fn ask(operation: Operation, new: &Value, old: Option<&Value>) -> Questions {
        let facts = Facts { user: "u", namespace: "n", group: "", resource: "pods", subresource: "", operation };
        questions(&facts, "v1", "p", new, old, find)
    }

    #[test]
    fn what_is_asked() {
        let none = owned(json!([]));
        let plain = owned(json!([owner("a", "Set", json!(false))]));
        let blocking = owned(json!([owner("a", "Set", json!(true)), owner("b", "Global", json!(true))]));
        for (operation, new, old, delete, finalize) in [
            (Operation::Create, &none, None, false, 0),
            (Operation::Create, &plain, None, false, 0),
            (Operation::Create, &blocking, None, false, 2),
            (Operation::Update, &plain, Some(&none), true, 0),
            (Operation::Update, &none, Some(&plain), true, 0),
            (Operation::Update, &blocking, Some(&plain), true, 2),
            (Operation::Update, &blocking, Some(&blocking), false, 0),
            (Operation::Update, &plain, Some(&blocking), true, 0),
        ] {
            let asked = ask(operation, new, old);
            assert_eq!(asked.delete.is_some(), delete, "{new} {old:?}");
            assert_eq!(asked.finalize.map_or(0, |f| f.unwrap().len()), finalize, "{new} {old:?}");
        }
        let asked = ask(Operation::Update, &blocking, Some(&none));
        let delete = asked.delete.unwrap();
        assert_eq!((delete.verb, delete.resource.as_str(), delete.name.as_str()), ("delete", "pods", "p"));
        let finalize = asked.finalize.unwrap().unwrap();
        let seen: Vec<_> =
            finalize.iter().map(|q| (q.resource.as_str(), q.namespace.as_str(), q.name.as_str())).collect();
        assert_eq!(seen, [("sets", "n", "a"), ("globals", "", "b")]);
        assert!(finalize.iter().all(|q| (q.verb, q.subresource.as_str()) == ("update", "finalizers")));
    }

    #[test]
    fn unknown_owners_and_status_of_pods() {
        let unknown = owned(json!([owner("a", "Unknown", json!(true))]));
        assert!(ask(Operation::Create, &unknown, None).finalize.unwrap().unwrap_err().contains("Kind Unknown"));
        let facts = Facts {
            user: "u",
            namespace: "n",
            group: "",
            resource: "pods",
            subresource: "status",
            operation: Operation::Update,
        };
        let asked = questions(&facts, "v1", "p", &unknown, Some(&owned(json!([]))), find);
        assert_eq!(asked, Questions { delete: None, finalize: None });
    }
}
