//! The part of the view that is about the Gateway API: its objects as last seen, and which changes of them matter.

use super::kept::RouteKind;
use super::types::{
    BackendTlsPolicy, Gateway, GatewayClass, GrpcRoute, HttpRoute, ListenerSet, Object, ReferenceGrant, Spec, TcpRoute,
    TlsRoute, UdpRoute,
};
use crate::config::Dirt;
use crate::config::followed::{Followed, Found};
use crate::config::view::{Store, Touch, differs, touched};
use crate::route::ObjectKey;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::runtime::watcher::Event;
use std::sync::Arc;

/// All objects that Gateways need besides what an Ingress needs.
#[derive(Debug, Default)]
pub struct Gateways {
    /// GatewayClasses.
    pub classes: Store<GatewayClass>,
    /// Gateways of every class.
    pub gateways: Store<Gateway>,
    /// ListenerSets.
    pub listener_sets: Store<ListenerSet>,
    /// HTTPRoutes.
    pub http_routes: Store<HttpRoute>,
    /// GRPCRoutes.
    pub grpc_routes: Store<GrpcRoute>,
    /// TLSRoutes.
    pub tls_routes: Store<TlsRoute>,
    /// TCPRoutes.
    pub tcp_routes: Store<TcpRoute>,
    /// UDPRoutes.
    pub udp_routes: Store<UdpRoute>,
    /// ReferenceGrants.
    pub grants: Store<ReferenceGrant>,
    /// BackendTLSPolicies.
    pub policies: Store<BackendTlsPolicy>,
    /// Namespaces, for selectors.
    pub namespaces: Store<Namespace>,
    /// ConfigMaps with certificate authorities that Gateways and policies refer to.
    pub config_maps: Followed<ConfigMap>,
}

/// An event of any of these kinds.
#[derive(Debug)]
pub enum Update {
    /// Of a GatewayClass.
    Class(Event<GatewayClass>),
    /// Of a Gateway.
    Gateway(Box<Event<Gateway>>),
    /// Of a ListenerSet.
    ListenerSet(Event<ListenerSet>),
    /// Of an HTTPRoute.
    Http(Event<HttpRoute>),
    /// Of a GRPCRoute.
    Grpc(Event<GrpcRoute>),
    /// Of a TLSRoute.
    Tls(Event<TlsRoute>),
    /// Of a TCPRoute.
    Tcp(Event<TcpRoute>),
    /// Of a UDPRoute.
    Udp(Event<UdpRoute>),
    /// Of a ReferenceGrant.
    Grant(Event<ReferenceGrant>),
    /// Of a BackendTLSPolicy.
    Policy(Event<BackendTlsPolicy>),
    /// Of a Namespace.
    Namespace(Event<Arc<Namespace>>),
    /// What was found under the name of a ConfigMap.
    ConfigMap(ObjectKey, Found<ConfigMap>),
}

impl Gateways {
    /// Every kind has been listed completely; of what is followed by name nothing need be known.
    pub fn synced(&self) -> bool {
        self.classes.synced()
            && self.gateways.synced()
            && self.listener_sets.synced()
            && self.http_routes.synced()
            && self.grpc_routes.synced()
            && self.tls_routes.synced()
            && self.tcp_routes.synced()
            && self.udp_routes.synced()
            && self.grants.synced()
            && self.policies.synced()
            && self.namespaces.synced()
    }

    /// Takes an event in and says what it made stale.
    pub fn handle(&mut self, update: Update) -> Dirt {
        match update {
            Update::Class(event) => of(&self.classes.handle(event)),
            Update::Gateway(event) => {
                let touch = self.gateways.handle(*event);
                let noted = differs(&touch, |a, b| a.metadata.annotations == b.metadata.annotations);
                let dirt = of(&touch);
                Dirt { fronts: dirt.fronts || noted, ..dirt }
            }
            Update::ListenerSet(event) => of(&self.listener_sets.handle(event)),
            Update::Http(event) => route(RouteKind::Http, &self.http_routes.handle(event)),
            Update::Grpc(event) => route(RouteKind::Grpc, &self.grpc_routes.handle(event)),
            Update::Tls(event) => whole(&self.tls_routes.handle(event)),
            Update::Tcp(event) => whole(&self.tcp_routes.handle(event)),
            Update::Udp(event) => whole(&self.udp_routes.handle(event)),
            Update::Grant(event) => of(&self.grants.handle(event)),
            Update::Policy(event) => of(&self.policies.handle(event)),
            Update::Namespace(event) => {
                fronts(differs(&self.namespaces.handle(event), |a, b| a.metadata.labels == b.metadata.labels))
            }
            Update::ConfigMap(key, found) => fronts(self.config_maps.put(key, found, |a, b| a.data == b.data)),
        }
    }
}

fn fronts(changed: bool) -> Dirt {
    Dirt { fronts: changed, ..Dirt::default() }
}

/// A route that changes by itself.
fn route<S: Spec + PartialEq>(kind: RouteKind, touch: &Touch<Object<S>>) -> Dirt {
    let dirt = of(touch);
    match touched(touch) {
        Some(key) if !dirt.is_empty() => Dirt { gateway_routes: [(kind, key)].into(), ..Dirt::default() },
        _ => dirt,
    }
}

/// A route that does not: what is said to it is kept with all others.
fn whole<S: Spec + PartialEq>(touch: &Touch<Object<S>>) -> Dirt {
    fronts(!of(touch).is_empty())
}

/// A new spec may change fronts; a new status or version only what is to be said.
fn of<S: Spec + PartialEq>(touch: &Touch<Object<S>>) -> Dirt {
    let changed = differs(touch, |a, b| a.spec == b.spec && a.metadata.generation == b.metadata.generation);
    let version = |object: &Object<S>| object.metadata.resource_version.clone();
    // A status is written over the version that it was found out from: another version, another report.
    let reports = differs(touch, |a, b| {
        a.status == b.status && a.metadata.labels == b.metadata.labels && version(a) == version(b)
    });
    Dirt { fronts: changed, front_reports: changed || reports, ..Dirt::default() }
}
