//! The objects every cluster has: upstream's of Kubernetes 1.35, mandatory and suggested, and two schemas of ours.
//!
//! In: nothing, or what the API holds. Out: objects, and what to write to keep the API's up to date: at start, and
//! then every minute.

use serde_json::{Value, json};

/// The annotation that says whether an object's spec follows the defaults.
pub const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
const API_VERSION: &str = "flowcontrol.apiserver.k8s.io/v1";

/// Nobody may change these: (kind, name).
const MANDATORY: [(&str, &str); 4] = [
    ("PriorityLevelConfiguration", "exempt"),
    ("PriorityLevelConfiguration", "catch-all"),
    ("FlowSchema", "exempt"),
    ("FlowSchema", "catch-all"),
];

/// Levels that let requests wait: shares, what of them is lent in percent, queues, hand. Each queue holds 50.
const LEVELS: [(&str, [u32; 4]); 6] = [
    // Kubelets, but for their health.
    ("system", [30, 33, 64, 6]),
    // Nodes' health, and the components of nodes.
    ("node-high", [40, 25, 64, 6]),
    ("leader-election", [10, 0, 16, 4]),
    // Controllers, the scheduler, and what else keeps the cluster going.
    ("workload-high", [40, 50, 128, 6]),
    ("workload-low", [100, 90, 128, 6]),
    ("global-default", [20, 50, 128, 6]),
];

/// Our components on every node (`identity.rs` of `causeway-api` has the names).
const NODE_COMPONENTS: [&str; 4] =
    ["system:causeway:node", "system:causeway:announce", "system:causeway:network-policy", "system:kube-proxy"];
/// Our components that serve the whole cluster.
const COMPONENTS: [&str; 4] =
    ["system:causeway:controllers", "system:causeway:dns", "system:causeway:ingress", "system:apiserver"];

/// All default objects: levels first, then schemas in the order in which they are tried.
pub fn objects() -> Vec<Value> {
    let mut all = mandatory_levels();
    all.extend(LEVELS.map(|(name, numbers)| queue_level(name, numbers)));
    all.extend(schemas());
    all
}

/// The levels `exempt` and `catch-all`.
pub(crate) fn mandatory_levels() -> Vec<Value> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let limited = json!({"nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}});
    let level = |name, spec| object("PriorityLevelConfiguration", name, spec);
    vec![level("exempt", exempt), level("catch-all", json!({"type": "Limited", "limited": limited}))]
}

/// The schemas `exempt` and `catch-all`.
pub(crate) fn mandatory_schemas() -> Vec<Value> {
    let all = schemas().into_iter();
    all.filter(|s| MANDATORY.contains(&("FlowSchema", s["metadata"]["name"].as_str().unwrap_or("")))).collect()
}

fn schemas() -> Vec<Value> {
    let everybody = groups(&["system:unauthenticated", "system:authenticated"]);
    let kube_system = json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}});
    let users_and = |names: &[&str], last: &Value| {
        let mut subjects = users(names);
        subjects.push(last.clone());
        subjects
    };
    let probes = json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]);
    let leases = |verbs: Value| resources(&verbs, "coordination.k8s.io", &["leases"], false);
    let nodes = resources(&json!(["*"]), "", &["nodes", "nodes/status"], true);
    let manager = ["system:kube-controller-manager", "system:kube-scheduler"];
    let any = |name, level, precedence, by, subjects| schema(name, level, precedence, by, &anything(subjects));
    vec![
        any("exempt", "exempt", 1, "", groups(&["system:masters"])),
        schema("probes", "exempt", 2, "", &json!({"subjects": everybody, "nonResourceRules": probes})),
        schema(
            "system-leader-election",
            "leader-election",
            100,
            "ByUser",
            &json!({"subjects": users_and(&manager, &kube_system),
                "resourceRules": [leases(json!(["get", "create", "update"]))]}),
        ),
        schema(
            "system-node-high",
            "node-high",
            400,
            "ByUser",
            &json!({"subjects": groups(&["system:nodes"]), "resourceRules": [nodes, leases(json!(["*"]))]}),
        ),
        any("causeway-node-components", "node-high", 450, "ByUser", users(&NODE_COMPONENTS)),
        any("system-nodes", "system", 500, "ByUser", groups(&["system:nodes"])),
        any("kube-controller-manager", "workload-high", 800, "ByNamespace", users(&manager[..1])),
        any("kube-scheduler", "workload-high", 800, "ByNamespace", users(&manager[1..])),
        any("causeway-components", "workload-high", 850, "ByUser", users(&COMPONENTS)),
        any("kube-system-service-accounts", "workload-high", 900, "ByNamespace", vec![kube_system]),
        any("service-accounts", "workload-low", 9000, "ByUser", groups(&["system:serviceaccounts"])),
        any("global-default", "global-default", 9900, "ByUser", everybody.clone()),
        any("catch-all", "catch-all", 10_000, "ByUser", everybody),
    ]
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let metadata = json!({"name": name, "annotations": {AUTOUPDATE: "true"}});
    json!({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec})
}

fn queue_level(name: &str, [shares, lendable, queues, hand]: [u32; 4]) -> Value {
    let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": 50});
    let limited = json!({
        "nominalConcurrencyShares": shares,
        "lendablePercent": lendable,
        "limitResponse": {"type": "Queue", "queuing": queuing},
    });
    object("PriorityLevelConfiguration", name, json!({"type": "Limited", "limited": limited}))
}

fn schema(name: &str, level: &str, precedence: u32, by: &str, rule: &Value) -> Value {
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": level},
        "matchingPrecedence": precedence,
        "rules": [rule],
    });
    if !by.is_empty() {
        spec["distinguisherMethod"] = json!({"type": by});
    }
    object("FlowSchema", name, spec)
}

fn users(names: &[&str]) -> Vec<Value> {
    names.iter().map(|n| json!({"kind": "User", "user": {"name": n}})).collect()
}

fn groups(names: &[&str]) -> Vec<Value> {
    names.iter().map(|n| json!({"kind": "Group", "group": {"name": n}})).collect()
}

fn resources(verbs: &Value, group: &str, resources: &[&str], cluster: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if cluster {
        rule["clusterScope"] = json!(true);
    }
    rule
}

/// Whatever these subjects ask for.
fn anything(subjects: Vec<Value>) -> Value {
    json!({
        "subjects": subjects,
        "resourceRules": [resources(&json!(["*"]), "*", &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    })
}

/// What to write so that an object of [`objects`] is as it should be: the expected one to create where there is none,
/// the revised one to update, or nothing. Mandatory objects always follow; of the level `exempt` the numbers are its
/// administrator's. The others follow where the annotation [`AUTOUPDATE`] is true, or where it is missing and nobody
/// has changed the spec (`metadata.generation` is 1).
pub fn reconcile(expected: &Value, existing: Option<&Value>) -> Option<Value> {
    let Some(existing) = existing else { return Some(expected.clone()) };
    let id = |o: &Value| {
        let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
        (text(&o["kind"]), text(&o["metadata"]["name"]))
    };
    let (kind, name) = id(expected);
    let annotated = annotation(existing);
    let follows = MANDATORY.contains(&(&kind, &name))
        || annotated.unwrap_or_else(|| existing["metadata"]["generation"].as_i64() == Some(1));
    let mut wanted = expected["spec"].clone();
    if kind == "PriorityLevelConfiguration" && name == "exempt" && existing["spec"]["exempt"].is_object() {
        wanted["exempt"] = existing["spec"]["exempt"].clone();
    }
    let differs = follows && !same(&wanted, &existing["spec"]);
    if !differs && annotated == Some(follows) {
        return None;
    }
    let mut revised = existing.clone();
    if differs {
        revised["spec"] = wanted;
    }
    if !revised["metadata"]["annotations"].is_object() {
        revised["metadata"]["annotations"] = json!({});
    }
    revised["metadata"]["annotations"][AUTOUPDATE] = json!(follows.to_string());
    Some(revised)
}

/// The object was a default once, follows the defaults, and is none any more: to be deleted.
pub fn unwanted(existing: &Value) -> bool {
    let same = |o: &Value| o["kind"] == existing["kind"] && o["metadata"]["name"] == existing["metadata"]["name"];
    annotation(existing) == Some(true) && !objects().iter().any(same)
}

/// As Go's `strconv.ParseBool` reads it.
fn annotation(object: &Value) -> Option<bool> {
    match object["metadata"]["annotations"][AUTOUPDATE].as_str()? {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Equal, where absent, `null`, `false`, and what is empty are the same.
fn same(a: &Value, b: &Value) -> bool {
    let empty = |v: &Value| match v {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    };
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys = x.keys().chain(y.keys().filter(|k| !x.contains_key(*k)));
            keys.into_iter().all(|k| same(&a[k.as_str()], &b[k.as_str()]))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(v, w)| same(v, w)),
        _ => a == b || empty(a) && empty(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(kind: &str, name: &str) -> Value {
        objects().into_iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name).unwrap()
    }

    #[test]
    fn the_registry_accepts_every_default_and_adds_nothing() {
        for object in objects() {
            let kinds = causeway_registry::builtin();
            let kind = kinds.iter().find(|r| r.kind == object["kind"]).unwrap();
            let mut stored = object.clone();
            kind.strategy.default(&mut stored);
            assert_eq!(stored, object, "defaulting changes it");
            kind.strategy.prepare_create(&mut stored);
            let errors = kind.strategy.validate_create(&stored);
            assert!(errors.is_empty(), "{}: {errors:?}", object["metadata"]["name"]);
            assert_eq!(reconcile(&object, Some(&stored)), None, "as created, nothing is left to do");
        }
        assert_eq!(objects().len(), 8 + 13);
    }

    #[test]
    fn what_follows_and_what_does_not() {
        let (changed, ours) = (json!(77), find("PriorityLevelConfiguration", "workload-low"));
        let of = |annotation: Option<&str>, generation: i64| {
            let mut o = ours.clone();
            o["spec"]["limited"]["nominalConcurrencyShares"] = changed.clone();
            o["metadata"]["generation"] = json!(generation);
            match annotation {
                Some(text) => o["metadata"]["annotations"] = json!({AUTOUPDATE: text, "other": "kept"}),
                None => drop(o["metadata"].as_object_mut().unwrap().remove("annotations")),
            }
            o
        };
        // Annotation, generation; then whether it is written, with which shares and which annotation.
        for (annotation, generation, expected) in [
            (Some("true"), 2, Some((100, "true"))),
            (Some("1"), 2, Some((100, "true"))),
            (Some("false"), 1, None),
            (Some("odd"), 1, Some((100, "true"))),
            (Some("odd"), 2, Some((77, "false"))),
            (None, 1, Some((100, "true"))),
            (None, 5, Some((77, "false"))),
        ] {
            let existing = of(annotation, generation);
            let revised = reconcile(&ours, Some(&existing));
            let got = revised.as_ref().map(|r| {
                let text = r["metadata"]["annotations"][AUTOUPDATE].as_str().unwrap();
                (r["spec"]["limited"]["nominalConcurrencyShares"].as_i64().unwrap(), text)
            });
            assert_eq!(got, expected, "{annotation:?} {generation}");
            if let (Some(r), Some(_)) = (&revised, annotation) {
                assert_eq!(r["metadata"]["annotations"]["other"], "kept");
            }
        }
        assert_eq!(reconcile(&ours, None), Some(ours));
    }

    #[test]
    fn mandatory_objects_always_follow_but_for_the_exempt_numbers() {
        let ours = find("FlowSchema", "catch-all");
        let mut changed = ours.clone();
        changed["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        changed["spec"]["matchingPrecedence"] = json!(3);
        assert_eq!(reconcile(&ours, Some(&changed)).unwrap(), ours);
        let ours = find("PriorityLevelConfiguration", "exempt");
        let mut numbers = ours.clone();
        numbers["spec"]["exempt"]["nominalConcurrencyShares"] = json!(10);
        assert_eq!(reconcile(&ours, Some(&numbers)), None);
        numbers["spec"]["type"] = json!("Limited");
        let revised = reconcile(&ours, Some(&numbers)).unwrap();
        assert_eq!(
            (&revised["spec"]["type"], &revised["spec"]["exempt"]["nominalConcurrencyShares"]),
            (&json!("Exempt"), &json!(10))
        );
    }

    #[test]
    fn defaults_of_old_go_and_others_stay() {
        let old = |name: &str, annotation: Value| json!({"kind": "FlowSchema", "metadata": {"name": name, "annotations": annotation}});
        assert!(unwanted(&old("endpoint-controller", json!({AUTOUPDATE: "true"}))));
        assert!(!unwanted(&old("endpoint-controller", json!({AUTOUPDATE: "false"}))));
        assert!(!unwanted(&old("mine", json!({}))));
        assert!(!unwanted(&old("global-default", json!({AUTOUPDATE: "true"}))));
    }
}
