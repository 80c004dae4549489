//! Endpoints (core/v1), the older form of EndpointSlices, for clients that still read them.
//!
//! In: Services with a selector, their pods. Out: one Endpoints object of the Service's name.

use crate::cache::key_of;
use crate::context::Context;
use crate::endpointslice::{model, on_endpoint_change, selected, selector_of};
use crate::error::{Doing, Result, ignore_not_found};
use crate::meta::Map;
use crate::queue::{Key, Queue};
use causeway_api::pod;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Addresses an object holds at most; beyond it says so in an annotation.
const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The controller.
pub struct EndpointObjects {
    context: Arc<Context>,
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
    let sink = queue.clone();
    context.caches.endpoints.on_change(move |old, new| {
        if let Some(endpoints) = new.or(old) {
            sink.add(key_of(&**endpoints));
        }
    });
    queue
}

impl EndpointObjects {
    /// The controller over `context`.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context })
    }

    /// One level-triggered step for one Service.
    pub async fn reconcile(self: Arc<Self>, key: Key) -> Result<Option<Duration>> {
        let caches = &self.context.caches;
        let there = caches.endpoints.get(&key);
        let api = self.context.api::<Endpoints>(&key.namespace);
        let Some(service) = caches.services.get(&key) else {
            // Hand-made ones of a name without a Service are left alone.
            if there.is_some_and(|e| crate::meta::label(&e.metadata, MANAGED_BY) == Some(MANAGER)) {
                let deleted = api.delete(&key.name, &DeleteParams::default()).await;
                ignore_not_found(deleted.doing(|| format!("delete Endpoints {key} of a Service that is gone")))?;
            }
            return Ok(None);
        };
        let Some(selector) = selector_of(&service).filter(|_| service.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let wanted = endpoints(&service, &selected(&self.context, &service, &selector));
        let written = match there {
            None => api.create(&PostParams::default(), &wanted).await.doing(|| format!("create Endpoints {key}")),
            Some(old) if same(&old, &wanted) => return Ok(None),
            Some(old) => {
                let mut wanted = wanted;
                wanted.metadata.resource_version = old.metadata.resource_version.clone();
                api.replace(&key.name, &PostParams::default(), &wanted)
                    .await
                    .doing(|| format!("update Endpoints {key}"))
            }
        };
        match written {
            Err(error) if error.is_terminating_namespace() => Ok(None),
            other => other.map(|_| None),
        }
    }
}

fn same(old: &Endpoints, wanted: &Endpoints) -> bool {
    old.metadata.labels == wanted.metadata.labels
        && old.subsets.as_deref().unwrap_or_default() == wanted.subsets.as_deref().unwrap_or_default()
}

/// The object for a Service. Pure.
pub fn endpoints(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let mut labels: Map = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    let spec = service.spec.as_ref();
    if spec.and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let publish = spec.and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let family = spec.and_then(|s| s.ip_families.as_ref()?.first().cloned()).unwrap_or_else(|| "IPv4".to_owned());

    let mut subsets: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    let (mut count, mut truncated) = (0, false);
    let mut pods: Vec<_> =
        pods.iter().filter(|p| !pod::is_finished(p) && (publish || !pod::is_terminating(p))).collect();
    // Should there be too many, the ready ones stay.
    pods.sort_by_key(|p| (!pod::is_ready(p), model::address(p, &family)));
    for pod in pods {
        let Some(address) = model::address(pod, &family) else { continue };
        if count == MAX_ADDRESSES {
            truncated = true;
            break;
        }
        count += 1;
        let ports: Vec<EndpointPort> = model::ports(service, pod)
            .into_iter()
            .filter_map(|p| {
                Some(EndpointPort {
                    name: p.name.filter(|n| !n.is_empty()),
                    port: p.port?,
                    protocol: p.protocol,
                    app_protocol: p.app_protocol,
                })
            })
            .collect();
        if ports.is_empty() && spec.is_some_and(|s| s.ports.as_ref().is_some_and(|p| !p.is_empty())) {
            continue;
        }
        let key = serde_json::to_string(&ports).unwrap_or_default();
        let subset = subsets.entry(key).or_insert_with(|| EndpointSubset {
            ports: (!ports.is_empty()).then_some(ports),
            ..EndpointSubset::default()
        });
        let entry = EndpointAddress {
            ip: address.to_string(),
            hostname: model::hostname(service, pod),
            node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: pod.metadata.namespace.clone(),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
                ..ObjectReference::default()
            }),
        };
        let list = if publish || pod::is_ready(pod) { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(entry);
    }
    let subsets: Vec<_> = subsets.into_values().collect();
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: truncated.then(|| [(OVER_CAPACITY.to_owned(), "truncated".to_owned())].into()),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{meta, pod as make};
    use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};

    #[test]
    fn ready_and_not_ready_share_a_subset() {
        let service = Service {
            metadata: meta("web"),
            spec: Some(ServiceSpec {
                ports: Some(vec![ServicePort { port: 80, ..ServicePort::default() }]),
                ..ServiceSpec::default()
            }),
            status: None,
        };
        let with_ip = |name: &str, ip: &str, ready: bool| {
            let mut p = make(name, "n1", ready);
            p.status.as_mut().unwrap().pod_ip = Some(ip.to_owned());
            Arc::new(p)
        };
        let e = endpoints(&service, &[with_ip("b", "10.0.0.2", true), with_ip("a", "10.0.0.1", false)]);
        let subsets = e.subsets.unwrap();
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "10.0.0.2");
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip, "10.0.0.1");
        assert_eq!(subsets[0].ports.as_ref().unwrap()[0].name, None);
        assert_eq!(endpoints(&service, &[]).subsets, None);
    }
}
