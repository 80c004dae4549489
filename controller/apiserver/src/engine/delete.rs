//! Delete and deletecollection: preconditions, grace, finalizers, propagation.

use super::{Call, Engine, has_finalizers, now_text, text, time_text};
use crate::object::stamp;
use crate::request::{ListOptions, Query};
use crate::status::{ApiError, ApiResult};
use causeway_store::StoreError;
use serde_json::{Value, json};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Seconds that a pod gets at most: some sixty years, which a point in time can still say.
const LONGEST_GRACE: i64 = i32::MAX as i64;
/// Deletes come back after somebody else's write at most so often.
const TRIES: usize = 10;

/// What happens to dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Collected afterwards.
    Background,
    /// Deleted first.
    Foreground,
    /// Left alone.
    Orphan,
}

/// Options of a delete.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Seconds a pod gets to stop.
    pub grace: Option<i64>,
    /// Only if the object has this uid.
    pub uid: Option<String>,
    /// Only if the object is at this version.
    pub version: Option<String>,
    /// What happens to dependents.
    pub propagation: Option<Propagation>,
    /// Nothing is deleted.
    pub dry_run: bool,
}

/// The outcome of a delete.
pub struct Deleted {
    /// The object: its last state, or the state in which it waits.
    pub object: Value,
    /// It no longer exists.
    pub gone: bool,
}

impl DeleteOptions {
    /// From the body (`DeleteOptions`, `null` when there was none) and the query, of which the body wins.
    pub fn parse(body: &Value, query: &Query) -> ApiResult<Self> {
        let policy = body["propagationPolicy"].as_str().or(query.get("propagationPolicy"));
        let orphan = body["orphanDependents"].as_bool().or(query.get("orphanDependents").map(|v| v == "true"));
        let propagation = match (policy, orphan) {
            (Some("Background"), _) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Orphan"), _) => Some(Propagation::Orphan),
            (Some(other), _) => {
                return Err(ApiError::new(
                    422,
                    "Invalid",
                    format!(
                        "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {other:?}: \
                         supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                    ),
                ));
            }
            (None, Some(true)) => Some(Propagation::Orphan),
            (None, Some(false)) => Some(Propagation::Background),
            (None, None) => None,
        };
        let own = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let in_body = body["dryRun"].as_array().is_some_and(|d| d.iter().any(|v| v == "All"));
        Ok(Self {
            grace: body["gracePeriodSeconds"].as_i64().or(query.number("gracePeriodSeconds")?),
            uid: own("/preconditions/uid"),
            version: own("/preconditions/resourceVersion"),
            propagation,
            dry_run: in_body || query.all("dryRun").iter().any(|v| v == "All"),
        })
    }

    fn check(&self, call: &Call, name: &str, object: &Value) -> ApiResult<()> {
        let fail = |what: &str, want: &str, have: &str| {
            let why = format!("Precondition failed: {what} in precondition: {want}, {what} in object meta: {have}");
            Err(ApiError::conflict_because(&call.served.resource, name, &why))
        };
        match (&self.uid, &self.version) {
            (Some(uid), _) if uid != text(object, "/metadata/uid") => fail("UID", uid, text(object, "/metadata/uid")),
            (_, Some(version)) if version != text(object, "/metadata/resourceVersion") => {
                fail("ResourceVersion", version, text(object, "/metadata/resourceVersion"))
            }
            _ => Ok(()),
        }
    }
}

/// What a delete does to the object as it is now.
enum Step {
    /// It is removed.
    Remove,
    /// It is marked and waits.
    Mark,
    /// It waits already and nothing changes.
    Nothing,
}

impl Engine {
    /// Deletes an object, or marks it for deletion.
    pub async fn delete(&self, call: &mut Call, name: &str, options: &DeleteOptions) -> ApiResult<Deleted> {
        for _ in 0..TRIES {
            let (mut object, kv) = self.current(call, name).await?;
            options.check(call, name, &object)?;
            self.admission.delete(self, call, name, &object).await?;
            let step = self.plan_delete(call, name, &mut object, options)?;
            if options.dry_run {
                return Ok(Deleted { object, gone: matches!(step, Step::Remove) });
            }
            let outcome = match step {
                Step::Nothing => return Ok(Deleted { object, gone: false }),
                Step::Remove => self.store.delete(&kv.key, Some(kv.mod_revision)).await.map(|(_, revision)| revision),
                Step::Mark => {
                    let bytes = self.encode(&call.served, &object)?;
                    self.store.update(&kv.key, bytes, kv.mod_revision).await.map(|kv| kv.mod_revision)
                }
            };
            match outcome {
                Ok(revision) => {
                    let gone = matches!(step, Step::Remove);
                    if gone {
                        self.allocation.released(self, &call.served, &object, revision).await;
                    }
                    stamp(&mut object, revision);
                    return Ok(Deleted { object, gone });
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(StoreError::NotFound { .. }) => return Err(ApiError::not_found(&call.served.resource, name)),
                Err(other) => return Err(other.into()),
            }
        }
        Err(ApiError::conflict(&call.served.resource, name))
    }

    fn plan_delete(&self, call: &Call, name: &str, object: &mut Value, options: &DeleteOptions) -> ApiResult<Step> {
        let served = &call.served;
        let before = object.clone();
        let marked = object.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null());
        set_propagation(object, options.propagation);
        if served.is("", "namespaces") {
            let waits = has_finalizers(object)
                || object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|f| !f.is_empty());
            if !waits {
                return Ok(Step::Remove);
            }
            if marked {
                let why = "The system is ensuring all content is removed from this namespace.  Upon completion, this \
                           namespace will automatically be purged by the system.";
                return Err(ApiError::conflict_because(&served.resource, name, why));
            }
            mark(object, 0);
            object["status"]["phase"] = "Terminating".into();
            return Ok(Step::Mark);
        }
        let grace = if served.is("", "pods") { pod_grace(object, options.grace) } else { 0 };
        if grace > 0 {
            let current = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
            // A second delete can only make the time shorter.
            if marked && current.is_some_and(|c| grace >= c) {
                return Ok(if *object == before { Step::Nothing } else { Step::Mark });
            }
            mark(object, grace);
            return Ok(Step::Mark);
        }
        if !has_finalizers(object) {
            return Ok(Step::Remove);
        }
        if !marked || object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64) != Some(0) {
            mark(object, 0);
        }
        Ok(if *object == before { Step::Nothing } else { Step::Mark })
    }

    /// Deletes everything that is selected; returns what it was.
    pub async fn delete_collection(
        &self,
        call: &Call,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> ApiResult<Vec<Value>> {
        let page = self.list(&call.served, &call.namespace, list).await?;
        let mut deleted = Vec::with_capacity(page.objects.len());
        for object in &page.objects {
            let (namespace, name) = object.names();
            let mut one = call.of_namespace(namespace);
            match self.delete(&mut one, name, options).await {
                Ok(outcome) => deleted.push(outcome.object),
                Err(error) if error.code() == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }
}

/// The time a pod gets: nothing when no kubelet has it or all its containers have ended.
fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let unassigned = text(pod, "/spec/nodeName").is_empty();
    let finished = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
    if unassigned || finished {
        return 0;
    }
    let of_spec = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
    // A negative value means the least possible.
    match asked.unwrap_or(of_spec) {
        seconds if seconds < 0 => 1,
        seconds => seconds.min(LONGEST_GRACE),
    }
}

fn mark(object: &mut Value, grace: i64) {
    let when = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
    let timestamp = if grace == 0 { now_text() } else { time_text(when) };
    let generation = object.pointer("/metadata/generation").and_then(Value::as_i64);
    object["metadata"]["deletionTimestamp"] = timestamp.into();
    object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    if let Some(generation) = generation.filter(|g| *g > 0) {
        object["metadata"]["generation"] = (generation + 1).into();
    }
}

/// The finalizers by which the garbage collector knows what to do with dependents.
fn set_propagation(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let mut finalizers: Vec<Value> = object
        .pointer("/metadata/finalizers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|f| *f != FOREGROUND && *f != ORPHAN)
        .cloned()
        .collect();
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => finalizers.push(json!(FOREGROUND)),
        Propagation::Orphan => finalizers.push(json!(ORPHAN)),
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        if finalizers.is_empty() {
            metadata.remove("finalizers");
        } else {
            metadata.insert("finalizers".to_owned(), finalizers.into());
        }
    }
}
