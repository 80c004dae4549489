//! The objects of the Gateway API as far as they are read here (gateway.networking.k8s.io/v1, level 1.6).
//!
//! Types of our own, because they must be lenient: one object that cannot be read must not end the watch of its kind.
//! Such an object counts as one with an empty spec, which asks for nothing. Fields have the API's names; what the API
//! defaults is filled in where it is read, since objects may come from before a default.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ObjectMeta;
use kube::core::NamespaceResourceScope;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// The API group of all of these kinds.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// What tells a kind of the Gateway API from the others.
pub trait Spec: DeserializeOwned + Default + Clone + Debug + Send + Sync + 'static {
    /// `kind`.
    const KIND: &'static str;
    /// The name in URLs.
    const PLURAL: &'static str;
}

/// An object of any of the kinds.
#[derive(Debug, Clone, Default)]
pub struct Object<S> {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: S,
    /// What we and others said about it, as it came.
    pub status: Value,
}

impl<'de, S: Spec> Deserialize<'de> for Object<S> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            metadata: ObjectMeta,
            #[serde(default)]
            spec: Value,
            #[serde(default)]
            status: Value,
        }
        let raw = Raw::deserialize(from)?;
        let spec = S::deserialize(raw.spec).unwrap_or_else(|error| {
            let name = raw.metadata.name.as_deref().unwrap_or_default();
            let namespace = raw.metadata.namespace.as_deref().unwrap_or_default();
            tracing::warn!(%error, kind = S::KIND, namespace, name, "cannot be read; passed over");
            S::default()
        });
        Ok(Self { metadata: raw.metadata, spec, status: raw.status })
    }
}

impl<S: Spec> kube::Resource for Object<S> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        S::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        S::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

macro_rules! kinds {
    ($($alias:ident = $spec:ident, $kind:literal, $plural:literal;)*) => {$(
        #[doc = concat!("A ", $kind, ".")]
        pub type $alias = Object<$spec>;
        impl Spec for $spec {
            const KIND: &'static str = $kind;
            const PLURAL: &'static str = $plural;
        }
    )*};
}

kinds! {
    GatewayClass = GatewayClassSpec, "GatewayClass", "gatewayclasses";
    Gateway = GatewaySpec, "Gateway", "gateways";
    ListenerSet = ListenerSetSpec, "ListenerSet", "listenersets";
    HttpRoute = HttpRouteSpec, "HTTPRoute", "httproutes";
    GrpcRoute = GrpcRouteSpec, "GRPCRoute", "grpcroutes";
    TlsRoute = TlsRouteSpec, "TLSRoute", "tlsroutes";
    TcpRoute = TcpRouteSpec, "TCPRoute", "tcproutes";
    UdpRoute = UdpRouteSpec, "UDPRoute", "udproutes";
    ReferenceGrant = ReferenceGrantSpec, "ReferenceGrant", "referencegrants";
    BackendTlsPolicy = BackendTlsPolicySpec, "BackendTLSPolicy", "backendtlspolicies";
}

macro_rules! fields {
    ($($(#[$note:meta])* $name:ident { $($(#[$hint:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$note])*
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[allow(missing_docs, reason = "the API's own names")]
        pub struct $name { $($(#[$hint])* pub $field: $type,)* }
    )*};
}

fields! {
    /// `GatewayClass.spec`.
    GatewayClassSpec { controller_name: String, parameters_ref: Option<Reference>, }
    /// `Gateway.spec`.
    GatewaySpec {
        gateway_class_name: String,
        listeners: Vec<Listener>,
        addresses: Vec<Address>,
        infrastructure: Option<Infrastructure>,
        allowed_listeners: Option<AllowedListeners>,
        tls: Option<GatewayTls>,
    }
    /// A listener of a Gateway or ListenerSet.
    Listener {
        name: String,
        hostname: Option<String>,
        port: u16,
        protocol: String,
        tls: Option<ListenerTls>,
        allowed_routes: Option<AllowedRoutes>,
    }
    /// An address that is asked for.
    Address { #[serde(rename = "type")] kind: Option<String>, value: Option<String>, }
    /// What the objects get that are made for a Gateway.
    Infrastructure {
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        parameters_ref: Option<Reference>,
    }
    /// Which ListenerSets may add listeners.
    AllowedListeners { namespaces: Option<FromNamespaces>, }
    /// Namespaces by `All`, `Same`, `Selector` or `None`.
    FromNamespaces { from: Option<String>, selector: Option<LabelSelector>, }
    /// Which routes may be attached.
    AllowedRoutes { namespaces: Option<FromNamespaces>, kinds: Vec<RouteKind>, }
    /// A kind of route.
    RouteKind { group: Option<String>, kind: String, }
    /// TLS of a listener.
    ListenerTls { mode: Option<String>, certificate_refs: Vec<Reference>, options: BTreeMap<String, String>, }
    /// TLS of a Gateway as a whole.
    GatewayTls { backend: Option<BackendClient>, frontend: Option<Frontend>, }
    /// What a Gateway shows to backends.
    BackendClient { client_certificate_ref: Option<Reference>, }
    /// What clients must show.
    Frontend { default: FrontendTls, per_port: Vec<PortTls>, }
    /// The same for one port.
    PortTls { port: u16, tls: FrontendTls, }
    /// How clients are validated.
    FrontendTls { validation: Option<FrontendValidation>, }
    /// Who vouches for clients.
    FrontendValidation { ca_certificate_refs: Vec<Reference>, mode: Option<String>, }
    /// `ListenerSet.spec`.
    ListenerSetSpec { parent_ref: Reference, listeners: Vec<Listener>, }
    /// Any reference: parents, backends, Secrets, ConfigMaps, parameters. Each uses the fields that it has.
    Reference {
        group: Option<String>,
        kind: Option<String>,
        namespace: Option<String>,
        name: String,
        section_name: Option<String>,
        port: Option<u16>,
    }
    /// `HTTPRoute.spec`.
    HttpRouteSpec { parent_refs: Vec<Reference>, hostnames: Vec<String>, rules: Option<Vec<HttpRule>>, }
    /// A rule of an HTTPRoute.
    HttpRule {
        name: Option<String>,
        matches: Vec<HttpMatch>,
        filters: Vec<Filter>,
        backend_refs: Vec<BackendRef>,
        timeouts: Option<HttpTimeouts>,
        retry: Option<HttpRetry>,
        session_persistence: Option<SessionPersistence>,
    }
    /// What a request must have.
    HttpMatch {
        path: Option<PathMatch>,
        headers: Vec<NamedMatch>,
        query_params: Vec<NamedMatch>,
        method: Option<String>,
    }
    /// A path.
    PathMatch { #[serde(rename = "type")] kind: Option<String>, value: Option<String>, }
    /// A header or query parameter.
    NamedMatch { #[serde(rename = "type")] kind: Option<String>, name: String, value: String, }
    /// `timeouts`, as GEP-2257 durations.
    HttpTimeouts { request: Option<String>, backend_request: Option<String>, }
    /// `retry` (GEP-1731).
    HttpRetry { codes: Vec<u16>, attempts: Option<u32>, backoff: Option<String>, }
    /// `sessionPersistence` (GEP-1619).
    SessionPersistence {
        session_name: Option<String>,
        absolute_timeout: Option<String>,
        idle_timeout: Option<String>,
        #[serde(rename = "type")] kind: Option<String>,
        cookie_config: Option<CookieConfig>,
    }
    /// How long a cookie lives.
    CookieConfig { lifetime_type: Option<String>, }
    /// A filter; `type` says which field counts.
    Filter {
        #[serde(rename = "type")] kind: String,
        request_header_modifier: Option<HeaderFilter>,
        response_header_modifier: Option<HeaderFilter>,
        request_mirror: Option<MirrorFilter>,
        request_redirect: Option<RedirectFilter>,
        url_rewrite: Option<RewriteFilter>,
        cors: Option<CorsFilter>,
        extension_ref: Option<Reference>,
    }
    /// Changes of headers.
    HeaderFilter { set: Vec<Header>, add: Vec<Header>, remove: Vec<String>, }
    /// A header.
    Header { name: String, value: String, }
    /// A copy of requests.
    MirrorFilter { backend_ref: Reference, percent: Option<u32>, fraction: Option<Fraction>, }
    /// So many of so many.
    Fraction { numerator: u32, denominator: Option<u32>, }
    /// A redirect.
    RedirectFilter {
        scheme: Option<String>,
        hostname: Option<String>,
        path: Option<PathModifier>,
        port: Option<u16>,
        status_code: Option<u16>,
    }
    /// Another host or path.
    RewriteFilter { hostname: Option<String>, path: Option<PathModifier>, }
    /// Another path.
    PathModifier {
        #[serde(rename = "type")] kind: String,
        replace_full_path: Option<String>,
        replace_prefix_match: Option<String>,
    }
    /// `cors` (GEP-1767).
    CorsFilter {
        allow_origins: Vec<String>,
        allow_credentials: Option<bool>,
        allow_methods: Vec<String>,
        allow_headers: Vec<String>,
        expose_headers: Vec<String>,
        max_age: Option<u32>,
    }
    /// A backend with its share.
    BackendRef {
        #[serde(flatten)] to: Reference,
        weight: Option<u32>,
        filters: Vec<Filter>,
    }
    /// `GRPCRoute.spec`.
    GrpcRouteSpec { parent_refs: Vec<Reference>, hostnames: Vec<String>, rules: Vec<GrpcRule>, }
    /// A rule of a GRPCRoute.
    GrpcRule {
        name: Option<String>,
        matches: Vec<GrpcMatch>,
        filters: Vec<Filter>,
        backend_refs: Vec<BackendRef>,
        session_persistence: Option<SessionPersistence>,
    }
    /// What a call must have.
    GrpcMatch { method: Option<GrpcMethod>, headers: Vec<NamedMatch>, }
    /// A service and a method.
    GrpcMethod { #[serde(rename = "type")] kind: Option<String>, service: Option<String>, method: Option<String>, }
    /// `TLSRoute.spec`.
    TlsRouteSpec { parent_refs: Vec<Reference>, hostnames: Vec<String>, rules: Vec<PlainRule>, }
    /// `TCPRoute.spec`.
    TcpRouteSpec { parent_refs: Vec<Reference>, rules: Vec<PlainRule>, }
    /// `UDPRoute.spec`.
    UdpRouteSpec { parent_refs: Vec<Reference>, rules: Vec<PlainRule>, }
    /// A rule that only names backends.
    PlainRule { name: Option<String>, backend_refs: Vec<BackendRef>, }
    /// `ReferenceGrant.spec`.
    ReferenceGrantSpec { from: Vec<GrantFrom>, to: Vec<GrantTo>, }
    /// Who may refer.
    GrantFrom { group: String, kind: String, namespace: String, }
    /// To what.
    GrantTo { group: String, kind: String, name: Option<String>, }
    /// `BackendTLSPolicy.spec`.
    BackendTlsPolicySpec { target_refs: Vec<Reference>, validation: BackendValidation, }
    /// How a backend proves itself.
    BackendValidation {
        ca_certificate_refs: Vec<Reference>,
        well_known_ca_certificates: Option<String>,
        hostname: String,
        subject_alt_names: Vec<SubjectAltName>,
    }
    /// A name in a certificate.
    SubjectAltName { #[serde(rename = "type")] kind: String, hostname: Option<String>, uri: Option<String>, }
}

impl Reference {
    /// Whether group and kind are these, with the API's defaults for what is not given.
    pub fn is(&self, group: &str, kind: &str, default_group: &str, default_kind: &str) -> bool {
        self.group.as_deref().unwrap_or(default_group) == group && self.kind.as_deref().unwrap_or(default_kind) == kind
    }

    /// Its namespace, or that of the object it stands in.
    pub fn namespace_or<'a>(&'a self, own: &'a str) -> &'a str {
        self.namespace.as_deref().unwrap_or(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_cannot_be_read_asks_for_nothing() {
        let route: HttpRoute = serde_json::from_value(json!({
            "metadata": { "name": "a", "namespace": "b" },
            "spec": { "hostnames": ["x.example"], "rules": [{ "backendRefs": [
                { "name": "web", "port": 80, "weight": 3, "filters": [{ "type": "RequestHeaderModifier" }] }] }] },
            "status": { "parents": [] },
        }))
        .unwrap();
        let backend = &route.spec.rules.as_ref().unwrap()[0].backend_refs[0];
        assert_eq!((backend.to.name.as_str(), backend.to.port, backend.weight), ("web", Some(80), Some(3)));
        assert!(backend.to.is("", "Service", "", "Service"));
        let broken: HttpRoute =
            serde_json::from_value(json!({ "metadata": { "name": "a" }, "spec": { "hostnames": 7 } })).unwrap();
        assert_eq!(broken.spec, HttpRouteSpec::default());
    }
}
