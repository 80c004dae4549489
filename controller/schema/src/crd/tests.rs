//! Custom resources from definition to errors.

use super::*;
use serde_json::json;

fn schema() -> std::sync::Arc<Schema> {
    structural(&json!({
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
            "spec": {
                "type": "object",
                "required": ["size"],
                "properties": {
                    "size": {"type": "integer", "minimum": 1, "maximum": 5},
                    "mode": {"type": "string", "enum": ["fast", "slow"], "default": "fast"},
                    "name": {"type": "string", "maxLength": 4, "minLength": 2, "pattern": "^[a-z]+$"},
                    "when": {"type": "string", "format": "date-time"},
                    "port": {"x-kubernetes-int-or-string": true,
                        "anyOf": [{"type": "integer"}, {"type": "string"}]},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "bag": {"type": "object", "additionalProperties": {"type": "integer"}},
                    "maybe": {"type": "string", "nullable": true},
                    "template": {"type": "object", "x-kubernetes-embedded-resource": true,
                        "x-kubernetes-preserve-unknown-fields": true},
                    "items": {"type": "array", "maxItems": 2, "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["id"],
                        "items": {"type": "object", "required": ["id"], "properties": {
                            "id": {"type": "string"}, "weight": {"type": "integer", "default": 1}}}},
                    "union": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                        "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
                },
                "x-kubernetes-validations": [
                    {"rule": "self.size < 5 || self.mode == 'slow'", "message": "big ones must be slow"},
                    {"rule": "self.size >= oldSelf.size", "message": "size never shrinks"},
                ],
            },
            "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
        },
    }))
    .unwrap()
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "x.io/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec})
}

fn errors(spec: Value) -> Vec<String> {
    let found = validate(&object(spec), None, &schema());
    found.into_iter().map(|e| format!("{:?} {} {} {}", e.kind, e.path, e.value, e.detail)).collect()
}

#[test]
fn unknown_fields_are_pruned_and_named() {
    let schema = schema();
    let mut x = object(json!({"size": 1, "nope": 1, "free": {"any": {"thing": 1}}, "bag": {"k": 1},
        "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "bad": 1}, "spec": {"x": 1}},
        "items": [{"id": "a", "zz": 1}]}));
    x["extra"] = 1.into();
    let expected = ["spec.nope", "spec.template.metadata.bad", "spec.items[0].zz", "extra"];
    assert_eq!(strict::unknown_fields(&x, &schema), expected.map(|p| format!("unknown field \"{p}\"")));
    prune(&mut x, &schema);
    assert!(strict::unknown_fields(&x, &schema).is_empty());
    assert_eq!(x["spec"]["free"], json!({"any": {"thing": 1}}));
    assert_eq!(x["spec"]["template"]["spec"], json!({"x": 1}));
}

#[test]
fn defaults_fill_in_and_nulls_go() {
    let schema = schema();
    let mut x = object(json!({"size": 1, "mode": null, "name": null, "maybe": null, "items": [{"id": "a"}]}));
    default(&mut x, &schema);
    assert_eq!(x["spec"], json!({"size": 1, "maybe": null, "items": [{"id": "a", "weight": 1}], "mode": "fast"}));
    let once = x.clone();
    default(&mut x, &schema);
    assert_eq!(x, once);
}

#[test]
fn errors_are_worded_as_upstream() {
    for (spec, expected) in [
        (json!({"size": 1}), vec![]),
        (json!({}), vec!["Required spec.size \"\" "]),
        (
            json!({"size": "x"}),
            vec!["TypeInvalid spec.size \"string\" spec.size in body must be of type integer: \"string\""],
        ),
        (json!({"size": 9}), vec!["Invalid spec.size 9 spec.size in body should be less than or equal to 5"]),
        (json!({"size": 0}), vec!["Invalid spec.size 0 spec.size in body should be greater than or equal to 1"]),
        (json!({"size": 1.0}), vec![]),
        (json!({"size": 1, "mode": "x"}), vec!["NotSupported spec.mode \"x\" supported values: \"fast\", \"slow\""]),
        (json!({"size": 1, "name": "toolong"}), vec!["TooLong spec.name \"toolong\" may not be more than 4 bytes"]),
        (json!({"size": 1, "name": "A1"}), vec!["Invalid spec.name \"A1\" spec.name in body should match '^[a-z]+$'"]),
        (
            json!({"size": 1, "name": "a"}),
            vec!["Invalid spec.name \"a\" spec.name in body should be at least 2 chars long"],
        ),
        (
            json!({"size": 1, "when": "x"}),
            vec!["Invalid spec.when \"x\" spec.when in body must be of type date-time: \"x\""],
        ),
        (json!({"size": 1, "port": 80}), vec![]),
        (json!({"size": 1, "port": "http"}), vec![]),
        (
            json!({"size": 1, "port": true}),
            vec!["TypeInvalid spec.port \"boolean\" spec.port in body must be of type integer,string: \"boolean\""],
        ),
        (
            json!({"size": 1, "bag": {"k": "v"}}),
            vec!["TypeInvalid spec.bag.k \"string\" spec.bag.k in body must be of type integer: \"string\""],
        ),
        (json!({"size": 1, "items": [{"id": "a"}, {"id": "a"}]}), vec!["Duplicate spec.items[1] {\"id\":\"a\"} "]),
        (
            json!({"size": 1, "items": [{"id": "a"}, {"id": "b"}, {"id": "c"}]}),
            vec!["TooMany spec.items 3 must have at most 2 items"],
        ),
        (json!({"size": 1, "union": {"a": "1"}}), vec![]),
        (
            json!({"size": 1, "union": {}}),
            vec![
                "Invalid spec.union \"object\" spec.union in body must validate one and only one schema (oneOf). Found none valid",
            ],
        ),
        (
            json!({"size": 1, "union": {"a": "1", "b": "2"}}),
            vec![
                "Invalid spec.union \"object\" spec.union in body must validate one and only one schema (oneOf). Found 2 valid alternatives",
            ],
        ),
    ] {
        assert_eq!(errors(spec.clone()), expected, "{spec}");
    }
}

#[test]
fn cel_rules_also_see_the_old_object() {
    assert_eq!(errors(json!({"size": 5, "mode": "fast"})), ["Invalid spec \"object\" big ones must be slow"]);
    assert!(errors(json!({"size": 5, "mode": "slow"})).is_empty());
    let (old, new) = (object(json!({"size": 3, "mode": "fast"})), object(json!({"size": 2, "mode": "fast"})));
    let found = validate(&new, Some(&old), &schema());
    assert_eq!(found.iter().map(|e| e.detail.as_str()).collect::<Vec<_>>(), ["size never shrinks"]);
    assert!(validate(&old, Some(&new), &schema()).is_empty());
}

#[test]
fn schemas_that_are_not_structural_are_refused() {
    for (raw, path) in [
        (json!({"properties": {}}), "type"),
        (json!({"type": "object", "properties": {"x": {}}}), "properties[x].type"),
        (json!({"type": "object", "properties": {"x": {"type": "array"}}}), "properties[x].items"),
        (json!({"type": "object", "properties": {"x": {"$ref": "#/y"}}}), "properties[x].$ref"),
        (json!({"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}}), "properties[x].pattern"),
        (json!({"type": "object", "properties": {"x": {"type": "strin"}}}), "properties[x].type"),
        (
            json!({"type": "object", "properties": {"x": {"type": "object", "additionalProperties": false}}}),
            "properties[x].additionalProperties",
        ),
        (
            json!({"type": "object", "properties": {"x": {"type": "array", "items": {"type": "object"},
            "x-kubernetes-list-type": "map"}}}),
            "properties[x].x-kubernetes-list-map-keys",
        ),
        (json!({"type": "object", "anyOf": [{"default": 1}]}), "anyOf[0].default"),
        (json!({"type": "object", "x-kubernetes-validations": [{"rule": "self. &&"}]}), "x-kubernetes-validations"),
    ] {
        let problems = structural(&raw).unwrap_err();
        assert!(problems.iter().any(|(at, _)| at == path), "{raw}: {problems:?}");
    }
}

#[test]
fn a_preserving_root_is_fine() {
    let schema = structural(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})).unwrap();
    let x = json!({"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "x"}, "anything": {"goes": [1]}});
    assert!(strict::unknown_fields(&x, &schema).is_empty() && validate(&x, None, &schema).is_empty());
}

/// Compiled and evaluated on half the stack of a worker.
#[test]
fn rules_that_would_take_the_stack_are_refused() {
    let compiled = |rule: String| {
        let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": rule}], "properties": {
            "a": {"type": "string"}}});
        let run = move || structural(&schema).map(|schema| validate(&json!({"a": "x"}), None, &schema).len());
        std::thread::Builder::new().stack_size(1024 * 1024).spawn(run).unwrap().join().unwrap()
    };
    let around =
        |open: &str, inner: &str, close: &str, n: usize| format!("{}{inner}{}", open.repeat(n), close.repeat(n));
    let refused = |rule: String| compiled(rule).is_err_and(|problems| problems[0].1.contains("too complex"));
    for n in [33, 1_000, 100_000] {
        assert!(refused(around("(", "true", ")", n)), "{n}");
        assert!(refused(around("[", "1", "]", n) + " == []"), "{n}");
        assert!(refused(around("size(", "[]", ")", n) + " == 1"), "{n}");
        assert!(refused(around("(')' == r'\\' && ", "true", ")", n)), "closed in quotes: {n}");
        assert!(refused(around("(//)\n", "true", ")", n)), "closed in a comment: {n}");
        assert!(refused(around("{'a': ", "1", "}", n) + " == {}"), "{n}");
    }
    for n in [300, 50_000] {
        for rule in [
            format!("1{} == 2", "+1".repeat(n)),
            format!("self{} == 2", ".a".repeat(n)),
            format!("self{} == 2", "[0]".repeat(n)),
            format!("1{}", " in []".repeat(n)),
            format!("1{} == 2", "+[1,2][0]".repeat(n)),
            format!("1{} == 2", "+(true ? 1 : 0)".repeat(n)),
            format!("1{}", "\nin\t[]".repeat(n)),
            format!("true{}", " == true".repeat(n)),
        ] {
            assert!(refused(rule.clone()), "{n} {}", &rule[..40]);
        }
    }
    assert_eq!(compiled("self.a != '((((((((((((((((((((((((((((((((((((((((('".to_owned()), Ok(0));
    assert_eq!(compiled(around("(", "true", ")", 32)), Ok(0));
    assert_eq!(compiled(format!("1{} == 201", "+1".repeat(200))), Ok(0));
    assert_eq!(compiled(format!("self.a == 'x'{}", " && self.a == 'x'".repeat(500))), Ok(0));
}

#[test]
fn a_long_key_above_many_errors_is_not_told_for_each() {
    let schema = structural(&json!({"type": "object", "properties": {"spec": {"type": "object",
        "additionalProperties": {"type": "array", "items": {"type": "integer"}}}}}))
    .unwrap();
    let of = |key: usize| json!({"spec": {"k".repeat(key): vec!["x"; 50_000]}});
    let errors = validate(&of(500_000), None, &schema);
    let told: usize = errors.iter().map(|e| e.path.len() + e.detail.len()).sum();
    assert!(!errors.is_empty() && told < 4_000_000, "{told}");
    assert_eq!(validate(&of(1), None, &schema).len(), 1000);
}

#[test]
fn rules_that_would_go_over_a_list_for_too_long_are_not_run() {
    let of = |rule: &str| {
        structural(&json!({"type": "object", "properties": {"spec": {"type": "object",
            "properties": {"list": {"type": "array", "items": {"type": "integer"}}},
            "x-kubernetes-validations": [{"rule": rule}]}}}))
    };
    let object = |items: usize| json!({"spec": {"list": vec![1; items]}});
    let nested = of("self.list.all(a, self.list.all(b, self.list.all(c, a == b || b == c)))").unwrap();
    assert!(validate(&object(20), None, &nested).is_empty());
    let begin = std::time::Instant::now();
    let errors = validate(&object(10_000), None, &nested);
    assert!(errors[0].detail.contains("cost limit exceeded"), "{errors:?}");
    assert!(begin.elapsed() < std::time::Duration::from_secs(5));
    let single = of("self.list.all(a, a == 1) && self.list.exists(a, a == 1)").unwrap();
    assert!(validate(&object(10_000), None, &single).is_empty());
    let range = of("lists.range(1000000000).size() > 0").unwrap();
    let errors = validate(&object(1), None, &range);
    assert!(errors[0].detail.contains("cost budget"), "{errors:?}");
}
