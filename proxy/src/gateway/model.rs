//! The pure middle for the Gateway API: from the view to fronts (what the data plane serves), exposures (the Service
//! each Gateway gets) and reports (what every object is told).
//!
//! Objects are taken in the order of their age, then namespace and name: of two that claim the same the older one
//! wins, as the API wants it.

use super::attach::{Asking, Attached, Parents, follow};
use super::listeners::{Entry, Parent, SetState, Speaks, merged, sets_of};
use super::refs::{From, Problem, Refs};
use super::report::{self, Report};
use super::rules::{Reader, enter};
use super::types::{BackendRef, Gateway, GatewayClass, Object, Reference, Spec};
use super::{CONTROLLER, LOCAL_ANNOTATION, expose};
use crate::config::Fronts;
use crate::config::certs::CertCache;
use crate::config::view::View;
use crate::route::front::{Front, FrontKey, FrontService, HttpListener, SniTable, TlsListener, TlsMode, TlsServer};
use crate::route::path::PathPattern;
use crate::route::rule::{RuleTable, Split};
use crate::route::upstream::{BackendKey, Protocol};
use crate::route::{ObjectKey, Upstream};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// All that the objects come to.
#[derive(Debug, Default)]
pub struct Model {
    /// What is served.
    pub fronts: Fronts,
    /// Those of Gateways that are served at the ingress' own sockets too, oldest first.
    pub local: Vec<Arc<Front>>,
    /// What every object is told.
    pub reports: Vec<Report>,
    /// The Services of the Gateways.
    pub exposures: Vec<expose::Exposure>,
}

/// A Gateway of ours.
pub(super) struct State<'a> {
    pub object: &'a Arc<Gateway>,
    pub key: ObjectKey,
    pub sets: Vec<SetState<'a>>,
    /// `Accepted: False` with this.
    pub refused: Option<Problem>,
    /// `ResolvedRefs: False` with this.
    pub unresolved: Option<Problem>,
    /// What is shown to backends.
    pub client: Option<(String, String)>,
}

/// What is attached to a listener.
#[derive(Default)]
struct Routes {
    http: Option<RuleTable>,
    sni: Option<SniTable>,
    plain: Option<Split>,
}

/// The work under way.
struct Builder<'a, 'u> {
    view: &'a View,
    refs: &'a Refs<'a>,
    states: Vec<State<'a>>,
    entries: Vec<Vec<Entry<'a>>>,
    routes: Vec<Vec<Routes>>,
    parents: Parents,
    reports: Vec<Report>,
    /// Which Gateways send to a Service.
    users: BTreeMap<ObjectKey, BTreeSet<usize>>,
    upstream: &'u mut dyn FnMut(&BackendKey) -> Arc<Upstream>,
}

/// Enters a route into the listeners of one Gateway that it is attached to.
type Serve<'s> = &'s mut dyn FnMut(&mut Reader<'_, '_>, &mut [Routes], &[Attached]);

/// Objects by age, then namespace and name.
pub fn by_age<'a, S: Spec>(all: impl Iterator<Item = &'a Arc<Object<S>>>) -> Vec<&'a Arc<Object<S>>> {
    let mut sorted: Vec<_> = all.collect();
    sorted.sort_by_cached_key(|o| (o.metadata.creation_timestamp.as_ref().map(|t| t.0), ObjectKey::of(&***o)));
    sorted
}

/// Builds the model. `upstream` gives the upstream of a key with its endpoints.
pub fn build(view: &View, cache: &mut CertCache, upstream: &mut dyn FnMut(&BackendKey) -> Arc<Upstream>) -> Model {
    let all = &view.gateways;
    let refs = Refs::new(view);
    let mut reports = Vec::new();
    let classes: Vec<&Arc<GatewayClass>> =
        all.classes.values().filter(|c| c.spec.controller_name == CONTROLLER).collect();
    for class in &classes {
        reports.push(report::class(class));
    }
    let ours = |g: &Gateway| {
        classes.iter().any(|c| c.metadata.name.as_deref() == Some(&g.spec.gateway_class_name) && report::usable(c))
    };
    let states: Vec<State<'_>> =
        by_age(all.gateways.values()).into_iter().filter(|g| ours(g)).map(|g| state(view, &refs, g, cache)).collect();
    let entries: Vec<Vec<Entry<'_>>> = states.iter().map(|s| merged(&refs, s.object, &s.sets, cache)).collect();
    let mut builder = Builder {
        view,
        refs: &refs,
        routes: entries.iter().map(|e| e.iter().map(|_| Routes::default()).collect()).collect(),
        parents: parents(&states),
        states: Vec::new(),
        entries: Vec::new(),
        reports,
        users: BTreeMap::new(),
        upstream,
    };
    (builder.states, builder.entries) = (states, entries);
    builder.all_routes();
    builder.policies();
    builder.finish()
}

fn state<'a>(view: &'a View, refs: &Refs<'_>, object: &'a Arc<Gateway>, cache: &mut CertCache) -> State<'a> {
    let key = ObjectKey::of(&**object);
    let spec = &object.spec;
    let mut refused = None;
    if let Some(to) = spec.infrastructure.as_ref().and_then(|i| i.parameters_ref.as_ref()) {
        let message = format!("infrastructure.parametersRef {}: there are no parameters here; remove it", to.name);
        refused = Some(Problem::new("InvalidParameters", message));
    }
    for address in &spec.addresses {
        let kind = address.kind.as_deref().unwrap_or("IPAddress");
        let value = address.value.as_deref().unwrap_or_default();
        if kind != "IPAddress" || !(value.is_empty() || value.parse::<IpAddr>().is_ok()) {
            let message = format!("address {value:?} of type {kind} is not served; use type IPAddress");
            refused.get_or_insert(Problem::new("UnsupportedAddress", message));
        }
    }
    let (mut unresolved, mut client) = (None, None);
    if let Some(to) = spec.tls.as_ref().and_then(|t| t.backend.as_ref()?.client_certificate_ref.as_ref()) {
        let from = From::of("Gateway", &key.namespace);
        match refs.certificate(from, to, "InvalidClientCertificateRef", cache) {
            Ok((_, secret)) => client = refs.pem(&secret),
            Err(problem) => unresolved = Some(problem),
        }
    }
    State { sets: sets_of(view, object), object, key, refused, unresolved, client }
}

fn parents(states: &[State<'_>]) -> Parents {
    let mut parents = Parents::default();
    for (number, state) in states.iter().enumerate() {
        parents.at.insert(Parent { set: false, key: state.key.clone() }, number);
        for set in &state.sets {
            parents.at.insert(Parent { set: true, key: ObjectKey::of(&**set.object) }, number);
        }
    }
    parents
}

impl Builder<'_, '_> {
    fn all_routes(&mut self) {
        let all = &self.view.gateways;
        for route in by_age(all.http_routes.values()) {
            let hosts = Some(route.spec.hostnames.as_slice());
            let rules = route.spec.rules.as_deref().unwrap_or_default();
            let users = self.route(route, &route.spec.parent_refs, hosts, &mut |reader, routes, attached| {
                let rows: Vec<_> = rules.iter().flat_map(|rule| reader.http(rule)).collect();
                for one in attached {
                    let table = routes[one.entry].http.get_or_insert_with(RuleTable::with_wide_wildcards);
                    enter(table, &one.hosts, &rows);
                }
            });
            for rule in rules {
                self.note_users(route, &rule.backend_refs, &users);
            }
        }
        for route in by_age(all.grpc_routes.values()) {
            let hosts = Some(route.spec.hostnames.as_slice());
            let users = self.route(route, &route.spec.parent_refs, hosts, &mut |reader, routes, attached| {
                let rows: Vec<_> = route.spec.rules.iter().flat_map(|rule| reader.grpc(rule)).collect();
                for one in attached {
                    let table = routes[one.entry].http.get_or_insert_with(RuleTable::with_wide_wildcards);
                    enter(table, &one.hosts, &rows);
                }
            });
            for rule in &route.spec.rules {
                self.note_users(route, &rule.backend_refs, &users);
            }
        }
        for route in by_age(all.tls_routes.values()) {
            let hosts = Some(route.spec.hostnames.as_slice());
            self.route(route, &route.spec.parent_refs, hosts, &mut |reader, routes, attached| {
                let split = Arc::new(plain(reader, route.spec.rules.iter().map(|r| r.backend_refs.as_slice())));
                for one in attached {
                    let table = routes[one.entry].sni.get_or_insert_with(SniTable::with_wide_wildcards);
                    for host in &one.hosts {
                        // Of two routes for one name the older one counts.
                        table.join(host, &PathPattern::Prefix([].into()), Arc::clone(&split), |_, _| {});
                    }
                }
            });
        }
        for route in by_age(all.tcp_routes.values()) {
            self.route(route, &route.spec.parent_refs, None, &mut |reader, routes, attached| {
                let split = plain(reader, route.spec.rules.iter().map(|r| r.backend_refs.as_slice()));
                for one in attached {
                    routes[one.entry].plain.get_or_insert_with(|| split.clone());
                }
            });
        }
        for route in by_age(all.udp_routes.values()) {
            self.route(route, &route.spec.parent_refs, None, &mut |reader, routes, attached| {
                let split = plain(reader, route.spec.rules.iter().map(|r| r.backend_refs.as_slice()));
                for one in attached {
                    routes[one.entry].plain.get_or_insert_with(|| split.clone());
                }
            });
        }
    }

    /// Attaches one route: `serve` enters it into the listeners of one Gateway. Gives the Gateways it is attached to.
    fn route<S: Spec>(
        &mut self,
        route: &Arc<Object<S>>,
        parents: &[Reference],
        hosts: Option<&[String]>,
        serve: Serve<'_>,
    ) -> Vec<usize> {
        let owner = ObjectKey::of(&**route);
        let asking = Asking { kind: S::KIND, namespace: &owner.namespace, parents, hosts };
        let mut said = Vec::new();
        let mut seen: BTreeSet<(usize, usize)> = BTreeSet::new();
        let mut by_gateway: BTreeMap<usize, Vec<Attached>> = BTreeMap::new();
        for to in parents {
            let Some(result) = follow(self.view, &self.parents, &self.entries, asking, to) else { continue };
            for one in result.as_ref().map(Vec::as_slice).unwrap_or_default() {
                if seen.insert((one.gateway, one.entry)) {
                    by_gateway.entry(one.gateway).or_default().push(one.clone());
                }
            }
            said.push((to, result));
        }
        if said.is_empty() {
            self.reports.extend(report::route(route, &[], None, None, true));
            return Vec::new();
        }
        let (mut unresolved, mut invalid, mut valid) = (None, None, 0);
        if by_gateway.is_empty() {
            // Attached nowhere: its references are looked at all the same.
            by_gateway.insert(usize::MAX, Vec::new());
        }
        for (gateway, attached) in &by_gateway {
            let mut reader = Reader {
                refs: self.refs,
                from: From::of(S::KIND, &owner.namespace),
                owner: owner.clone(),
                client: self.states.get(*gateway).and_then(|s| s.client.as_ref()),
                upstream: self.upstream,
                unresolved: None,
                invalid: None,
                valid: 0,
            };
            let mut nowhere = Vec::new();
            let routes = self.routes.get_mut(*gateway).unwrap_or(&mut nowhere);
            serve(&mut reader, routes, attached);
            (unresolved, invalid, valid) = (reader.unresolved, reader.invalid, reader.valid);
        }
        // A route of which nothing can be served is not accepted, and so attached to nothing.
        let served = invalid.is_none() || valid > 0;
        if served {
            for (gateway, entry) in &seen {
                self.entries[*gateway][*entry].attached += 1;
            }
        }
        self.reports.extend(report::route(route, &said, unresolved.as_ref(), invalid.as_ref(), served));
        by_gateway.into_keys().filter(|g| *g != usize::MAX).collect()
    }

    /// Remembers which Gateways send to the Services of a route, for the policies of these Services.
    fn note_users<S: Spec>(&mut self, route: &Object<S>, backends: &[BackendRef], gateways: &[usize]) {
        let own = route.metadata.namespace.as_deref().unwrap_or_default();
        for backend in backends {
            let key = ObjectKey::new(backend.to.namespace_or(own), &backend.to.name);
            self.users.entry(key).or_default().extend(gateways);
        }
    }

    fn policies(&mut self) {
        for policy in by_age(self.view.gateways.policies.values()) {
            let own = policy.metadata.namespace.as_deref().unwrap_or_default();
            let (mut users, mut conflicted) = (BTreeSet::new(), None);
            for target in &policy.spec.target_refs {
                let service = ObjectKey::new(own, &target.name);
                users.extend(self.users.get(&service).into_iter().flatten().copied());
                if let Some(winner) = self.refs.winner(&service, target.section_name.as_deref())
                    && !Arc::ptr_eq(winner, policy)
                {
                    let message =
                        format!("BackendTLSPolicy {}, which is older, has the same target", ObjectKey::of(&**winner));
                    conflicted = Some(Problem::new("Conflicted", message));
                }
            }
            let gateways: Vec<&ObjectKey> = users.iter().map(|u| &self.states[*u].key).collect();
            let problem = self.refs.policy_problem(policy);
            self.reports.push(report::policy(policy, &gateways, conflicted.as_ref(), problem.as_ref()));
        }
    }

    fn finish(self) -> Model {
        let Self { view, states, entries, routes, mut reports, .. } = self;
        let mut fronts = Fronts::new();
        let mut exposures = Vec::new();
        let mut local = Vec::new();
        for ((state, entries), routes) in states.iter().zip(&entries).zip(routes) {
            if state.refused.is_none() {
                let own = fronts_of(&state.key, entries, routes);
                if !own.is_empty() {
                    exposures.push(expose::Exposure::new(state.object, own.keys()));
                }
                let notes = state.object.metadata.annotations.as_ref();
                if notes.and_then(|n| n.get(LOCAL_ANNOTATION)).is_some_and(|v| v == "true") {
                    local.extend(own.values().filter(|f| matches!(f.key.port, 80 | 443)).cloned());
                }
                fronts.extend(own);
            }
            let address = expose::address(view, &state.key);
            reports.extend(report::gateway(state, entries, &address));
        }
        Model { fronts, local, reports, exposures }
    }
}

/// The backends of rules that only name some: all rules of a TCPRoute, TLSRoute or UDPRoute count as one.
fn plain<'r>(reader: &mut Reader<'_, '_>, rules: impl Iterator<Item = &'r [BackendRef]>) -> Split {
    let mut backends = Vec::new();
    for rule in rules {
        backends.extend(reader.split(rule, Protocol::Raw).backends);
        reader.valid += 1;
    }
    Split { backends }
}

fn fronts_of(gateway: &ObjectKey, entries: &[Entry<'_>], routes: Vec<Routes>) -> Fronts {
    let mut http: BTreeMap<u16, Vec<Arc<HttpListener>>> = BTreeMap::new();
    let mut tls: BTreeMap<u16, Vec<Arc<TlsListener>>> = BTreeMap::new();
    let mut fronts = Fronts::new();
    let key = |port, udp| FrontKey { gateway: gateway.clone(), port, udp };
    for (entry, routes) in entries.iter().zip(routes).filter(|(e, _)| e.usable()) {
        let (name, host, port): (Arc<str>, _, _) =
            (entry.spec.name.as_str().into(), entry.host.clone(), entry.spec.port);
        let rules = routes.http.unwrap_or_else(RuleTable::with_wide_wildcards);
        let server = || TlsServer {
            certificates: entry.certificates.clone().unwrap_or_default(),
            clients: entry.clients.clone(),
        };
        let listener = |rules| Arc::new(HttpListener { name: Arc::clone(&name), host: host.clone(), rules });
        let mode = match entry.speaks {
            None => continue,
            Some(Speaks::Http) => {
                http.entry(port).or_default().push(listener(rules));
                continue;
            }
            Some(Speaks::Tcp) => {
                let service = FrontService::Tcp(routes.plain.unwrap_or(Split { backends: Vec::new() }));
                fronts.insert(key(port, false), Arc::new(Front { key: key(port, false), service }));
                continue;
            }
            Some(Speaks::Udp) => {
                let service = FrontService::Udp(routes.plain.unwrap_or(Split { backends: Vec::new() }));
                fronts.insert(key(port, true), Arc::new(Front { key: key(port, true), service }));
                continue;
            }
            Some(Speaks::Https) => TlsMode::Https(server(), listener(rules)),
            Some(Speaks::TlsTerminate) => TlsMode::Terminate(server(), routes.sni.unwrap_or_default()),
            Some(Speaks::TlsPassthrough) => TlsMode::Passthrough(routes.sni.unwrap_or_default()),
        };
        tls.entry(port).or_default().push(Arc::new(TlsListener { name, host, mode }));
    }
    let http = http.into_iter().map(|(port, all)| (port, FrontService::Http(all)));
    let tls = tls.into_iter().map(|(port, all)| (port, FrontService::Tls(all)));
    for (port, service) in http.chain(tls) {
        fronts.insert(key(port, false), Arc::new(Front { key: key(port, false), service }));
    }
    fronts
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
