//! The pure middle for the Gateway API: from the view to fronts (what the data plane serves), exposures (the Service
//! each Gateway gets) and reports (what every object is told).
//!
//! Of two objects that claim the same the older one wins, as the API wants it, then by namespace and name. What came of
//! HTTPRoutes and GRPCRoutes is kept ([`super::kept`]), so that a change of one costs that one.

use super::attach::{Asking, Attached, Parents, follow};
use super::kept::{Kept, Outcome, RouteKey, RouteKind, Routes};
use super::listeners::{Entry, Parent, SetState, Speaks, merged, sets_of};
use super::refs::{From, Problem, Refs};
use super::report::{self, Report};
use super::rules::Reader;
use super::types::{BackendRef, Gateway, GatewayClass, GrpcRoute, HttpRoute, Object, Reference, Spec};
use super::{CONTROLLER, LOCAL_ANNOTATION, expose};
use crate::config::Fronts;
use crate::config::certs::CertCache;
use crate::config::references::Which;
use crate::config::view::View;
use crate::route::front::{Front, FrontKey, FrontService, HttpListener, SniTable, TlsListener, TlsMode, TlsServer};
use crate::route::path::PathPattern;
use crate::route::rule::{Order, RuleTable, Split};
use crate::route::upstream::{BackendKey, Protocol};
use crate::route::{ObjectKey, Upstream, rank};
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
    pub reports: Vec<Arc<Report>>,
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

/// The work under way.
struct Builder<'a, 'u> {
    view: &'a View,
    refs: &'a Refs<'a>,
    states: Vec<State<'a>>,
    entries: Vec<Vec<Entry<'a>>>,
    parents: Parents,
    kept: &'u mut Kept,
    upstream: &'u mut dyn FnMut(&BackendKey) -> Arc<Upstream>,
}

/// Takes what a route comes to for one Gateway, and the listeners of it that the route is attached to.
type Serve<'s> = &'s mut dyn FnMut(&mut Reader<'_, '_>, &[Attached]);

/// Objects by age, then namespace and name.
pub fn by_age<'a, S: Spec>(all: impl Iterator<Item = &'a Arc<Object<S>>>) -> Vec<&'a Arc<Object<S>>> {
    let mut sorted: Vec<_> = all.collect();
    sorted.sort_by_cached_key(|o| rank(&***o));
    sorted
}

/// Builds the model. `upstream` gives the upstream of a key with its endpoints. Of routes only the `changed` ones are looked
/// at where the others are `kept`.
pub fn build(
    view: &View,
    cache: &mut CertCache,
    kept: &mut Kept,
    changed: &BTreeSet<RouteKey>,
    upstream: &mut dyn FnMut(&BackendKey) -> Arc<Upstream>,
) -> Model {
    let refs = Refs::new(view);
    let reports = classes(view).map(|class| Arc::new(report::class(class))).collect();
    let (states, entries) = listeners(view, &refs, cache);
    let parents = parents(&states);
    let mut builder = Builder { view, refs: &refs, states, entries, parents, kept, upstream };
    if builder.kept.is_complete {
        for key in changed {
            builder.again(key);
        }
    } else {
        builder.all_routes();
    }
    builder.finish(reports)
}

/// The Secrets and ConfigMaps that Gateways of ours and what belongs to them need: all that [`build`] will ask for.
pub fn references(view: &View, cache: &mut CertCache) -> BTreeSet<Which> {
    if !view.gateways.gateways.values().any(|gateway| is_ours(view, gateway)) {
        return BTreeSet::new();
    }
    let refs = Refs::new(view);
    drop(listeners(view, &refs, cache));
    refs.needed()
}

/// Our classes.
fn classes(view: &View) -> impl Iterator<Item = &Arc<GatewayClass>> {
    view.gateways.classes.values().filter(|c| c.spec.controller_name == CONTROLLER)
}

/// Whether a Gateway is of a class of ours that is served.
pub fn is_ours(view: &View, gateway: &Gateway) -> bool {
    let named = |class: &GatewayClass| class.metadata.name.as_deref() == Some(&gateway.spec.gateway_class_name);
    classes(view).any(|class| named(class) && report::usable(class))
}

/// Our Gateways by age, and their listeners.
fn listeners<'a>(view: &'a View, refs: &Refs<'_>, cache: &mut CertCache) -> (Vec<State<'a>>, Vec<Vec<Entry<'a>>>) {
    let ours = by_age(view.gateways.gateways.values()).into_iter().filter(|gateway| is_ours(view, gateway));
    let states: Vec<State<'a>> = ours.map(|gateway| state(view, refs, gateway, cache)).collect();
    let entries = states.iter().map(|s| merged(refs, s.object, &s.sets, cache)).collect();
    (states, entries)
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
        self.kept.reset(self.entries.iter().map(Vec::len));
        let all = &self.view.gateways;
        all.http_routes.values().for_each(|route| self.http(route));
        all.grpc_routes.values().for_each(|route| self.grpc(route));
        for route in by_age(all.tls_routes.values()) {
            let hosts = Some(route.spec.hostnames.as_slice());
            let mut found = Vec::new();
            let outcome = self.route(route, &route.spec.parent_refs, hosts, &mut |reader, attached| {
                let split = plain(reader, route.spec.rules.iter().map(|r| r.backend_refs.as_slice()));
                found.extend(attached.iter().map(|one| (one.clone(), Arc::new(split.clone()))));
            });
            self.kept.other(outcome);
            for (one, split) in found {
                let routes = &mut self.kept.routes[one.gateway][one.entry];
                let table = routes.sni.get_or_insert_with(SniTable::with_wide_wildcards);
                for host in &one.hosts {
                    // Of two routes for one name the older one counts.
                    table.join(host, &PathPattern::Prefix([].into()), Arc::clone(&split), |_, _| {});
                }
            }
        }
        for route in by_age(all.tcp_routes.values()) {
            self.bytes(route, &route.spec.parent_refs, route.spec.rules.iter().map(|r| r.backend_refs.as_slice()));
        }
        for route in by_age(all.udp_routes.values()) {
            self.bytes(route, &route.spec.parent_refs, route.spec.rules.iter().map(|r| r.backend_refs.as_slice()));
        }
        self.kept.is_complete = true;
    }

    /// One that has changed, come or gone.
    fn again(&mut self, key: &RouteKey) {
        self.kept.leave(key);
        let all = &self.view.gateways;
        match key.0 {
            RouteKind::Http => all.http_routes.get(&key.1).into_iter().for_each(|route| self.http(route)),
            RouteKind::Grpc => all.grpc_routes.get(&key.1).into_iter().for_each(|route| self.grpc(route)),
        }
    }

    fn http(&mut self, route: &Arc<HttpRoute>) {
        let rules = route.spec.rules.as_deref().unwrap_or_default();
        let hosts = Some(route.spec.hostnames.as_slice());
        let mut entered = Vec::new();
        let outcome = self.route(route, &route.spec.parent_refs, hosts, &mut |reader, attached| {
            entered.push((attached.to_vec(), rules.iter().flat_map(|rule| reader.http(rule)).collect()));
        });
        let services = services(route, rules.iter().flat_map(|rule| &rule.backend_refs));
        self.kept.enter((RouteKind::Http, ObjectKey::of(&**route)), Outcome { entered, services, ..outcome });
    }

    fn grpc(&mut self, route: &Arc<GrpcRoute>) {
        let hosts = Some(route.spec.hostnames.as_slice());
        let mut entered = Vec::new();
        let outcome = self.route(route, &route.spec.parent_refs, hosts, &mut |reader, attached| {
            entered.push((attached.to_vec(), route.spec.rules.iter().flat_map(|rule| reader.grpc(rule)).collect()));
        });
        let services = services(route, route.spec.rules.iter().flat_map(|rule| &rule.backend_refs));
        self.kept.enter((RouteKind::Grpc, ObjectKey::of(&**route)), Outcome { entered, services, ..outcome });
    }

    /// A TCPRoute or UDPRoute: the oldest one of a listener counts.
    fn bytes<'r, S: Spec>(
        &mut self,
        route: &Arc<Object<S>>,
        parents: &[Reference],
        rules: impl Iterator<Item = &'r [BackendRef]> + Clone,
    ) {
        let mut found = Vec::new();
        let outcome = self.route(route, parents, None, &mut |reader, attached| {
            let split = plain(reader, rules.clone());
            found.extend(attached.iter().map(|one| ((one.gateway, one.entry), split.clone())));
        });
        self.kept.other(outcome);
        for ((gateway, entry), split) in found {
            self.kept.routes[gateway][entry].plain.get_or_insert(split);
        }
    }

    /// Attaches one route: `serve` is given what it comes to for each of its Gateways.
    fn route<S: Spec>(
        &mut self,
        route: &Arc<Object<S>>,
        parents: &[Reference],
        hosts: Option<&[String]>,
        serve: Serve<'_>,
    ) -> Outcome {
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
            let reports = report::route(route, &[], None, None, true).into_iter().map(Arc::new).collect();
            return Outcome { reports, ..Outcome::default() };
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
                order: Order { is_grpc: S::KIND == "GRPCRoute", rank: rank(&**route), at: 0 },
            };
            serve(&mut reader, attached);
            (unresolved, invalid, valid) = (reader.unresolved, reader.invalid, reader.valid);
        }
        // A route of which nothing can be served is not accepted, and so attached to nothing.
        let served = invalid.is_none() || valid > 0;
        let counted = if served { seen.into_iter().collect() } else { Vec::new() };
        let reports = report::route(route, &said, unresolved.as_ref(), invalid.as_ref(), served);
        let gateways = by_gateway.into_keys().filter(|g| *g != usize::MAX).collect();
        Outcome { reports: reports.into_iter().map(Arc::new).collect(), counted, gateways, ..Outcome::default() }
    }

    fn policies(&self, reports: &mut Vec<Arc<Report>>) {
        let policies = by_age(self.view.gateways.policies.values());
        let known = if policies.is_empty() { BTreeMap::new() } else { self.kept.users() };
        for policy in policies {
            let own = policy.metadata.namespace.as_deref().unwrap_or_default();
            let (mut users, mut conflicted) = (BTreeSet::new(), None);
            for target in &policy.spec.target_refs {
                let service = ObjectKey::new(own, &target.name);
                users.extend(known.get(&service).into_iter().flatten().copied());
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
            reports.push(Arc::new(report::policy(policy, &gateways, conflicted.as_ref(), problem.as_ref())));
        }
    }

    fn finish(mut self, mut reports: Vec<Arc<Report>>) -> Model {
        reports.extend(self.kept.reports().map(Arc::clone));
        self.policies(&mut reports);
        for (gateway, entries) in self.entries.iter_mut().enumerate() {
            for (number, entry) in entries.iter_mut().enumerate() {
                entry.attached = self.kept.attached(gateway, number);
            }
        }
        let Self { view, states, entries, kept, .. } = self;
        let mut fronts = Fronts::new();
        let mut exposures = Vec::new();
        let mut local = Vec::new();
        for ((state, entries), routes) in states.iter().zip(&entries).zip(&kept.routes) {
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
            reports.extend(report::gateway(state, entries, &address).into_iter().map(Arc::new));
        }
        Model { fronts, local, reports, exposures }
    }
}

/// The Services that a route's backends name.
fn services<'r, S: Spec>(route: &Object<S>, backends: impl Iterator<Item = &'r BackendRef>) -> Vec<ObjectKey> {
    let own = route.metadata.namespace.as_deref().unwrap_or_default();
    backends.map(|backend| ObjectKey::new(backend.to.namespace_or(own), &backend.to.name)).collect()
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

fn fronts_of(gateway: &ObjectKey, entries: &[Entry<'_>], routes: &[Routes]) -> Fronts {
    let mut http: BTreeMap<u16, Vec<Arc<HttpListener>>> = BTreeMap::new();
    let mut tls: BTreeMap<u16, Vec<Arc<TlsListener>>> = BTreeMap::new();
    let mut fronts = Fronts::new();
    let key = |port, udp| FrontKey { gateway: gateway.clone(), port, udp };
    for (entry, routes) in entries.iter().zip(routes).filter(|(e, _)| e.usable()) {
        let (name, host, port): (Arc<str>, _, _) =
            (entry.spec.name.as_str().into(), entry.host.clone(), entry.spec.port);
        let routes = routes.clone();
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
