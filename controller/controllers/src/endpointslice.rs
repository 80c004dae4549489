//! EndpointSlices: the addresses behind every Service that has a selector.
//!
//! In: Services, pods, nodes. Out: slices of at most 100 endpoints, changed with as few writes as possible.
//! [`model`] says what the endpoints are, [`plan`] packs them; this file applies.

pub mod model;
pub mod plan;

use crate::cache::key_of;
use crate::context::{Context, Events};
use crate::error::{Doing, Result, ignore_not_found};
use crate::fence::Fences;
use crate::meta::{label, name};
use crate::queue::{Key, Queue};
use causeway_api::endpoints::SERVICE_NAME_LABEL;
use causeway_api::selector::Selector;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams, Preconditions};
use plan::{MANAGED_BY, MANAGER, Op};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The controller.
pub struct Slices {
    context: Arc<Context>,
    events: Events,
    fences: Fences,
}

/// Wires the handlers up; the queue is worked by the caller.
pub fn queue(context: &Arc<Context>) -> Arc<Queue<Key>> {
    let queue = Queue::new();
    let sink = queue.clone();
    context.caches.services.on_change(move |old, new| {
        if let Some(service) = new.or(old) {
            sink.add(key_of(&**service));
        }
    });
    let sink = queue.clone();
    on_endpoint_change(context, move |key| sink.add(key));
    let (sink, services) = (queue.clone(), context.caches.services.clone());
    context.caches.nodes.on_change(move |old, new| {
        if old.map(|n| model::zone(n)) != new.map(|n| model::zone(n)) {
            for service in services.all().iter().filter(|s| selector_of(s).is_some()) {
                sink.add(key_of(&**service));
            }
        }
    });
    let sink = queue.clone();
    context.caches.slices.on_change(move |old, new| {
        let Some(slice) = new.or(old).filter(|s| label(&s.metadata, MANAGED_BY) == Some(MANAGER)) else { return };
        if let Some(service) = label(&slice.metadata, SERVICE_NAME_LABEL) {
            sink.add(Key::new(slice.metadata.namespace.as_deref().unwrap_or(""), service));
        }
    });
    queue
}

/// Calls `add` with the key of every Service whose endpoints a pod's change may change.
pub fn on_endpoint_change(context: &Arc<Context>, add: impl Fn(Key) + Send + Sync + 'static) {
    let services = context.caches.services.clone();
    context.caches.pods.on_change(move |old, new| {
        if let (Some(old), Some(new)) = (old, new)
            && !matters(old, new)
        {
            return;
        }
        let Some(pod) = new.or(old) else { return };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        for service in services.in_namespace(namespace) {
            let Some(selector) = selector_of(&service) else { continue };
            if [old, new].into_iter().flatten().any(|p| selector.matches_option(p.metadata.labels.as_ref())) {
                add(key_of(&*service));
            }
        }
    });
}

/// Whether a pod's change can show in an endpoint.
fn matters(old: &Pod, new: &Pod) -> bool {
    let facts = |p: &Pod| {
        let status = p.status.as_ref();
        (
            causeway_api::pod::is_ready(p),
            causeway_api::pod::is_terminating(p),
            causeway_api::pod::is_finished(p),
            status.and_then(|s| s.pod_ip.clone()),
            status.and_then(|s| s.pod_ips.clone()),
            p.spec.as_ref().and_then(|s| s.node_name.clone()),
            p.metadata.labels.clone(),
            p.metadata.uid.clone(),
        )
    };
    facts(old) != facts(new)
}

/// The selector of a Service whose endpoints are managed.
pub fn selector_of(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|s| !s.is_empty()).map(Selector::from_map)
}

/// The pods a Service selects.
pub fn selected(context: &Context, service: &Service, selector: &Selector) -> Vec<Arc<Pod>> {
    let mut pods = context.caches.pods.in_namespace(service.metadata.namespace.as_deref().unwrap_or(""));
    pods.retain(|p| selector.matches_option(p.metadata.labels.as_ref()));
    pods
}

impl Slices {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        let events = context.recorder("endpoint-slice-controller");
        Arc::new(Self { context, events, fences: Fences::default() })
    }

    /// One level-triggered step for one Service.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let Some(service) = caches.services.get(&key) else {
            // The garbage collector takes the slices: the Service owns them.
            self.fences.forget(&key);
            return Ok(None);
        };
        let Some(selector) = selector_of(&service).filter(|_| service.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        if let Some(wait) = self.fences.wait(&key, &caches.slices) {
            return Ok(Some(wait));
        }
        let pods = selected(&self.context, &service, &selector);
        let nodes: HashMap<String, Arc<Node>> =
            caches.nodes.all().into_iter().map(|n| (name(&n.metadata).to_owned(), n)).collect();
        let groups = model::groups(&service, &pods, &nodes);
        let mut existing = caches.slices.in_namespace(&key.namespace);
        existing.retain(|s| {
            label(&s.metadata, SERVICE_NAME_LABEL) == Some(&key.name)
                && label(&s.metadata, MANAGED_BY) == Some(MANAGER)
                && s.metadata.deletion_timestamp.is_none()
        });
        for op in plan::plan(&service, groups, &existing) {
            match self.apply(&key, op).await {
                Err(error) if error.is_terminating_namespace() => return Ok(None),
                Err(error) => {
                    let text = format!("Error updating Endpoint Slices for Service {key}: {}", error.reply());
                    if !error.is_conflict() {
                        self.events.warning(&*service, "FailedToUpdateEndpointSlices", text);
                    }
                    return Err(error);
                }
                Ok(()) => {}
            }
        }
        Ok(None)
    }

    async fn apply(&self, service: &Key, op: Op) -> Result<()> {
        let api = self.context.api::<EndpointSlice>(&service.namespace);
        match op {
            Op::Create(slice) => {
                let made = api
                    .create(&PostParams::default(), &slice)
                    .await
                    .doing(|| format!("create an EndpointSlice for Service {service}"))?;
                self.fences.wrote(service, &made);
            }
            Op::Update(slice) => {
                let written = api
                    .replace(name(&slice.metadata), &PostParams::default(), &slice)
                    .await
                    .doing(|| format!("update EndpointSlice {}", key_of(&*slice)));
                if let Some(written) = ignore_not_found(written)? {
                    self.fences.wrote(service, &written);
                }
            }
            Op::Delete(slice) => {
                let only = Preconditions {
                    uid: slice.metadata.uid.clone(),
                    resource_version: slice.metadata.resource_version.clone(),
                };
                let deleted = api
                    .delete(name(&slice.metadata), &DeleteParams::default().preconditions(only))
                    .await
                    .doing(|| format!("delete EndpointSlice {}", key_of(&*slice)));
                ignore_not_found(deleted)?;
                self.fences.deleted(service, &key_of(&*slice), slice.metadata.uid.as_deref());
            }
        }
        Ok(())
    }
}
