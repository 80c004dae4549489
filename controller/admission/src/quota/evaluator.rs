//! What an object of a resource uses, under which names in a quota. In: objects. Out: amounts.

use super::pods;
use crate::amounts::Amounts;
use crate::quantity::Quantity;
use crate::read::{at, entries, has, list, text};
use crate::request::{Facts, Operation};
use serde_json::Value;
use std::collections::BTreeSet;

const CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io/";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// How objects of one resource are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evaluator {
    /// By containers' requests and limits.
    Pods,
    /// Also by load balancers and node ports.
    Services,
    /// Also by storage, in all and for each class.
    Claims,
    /// One each, under these names.
    Count(Vec<String>),
}

impl Evaluator {
    /// How a resource is counted; `None` for what no quota covers: events, and what is not stored.
    pub fn of(group: &str, resource: &str) -> Option<Self> {
        let alias = match (group, resource) {
            ("", "pods") => return Some(Self::Pods),
            ("", "services") => return Some(Self::Services),
            ("", "persistentvolumeclaims") => return Some(Self::Claims),
            ("", "bindings" | "componentstatuses" | "events") | ("events.k8s.io", "events") => return None,
            ("authentication.k8s.io", "tokenreviews" | "selfsubjectreviews") => return None,
            ("authorization.k8s.io", _) => return None,
            ("", "configmaps" | "resourcequotas" | "replicationcontrollers" | "secrets") => Some(resource.to_owned()),
            _ => None,
        };
        let count = if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") };
        Some(Self::Count(std::iter::once(count).chain(alias).collect()))
    }

    /// Whether a request can change what is used.
    pub fn handles(&self, facts: &Facts<'_>, new: &Value, old: Option<&Value>) -> bool {
        use Operation::{Create, Update};
        match (self, facts.subresource, facts.operation) {
            (_, "", Create) | (Self::Services | Self::Claims, "", Update) | (Self::Pods, "resize", Update) => true,
            (Self::Pods, "", Update) => old.is_some_and(|old| pods::terminating(old) != pods::terminating(new)),
            (Self::Claims, "status", Update) => old.is_some_and(|old| {
                let allocated = |claim| Quantity::of(&at(claim, "status.allocatedResources")["storage"]);
                allocated(old) != allocated(new) || attributes_classes(old) != attributes_classes(new)
            }),
            _ => false,
        }
    }

    /// What an object uses. `now` is in seconds since the epoch: a pod that should long be gone uses nothing.
    pub fn usage(&self, object: &Value, now: i64) -> Result<Amounts, String> {
        let one = Quantity::count(1);
        match self {
            Self::Pods => pods::usage(object, now),
            Self::Services => Ok(service_usage(object)),
            Self::Claims => claim_usage(object),
            Self::Count(names) => Ok(names.iter().map(|name| (name.clone(), one)).collect()),
        }
    }

    /// Whether a name in a quota is for this resource.
    pub fn covers(&self, name: &str) -> bool {
        match self {
            Self::Pods => pods::covers(name),
            Self::Services => {
                matches!(name, "count/services" | "services" | "services.nodeports" | "services.loadbalancers")
            }
            Self::Claims => {
                let own = |name: &str| matches!(name, "persistentvolumeclaims" | "requests.storage");
                let of_class = name.rsplit_once(CLASS_SUFFIX).is_some_and(|(_, rest)| own(rest));
                name == "count/persistentvolumeclaims" || own(name) || of_class
            }
            Self::Count(names) => names.iter().any(|n| n == name),
        }
    }

    /// What an object must say for itself under a quota of these names.
    pub(super) fn constraints(&self, names: &BTreeSet<&str>, object: &Value) -> Result<(), String> {
        if *self == Self::Pods { pods::constraints(names, object) } else { Ok(()) }
    }
}

fn service_usage(service: &Value) -> Amounts {
    let (ports, type_) = (list(service, "spec.ports"), text(service, "spec.type"));
    let balanced = type_ == "LoadBalancer";
    let allocates = at(service, "spec.allocateLoadBalancerNodePorts") != &Value::Bool(false);
    let node_ports = match type_ {
        "NodePort" => ports.len(),
        "LoadBalancer" if allocates => ports.len(),
        "LoadBalancer" => ports.iter().filter(|p| has(p, "nodePort") && at(p, "nodePort").as_i64() != Some(0)).count(),
        _ => 0,
    };
    let amounts = [
        ("count/services", 1),
        ("services", 1),
        ("services.loadbalancers", usize::from(balanced)),
        ("services.nodeports", node_ports),
    ];
    amounts.map(|(name, number)| (name.to_owned(), Quantity::count(number))).into()
}

fn claim_usage(claim: &Value) -> Result<Amounts, String> {
    let one = Quantity::count(1);
    let mut used: Amounts =
        ["persistentvolumeclaims", "count/persistentvolumeclaims"].map(|name| (name.to_owned(), one)).into();
    let class = storage_class(claim);
    if !class.is_empty() {
        used.insert(format!("{class}{CLASS_SUFFIX}persistentvolumeclaims"), one);
    }
    let storage = |path| match at(claim, path).get("storage") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => Quantity::of(value).map(Some).ok_or_else(|| format!("{path}[storage]: malformed quantity")),
    };
    if let Some(asked) = storage("spec.resources.requests")? {
        // While a failed expansion is taken back, the claim still holds what was allocated.
        let held = storage("status.allocatedResources")?.map_or(asked, |allocated| allocated.max(asked)).whole();
        used.insert("requests.storage".to_owned(), held);
        if !class.is_empty() {
            used.insert(format!("{class}{CLASS_SUFFIX}requests.storage"), held);
        }
    }
    Ok(used)
}

/// The storage class of a claim; the beta annotation goes first.
pub(crate) fn storage_class(claim: &Value) -> &str {
    let beta = entries(claim, "metadata.annotations").find(|(key, _)| *key == BETA_CLASS);
    beta.and_then(|(_, value)| value.as_str()).unwrap_or_else(|| text(claim, "spec.storageClassName"))
}

/// Every VolumeAttributesClass a claim has, wants, or is being moved to.
pub(super) fn attributes_classes(claim: &Value) -> BTreeSet<&str> {
    let paths = [
        "spec.volumeAttributesClassName",
        "status.currentVolumeAttributesClassName",
        "status.modifyVolumeStatus.targetVolumeAttributesClassName",
    ];
    paths.into_iter().map(|path| text(claim, path)).filter(|class| !class.is_empty()).collect()
}
