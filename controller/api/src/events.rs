//! Events (core/v1) as `kubectl describe` shows them: one object a (object, reason, message), counted.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;

/// Whether an event asks for attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

/// Writes events for one component. Cheap to clone; recording never blocks the caller and never fails it.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    component: String,
    host: Option<String>,
    seen: Arc<Mutex<HashMap<String, i32>>>,
}

/// Memory bound: beyond this many distinct events the counts start over.
const MAX_REMEMBERED: usize = 4096;

impl Recorder {
    /// A recorder that signs as `component` (for example `kubelet`) on `host` (a node's name).
    pub fn new(client: Client, component: &str, host: Option<&str>) -> Self {
        Self { client, component: component.to_owned(), host: host.map(str::to_owned), seen: Arc::default() }
    }

    /// Records an event about `object`.
    pub fn record<K>(&self, object: &K, type_: EventType, reason: &str, message: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.record_ref(object.object_ref(&()), type_, reason, message.into());
    }

    /// Records an event about a reference (`fieldPath` names a container: `spec.containers{web}`).
    pub fn record_ref(&self, object: ObjectReference, type_: EventType, reason: &str, message: String) {
        let this = self.clone();
        let reason = reason.to_owned();
        tokio::spawn(async move {
            if let Err(error) = this.write(object, type_, &reason, message).await {
                tracing::debug!(%error, reason, "event not recorded");
            }
        });
    }

    async fn write(
        &self,
        object: ObjectReference,
        type_: EventType,
        reason: &str,
        message: String,
    ) -> Result<(), kube::Error> {
        let namespace = object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let name = self.event_name(&object, reason, &message);
        let count = {
            let mut seen = self.seen.lock();
            if seen.len() > MAX_REMEMBERED {
                seen.clear();
            }
            let count = seen.entry(format!("{namespace}/{name}")).or_insert(0);
            *count += 1;
            *count
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let now = Time(Timestamp::now());
        if count > 1 {
            let patch = serde_json::json!({ "count": count, "lastTimestamp": now });
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => return other.map(drop),
            }
        }
        let event = Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: object,
            type_: Some(match type_ {
                EventType::Normal => "Normal".to_owned(),
                EventType::Warning => "Warning".to_owned(),
            }),
            reason: Some(reason.to_owned()),
            message: Some(message),
            count: Some(count),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(EventSource { component: Some(self.component.clone()), host: self.host.clone() }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: self.host.clone(),
            ..Event::default()
        };
        match api.create(&PostParams::default(), &event).await {
            // Another run of this component wrote it before: count on.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let old = api.get(&event.name_any()).await?;
                let count = old.count.unwrap_or(1) + 1;
                let patch = serde_json::json!({ "count": count, "lastTimestamp": event.last_timestamp });
                api.patch(&event.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    /// `<object>.<hash>`: the same event of the same object gets the same name, so that it is counted.
    fn event_name(&self, object: &ObjectReference, reason: &str, message: &str) -> String {
        let mut hash = Sha256::new();
        for part in [
            object.kind.as_deref().unwrap_or(""),
            object.uid.as_deref().unwrap_or(""),
            object.field_path.as_deref().unwrap_or(""),
            reason,
            message,
            &self.component,
            self.host.as_deref().unwrap_or(""),
        ] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        let digest = hash.finalize();
        let short: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
        let name: String = object.name.as_deref().unwrap_or("unknown").chars().take(230).collect();
        format!("{name}.{short}")
    }
}
