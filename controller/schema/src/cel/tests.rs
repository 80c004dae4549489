//! Expressions: what they give, what they cost, what is refused.

use super::*;
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

struct Given(HashMap<&'static str, CelValue>);

impl Scope for Given {
    fn variable(&self, name: &str) -> Option<CelValue> {
        self.0.get(name).cloned()
    }
}

const NAMES: Names<'static> = Names { variables: &["object", "none"], composed: &[], methods: &[] };

fn run_with(text: &str, object: &Json, mut budget: Budget) -> Result<CelValue, String> {
    let scope = Given(HashMap::from([("object", from_json(object)), ("none", CelValue::Null)]));
    on_a_big_stack(|| {
        let expression = Expression::compile(text, &NAMES).map_err(|e| format!("compile: {e}"))?;
        expression.evaluate(&scope, &mut budget).map_err(|e| match e {
            CelError::Exceeded(why) => format!("exceeded: {why}"),
            CelError::Failed(why) => why,
        })
    })
    .unwrap()
}

fn run(text: &str) -> Result<CelValue, String> {
    let object = json!({
        "metadata": {"name": "web", "labels": {"app": "web", "a.io/b": "c"}},
        "spec": {"replicas": 3, "items": [1, 2, 3], "empty": null, "ratio": 0.5, "words": ["a", "bb", "ccc"]}
    });
    run_with(text, &object, Budget::default())
}

#[test]
fn values() {
    let holds = [
        "object.spec.replicas == 3 && object.spec.replicas < 3.5 && 3u == 3",
        "object.metadata.labels['a.io/b'] == 'c' && 'app' in object.metadata.labels",
        "has(object.spec.replicas) && !has(object.spec.nothing)",
        "object.spec.items.all(i, i > 0) && object.spec.items.exists(i, i == 2)",
        "object.spec.items.exists_one(i, i == 2) && !object.spec.items.exists_one(i, i > 1)",
        "object.spec.items.map(i, i * 2) == [2, 4, 6] && object.spec.items.filter(i, i % 2 == 1) == [1, 3]",
        "object.spec.items.map(i, i > 1, i + 1) == [3, 4]",
        "object.metadata.labels.all(k, k.size() < 10) && size('ä€') == 2",
        "object.?spec.?replicas.orValue(1) == 3 && object.?spec.?missing.orValue(1) == 1",
        "object.?nothing.?missing.hasValue() == false && object.spec[?'replicas'].value() == 3",
        "object.?spec.replicas.optMap(r, r + 1).orValue(0) == 4",
        "object.spec.empty == null && object.spec.ratio > 0",
        "type(object.spec.replicas) == int && type('') == string",
        "'abc'.matches('^a.c$') && 'a,b'.split(',') == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b'",
        "quantity('1Gi').isGreaterThan(quantity('1M')) && isQuantity('x') == false",
        "math.greatest(1, 2) == 2 && sets.contains([1, 2], [1])",
        "duration('1h') < duration('2h') && timestamp('2026-01-01T00:00:00Z').getFullYear() == 2026",
        "cidr('10.0.0.0/8').containsIP(ip('10.1.2.3'))",
        "{'a': 1}.a == 1 && {1: 2}[1] == 2",
        "object.spec.words.map(w, w + '!')[2] == 'ccc!'",
        "'%d of %s'.format([1, 'x']) == '1 of x'",
        "(object.spec.nothing == 1 || true) && !(object.spec.nothing == 1 && false)",
        "[0, 1].exists(i, 1 / i == 1) && !([0, 1].all(i, 1 / i == 2))",
        "true ? true : 1 / 0 == 1",
    ];
    for text in holds {
        assert_eq!(run(text), Ok(CelValue::Bool(true)), "{text}");
    }
}

#[test]
fn errors() {
    let table = [
        ("object.spec.nothing == 1", "no such key: nothing"),
        ("object.metadata.name.first == 1", "no such overload"),
        ("object.spec.items[7]", "index out of bounds: 7"),
        ("1 / 0", "division by zero"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("1 + 'a'", "no such overload"),
        ("object.spec.empty < 1", "no such overload"),
        ("[1, 0].all(i, 1 / i == 1)", "division by zero"),
        ("[1, 0].exists(i, 1 / i == 2)", "division by zero"),
        ("'%.999f'.format([1.0])", "precision is limited to 100"),
    ];
    for (text, wanted) in table {
        assert_eq!(run(text), Err(wanted.to_owned()), "{text}");
    }
}

#[test]
fn refused_when_compiled() {
    let nested = format!("{}1{}", "(".repeat(40), ")".repeat(40));
    let long = format!("'{}' == ''", "x".repeat(MAX_EXPRESSION));
    let chain = format!("1{}", "+1".repeat(300));
    let table = [
        ("", "expression is empty"),
        ("objekt.spec", "undeclared reference to 'objekt'"),
        ("object.spec.foo()", "undeclared reference to 'foo'"),
        ("true || foo(1)", "undeclared reference to 'foo'"),
        ("math.foo(1)", "undeclared reference to 'math.foo'"),
        ("variables.x == 1", "undefined field 'x'"),
        ("Object{spec: 1} == 1", "not supported"),
        ("[1].all(object, true)", "overlapping identifier"),
        ("[1].all(i, j)", "undeclared reference to 'j'"),
        ("[1].all(i, v, true)", "undeclared reference to 'all'"),
        ("object.", "Syntax error"),
        (nested.as_str(), "too complex"),
        (chain.as_str(), "too complex"),
        (long.as_str(), "too long"),
    ];
    for (text, wanted) in table {
        let error = run(text).unwrap_err();
        assert!(error.starts_with("compile: ") && error.contains(wanted), "{text:.60}: {error}");
    }
}

/// What would take minutes, gigabytes or the stack ends early, and no operator hides that.
#[test]
fn costs_are_counted() {
    let numbers: Vec<usize> = (0..3000).collect();
    let object = json!({"list": numbers, "text": "x".repeat(1 << 20)});
    let table = [
        "object.list.all(a, object.list.all(b, a + b >= 0))",
        "object.list.all(a, object.list.all(b, a + b >= 0)) || true",
        "object.list.exists(a, object.list.exists(b, a + b < 0)) || true || true",
        "object.list.map(a, object.text + 'x').size() > 0",
        "object.text.replace('x', object.text) == ''",
        "object.text.split('').join(object.text) == ''",
        "object.list.all(a, object.text != object.text + 'x')",
        "object.list.all(a, object.text.contains('y') || true)",
        "sets.contains(object.list, object.list)",
        "object.list.all(a, object.text.matches('(x+x+)+y') || true)",
        "object.text.split('').size() > 0",
        "object.text.findAll('.').size() > 0",
        "lists.range(1000000000).size() > 0",
    ];
    for text in table {
        let error = run_with(text, &object, Budget::default()).unwrap_err();
        assert!(error.contains("exceeded: "), "{text}: {error}");
    }
    assert_eq!(run_with("object.list.all(a, a >= 0)", &object, Budget::default()), Ok(CelValue::Bool(true)));
    assert_eq!(run_with("object.list.map(a, a).size() == 3000", &object, Budget::default()), Ok(CelValue::Bool(true)));
}

#[test]
fn budgets_are_shared_and_end() {
    let scope = Given(HashMap::from([("object", from_json(&json!([1, 2, 3])))]));
    let mut budget = Budget::new(100, Duration::from_secs(60));
    let expression = on_a_big_stack(|| Expression::compile("object.all(i, i > 0)", &NAMES)).unwrap().unwrap();
    let results: Vec<bool> = (0..20).map(|_| expression.evaluate(&scope, &mut budget).is_ok()).collect();
    assert!(results[0] && !results[19], "{results:?}");
    let mut late = Budget::new(TOTAL_COST, Duration::ZERO);
    let long =
        on_a_big_stack(|| Expression::compile("[1,2,3,4,5,6,7,8].all(i, [1,2,3,4].all(j, i > j || true))", &NAMES));
    let error = long.unwrap().unwrap().evaluate(&scope, &mut late).unwrap_err();
    assert!(matches!(&error, CelError::Exceeded(why) if why.contains("too long")), "{error}");
}

/// A variable that doubles what another holds would be endless to read.
#[test]
fn shared_values_are_not_read_without_end() {
    let mut value = CelValue::from("x");
    for _ in 0..64 {
        value = CelValue::List(Arc::new(vec![value.clone(), value]));
    }
    let scope = Given(HashMap::from([("object", value)]));
    let expression = on_a_big_stack(|| Expression::compile("object == object", &NAMES)).unwrap().unwrap();
    assert!(matches!(expression.evaluate(&scope, &mut Budget::default()), Err(CelError::Exceeded(_))));
}
