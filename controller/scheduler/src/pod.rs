//! What the scheduler needs to know of a pod, worked out once. In: a core/v1 Pod. Out: [`PodInfo`]. Pure.

use causeway_api::quantity;
use causeway_api::selector::Selector;
use k8s_openapi::api::core::v1::{
    Container, NodeAffinity, ObjectReference, Pod, PodAffinityTerm, PodSpec, Toleration, TopologySpreadConstraint,
};
use std::collections::{BTreeMap, BTreeSet};

/// Amounts by resource name: `cpu` in thousandths, everything else in whole units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources(pub BTreeMap<String, i128>);

impl Resources {
    /// From a map of quantities; malformed ones (which the API refuses) count as nothing.
    pub fn parse<'a, Q>(map: impl IntoIterator<Item = (&'a String, &'a Q)>) -> Self
    where
        Q: AsRef<str> + 'a,
    {
        let amount =
            |name: &str, q: &str| if name == "cpu" { quantity::milli(q) } else { quantity::units(q) }.unwrap_or(0);
        Self(map.into_iter().map(|(name, q)| (name.clone(), amount(name, q.as_ref()))).collect())
    }

    /// The amount of one resource.
    pub fn get(&self, name: &str) -> i128 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Adds another set.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_default() += amount;
        }
    }

    /// Takes away what was added before.
    pub fn subtract(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_default() -= amount;
        }
    }

    /// Raises every amount to at least the other's.
    pub fn max(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let mine = self.0.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
    }
}

/// A host port a pod takes: protocol, address (`0.0.0.0` for any), port.
pub type HostPort = (String, String, i32);

/// A pod affinity term with its selector parsed and its namespaces resolved as far as the pod alone tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    /// Which pods it speaks of.
    pub selector: Selector,
    /// In which namespaces; empty with a namespace selector means what that selects.
    pub namespaces: BTreeSet<String>,
    /// Every namespace (an empty namespace selector).
    pub all_namespaces: bool,
    /// The node label whose value must be shared.
    pub topology_key: String,
    /// 1–100 for preferred terms, 0 for required ones.
    pub weight: i64,
}

impl Term {
    fn new(term: &PodAffinityTerm, pod: &Pod, weight: i64) -> Self {
        let own = pod.metadata.namespace.clone().unwrap_or_default();
        let named: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        let all_namespaces = term.namespace_selector.as_ref().is_some_and(|s| {
            s.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
                && s.match_expressions.as_ref().is_none_or(Vec::is_empty)
        });
        let namespaces = if named.is_empty() { BTreeSet::from([own]) } else { named };
        // A term without a selector selects nothing; the impossible requirement says so.
        let selector = match &term.label_selector {
            Some(s) => Selector::from_object(s).unwrap_or_else(|_| nothing()),
            None => nothing(),
        };
        Self { selector, namespaces, all_namespaces, topology_key: term.topology_key.clone(), weight }
    }

    /// Whether the term speaks of a pod.
    pub fn selects(&self, pod: &PodInfo) -> bool {
        (self.all_namespaces || self.namespaces.contains(&pod.namespace)) && self.selector.matches(&pod.labels)
    }
}

fn nothing() -> Selector {
    Selector::parse("causeway.dev/nothing,!causeway.dev/nothing").unwrap_or_default()
}

/// A pod, as the scheduler sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct PodInfo {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// The controller's uid: pods of one controller are spread.
    pub owner: Option<String>,
    /// Effective requests: containers plus sidecars, or the largest init step, plus overhead.
    pub requests: Resources,
    /// Host ports.
    pub host_ports: Vec<HostPort>,
    /// Required: terms are alternatives.
    pub affinity: Vec<Term>,
    /// Required: none may match.
    pub anti_affinity: Vec<Term>,
    /// Wished for; anti-affinity has negative weights.
    pub preferred: Vec<Term>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// Spread constraints.
    pub spread: Vec<TopologySpreadConstraint>,
    /// Claims used, by name.
    pub claims: Vec<String>,
    /// `spec.priority`.
    pub priority: i32,
    /// `spec.nodeSelector`.
    pub node_selector: Selector,
    /// `spec.affinity.nodeAffinity`.
    pub node_affinity: Option<NodeAffinity>,
    /// It has scheduling gates (KEP-3521).
    pub gated: bool,
}

impl PodInfo {
    /// Works out what matters of a pod.
    pub fn new(pod: &Pod) -> Self {
        let none = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&none);
        let affinity = spec.affinity.clone().unwrap_or_default();
        let with = affinity.pod_affinity.unwrap_or_default();
        let against = affinity.pod_anti_affinity.unwrap_or_default();
        let required = |terms: Option<Vec<PodAffinityTerm>>| -> Vec<Term> {
            terms.iter().flatten().map(|t| Term::new(t, pod, 0)).collect()
        };
        let wish = |sign: i64| {
            move |w: &k8s_openapi::api::core::v1::WeightedPodAffinityTerm| {
                Term::new(&w.pod_affinity_term, pod, sign * i64::from(w.weight))
            }
        };
        let mut preferred: Vec<Term> = Vec::new();
        preferred.extend(with.preferred_during_scheduling_ignored_during_execution.iter().flatten().map(wish(1)));
        preferred.extend(against.preferred_during_scheduling_ignored_during_execution.iter().flatten().map(wish(-1)));
        let owners = pod.metadata.owner_references.iter().flatten();
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            owner: owners.filter(|o| o.controller == Some(true)).map(|o| o.uid.clone()).next(),
            requests: requests(spec),
            host_ports: host_ports(spec),
            affinity: required(with.required_during_scheduling_ignored_during_execution),
            anti_affinity: required(against.required_during_scheduling_ignored_during_execution),
            preferred,
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            spread: spec.topology_spread_constraints.clone().unwrap_or_default(),
            claims: claims(pod, spec),
            priority: spec.priority.unwrap_or(0),
            node_selector: spec.node_selector.as_ref().map(Selector::from_map).unwrap_or_default(),
            node_affinity: affinity.node_affinity,
            gated: spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()),
        }
    }

    /// Both may go to the same nodes: replicas of one set, as a rule.
    pub fn wants_as(&self, other: &Self) -> bool {
        let of = |p: &Self| Self { uid: String::new(), name: String::new(), claims: Vec::new(), ..p.clone() };
        self.claims.is_empty() && other.claims.is_empty() && self.owner == other.owner && of(self) == of(other)
    }

    /// Where it may go depends on where other pods are.
    pub fn looks_at_others(&self) -> bool {
        !(self.affinity.is_empty() && self.anti_affinity.is_empty() && self.spread.is_empty())
    }

    /// The pod, for events about it.
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(self.name.clone()),
            namespace: Some(self.namespace.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

/// Effective requests (KEP-753): sidecars run beside everything that starts after them.
fn requests(spec: &PodSpec) -> Resources {
    let of = |c: &Container| {
        let map = c.resources.as_ref().and_then(|r| r.requests.as_ref());
        Resources::parse(map.into_iter().flatten().map(|(k, q)| (k, &q.0)))
    };
    let mut running = Resources::default();
    let mut peak = Resources::default();
    for init in spec.init_containers.iter().flatten() {
        if init.restart_policy.as_deref() == Some("Always") {
            running.add(&of(init));
            peak.max(&running);
        } else {
            let mut step = running.clone();
            step.add(&of(init));
            peak.max(&step);
        }
    }
    for container in &spec.containers {
        running.add(&of(container));
    }
    peak.max(&running);
    if let Some(overhead) = &spec.overhead {
        peak.add(&Resources::parse(overhead.iter().map(|(k, q)| (k, &q.0))));
    }
    peak
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let port = p.host_port.filter(|n| *n > 0)?;
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let address = p.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
            Some((protocol, address, port))
        })
        .collect()
}

fn claims(pod: &Pod, spec: &PodSpec) -> Vec<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = spec.volumes.iter().flatten();
    volumes
        .filter_map(|v| {
            let ephemeral = || v.ephemeral.as_ref().map(|_| format!("{name}-{}", v.name));
            v.persistent_volume_claim.as_ref().map(|c| c.claim_name.clone()).or_else(ephemeral)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_follow_the_sidecar_rule() {
        let pod: Pod = serde_json::from_value(json!({ "spec": {
            "initContainers": [
                { "name": "a", "resources": { "requests": { "cpu": "2", "memory": "1Gi" } } },
                { "name": "side", "restartPolicy": "Always", "resources": { "requests": { "cpu": "100m" } } },
                { "name": "b", "resources": { "requests": { "cpu": "500m" } } },
            ],
            "containers": [
                { "name": "c", "resources": { "requests": { "cpu": "1", "memory": "64Mi" } } },
                { "name": "d", "resources": { "requests": { "cpu": "1500m" } } },
            ],
            "overhead": { "cpu": "10m" },
        }}))
        .unwrap();
        let info = PodInfo::new(&pod);
        assert_eq!(info.requests.get("cpu"), 2600 + 10);
        assert_eq!(info.requests.get("memory"), 1 << 30);
    }
}
