//! Rules of custom resources, over an object and its state before.

use super::*;
use serde_json::json;

fn found(schema: &Value, object: Value, old: Option<Value>) -> Vec<(String, String)> {
    let rules = Rules::compile(schema).unwrap().unwrap();
    let violations = rules.check(&object, old.as_ref()).unwrap();
    violations.into_iter().map(|v| (v.field_path, v.message)).collect()
}

fn with_rule(mut schema: Value, rule: Value) -> Value {
    schema["x-kubernetes-validations"] = json!([rule]);
    schema
}

#[test]
fn rules_see_their_place() {
    let item = with_rule(
        json!({"type": "object", "properties": {"n": {"type": "integer"}}}),
        json!({"rule": "self.n > 0", "messageExpression": "'n is ' + string(self.n)"}),
    );
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "list": {"type": "array", "items": item},
        "map": {"type": "object", "additionalProperties": item},
    }}}});
    let object = json!({"spec": {"list": [{"n": 1}, {"n": 0}], "map": {"a.b": {"n": -1}, "c": {"n": 5}}}});
    let at = |path: &str, n: &str| (path.to_owned(), format!("n is {n}"));
    assert_eq!(found(&schema, object, None), [at("spec.list[1]", "0"), at("spec.map.a.b", "-1")]);
}

#[test]
fn formats_and_names() {
    let string = |format: &str| json!({"type": "string", "format": format});
    let properties = json!({
        "at": string("date-time"), "for": string("duration"), "raw": string("byte"), "a-b": {"type": "string"},
        "namespace": {"type": "string"}, "my_field": {"type": "string"}, "a__b": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    });
    let object = json!({"at": "2026-01-02T03:04:05Z", "for": "90m", "raw": "YWJj", "a-b": "x", "namespace": "y",
                        "my_field": "z", "a__b": "w", "labels": {"x-y": "1"}});
    let holds = [
        "self.at.getFullYear() == 2026 && self.at > timestamp('2025-01-01T00:00:00Z')",
        "self.__for__ == duration('1h30m')",
        "self.raw == b'abc'",
        "self.a__dash__b == 'x' && self.__namespace__ == 'y'",
        "self.my_field == 'z' && self.a__underscores__b == 'w'",
        "self.labels['x-y'] == '1'",
    ];
    for rule in holds {
        let schema = with_rule(json!({"type": "object", "properties": properties}), json!({"rule": rule}));
        assert_eq!(found(&schema, object.clone(), None), [], "{rule}");
    }
}

#[test]
fn transitions() {
    let item = with_rule(
        json!({"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}),
        json!({"rule": "self.v >= oldSelf.v", "message": "shrank", "fieldPath": ".v", "reason": "FieldValueForbidden"}),
    );
    let list = |kind: &str| {
        json!({"type": "object", "properties": {"list": {"type": "array", "items": item,
        "x-kubernetes-list-type": kind, "x-kubernetes-list-map-keys": ["k"]}}})
    };
    let items = |a: i64, b: i64| json!([{"k": "a", "v": a}, {"k": "b", "v": b}]);
    let reversed = json!({"list": [{"k": "b", "v": 1}, {"k": "a", "v": 5}, {"k": "c", "v": 0}]});
    let old = Some(json!({"list": items(5, 2)}));
    assert_eq!(found(&list("map"), reversed.clone(), old), [("list[0].v".to_owned(), "shrank".to_owned())]);
    assert_eq!(found(&list("map"), reversed, None), [], "nothing to compare with");
    let refused = Rules::compile(&list("atomic")).unwrap_err();
    assert!(refused[0].contains("uncorrelatable"), "{refused:?}");
    let optional = with_rule(
        json!({"type": "object"}),
        json!({"rule": "oldSelf.hasValue() || self.n == 1", "optionalOldSelf": true}),
    );
    assert_eq!(found(&optional, json!({"n": 1}), None), []);
    assert_eq!(found(&optional, json!({"n": 2}), None).len(), 1);
    assert_eq!(found(&optional, json!({"n": 2}), Some(json!({"n": 1}))), []);
}

#[test]
fn what_is_no_rule_is_refused() {
    for (rule, wanted) in [
        ("self.x.unknown()", "undeclared reference to 'unknown'"),
        ("object.x == 1", "undeclared reference to 'object'"),
        ("", "expression is empty"),
    ] {
        let problems = Rules::compile(&with_rule(json!({"type": "object"}), json!({"rule": rule}))).unwrap_err();
        assert!(problems[0].contains(wanted), "{rule}: {problems:?}");
    }
    let many = vec![json!({"rule": "true"}); MAX_RULES + 1];
    assert!(Rules::compile(&json!({"x-kubernetes-validations": many})).unwrap_err()[0].contains("at most"));
}

/// The rules of one object share a budget, however many there are.
#[test]
fn costs_add_up() {
    let numbers: Vec<i32> = (0..800).collect();
    let rule = json!({"rule": "self.list.all(a, self.list.exists(b, a == b))"});
    let schema = json!({"type": "object", "x-kubernetes-validations": vec![rule; 100]});
    let begun = std::time::Instant::now();
    let found = found(&schema, json!({"list": numbers}), None);
    let (last, others) = found.split_last().unwrap();
    assert!(others.len() >= 5 && others.len() < 20, "{}", others.len());
    assert!(others.iter().all(|(_, message)| message.contains("call cost limit exceeded")), "{others:?}");
    assert!(last.1.contains("running out of cost budget") || last.1.contains("took too long"), "{last:?}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(20));
}
