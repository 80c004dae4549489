//! Create, update and everything that is an update: status, scale, patches, server-side apply.

use super::frame::{check_kind, deletes_now, is_same, keep_system_fields, metadata, name_suffix};
use super::{Call, Engine, NoClaim, now_text, text};
use crate::catalog::Served;
use crate::object::stamp;
use crate::status::{ApiError, ApiResult};
use bytes::Bytes;
use causeway_registry::{FieldErrorType, FieldErrors, Path, validate_metadata};
use causeway_store::{KeyValue, StoreError, Write};
use serde_json::Value;
use std::time::Duration;

/// How often a patch is tried again after somebody else's write.
const PATCH_TRIES: usize = 5;
/// How often a generated name is tried again.
const NAME_TRIES: usize = 8;

/// Which part of an object a write is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The object itself.
    Main,
    /// `/status`.
    Status,
    /// `/finalize` of a namespace.
    Finalize,
    /// `/binding` of a pod: the one way to a node's name.
    Binding,
    /// `/approval` of a certificate signing request: its conditions.
    Approval,
}

impl Part {
    /// Its name in paths and roles; empty for the object itself.
    pub fn subresource(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Status => "status",
            Self::Finalize => "finalize",
            Self::Binding => "binding",
            Self::Approval => "approval",
        }
    }
}

/// Events are kept for an hour after they were last written.
const EVENT_LIFETIME: Duration = Duration::from_secs(3600);

/// How long an object of a kind is kept that nobody writes again; `None` for ever.
fn lifetime(served: &Served) -> Option<Duration> {
    (served.is("", "events") || served.is("events.k8s.io", "events")).then_some(EVENT_LIFETIME)
}

impl Engine {
    /// Creates an object. Returns it as stored.
    pub async fn create(&self, call: &mut Call, mut object: Value) -> ApiResult<Value> {
        let generate = self.begin_create(call, &mut object)?;
        let mut tries = 0;
        loop {
            let mut attempt = object.clone();
            if let Some(prefix) = &generate {
                let room = prefix.chars().take(58).collect::<String>();
                metadata(&mut attempt)?.insert("name".to_owned(), format!("{room}{}", name_suffix()).into());
            }
            tries += 1;
            match self.create_named(call, attempt).await {
                Err(e) if generate.is_some() && e.failure().reason == "AlreadyExists" && tries < NAME_TRIES => {}
                other => return other,
            }
        }
    }

    /// Checks the frame of a new object and sets what the server sets. Returns the prefix of a name to generate.
    fn begin_create(&self, call: &Call, object: &mut Value) -> ApiResult<Option<String>> {
        let served = call.served.clone();
        check_kind(call, object)?;
        let given_namespace = text(object, "/metadata/namespace").to_owned();
        if served.namespaced() {
            if !given_namespace.is_empty() && given_namespace != call.namespace {
                return Err(ApiError::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            metadata(object)?.insert("namespace".to_owned(), call.namespace.as_str().into());
        } else {
            metadata(object)?.remove("namespace");
        }
        if !text(object, "/metadata/resourceVersion").is_empty() {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let meta = metadata(object)?;
        for field in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "uid"] {
            meta.remove(field);
        }
        meta.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
        meta.insert("creationTimestamp".to_owned(), now_text().into());
        let generate = text(object, "/metadata/generateName").to_owned();
        let named = !text(object, "/metadata/name").is_empty();
        Ok((!named && !generate.is_empty()).then_some(generate))
    }

    async fn create_named(&self, call: &mut Call, mut object: Value) -> ApiResult<Value> {
        let served = call.served.clone();
        let name = text(&object, "/metadata/name").to_owned();
        served.resource.strategy.default(&mut object);
        self.admission.create(self, call, &mut object).await?;
        served.resource.strategy.default(&mut object);
        served.resource.strategy.prepare_create(&mut object);
        let mut errors = validate_metadata(&object, None, served.namespaced());
        if !name.is_empty()
            && let Err(why) = served.resource.strategy.validate_name(&name)
        {
            errors.0.retain(|e| e.field != "metadata.name");
            errors.invalid(&Path::new("metadata").child("name"), name.as_str(), why);
        }
        errors.extend(served.resource.strategy.validate_create(&object));
        if !errors.is_empty() {
            return Err(ApiError::invalid(&served.resource, &name, &errors));
        }
        call.warnings.extend(served.resource.strategy.warnings(&object));
        self.admission.validate(self, call, Part::Main, &object, None).await?;
        if !call.tracked {
            self.track(call, None, &mut object, Part::Main);
        }
        let key = call.key(&name);
        // Before anything is allocated for it: the usual reason for a create to fail.
        if self.store.get(&key, None).await?.0.is_some() {
            return Err(ApiError::already_exists(&served.resource, &name));
        }
        let claim = self.allocation.claim(self, call, &mut object, None).await?;
        let encoded = self.encode(&served, &object);
        if call.options.dry_run {
            claim.roll_back(self).await;
            return encoded.map(|_| object);
        }
        let bytes = match encoded {
            Ok(bytes) => bytes,
            Err(error) => {
                claim.roll_back(self).await;
                return Err(error);
            }
        };
        let write = Write::Create { key, value: bytes, ttl: lifetime(&served) };
        match self.store.write_one(write).await.map(|(kv, _)| kv) {
            Ok(kv) => {
                claim.commit(self).await;
                stamp(&mut object, kv.mod_revision);
                Ok(object)
            }
            Err(error) => {
                claim.not_written(self, &error).await;
                Err(match error {
                    StoreError::AlreadyExists { .. } => ApiError::already_exists(&served.resource, &name),
                    other => other.into(),
                })
            }
        }
    }

    /// Replaces an object, or a part of it. `true` when it was created by the update.
    pub async fn update(&self, call: &mut Call, name: &str, part: Part, mut object: Value) -> ApiResult<(Value, bool)> {
        check_kind(call, &mut object)?;
        let in_body = text(&object, "/metadata/name");
        if in_body.is_empty() {
            metadata(&mut object)?.insert("name".to_owned(), name.into());
        } else if in_body != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({in_body}) does not match the name on the URL ({name})"
            )));
        }
        let namespace = text(&object, "/metadata/namespace");
        if call.served.namespaced() && !namespace.is_empty() && namespace != call.namespace {
            return Err(ApiError::bad_request(
                "the namespace of the object does not match the namespace on the request",
            ));
        }
        let unconditional = text(&object, "/metadata/resourceVersion").is_empty();
        if unconditional && call.served.custom.is_some() && part == Part::Main {
            let mut errors = FieldErrors::default();
            let path = Path::new("metadata").child("resourceVersion");
            errors.push(FieldErrorType::Invalid, &path, Some(0.into()), "must be specified for an update");
            return Err(ApiError::invalid(&call.served.resource, name, &errors));
        }
        let changed = self.modify(call, name, part, unconditional, |_| Ok(object.clone())).await;
        match changed {
            Err(e) if e.code() == 404 && part == Part::Main && creates_on_update(call) && unconditional => {
                call.require("create", "", name).await?;
                Ok((self.create(call, object).await?, true))
            }
            other => other.map(|object| (object, false)),
        }
    }

    /// Changes an object by a function of its current state; tried again after somebody else's write.
    pub async fn patch(
        &self,
        call: &mut Call,
        name: &str,
        part: Part,
        change: impl FnMut(&Value) -> ApiResult<Value> + Send,
    ) -> ApiResult<Value> {
        self.modify(call, name, part, true, change).await
    }

    async fn modify(
        &self,
        call: &mut Call,
        name: &str,
        part: Part,
        retry: bool,
        mut change: impl FnMut(&Value) -> ApiResult<Value> + Send,
    ) -> ApiResult<Value> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (old, kv) = self.current(call, name).await?;
            let new = change(&old)?;
            match self.replace(call, name, part, &old, &kv, new).await {
                Err(Replace::Raced) if retry && tries < PATCH_TRIES => {}
                Err(Replace::Raced) => return Err(ApiError::conflict(&call.served.resource, name)),
                Err(Replace::Failed(error)) => return Err(error),
                Ok(object) => return Ok(object),
            }
        }
    }

    /// One attempt to put `new` in the place of `old`.
    async fn replace(
        &self,
        call: &mut Call,
        name: &str,
        part: Part,
        old: &Value,
        kv: &KeyValue,
        mut new: Value,
    ) -> Result<Value, Replace> {
        let served = call.served.clone();
        check_kind(call, &mut new)?;
        let wanted = text(&new, "/metadata/resourceVersion");
        if !wanted.is_empty() && wanted != kv.mod_revision.to_string() {
            return Err(ApiError::conflict(&served.resource, name).into());
        }
        keep_system_fields(&served.resource, old, &mut new)?;
        self.prepare(call, name, part, old, &mut new).await?;
        if !call.tracked {
            self.track(call, Some(old), &mut new, part);
        }
        if is_same(old, &new) {
            return Ok(old.clone());
        }
        let claim = match part {
            Part::Main => self.allocation.claim(self, call, &mut new, Some(old)).await?,
            _ => Box::new(NoClaim),
        };
        // The last finalizer went away from an object that was only waiting for that.
        let deletes = deletes_now(&new);
        let encoded = match if deletes { Ok(Bytes::new()) } else { self.encode(&served, &new) } {
            Ok(bytes) if !call.options.dry_run => bytes,
            refused_or_dry_run => {
                claim.roll_back(self).await;
                return refused_or_dry_run.map(|_| new).map_err(Replace::from);
            }
        };
        let outcome = if deletes {
            self.store.delete(&kv.key, Some(kv.mod_revision)).await.map(|(_, revision)| revision)
        } else {
            let (key, expected) = (kv.key.clone(), kv.mod_revision);
            let write = Write::Update { key, value: encoded, ttl: lifetime(&served), expected };
            self.store.write_one(write).await.map(|(_, revision)| revision)
        };
        match outcome {
            Ok(revision) => {
                claim.commit(self).await;
                if deletes {
                    self.allocation.released(self, &served, &new, revision).await;
                }
                stamp(&mut new, revision);
                Ok(new)
            }
            Err(error) => {
                claim.not_written(self, &error).await;
                Err(match error {
                    StoreError::Conflict { .. } => Replace::Raced,
                    StoreError::NotFound { .. } => ApiError::not_found(&served.resource, name).into(),
                    other => ApiError::from(other).into(),
                })
            }
        }
    }

    /// Defaults, the kind's rules for this part, admission and validation.
    async fn prepare(&self, call: &mut Call, name: &str, part: Part, old: &Value, new: &mut Value) -> ApiResult<()> {
        let served = call.served.clone();
        let strategy = &served.resource.strategy;
        strategy.default(new);
        if part == Part::Main {
            strategy.prepare_update(new, old);
        }
        self.admission.update(self, call, part, new, old).await?;
        let mut errors = match part {
            Part::Main => {
                let mut errors = validate_metadata(new, Some(old), served.namespaced());
                errors.extend(strategy.validate_update(new, old));
                errors
            }
            Part::Status => {
                strategy.prepare_status(new, old);
                strategy.validate_status(new, old)
            }
            Part::Finalize => {
                let finalizers = new.pointer("/spec/finalizers").cloned();
                let meta = new.get("metadata").cloned();
                *new = old.clone();
                new["spec"]["finalizers"] = finalizers.unwrap_or_else(|| Value::Array(Vec::new()));
                if let Some(meta) = meta {
                    new["metadata"] = meta;
                }
                FieldErrors::default()
            }
            Part::Binding => FieldErrors::default(),
            Part::Approval => {
                strategy.prepare_status(new, old);
                if let Some(status) = new["status"].as_object_mut() {
                    status.shift_remove("certificate");
                    if let Some(certificate) = old.pointer("/status/certificate") {
                        status.insert("certificate".to_owned(), certificate.clone());
                    }
                }
                strategy.validate_status(new, old)
            }
        };
        if part != Part::Main {
            errors.extend(validate_metadata(new, Some(old), served.namespaced()));
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(&served.resource, name, &errors));
        }
        if part == Part::Main {
            call.warnings.extend(strategy.warnings(new));
        }
        self.admission.validate(self, call, part, new, Some(old)).await
    }
}

/// Why an attempt did not replace the object.
enum Replace {
    Raced,
    Failed(ApiError),
}

impl From<ApiError> for Replace {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

/// Kinds that a PUT creates when they are not there.
fn creates_on_update(call: &Call) -> bool {
    let r = &call.served.resource;
    matches!(
        (r.group.as_str(), r.plural.as_str()),
        ("", "endpoints" | "events")
            | ("coordination.k8s.io", "leases")
            | ("events.k8s.io", "events")
            | ("rbac.authorization.k8s.io", _)
    )
}
