//! The scenarios of KEP-555, and properties that hold for any configuration.

use super::*;
use crate::builtin;
use proptest::prelude::*;
use serde_json::Map;
use std::sync::Arc;

fn manager(name: &str) -> FieldManager<'_> {
    FieldManager { name, api_version: "apps/v1", subresource: "", now: "2026-01-01T00:00:00Z", force: false }
}

fn forced(name: &str) -> FieldManager<'_> {
    FieldManager { force: true, ..manager(name) }
}

fn deployments() -> Arc<Schema> {
    builtin("apps", "v1", "Deployment").unwrap()
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

fn containers(list: Value) -> Value {
    deployment(json!({"template": {"spec": {"containers": list}}}))
}

fn entry<'a>(object: &'a Value, name: &str, operation: &str) -> Option<&'a Value> {
    let list = object["metadata"]["managedFields"].as_array()?;
    list.iter().find(|e| e["manager"] == name && e["operation"] == operation)
}

fn conflicts(result: Result<Value, ApplyError>) -> Vec<(String, String)> {
    match result {
        Err(ApplyError::Conflicts(list)) => list.into_iter().map(|c| (c.manager, c.field)).collect(),
        other => panic!("no conflict: {other:?}"),
    }
}

#[test]
fn create_owns_what_was_applied() {
    let schema = deployments();
    let applied = containers(json!([{"name": "a", "image": "x", "ports": [{"containerPort": 80}]}]));
    let object = apply(None, &applied, &schema, &manager("alice")).unwrap();
    let entry = entry(&object, "alice", "Apply").unwrap();
    assert_eq!(entry["apiVersion"], "apps/v1");
    assert_eq!(entry["fieldsType"], "FieldsV1");
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {
            ".": {}, "f:name": {}, "f:image": {},
            "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
        }}}}}})
    );
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let schema = deployments();
    let applied = containers(json!([{"name": "a", "image": "x"}]));
    let first = apply(None, &applied, &schema, &manager("alice")).unwrap();
    let later = FieldManager { now: "2027-01-01T00:00:00Z", ..manager("alice") };
    assert_eq!(apply(Some(&first), &applied, &schema, &later).unwrap(), first);
}

#[test]
fn another_owners_value_conflicts_until_forced() {
    let schema = deployments();
    let live = apply(None, &deployment(json!({"replicas": 1})), &schema, &manager("alice")).unwrap();
    let wanted = deployment(json!({"replicas": 2}));
    let refused = apply(Some(&live), &wanted, &schema, &manager("bob"));
    assert_eq!(
        refused.as_ref().unwrap_err().to_string(),
        "Apply failed with 1 conflict: conflict with \"alice\": .spec.replicas"
    );
    assert_eq!(conflicts(refused), [("\"alice\"".to_owned(), ".spec.replicas".to_owned())]);
    let taken = apply(Some(&live), &wanted, &schema, &forced("bob")).unwrap();
    assert_eq!(taken["spec"]["replicas"], 2);
    assert!(entry(&taken, "alice", "Apply").is_none(), "it owned nothing else");
    assert!(entry(&taken, "bob", "Apply").is_some());
}

#[test]
fn the_same_value_is_shared_without_conflict() {
    let schema = deployments();
    let wanted = deployment(json!({"replicas": 1}));
    let live = apply(None, &wanted, &schema, &manager("alice")).unwrap();
    let shared = apply(Some(&live), &wanted, &schema, &manager("bob")).unwrap();
    assert!(entry(&shared, "alice", "Apply").is_some() && entry(&shared, "bob", "Apply").is_some());
    let given_up = apply(Some(&shared), &deployment(json!({})), &schema, &manager("alice")).unwrap();
    assert_eq!(given_up["spec"]["replicas"], 1, "bob still owns it");
    let gone = apply(Some(&given_up), &deployment(json!({})), &schema, &manager("bob")).unwrap();
    assert_eq!(gone["spec"].get("replicas"), None, "nobody owns it");
}

#[test]
fn updates_conflict_with_their_version_in_the_text() {
    let schema = deployments();
    let mut live = deployment(json!({"replicas": 3}));
    track(None, &mut live, &schema, &manager("kubectl-create"));
    let other = FieldManager { subresource: "scale", ..manager("hpa") };
    let mut scaled = live.clone();
    scaled["spec"]["paused"] = true.into();
    track(Some(&live), &mut scaled, &schema, &other);
    let refused = apply(Some(&scaled), &deployment(json!({"replicas": 1, "paused": false})), &schema, &manager("me"));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "Apply failed with 2 conflicts: conflicts with \"hpa\" with subresource \"scale\" using apps/v1:\n\
         - .spec.paused\nconflicts with \"kubectl-create\" using apps/v1:\n- .spec.replicas"
    );
}

#[test]
fn two_managers_share_an_associative_list() {
    let schema = deployments();
    let app = containers(json!([{"name": "app", "image": "x"}]));
    let sidecar = containers(json!([{"name": "sidecar", "image": "y"}]));
    let live = apply(None, &app, &schema, &manager("alice")).unwrap();
    let both = apply(Some(&live), &sidecar, &schema, &manager("mesh")).unwrap();
    let names = |o: &Value| -> Vec<String> {
        let list = o["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&both), ["app", "sidecar"]);
    let updated = containers(json!([{"name": "app", "image": "z"}]));
    let both = apply(Some(&both), &updated, &schema, &manager("alice")).unwrap();
    assert_eq!(names(&both), ["app", "sidecar"]);
    let alone = apply(Some(&both), &deployment(json!({"replicas": 1})), &schema, &manager("mesh")).unwrap();
    assert_eq!(names(&alone), ["app"]);
    assert_eq!(alone["spec"]["template"]["spec"]["containers"][0]["image"], "z");
}

#[test]
fn a_dropped_item_survives_while_another_owns_part_of_it() {
    let schema = deployments();
    let live = apply(None, &containers(json!([{"name": "a", "image": "x"}])), &schema, &manager("alice")).unwrap();
    let limited = containers(json!([{"name": "a", "tty": true}]));
    let live = apply(Some(&live), &limited, &schema, &manager("bob")).unwrap();
    let live = apply(Some(&live), &deployment(json!({})), &schema, &manager("alice")).unwrap();
    let left = &live["spec"]["template"]["spec"]["containers"];
    assert_eq!(*left, json!([{"name": "a", "tty": true}]), "alice's image is gone, bob's item stays");
}

#[test]
fn atomic_lists_and_structs_are_replaced_whole() {
    let schema = deployments();
    let with = |command: Value, selector: Value| {
        deployment(json!({"selector": {"matchLabels": selector},
            "template": {"spec": {"containers": [{"name": "a", "command": command}]}}}))
    };
    let live = apply(None, &with(json!(["a", "b"]), json!({"x": "1", "y": "2"})), &schema, &manager("alice")).unwrap();
    let now = apply(Some(&live), &with(json!(["c"]), json!({"z": "3"})), &schema, &manager("alice")).unwrap();
    assert_eq!(now["spec"]["template"]["spec"]["containers"][0]["command"], json!(["c"]));
    assert_eq!(now["spec"]["selector"], json!({"matchLabels": {"z": "3"}}));
    let refused = apply(Some(&now), &with(json!(["d"]), json!({"z": "3"})), &schema, &manager("bob"));
    assert_eq!(conflicts(refused)[0].1, ".spec.template.spec.containers[name=\"a\"].command");
}

#[test]
fn maps_merge_by_key_and_lose_only_what_was_given_up() {
    let schema = deployments();
    let labelled = |labels: Value| {
        let mut object = deployment(json!({}));
        object["metadata"]["labels"] = labels;
        object
    };
    let live = apply(None, &labelled(json!({"a": "1", "b": "2"})), &schema, &manager("alice")).unwrap();
    let live = apply(Some(&live), &labelled(json!({"c": "3"})), &schema, &manager("bob")).unwrap();
    let live = apply(Some(&live), &labelled(json!({"a": "1"})), &schema, &manager("alice")).unwrap();
    assert_eq!(live["metadata"]["labels"], json!({"a": "1", "c": "3"}));
    let live = apply(Some(&live), &labelled(json!({})), &schema, &manager("alice")).unwrap();
    let live = apply(Some(&live), &deployment(json!({})), &schema, &manager("bob")).unwrap();
    assert!(live["metadata"]["labels"].as_object().is_none_or(|l| l.is_empty()), "{live}");
}

#[test]
fn sets_merge_by_value() {
    let schema = deployments();
    let with = |finalizers: Value| {
        let mut object = deployment(json!({}));
        object["metadata"]["finalizers"] = finalizers;
        object
    };
    let live = apply(None, &with(json!(["a/1"])), &schema, &manager("alice")).unwrap();
    let live = apply(Some(&live), &with(json!(["b/2"])), &schema, &manager("bob")).unwrap();
    assert_eq!(live["metadata"]["finalizers"], json!(["a/1", "b/2"]));
    let live = apply(Some(&live), &deployment(json!({})), &schema, &manager("alice")).unwrap();
    assert_eq!(live["metadata"]["finalizers"], json!(["b/2"]));
}

#[test]
fn fields_that_nobody_applied_stay() {
    let schema = deployments();
    let mut live = apply(None, &containers(json!([{"name": "a", "image": "x"}])), &schema, &manager("alice")).unwrap();
    live["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "Always".into(); // a default
    live["metadata"]["uid"] = "u".into();
    let now =
        apply(Some(&live), &containers(json!([{"name": "a", "image": "y"}])), &schema, &manager("alice")).unwrap();
    let container = &now["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(*container, json!({"name": "a", "image": "y", "imagePullPolicy": "Always"}));
    assert_eq!(now["metadata"]["uid"], "u");
}

#[test]
fn the_status_subresource_owns_status_alone() {
    let schema = deployments();
    let live = apply(None, &deployment(json!({"replicas": 1})), &schema, &manager("alice")).unwrap();
    let mut report = deployment(json!({"replicas": 9}));
    report["status"] = json!({"readyReplicas": 1});
    let controller = FieldManager { subresource: "status", ..manager("controller") };
    let now = apply(Some(&live), &report, &schema, &controller).unwrap();
    assert_eq!((&now["spec"]["replicas"], &now["status"]["readyReplicas"]), (&json!(1), &json!(1)));
    let entry = entry(&now, "controller", "Apply").unwrap();
    assert_eq!(entry["subresource"], "status");
    assert_eq!(entry["fieldsV1"], json!({"f:status": {"f:readyReplicas": {}}}));
    let mut main = deployment(json!({"replicas": 1}));
    main["status"] = json!({"readyReplicas": 5});
    let ignored = apply(Some(&now), &main, &schema, &manager("alice")).unwrap();
    assert_eq!(ignored["status"]["readyReplicas"], 1);
}

#[test]
fn updates_own_what_they_changed_and_take_it_from_appliers() {
    let schema = deployments();
    let live = apply(None, &deployment(json!({"replicas": 1, "paused": true})), &schema, &manager("alice")).unwrap();
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = 5.into();
    track(Some(&live), &mut scaled, &schema, &manager("kubectl-scale"));
    assert_eq!(entry(&scaled, "kubectl-scale", "Update").unwrap()["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(entry(&scaled, "alice", "Apply").unwrap()["fieldsV1"], json!({"f:spec": {"f:paused": {}}}));
    let mut cleared = scaled.clone();
    cleared["spec"].as_object_mut().unwrap().shift_remove("replicas");
    track(Some(&scaled), &mut cleared, &schema, &manager("someone"));
    assert!(entry(&cleared, "kubectl-scale", "Update").is_none());
    assert!(entry(&cleared, "someone", "Update").is_none());
}

#[test]
fn tracking_an_unchanged_object_changes_nothing() {
    let schema = deployments();
    let mut live = containers(json!([{"name": "a", "image": "x"}]));
    track(None, &mut live, &schema, &manager("creator"));
    let mut same = live.clone();
    track(Some(&live), &mut same, &schema, &FieldManager { now: "2030-01-01T00:00:00Z", ..manager("creator") });
    assert_eq!(same, live);
    let mut dropped = live.clone();
    dropped["metadata"].as_object_mut().unwrap().shift_remove("managedFields");
    track(Some(&live), &mut dropped, &schema, &manager("creator"));
    assert_eq!(dropped, live, "a client that does not send managedFields does not clear them");
    let mut reset = live.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    track(Some(&live), &mut reset, &schema, &manager("creator"));
    assert!(reset["metadata"].get("managedFields").is_none(), "a list of one empty entry does");
}

#[test]
fn an_untracked_object_belongs_to_before_first_apply() {
    let schema = deployments();
    let live = deployment(json!({"replicas": 1}));
    let refused = apply(Some(&live), &deployment(json!({"replicas": 2})), &schema, &manager("alice"));
    assert_eq!(conflicts(refused)[0].0, "\"before-first-apply\" using apps/v1");
}

#[test]
fn many_updaters_are_folded() {
    let schema = deployments();
    let mut live = deployment(json!({}));
    for i in 0..30 {
        let mut next = live.clone();
        next["metadata"]["annotations"][format!("k{i}")] = "v".into();
        let (name, now) = (format!("m{i}"), format!("2026-01-01T00:00:{i:02}Z"));
        track(Some(&live), &mut next, &schema, &FieldManager { name: &name, now: &now, ..manager("") });
        live = next;
    }
    assert_eq!(live["metadata"]["managedFields"].as_array().unwrap().len(), 10);
    assert!(entry(&live, "ancient-changes", "Update").is_some());
}

#[test]
fn bad_configurations_are_refused() {
    let schema = deployments();
    let twice = containers(json!([{"name": "a"}, {"name": "a"}]));
    let error = apply(None, &twice, &schema, &manager("a")).unwrap_err().to_string();
    assert!(error.contains(".spec.template.spec.containers: duplicate entries for key [name=\"a\"]"), "{error}");
    let nameless = containers(json!([{"image": "a"}]));
    assert!(matches!(apply(None, &nameless, &schema, &manager("a")), Err(ApplyError::Malformed(_))));
    let mut managed = deployment(json!({}));
    managed["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    let error = apply(None, &managed, &schema, &manager("a")).unwrap_err().to_string();
    assert_eq!(error, "metadata.managedFields must be nil");
}

#[test]
fn objects_without_a_schema_merge_by_key() {
    let schema = crate::anything();
    let of = |spec: Value| json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec});
    let live = apply(None, &of(json!({"a": {"b": 1}, "l": [1]})), &schema, &manager("alice")).unwrap();
    let live = apply(Some(&live), &of(json!({"a": {"c": 2}})), &schema, &manager("bob")).unwrap();
    assert_eq!(live["spec"], json!({"a": {"b": 1, "c": 2}, "l": [1]}));
    let live = apply(Some(&live), &of(json!({"a": {"b": 1}})), &schema, &manager("alice")).unwrap();
    assert_eq!(live["spec"], json!({"a": {"b": 1, "c": 2}}));
}

#[test]
fn a_long_key_above_many_conflicts_is_not_told_for_each() {
    let schema = crate::anything();
    let of = |value: i32| {
        let fields: Map<String, Value> = (0..20_000).map(|i| (format!("f{i}"), value.into())).collect();
        json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "x"}, "spec": {"k".repeat(500_000): fields}})
    };
    let live = apply(None, &of(1), &schema, &manager("alice")).unwrap();
    let found = conflicts(apply(Some(&live), &of(2), &schema, &manager("bob")));
    let told: usize = found.iter().map(|(_, field)| field.len()).sum();
    assert!(!found.is_empty() && told < 2_000_000, "{told}");
}

#[test]
fn giving_up_many_fields_takes_no_time() {
    let begin = std::time::Instant::now();
    let schema = deployments();
    let mut many = deployment(json!({}));
    many["metadata"]["annotations"] = (0..40_000).map(|i| (format!("k{i}"), "v".into())).collect::<Map<_, _>>().into();
    let live = apply(None, &many, &schema, &manager("alice")).unwrap();
    let now = apply(Some(&live), &deployment(json!({})), &schema, &manager("alice")).unwrap();
    assert!(now["metadata"]["annotations"].as_object().is_none_or(Map::is_empty));
    assert!(begin.elapsed() < std::time::Duration::from_secs(10), "{:?}", begin.elapsed());
}

/// Small deployments over few names, so that managers meet.
fn configurations() -> impl Strategy<Value = Value> {
    let names = prop::collection::btree_map("[abc]", ("[xyz]", prop::option::of(1..3)), 0..3);
    let labels = prop::option::of(prop::collection::btree_map("[klm]", "[12]", 0..3));
    (names, labels, prop::option::of(0i64..3)).prop_map(|(names, labels, replicas)| {
        let list: Vec<_> = names
            .into_iter()
            .map(|(name, (image, port))| match port {
                Some(port) => json!({"name": name, "image": image, "ports": [{"containerPort": port}]}),
                None => json!({"name": name, "image": image}),
            })
            .collect();
        let mut object = containers(Value::Array(list));
        if let Some(labels) = labels {
            object["metadata"]["labels"] = json!(labels);
        }
        if let Some(replicas) = replicas {
            object["spec"]["replicas"] = replicas.into();
        }
        object
    })
}

proptest! {
    #[test]
    fn apply_is_idempotent(steps in prop::collection::vec((0usize..3, configurations()), 1..6)) {
        let schema = deployments();
        let mut live: Option<Value> = None;
        for (who, config) in steps {
            let name = ["alice", "bob", "carol"][who];
            let once = apply(live.as_ref(), &config, &schema, &forced(name)).unwrap();
            let twice = apply(Some(&once), &config, &schema, &manager(name)).unwrap();
            prop_assert_eq!(&once, &twice);
            let mut tracked = once.clone();
            track(Some(&once), &mut tracked, &schema, &manager("updater"));
            prop_assert_eq!(&once, &tracked, "nothing changed, so nobody owns more");
            live = Some(once);
        }
    }

    #[test]
    fn what_was_applied_is_there(first in configurations(), second in configurations()) {
        let schema = deployments();
        let live = apply(None, &first, &schema, &manager("alice")).unwrap();
        let now = apply(Some(&live), &second, &schema, &manager("alice")).unwrap();
        let mut bare = now.clone();
        bare["metadata"].as_object_mut().unwrap().shift_remove("managedFields");
        let wanted = apply(None, &second, &schema, &manager("alice")).unwrap();
        prop_assert_eq!(&now["metadata"]["managedFields"], &wanted["metadata"]["managedFields"]);
        let missing = typed::compare(&bare, &second, Some(&schema)).set.paths();
        prop_assert!(missing.iter().all(|path| path.is_empty() || is_empty_container(&second, path)), "{:?}", missing);
    }

    #[test]
    fn tracked_objects_take_applies(created in configurations(), applied in configurations()) {
        let schema = deployments();
        let mut live = created;
        track(None, &mut live, &schema, &manager("creator"));
        let now = apply(Some(&live), &applied, &schema, &forced("applier")).unwrap();
        let again = apply(Some(&now), &applied, &schema, &manager("applier")).unwrap();
        prop_assert_eq!(now, again);
    }
}

/// `labels: {}` says nothing about what is in there.
fn is_empty_container(object: &Value, path: &str) -> bool {
    let at = path.split('.').filter(|p| !p.is_empty()).try_fold(object, |o, p| o.get(p));
    at.is_some_and(|v| v.as_object().is_some_and(|m| m.is_empty()) || v.as_array().is_some_and(Vec::is_empty))
}
