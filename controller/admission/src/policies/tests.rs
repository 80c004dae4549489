//! Validating policies: matching, parameters, expressions, what happens when one fails.

use super::*;
use crate::admission_request::tests::{deployment, facts};
use crate::admission_request::{Facts, Outcome, Rejection, User};
use crate::expressions::{Attributes, Authorizer, Decision};
use async_trait::async_trait;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// ConfigMaps by namespace and name, with labels.
struct Maps(Vec<Value>);

#[async_trait]
impl Parameters for Maps {
    async fn namespaced(&self, api_version: &str, kind: &str) -> Option<bool> {
        match (api_version, kind) {
            ("v1", "ConfigMap") => Some(true),
            ("v1", "Node") => Some(false),
            _ => None,
        }
    }

    async fn get(&self, _: &str, _: &str, namespace: &str, name: &str) -> Result<Option<Value>, String> {
        let found = |o: &&Value| o["metadata"]["namespace"] == namespace && o["metadata"]["name"] == name;
        Ok(self.0.iter().find(found).cloned())
    }

    async fn list(&self, _: &str, _: &str, namespace: &str) -> Result<Vec<Value>, String> {
        Ok(self.0.iter().filter(|o| o["metadata"]["namespace"] == namespace).cloned().collect())
    }
}

/// Allows `get`; counts.
#[derive(Default)]
struct GetOnly(AtomicUsize);

impl Authorizer for GetOnly {
    fn authorize(&self, user: &User, attributes: &Attributes) -> Result<Decision, String> {
        self.0.fetch_add(1, Ordering::Relaxed);
        match attributes.verb.as_str() {
            "get" => Ok(Decision { allowed: true, reason: format!("{} may", user.username) }),
            "fail" => Err("broken".to_owned()),
            _ => Ok(Decision::default()),
        }
    }
}

fn maps() -> Maps {
    let map = |name: &str, tier: &str, max: &str| json!({"metadata": {"namespace": "shop", "name": name, "labels": {"tier": tier}}, "data": {"max": max}});
    Maps(vec![map("small", "a", "2"), map("big", "a", "5"), map("huge", "b", "100")])
}

fn policy(spec: Value) -> Value {
    let mut policy = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [
        {"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"], "operations": ["*"], "scope": "*"}]}}});
    for (key, value) in spec.as_object().unwrap() {
        policy["spec"][key] = value.clone();
    }
    policy
}

fn binding(spec: Value) -> Value {
    let mut binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    for (key, value) in spec.as_object().unwrap() {
        binding["spec"][key] = value.clone();
    }
    binding
}

async fn run_on(policy: &Value, bindings: &[Value], facts: &Facts, object: &Value) -> Result<Outcome, Rejection> {
    let policy = causeway_schema::cel::on_a_big_stack(|| Policy::read(policy)).unwrap();
    let bindings = bindings.iter().map(|b| Arc::new(Binding::read(b))).collect();
    let authorizer: Arc<dyn Authorizer> = Arc::new(GetOnly::default());
    let parameters = maps();
    let subject = Subject { facts, object, old: &Value::Null, parameters: &parameters, authorizer: &authorizer };
    validate(&[(Arc::new(policy), bindings)], &subject).await
}

async fn run(policy_: Value, binding_: Value) -> Result<Outcome, Rejection> {
    run_on(&policy(policy_), &[binding(binding_)], &facts(), &deployment()).await
}

fn rule(expression: &str) -> Value {
    json!({"validations": [{"expression": expression}]})
}

#[tokio::test]
async fn expressions_decide() {
    let holds = [
        "object.spec.replicas == 3 && oldObject == null",
        "object.metadata.labels.all(k, k == 'app')",
        "request.operation == 'CREATE' && request.resource.resource == 'deployments' && request.kind.kind == 'Deployment'",
        "request.namespace == 'shop' && request.name == 'web' && !request.dryRun",
        "'dev' in request.userInfo.groups",
        "namespaceObject.metadata.labels.env == 'prod'",
        "authorizer.group('').resource('pods').namespace('x').check('get').allowed()",
        "!authorizer.group('').resource('pods').namespace('x').check('create').allowed()",
        "authorizer.path('/healthz').check('get').reason() == 'alice may'",
        "authorizer.requestResource.check('fail').errored() && authorizer.requestResource.check('fail').error() == 'broken'",
        "authorizer.serviceAccount('a', 'b').path('/x').check('get').reason() == 'system:serviceaccount:a:b may'",
    ];
    for expression in holds {
        assert_eq!(run(rule(expression), json!({})).await, Ok(Outcome::default()), "{expression}");
        let refused = run(rule(&format!("!({expression})")), json!({})).await;
        assert_eq!(refused.unwrap_err().code, 422, "!({expression})");
    }
}

#[tokio::test]
async fn refusals_read_as_those_of_kubernetes() {
    let prefix =
        "deployments.apps \"web\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: ";
    let table = [
        (
            json!({"expression": "object.spec.replicas > 3"}),
            422,
            "Invalid",
            "failed expression: object.spec.replicas > 3",
        ),
        (json!({"expression": "false", "message": " too many ", "reason": "Forbidden"}), 403, "Forbidden", "too many"),
        (
            json!({"expression": "false", "reason": "RequestEntityTooLarge"}),
            413,
            "RequestEntityTooLarge",
            "failed expression: false",
        ),
        (
            json!({"expression": "false", "message": "m", "messageExpression": "'has ' + string(object.spec.replicas)"}),
            422,
            "Invalid",
            "has 3",
        ),
        (json!({"expression": "false", "message": "m", "messageExpression": "'a\\nb'"}), 422, "Invalid", "m"),
        (
            json!({"expression": "false", "message": "m", "messageExpression": "string(object.nothing)"}),
            422,
            "Invalid",
            "m",
        ),
        (
            json!({"expression": "object.nothing"}),
            422,
            "Invalid",
            "expression 'object.nothing' resulted in error: no such key: nothing",
        ),
        (
            json!({"expression": "'text'"}),
            422,
            "Invalid",
            "expression ''text'' resulted in error: must evaluate to bool",
        ),
    ];
    for (validation, code, reason, message) in table {
        let rejection = run(json!({"validations": [validation]}), json!({})).await.unwrap_err();
        assert_eq!((rejection.code, rejection.reason.as_str()), (code, reason), "{validation}");
        assert_eq!(rejection.message, format!("{prefix}{message}"));
        assert_eq!(
            rejection.details["causes"][0]["message"],
            format!("{}{message}", prefix.split_once("forbidden: ").unwrap().1)
        );
    }
}

#[tokio::test]
async fn failure_policy() {
    let broken = ["object.nothing == 1", "object.(", "unknown(1)", "variables.x"];
    for expression in broken {
        for (failure, passes) in [("Fail", false), ("Ignore", true)] {
            let spec = json!({"failurePolicy": failure, "validations": [{"expression": expression}]});
            assert_eq!(run(spec, json!({})).await.is_ok(), passes, "{expression} {failure}");
            let spec = json!({"failurePolicy": failure, "validations": [{"expression": "false"}],
                              "matchConditions": [{"name": "c", "expression": expression}]});
            assert_eq!(run(spec, json!({})).await.is_ok(), passes, "as a condition: {expression} {failure}");
        }
    }
    let denies = json!({"failurePolicy": "Ignore", "validations": [{"expression": "false"}]});
    assert!(run(denies, json!({})).await.is_err(), "what a rule says is no failure");
}

#[tokio::test]
async fn conditions() {
    for (expression, asked) in [("request.operation == 'CREATE'", true), ("request.operation == 'UPDATE'", false)] {
        let spec = json!({"validations": [{"expression": "false"}], "matchConditions": [{"name": "c", "expression": expression}]});
        assert_eq!(run(spec, json!({})).await.is_err(), asked, "{expression}");
    }
    let both = json!([{"name": "a", "expression": "object.nothing"}, {"name": "b", "expression": "false"}]);
    let spec = json!({"validations": [{"expression": "false"}], "matchConditions": both});
    assert!(run(spec, json!({})).await.is_ok(), "one that does not hold outweighs one that fails");
}

#[tokio::test]
async fn variables_are_lazy_and_evaluated_once() {
    let variables = json!([
        {"name": "bad", "expression": "object.nothing"},
        {"name": "allowed", "expression": "authorizer.path('/x').check('get').allowed()"},
        {"name": "twice", "expression": "[variables.allowed, variables.allowed]"},
    ]);
    let rules =
        json!([{"expression": "variables.twice.all(x, x) && variables.allowed && variables.twice.size() == 2"}]);
    let spec = policy(json!({"variables": variables, "validations": rules}));
    let policy = causeway_schema::cel::on_a_big_stack(|| Policy::read(&spec)).unwrap();
    let counter = Arc::new(GetOnly::default());
    let authorizer: Arc<dyn Authorizer> = Arc::clone(&counter) as _;
    let (facts, object, parameters) = (facts(), deployment(), maps());
    let subject =
        Subject { facts: &facts, object: &object, old: &Value::Null, parameters: &parameters, authorizer: &authorizer };
    let bindings = vec![Arc::new(Binding::read(&binding(json!({}))))];
    validate(&[(Arc::new(policy), bindings)], &subject).await.unwrap();
    assert_eq!(counter.0.load(Ordering::Relaxed), 1);
    let uses_bad = json!({"variables": variables, "validations": [{"expression": "variables.bad == 1"}]});
    let rejection = run(uses_bad, json!({})).await.unwrap_err();
    assert!(
        rejection.message.ends_with("composited variable \"bad\" fails to evaluate: no such key: nothing"),
        "{rejection}"
    );
}

/// Each variable holds the one before twice: endless to read, were it not counted.
#[tokio::test]
async fn cost_is_bounded_and_fails_closed() {
    let mut variables = vec![json!({"name": "v0", "expression": "'xxxxxxxxxxxxxxxx'"})];
    for i in 1..60 {
        variables
            .push(json!({"name": format!("v{i}"), "expression": format!("variables.v{0} + variables.v{0}", i - 1)}));
    }
    let text = json!({"variables": variables, "validations": [{"expression": "variables.v59 != ''"}]});
    let numbers: Vec<i32> = (0..2000).collect();
    let mut object = deployment();
    object["spec"]["list"] = json!(numbers);
    let nested = rule("object.spec.list.all(a, object.spec.list.all(b, a + b >= 0)) || true");
    for spec in [text, nested] {
        let rejection = run_on(&policy(spec.clone()), &[binding(json!({}))], &facts(), &object).await.unwrap_err();
        assert!(rejection.message.contains("cost limit exceeded"), "{rejection}");
        let mut ignoring = policy(spec);
        ignoring["spec"]["failurePolicy"] = json!("Ignore");
        assert!(run_on(&ignoring, &[binding(json!({}))], &facts(), &object).await.is_ok());
    }
}

/// Every variable needs the one before it: evaluated from the last to the first, on one stack.
#[tokio::test]
async fn variables_are_not_nested_without_end() {
    let chain = |n: usize| {
        let more = (1..n).map(|i| json!({"name": format!("v{i}"), "expression": format!("variables.v{} + 1", i - 1)}));
        let variables: Vec<Value> = std::iter::once(json!({"name": "v0", "expression": "1"})).chain(more).collect();
        json!({"variables": variables, "validations": [{"expression": format!("variables.v{} == {n}", n - 1)}]})
    };
    assert_eq!(run(chain(100), json!({})).await, Ok(Outcome::default()));
    let rejection = run(chain(900), json!({})).await.unwrap_err();
    assert!(rejection.message.contains("nested too deeply"), "{rejection}");
}

#[tokio::test]
async fn actions() {
    let spec = || json!({"validations": [{"expression": "true"}, {"expression": "false", "message": "no"}]});
    let warned = run(spec(), json!({"validationActions": ["Warn", "Audit"]})).await.unwrap();
    assert_eq!(warned.warnings, ["Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': no"]);
    let (key, value) = &warned.audit[0];
    assert_eq!(key, "validation.policy.admission.k8s.io/validation_failure");
    let value: Value = serde_json::from_str(value).unwrap();
    assert_eq!(
        value,
        json!([{"message": "no", "policy": "p", "binding": "b", "expressionIndex": 1, "validationActions": ["Warn", "Audit"]}])
    );
    assert!(run(spec(), json!({"validationActions": ["Audit", "Deny"]})).await.is_err());
}

#[tokio::test]
async fn audit_annotations() {
    let annotation = |expression: &str| json!({"auditAnnotations": [{"key": "k", "valueExpression": expression}]});
    let told = |outcome: Result<Outcome, Rejection>| outcome.unwrap().audit;
    let one = vec![("p/k".to_owned(), "3 of web".to_owned())];
    assert_eq!(
        told(run(annotation("' ' + string(object.spec.replicas) + ' of ' + object.metadata.name"), json!({})).await),
        one
    );
    assert_eq!(told(run(annotation("null"), json!({})).await), []);
    assert_eq!(told(run(annotation("object.spec.replicas > 5 ? 'many' : null"), json!({})).await), []);
    for bad in ["1", "object.nothing"] {
        assert!(run(annotation(bad), json!({})).await.is_err(), "{bad}");
    }
}

#[tokio::test]
async fn parameters_() {
    let spec = |kind: Value| json!({"paramKind": kind, "validations": [{"expression": "params == null || object.spec.replicas <= int(params.data.max)"}]});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    let reference = |r: Value| json!({"paramRef": r});
    let missing = "no params found for policy binding with `Deny` parameterNotFoundAction";
    let table = [
        (map.clone(), json!({}), None),
        (map.clone(), reference(json!({"name": "big", "parameterNotFoundAction": "Deny"})), None),
        (
            map.clone(),
            reference(json!({"name": "small", "parameterNotFoundAction": "Deny"})),
            Some("failed expression"),
        ),
        (map.clone(), reference(json!({"name": "none", "parameterNotFoundAction": "Deny"})), Some(missing)),
        (map.clone(), reference(json!({"name": "none", "parameterNotFoundAction": "Allow"})), None),
        (
            map.clone(),
            reference(json!({"name": "big", "namespace": "other", "parameterNotFoundAction": "Deny"})),
            Some(missing),
        ),
        (
            map.clone(),
            reference(json!({"selector": {"matchLabels": {"tier": "b"}}, "parameterNotFoundAction": "Deny"})),
            None,
        ),
        (
            map.clone(),
            reference(json!({"selector": {"matchLabels": {"tier": "a"}}, "parameterNotFoundAction": "Deny"})),
            Some("failed expression"),
        ),
        (
            map.clone(),
            reference(json!({"selector": {"matchLabels": {"tier": "c"}}, "parameterNotFoundAction": "Deny"})),
            Some(missing),
        ),
        (
            json!({"apiVersion": "v1", "kind": "Node"}),
            reference(json!({"name": "x", "namespace": "y"})),
            Some("paramRef.namespace must not be provided"),
        ),
        (
            json!({"apiVersion": "a.io/v1", "kind": "X"}),
            reference(json!({"name": "x"})),
            Some("paramKind kind `a.io/v1, Kind=X` not known"),
        ),
    ];
    for (kind, binding, wanted) in table {
        let result = run(spec(kind.clone()), binding.clone()).await;
        match wanted {
            None => assert!(result.is_ok(), "{kind} {binding}: {result:?}"),
            Some(text) => {
                let rejection = result.unwrap_err();
                assert!(rejection.message.contains(text), "{kind} {binding}: {rejection}");
            }
        }
    }
    let cluster = Facts { namespace: String::new(), namespace_object: None, ..facts() };
    let binding = binding(reference(json!({"name": "big"})));
    let rejection = run_on(&policy(spec(map)), &[binding], &cluster, &deployment()).await.unwrap_err();
    assert!(rejection.message.contains("cannot use namespaced paramRef"), "{rejection}");
}

#[tokio::test]
async fn bindings_narrow() {
    let deny = || rule("false");
    let resources = |r: Value| json!({"matchResources": r});
    let excluded = json!({"excludeResourceRules": [{"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "operations": ["CREATE"], "scope": "*"}]});
    let table = [
        (json!({}), true),
        (resources(json!({"namespaceSelector": {"matchLabels": {"env": "prod"}}})), true),
        (resources(json!({"namespaceSelector": {"matchLabels": {"env": "test"}}})), false),
        (resources(json!({"objectSelector": {"matchLabels": {"app": "db"}}})), false),
        (resources(excluded), false),
    ];
    for (binding, asked) in table {
        assert_eq!(run(deny(), binding.clone()).await.is_err(), asked, "{binding}");
    }
    assert!(run_on(&policy(deny()), &[], &facts(), &deployment()).await.is_ok(), "without a binding, a policy is idle");
}
