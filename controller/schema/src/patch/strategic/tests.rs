//! The behaviours that Kubernetes documents for strategic merge patch.

use super::*;
use crate::builtin;
use serde_json::json;

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec})
}

fn patched(doc: Value, patch: Value) -> Value {
    strategic(&pod(doc), &json!({"spec": patch}), &builtin("", "v1", "Pod").unwrap()).unwrap()["spec"].clone()
}

#[test]
fn containers_merge_by_name() {
    let live = json!({"containers": [{"name": "a", "image": "1", "tty": true}, {"name": "b", "image": "1"}]});
    let now = patched(live, json!({"containers": [{"name": "a", "image": "2"}]}));
    assert_eq!(now, json!({"containers": [{"name": "a", "image": "2", "tty": true}, {"name": "b", "image": "1"}]}));
}

#[test]
fn a_new_item_comes_before_those_only_the_server_has() {
    let now = patched(json!({"containers": [{"name": "a"}]}), json!({"containers": [{"name": "n", "stdin": null}]}));
    assert_eq!(now, json!({"containers": [{"name": "n"}, {"name": "a"}]}));
}

#[test]
fn lists_without_a_strategy_are_replaced() {
    let live = json!({"containers": [{"name": "a", "command": ["x", "y"]}], "tolerations": [{"key": "a"}]});
    let now = patched(live, json!({"containers": [{"name": "a", "command": ["z"]}], "tolerations": [{"key": "b"}]}));
    assert_eq!(now, json!({"containers": [{"name": "a", "command": ["z"]}], "tolerations": [{"key": "b"}]}));
}

#[test]
fn null_deletes_a_field_and_maps_merge() {
    let live = json!({"nodeName": "n", "nodeSelector": {"a": "1", "b": "2"}});
    let now = patched(live, json!({"nodeName": null, "nodeSelector": {"a": null, "c": "3"}}));
    assert_eq!(now, json!({"nodeSelector": {"b": "2", "c": "3"}}));
}

#[test]
fn patch_directives_delete_and_replace() {
    let live = || json!({"containers": [{"name": "a"}, {"name": "b"}], "securityContext": {"runAsUser": 1}});
    let now =
        patched(live(), json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "zz", "$patch": "delete"}]}));
    assert_eq!(now["containers"], json!([{"name": "b"}]));
    let now = patched(live(), json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}));
    assert_eq!(now["containers"], json!([{"name": "c"}]));
    let now = patched(live(), json!({"securityContext": {"$patch": "replace", "fsGroup": 2}}));
    assert_eq!(now["securityContext"], json!({"fsGroup": 2}));
    let now = patched(live(), json!({"securityContext": {"$patch": "delete"}}));
    assert_eq!(now["securityContext"], json!({}));
    let now = patched(live(), json!({"securityContext": {"$patch": "merge", "fsGroup": 2}}));
    assert_eq!(now["securityContext"], json!({"runAsUser": 1, "fsGroup": 2}));
}

#[test]
fn set_element_order_sorts_and_keeps_what_only_the_server_has() {
    let live = json!({"containers": [{"name": "a"}, {"name": "server"}, {"name": "b"}]});
    let patch = json!({
        "$setElementOrder/containers": [{"name": "b"}, {"name": "new"}, {"name": "a"}],
        "containers": [{"name": "new", "image": "n"}, {"name": "b", "image": "i"}],
    });
    let now = patched(live, patch);
    assert_eq!(
        now["containers"],
        json!([{"name": "server"}, {"name": "b", "image": "i"}, {"name": "new", "image": "n"}, {"name": "a"}])
    );
}

#[test]
fn set_element_order_alone_reorders() {
    let live = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let now = patched(live, json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}));
    assert_eq!(now["containers"], json!([{"name": "b"}, {"name": "a"}]));
}

#[test]
fn retain_keys_changes_a_union_member() {
    let schema = builtin("apps", "v1", "Deployment").unwrap();
    let live = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(strategic(&live, &patch, &schema).unwrap()["spec"]["strategy"], json!({"type": "Recreate"}));
    let stray = json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}});
    assert!(matches!(strategic(&live, &stray, &schema), Err(PatchError::Malformed(_))));
    let live = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    let now = patched(
        live,
        json!({"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}]}),
    );
    assert_eq!(now["volumes"], json!([{"name": "v", "hostPath": {"path": "/x"}}]));
}

#[test]
fn primitive_lists_with_merge_are_sets() {
    let schema = builtin("", "v1", "Pod").unwrap();
    let live = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"],
        "$setElementOrder/finalizers": ["d", "a", "c"], "finalizers": ["d"]}});
    let now = strategic(&live, &patch, &schema).unwrap();
    assert_eq!(now["metadata"]["finalizers"], json!(["d", "a", "c"]));
    let now = strategic(&live, &json!({"metadata": {"finalizers": ["c", "x"]}}), &schema).unwrap();
    let list = now["metadata"]["finalizers"].as_array().unwrap();
    assert!(list.len() == 4 && list.contains(&json!("x")), "{list:?}");
}

#[test]
fn service_ports_merge_by_port() {
    let schema = builtin("", "v1", "Service").unwrap();
    let live = json!({"spec": {"ports": [{"port": 80, "name": "http"}, {"port": 443, "name": "https"}]}});
    let now = strategic(&live, &json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}}), &schema).unwrap();
    assert_eq!(
        now["spec"]["ports"],
        json!([{"port": 80, "name": "http", "targetPort": 8080}, {"port": 443, "name": "https"}])
    );
}

#[test]
fn conditions_merge_by_type() {
    let schema = builtin("", "v1", "Node").unwrap();
    let live = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "x"}, {"type": "Disk", "status": "False"}]}});
    let patch = json!({"status": {"$setElementOrder/conditions": [{"type": "Ready"}, {"type": "Disk"}],
        "conditions": [{"type": "Ready", "status": "Unknown"}]}});
    let now = strategic(&live, &patch, &schema).unwrap();
    assert_eq!(
        now["status"]["conditions"],
        json!([{"type": "Ready", "status": "Unknown", "reason": "x"}, {"type": "Disk", "status": "False"}])
    );
}

#[test]
fn what_is_not_there_yet_is_added_without_directives() {
    let now = patched(
        json!({}),
        json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "b", "tty": null}],
            "securityContext": {"$retainKeys": ["fsGroup"], "fsGroup": 1}}),
    );
    assert_eq!(now, json!({"containers": [{"name": "b"}], "securityContext": {"fsGroup": 1}}));
}

#[test]
fn broken_patches_are_refused() {
    let schema = builtin("", "v1", "Pod").unwrap();
    let live = pod(json!({"containers": [{"name": "a"}]}));
    for patch in [
        json!([]),
        json!({"spec": {"containers": [{"image": "no key"}]}}),
        json!({"spec": {"$patch": "explode"}}),
        json!({"spec": {"$setElementOrder/containers": "x"}}),
        json!({"spec": {"$retainKeys": 1}}),
    ] {
        assert!(matches!(strategic(&live, &patch, &schema), Err(PatchError::Malformed(_))), "{patch}");
    }
}

#[test]
fn long_lists_and_many_nulls_take_no_time() {
    let begin = std::time::Instant::now();
    let items = |range: std::ops::Range<usize>| {
        range.map(|i| json!({"name": format!("c{i}"), "image": "x"})).collect::<Vec<_>>()
    };
    let now = patched(json!({"containers": items(0..20_000)}), json!({"containers": items(10_000..30_000)}));
    assert_eq!(now["containers"].as_array().unwrap().len(), 30_000);
    let delete: Vec<_> = (0..20_000).map(|i| json!({"name": format!("c{i}"), "$patch": "delete"})).collect();
    let now = patched(json!({"containers": items(0..20_001)}), json!({"containers": delete}));
    assert_eq!(now["containers"], json!([{"name": "c20000", "image": "x"}]));
    let names = |range: std::ops::Range<usize>| range.map(|i| Value::from(format!("f{i}"))).collect::<Vec<_>>();
    let map = |value: Value| Value::Object((0..40_000).map(|i| (format!("k{i}"), value.clone())).collect());
    let schema = builtin("", "v1", "Pod").unwrap();
    let live = json!({"metadata": {"finalizers": names(0..20_000), "annotations": map(json!("v"))}});
    let patch = json!({"metadata": {"finalizers": names(10_000..30_000), "annotations": map(Value::Null)}});
    let now = strategic(&live, &patch, &schema).unwrap();
    assert_eq!(now["metadata"]["finalizers"].as_array().unwrap().len(), 30_000);
    assert_eq!(now["metadata"]["annotations"], json!({}));
    let gone = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": names(0..20_000),
        "annotations": {"$retainKeys": names(0..40_000)}}});
    let now = strategic(&live, &gone, &schema).unwrap();
    assert_eq!(now["metadata"], json!({"finalizers": [], "annotations": {}}));
    assert_eq!(crate::patch::merge(&live, &patch)["metadata"]["annotations"], json!({}));
    // Without optimisation, and on a machine that does other things as well; by looking through lists it is minutes.
    assert!(begin.elapsed() < std::time::Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn of_several_items_of_one_key_the_first_merges_and_all_are_deleted() {
    let live = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b"}, {"name": "a", "image": "2"}]});
    let now = patched(live.clone(), json!({"containers": [{"name": "a", "tty": true}]}));
    let merged = json!([{"name": "a", "image": "1", "tty": true}, {"name": "b"}, {"name": "a", "image": "2"}]);
    let all =
        |list: &Value| list.as_array().unwrap().iter().map(Value::to_string).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(all(&now["containers"]), all(&merged));
    let now = patched(live, json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "a", "image": "3"}]}));
    assert_eq!(all(&now["containers"]), all(&json!([{"name": "a", "image": "3"}, {"name": "b"}])));
}
