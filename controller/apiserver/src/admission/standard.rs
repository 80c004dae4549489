//! The small plugins of Kubernetes that are on by default, around [`causeway_admission`]: LimitRanger, RuntimeClass,
//! DefaultTolerationSeconds, PersistentVolumeClaimResize, OwnerReferencesPermissionEnforcement, PodSecurity.

use super::facts;
use crate::authz::{self, Attributes, Decision};
use crate::engine::{Authority, Call, Engine, Part};
use crate::status::{ApiError, ApiResult};
use causeway_admission::limit_ranger;
use causeway_admission::plugins::{claim_resize, default_tolerations, owner_references, runtime_class};
use causeway_admission::pod_security::{Denial, PodSecurity};
use causeway_admission::request::Facts;
use causeway_registry::{FieldErrors, Path};
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long a pod stays on a node that is not ready, in seconds.
const PATIENCE: i64 = 300;
/// Time for looking at the pods of a namespace whose level is raised.
const LOOK: Duration = Duration::from_secs(1);

fn refuse(call: &Call, name: &str, why: &str) -> ApiError {
    let resource = &call.served.resource;
    ApiError::forbidden(&resource.group, &resource.plural, name, why)
}

fn limit_ranges(engine: &Engine, namespace: &str) -> ApiResult<Vec<Value>> {
    engine.all_cached("", "limitranges", namespace)
}

fn runtime_class_of(engine: &Engine, pod: &Value) -> ApiResult<Option<Value>> {
    let Some(name) = runtime_class::wanted(pod) else { return Ok(None) };
    Ok(engine.cached("node.k8s.io", "runtimeclasses", "", name)?.map(|o| o.value()))
}

/// Changes an object as these plugins do.
pub fn mutate(engine: &Engine, call: &Call, part: Part, object: &mut Value, old: Option<&Value>) -> ApiResult<()> {
    let name = super::dynamic::name_of(object).to_owned();
    let facts = facts::plain(call, part.subresource(), facts::operation(old), &name);
    if limit_ranger::concerns(&facts, old) {
        let ranges = limit_ranges(engine, &call.namespace)?;
        limit_ranger::default(&ranges.iter().collect::<Vec<_>>(), &facts, object);
    }
    if runtime_class::concerns(&facts) {
        let class = runtime_class_of(engine, object)?;
        runtime_class::admit(object, class.as_ref()).map_err(|why| refuse(call, &name, &why))?;
    }
    if default_tolerations::concerns(&facts) {
        default_tolerations::admit(object, PATIENCE);
    }
    Ok(())
}

/// Refuses what these plugins do not let pass. Out: what they warn of.
pub async fn validate(
    engine: &Engine,
    security: &PodSecurity,
    call: &Call,
    part: Part,
    new: &Value,
    old: Option<&Value>,
) -> ApiResult<Vec<String>> {
    let name = super::dynamic::name_of(new).to_owned();
    let facts = facts::plain(call, part.subresource(), facts::operation(old), &name);
    if limit_ranger::concerns(&facts, old) {
        let ranges = limit_ranges(engine, &call.namespace)?;
        let ranges: Vec<&Value> = ranges.iter().collect();
        limit_ranger::validate(&ranges, &facts, new).map_err(|why| refuse(call, &name, &why))?;
    }
    if runtime_class::concerns(&facts) {
        let class = runtime_class_of(engine, new)?;
        runtime_class::validate(new, class.as_ref()).map_err(|why| refuse(call, &name, &why))?;
    }
    if let Some(old) = old.filter(|_| claim_resize::concerns(&facts)) {
        resize(engine, new, old).map_err(|why| refuse(call, &name, &why))?;
    }
    owners(engine, call, &facts, &name, new, old).await?;
    pod_security(engine, security, call, &facts, new, old)
}

fn resize(engine: &Engine, new: &Value, old: &Value) -> Result<(), String> {
    let Some(class) = claim_resize::class_to_ask(new, old)? else { return Ok(()) };
    let class = engine.cached("storage.k8s.io", "storageclasses", "", class).map_err(|e| e.to_string())?;
    claim_resize::allowed(class.map(|o| o.value()).as_ref())
}

/// Who makes objects die with others, or keeps others from dying, must be allowed to.
async fn owners(
    engine: &Engine,
    call: &Call,
    facts: &Facts<'_>,
    name: &str,
    new: &Value,
    old: Option<&Value>,
) -> ApiResult<()> {
    let Authority::Caller(authorizer) = &call.authority else { return Ok(()) };
    if authz::is_master(&call.user) {
        return Ok(());
    }
    let table = engine.catalog.table();
    let find = |api_version: &str, kind: &str| {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let found = table.by_kind(group, version, kind);
        let of = |served: &std::sync::Arc<crate::catalog::Served>| owner_references::OwnerResource {
            group: served.resource.group.clone(),
            version: served.resource.version.clone(),
            resource: served.resource.plural.clone(),
            namespaced: served.namespaced(),
        };
        found.map(of).into_iter().collect()
    };
    let questions = owner_references::questions(facts, &call.served.resource.version, name, new, old, find);
    let ask = async |q: &owner_references::Question| {
        let asked = Attributes {
            verb: q.verb.to_owned(),
            group: q.group.clone(),
            resource: q.resource.clone(),
            subresource: q.subresource.clone(),
            namespace: q.namespace.clone(),
            name: q.name.clone(),
            ..Attributes::default()
        };
        match authorizer.authorize(&call.user, &asked).await {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(why) | Decision::NoOpinion(why) => Err(why),
        }
    };
    if let Some(question) = &questions.delete {
        ask(question).await.map_err(|why| refuse(call, name, &owner_references::cannot_delete(&why)))?;
    }
    if let Some(finalize) = questions.finalize {
        if ask(&owner_references::anything()).await.is_ok() {
            return Ok(());
        }
        for question in &finalize.map_err(|why| refuse(call, name, &why))? {
            ask(question).await.map_err(|why| refuse(call, name, &owner_references::cannot_finalize(&why)))?;
        }
    }
    Ok(())
}

fn pod_security(
    engine: &Engine,
    security: &PodSecurity,
    call: &Call,
    facts: &Facts<'_>,
    new: &Value,
    old: Option<&Value>,
) -> ApiResult<Vec<String>> {
    if !PodSecurity::concerns(facts.group, facts.resource) || matches!(facts.subresource, "status" | "binding") {
        return Ok(Vec::new());
    }
    let labels = facts::labels_of_namespace(engine, &call.namespace);
    let outcome = security.decide(labels.as_ref(), facts, new, old);
    for (key, value) in &outcome.audit {
        call.annotate(key, value);
    }
    let mut warnings = outcome.warnings;
    if let Some(change) = outcome.check_existing {
        let pods = engine.all_cached("", "pods", &change.namespace)?;
        let since = Instant::now();
        let pods: Vec<&Value> = pods.iter().collect();
        warnings.extend(security.check_existing(&change, &pods, || since.elapsed() < LOOK));
    }
    let name = super::dynamic::name_of(new);
    match outcome.denied {
        None => Ok(warnings),
        Some(Denial::Forbidden(why)) => Err(refuse(call, name, &why)),
        Some(Denial::Internal(why)) => Err(ApiError::internal(why)),
        Some(Denial::Invalid(wrong)) => {
            let mut errors = FieldErrors::default();
            for error in wrong {
                let path = Path::new(&error.field);
                errors.invalid(&path, error.value.as_str(), error.detail);
            }
            Err(ApiError::invalid(&call.served.resource, name, &errors))
        }
    }
}
