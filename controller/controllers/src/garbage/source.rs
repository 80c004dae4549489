//! Where the collector hears of a kind's objects. In: a kind. Out: what all objects have, of every one of them: out of the
//! process' copy where there is one, by a watch of metadata for all other kinds, custom ones included.

use crate::resources::Kind;
use causeway_api::watch;
use causeway_informers::{Informer, Informers, Kind as Shared};
use futures::stream::{BoxStream, StreamExt};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, PersistentVolume, PersistentVolumeClaim, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::runtime::watcher::{Event, Result};

type Events = BoxStream<'static, Result<Event<ObjectMeta>>>;

/// Follows a kind. Begins with a complete list; ends only with a copy's panic.
pub fn events(client: &Client, informers: &Informers, kind: &Kind) -> Events {
    copy(informers, kind).unwrap_or_else(|| {
        let watched = watch::metadata(client.clone(), &kind.resource);
        watched.map(|event| event.map(|event| watch::map(event, |object| object.metadata))).boxed()
    })
}

/// The kinds that controllers read anyway.
fn copy(informers: &Informers, kind: &Kind) -> Option<Events> {
    let of = (kind.resource.group.as_str(), kind.resource.version.as_str(), kind.resource.plural.as_str());
    Some(match of {
        ("", "v1", "pods") => metadata(&informers.pods()),
        ("", "v1", "nodes") => metadata(&informers.nodes()),
        ("", "v1", "namespaces") => metadata(&informers.all::<Namespace>()),
        ("", "v1", "services") => metadata(&informers.all::<Service>()),
        ("", "v1", "endpoints") => metadata(&informers.all::<Endpoints>()),
        ("", "v1", "serviceaccounts") => metadata(&informers.all::<ServiceAccount>()),
        ("", "v1", "configmaps") => metadata(&informers.all::<ConfigMap>()),
        ("", "v1", "persistentvolumes") => metadata(&informers.all::<PersistentVolume>()),
        ("", "v1", "persistentvolumeclaims") => metadata(&informers.all::<PersistentVolumeClaim>()),
        ("apps", "v1", "deployments") => metadata(&informers.all::<Deployment>()),
        ("apps", "v1", "replicasets") => metadata(&informers.all::<ReplicaSet>()),
        ("apps", "v1", "statefulsets") => metadata(&informers.all::<StatefulSet>()),
        ("apps", "v1", "daemonsets") => metadata(&informers.all::<DaemonSet>()),
        ("apps", "v1", "controllerrevisions") => metadata(&informers.all::<ControllerRevision>()),
        ("certificates.k8s.io", "v1", "certificatesigningrequests") => {
            metadata(&informers.all::<CertificateSigningRequest>())
        }
        ("coordination.k8s.io", "v1", "leases") => metadata(&informers.all::<Lease>()),
        ("discovery.k8s.io", "v1", "endpointslices") => metadata(&informers.all::<EndpointSlice>()),
        ("networking.k8s.io", "v1", "servicecidrs") => metadata(&informers.all::<ServiceCIDR>()),
        ("networking.k8s.io", "v1", "ipaddresses") => metadata(&informers.all::<IPAddress>()),
        ("policy", "v1", "poddisruptionbudgets") => metadata(&informers.all::<PodDisruptionBudget>()),
        ("storage.k8s.io", "v1", "storageclasses") => metadata(&informers.all::<StorageClass>()),
        _ => return None,
    })
}

fn metadata<K: Shared>(copy: &Informer<K>) -> Events {
    copy.subscribe().map(|event| Ok(watch::map(event, |object| object.meta().clone()))).boxed()
}
