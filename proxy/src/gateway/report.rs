//! What the objects of the Gateway API are told: their status, as the API specifies it. Pure; who writes it is
//! [`super::status`].

use super::CONTROLLER;
use super::attach::Attached;
use super::expose::Address;
use super::listeners::{Entry, Parent, validation_for};
use super::model::State;
use super::refs::Problem;
use super::types::{BackendTlsPolicy, GROUP, GatewayClass, Object, Reference, Spec};
use crate::route::ObjectKey;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource as _;
use serde_json::{Value, json};

/// A kind, as URLs need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// `kind`.
    pub kind: &'static str,
    /// The name in URLs.
    pub plural: &'static str,
}

/// What one object is told.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its kind.
    pub kind: Kind,
    /// Which.
    pub key: ObjectKey,
    /// For events about it.
    pub about: ObjectReference,
    /// The version this was found out from.
    pub resource_version: String,
    /// Its status as it was then.
    pub current: Value,
    /// What shall be there.
    pub wanted: Wanted,
}

/// A status, or our part of it. Conditions lack the time of their last transition: that is the writer's.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// All of these fields.
    Fields(Value),
    /// Our entries of a list that other controllers write too.
    Entries {
        /// `parents` or `ancestors`.
        field: &'static str,
        /// The entries.
        ours: Vec<Value>,
    },
}

fn new<S: Spec>(object: &Object<S>, wanted: Wanted) -> Report {
    Report {
        kind: Kind { kind: S::KIND, plural: S::PLURAL },
        key: ObjectKey::of(object),
        about: object.object_ref(&()),
        resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
        current: object.status.clone(),
        wanted,
    }
}

/// A condition: true with a reason, or false with what is wrong.
fn condition(kind: &str, state: Result<(&str, &str), &Problem>, generation: i64) -> Value {
    let (status, reason, message) = match state {
        Ok((reason, message)) => ("True", reason, message),
        Err(problem) => ("False", problem.reason, problem.message.as_str()),
    };
    // The API bounds messages.
    let message: String = message.chars().take(32_000).collect();
    json!({ "type": kind, "status": status, "observedGeneration": generation, "reason": reason, "message": message })
}

fn generation<S>(object: &Object<S>) -> i64 {
    object.metadata.generation.unwrap_or(0)
}

/// Whether Gateways of a class are served.
pub fn usable(class: &GatewayClass) -> bool {
    class.spec.parameters_ref.is_none()
}

/// A class.
pub fn class(class: &GatewayClass) -> Report {
    let refused = Problem::new("InvalidParameters", "spec.parametersRef: there are no parameters here; remove it");
    let state = if usable(class) { Ok(("Accepted", "Gateways of this class are served")) } else { Err(&refused) };
    let features: Vec<Value> = super::features::SUPPORTED.iter().map(|name| json!({ "name": name })).collect();
    let conditions = [condition("Accepted", state, generation(class))];
    new(class, Wanted::Fields(json!({ "conditions": conditions, "supportedFeatures": features })))
}

fn parent_ref(to: &Reference) -> Value {
    let mut said = json!({
        "group": to.group.as_deref().unwrap_or(GROUP),
        "kind": to.kind.as_deref().unwrap_or("Gateway"),
        "name": to.name,
    });
    let optional = [
        ("namespace", to.namespace.as_ref().map(|v| json!(v))),
        ("sectionName", to.section_name.as_ref().map(|v| json!(v))),
        ("port", to.port.map(|v| json!(v))),
    ];
    for (field, value) in optional {
        if let Some(value) = value {
            said[field] = value;
        }
    }
    said
}

/// A route. Nothing for one that names none of our Gateways and never did.
pub fn route<S: Spec>(
    object: &Object<S>,
    parents: &[(&Reference, Result<Vec<Attached>, Problem>)],
    unresolved: Option<&Problem>,
    invalid: Option<&Problem>,
    served: bool,
) -> Option<Report> {
    let named_before = object.status["parents"].as_array().is_some_and(|all| all.iter().any(is_ours));
    if parents.is_empty() && !named_before {
        return None;
    }
    let at = generation(object);
    let ours = parents.iter().map(|(to, result)| {
        let accepted = match (result, invalid) {
            (Err(problem), _) => Err(problem),
            (Ok(_), Some(problem)) if !served => Err(problem),
            (Ok(_), _) => Ok(("Accepted", "the route is attached")),
        };
        let resolved = unresolved.map_or(Ok(("ResolvedRefs", "all references lead somewhere")), Err);
        let mut conditions = vec![condition("Accepted", accepted, at), condition("ResolvedRefs", resolved, at)];
        if let (true, Some(problem)) = (accepted.is_ok(), invalid) {
            let message = format!("Dropped Rule: {}", problem.message);
            conditions.push(condition("PartiallyInvalid", Ok((problem.reason, &message)), at));
        }
        json!({ "parentRef": parent_ref(to), "controllerName": CONTROLLER, "conditions": conditions })
    });
    Some(new(object, Wanted::Entries { field: "parents", ours: ours.collect() }))
}

/// Whether an entry of a list that several controllers write is ours.
pub fn is_ours(entry: &Value) -> bool {
    entry["controllerName"] == CONTROLLER
}

/// A BackendTLSPolicy, for the Gateways that send to its target.
pub fn policy(
    object: &BackendTlsPolicy,
    gateways: &[&ObjectKey],
    conflicted: Option<&Problem>,
    problem: Option<&Problem>,
) -> Report {
    let at = generation(object);
    let bad_reference = problem.filter(|p| p.reason != "Invalid");
    let no_authority = problem.map(|p| match p.reason {
        "Invalid" => p.clone(),
        _ => Problem::new("NoValidCACertificate", p.message.clone()),
    });
    let accepted = match (conflicted, &no_authority) {
        (Some(conflict), _) => Err(conflict),
        (None, Some(problem)) => Err(problem),
        (None, None) => Ok(("Accepted", "the policy is in force")),
    };
    let resolved = bad_reference.map_or(Ok(("ResolvedRefs", "all references lead somewhere")), Err);
    let ours = gateways.iter().map(|gateway| {
        json!({
            "ancestorRef": {
                "group": GROUP, "kind": "Gateway", "namespace": &*gateway.namespace, "name": &*gateway.name,
            },
            "controllerName": CONTROLLER,
            "conditions": [condition("Accepted", accepted, at), condition("ResolvedRefs", resolved, at)],
        })
    });
    new(object, Wanted::Entries { field: "ancestors", ours: ours.collect() })
}

/// A Gateway and its ListenerSets.
pub(super) fn gateway(state: &State<'_>, entries: &[Entry<'_>], address: &Address) -> Vec<Report> {
    let at = generation(state.object);
    let (own, of_sets): (Vec<_>, Vec<_>) = entries.iter().partition(|e| !e.parent.set);
    let invalid = not_valid(&own);
    let accepted = match (&state.refused, &invalid) {
        (Some(problem), _) => Err(problem),
        (None, Some(problem)) if !own.iter().any(|e| is_accepted(e)) => Err(problem),
        (None, Some(problem)) => Ok((problem.reason, problem.message.as_str())),
        (None, None) => Ok(("Accepted", "the Gateway is served")),
    };
    let is_refused = accepted.is_err();
    let unserved = Problem::new("Invalid", "none of the Gateway can be served; see the condition Accepted");
    let asked: Vec<&str> = state.object.spec.addresses.iter().filter_map(|a| a.value.as_deref()).collect();
    let programmed = match address {
        _ if is_refused => Err(&unserved),
        Address::Ready(_) => Ok(("Programmed", "the Gateway's addresses lead to its listeners")),
        Address::Pending(problem) => Err(problem),
    };
    let asked_in_vain =
        Problem::new("AddressNotUsable", format!("none of the addresses {} can be had", asked.join(", ")));
    let programmed = match programmed {
        Err(problem) if problem.reason == "AddressNotAssigned" && asked.iter().any(|a| !a.is_empty()) => {
            Err(&asked_in_vain)
        }
        other => other,
    };
    let mut conditions = vec![condition("Accepted", accepted, at), condition("Programmed", programmed, at)];
    let resolved = state.unresolved.as_ref().map_or(Ok(("ResolvedRefs", "all references lead somewhere")), Err);
    conditions.push(condition("ResolvedRefs", resolved, at));
    let insecure = entries.iter().any(|e| {
        validation_for(&state.object.spec, e.spec.port).and_then(|v| v.mode.as_deref()) == Some("AllowInsecureFallback")
    });
    if insecure {
        let message = "clients without a valid certificate are let in (AllowInsecureFallback)";
        conditions.push(condition("InsecureFrontendValidationMode", Ok(("ConfigurationChanged", message)), at));
    }
    let addresses: Vec<Value> = match address {
        Address::Ready(all) if !is_refused => all.iter().map(|a| json!({ "type": "IPAddress", "value": a })).collect(),
        _ => Vec::new(),
    };
    let mut reports = Vec::new();
    let mut attached_sets = 0;
    for set in &state.sets {
        let parent = Parent { set: true, key: ObjectKey::of(&**set.object) };
        let own: Vec<_> = of_sets.iter().filter(|e| e.parent == parent).copied().collect();
        let invalid = not_valid(&own);
        let parent_refused = Problem::new("ParentNotAccepted", format!("Gateway {} is not accepted", state.key));
        let accepted = match (&set.refused, &invalid) {
            (Some(problem), _) => Err(problem),
            (None, _) if is_refused => Err(&parent_refused),
            (None, Some(problem)) if !own.iter().any(|e| e.usable()) => Err(problem),
            (None, Some(problem)) => Ok((problem.reason, problem.message.as_str())),
            (None, None) => Ok(("Accepted", "the listeners are served")),
        };
        let programmed = match accepted {
            Err(problem) => Err(problem),
            Ok(_) => programmed.map(|_| ("Programmed", "the Gateway's addresses lead to the listeners")),
        };
        attached_sets += u32::from(accepted.is_ok());
        let at = generation(set.object);
        let conditions = [condition("Accepted", accepted, at), condition("Programmed", programmed, at)];
        let listeners: Vec<Value> = own.iter().map(|e| listener(e, at, is_refused)).collect();
        reports.push(new(set.object, Wanted::Fields(json!({ "conditions": conditions, "listeners": listeners }))));
    }
    let listeners: Vec<Value> = own.iter().map(|e| listener(e, at, is_refused)).collect();
    let status = json!({
        "addresses": addresses,
        "conditions": conditions,
        "listeners": listeners,
        "attachedListenerSets": attached_sets,
    });
    reports.push(new(state.object, Wanted::Fields(status)));
    reports
}

fn is_accepted(entry: &Entry<'_>) -> bool {
    entry.conflict.is_none() && entry.rejected.is_none()
}

/// What `ListenersNotValid` says, if any listener is not.
fn not_valid(entries: &[&Entry<'_>]) -> Option<Problem> {
    let names = |wanted: bool| {
        let all = entries.iter().filter(|e| (is_accepted(e) && e.usable()) == wanted);
        all.map(|e| e.spec.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let bad = names(false);
    (!bad.is_empty()).then(|| {
        let good = names(true);
        let served = if good.is_empty() { "none is served".to_owned() } else { format!("served: {good}") };
        Problem::new("ListenersNotValid", format!("listeners that are not valid: {bad}; {served}"))
    })
}

fn listener(entry: &Entry<'_>, at: i64, gateway_refused: bool) -> Value {
    let kinds: Vec<Value> = entry.kinds.iter().map(|kind| json!({ "group": GROUP, "kind": kind })).collect();
    let wrong = entry.conflict.as_ref().or(entry.rejected.as_ref());
    let invalid = match (&entry.conflict, wrong.or(entry.unresolved.as_ref())) {
        (Some(conflict), _) => conflict.clone(),
        (None, problem) => {
            let message = problem.map_or("the Gateway is not accepted", |p| p.message.as_str());
            Problem::new("Invalid", message)
        }
    };
    let programmed = entry.usable() && !gateway_refused;
    let conditions = [
        condition("Accepted", wrong.map_or(Ok(("Accepted", "the listener is valid")), Err), at),
        condition(
            "Programmed",
            if programmed { Ok(("Programmed", "the listener is served")) } else { Err(&invalid) },
            at,
        ),
        condition(
            "ResolvedRefs",
            entry.unresolved.as_ref().map_or(Ok(("ResolvedRefs", "all references lead somewhere")), Err),
            at,
        ),
        match &entry.conflict {
            Some(problem) => condition("Conflicted", Ok((problem.reason, &problem.message)), at),
            None => {
                let none = Problem::new("NoConflicts", "no other listener is like it");
                condition("Conflicted", Err(&none), at)
            }
        },
    ];
    json!({
        "name": entry.spec.name,
        "supportedKinds": kinds,
        "attachedRoutes": entry.attached,
        "conditions": conditions,
    })
}
