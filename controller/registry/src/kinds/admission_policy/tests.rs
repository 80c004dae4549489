//! Policies and bindings: defaults and what is refused.

use super::*;

fn good() -> Value {
    json!({"metadata": {"name": "replicas.example.com"}, "spec": {
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": {"resourceRules": [
            {"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"], "operations": ["CREATE"]}]},
        "matchConditions": [{"name": "c", "expression": "request.userInfo.username != 'x' && params != null"}],
        "variables": [{"name": "max", "expression": "int(params.data.max)"}, {"name": "half", "expression": "variables.max / 2"}],
        "validations": [{"expression": "object.spec.replicas <= variables.half", "reason": "Forbidden",
                         "messageExpression": "'at most ' + string(variables.half)"}],
        "auditAnnotations": [{"key": "replicas", "valueExpression": "string(object.spec.replicas)"}]
    }})
}

fn words(check: fn(&Value, &mut FieldErrors), o: &Value) -> Vec<String> {
    let mut errors = FieldErrors::default();
    check(o, &mut errors);
    errors.0.iter().map(ToString::to_string).collect()
}

#[test]
fn policies() {
    let mut o = good();
    policy_defaults(&mut o);
    assert_eq!(words(policy, &o), Vec::<String>::new());
    assert_eq!(o["spec"]["failurePolicy"], "Fail");
    let constraints = &o["spec"]["matchConstraints"];
    assert_eq!((&constraints["matchPolicy"], &constraints["objectSelector"]), (&json!("Equivalent"), &json!({})));
    assert_eq!(constraints["resourceRules"][0]["scope"], "*");
    let table = [
        ("matchConstraints", Value::Null, "spec.matchConstraints: Required value"),
        ("matchConstraints", json!({}), "spec.matchConstraints.resourceRules: Required value"),
        ("paramKind", json!({"apiVersion": "a/b/c", "kind": "X"}), "spec.paramKind.apiVersion: Invalid value"),
        (
            "paramKind",
            Value::Null,
            "spec.matchConditions[0].expression: Invalid value: \"request.userInfo.username != 'x' && params != null\": compilation failed: undeclared reference to 'params'",
        ),
        (
            "variables",
            json!([{"name": "a-b", "expression": "1"}]),
            "spec.variables[0].name: Invalid value: \"a-b\": name is not a valid CEL identifier",
        ),
        (
            "variables",
            json!([{"name": "half", "expression": "variables.max"}, {"name": "max", "expression": "1"}]),
            "spec.variables[0].expression: Invalid value: \"variables.max\": compilation failed: undefined field 'max'",
        ),
        (
            "variables",
            json!([{"name": "half", "expression": "1"}, {"name": "half", "expression": "1"}]),
            "spec.variables[1].name: Duplicate value",
        ),
        (
            "validations",
            json!([{"expression": " "}]),
            "spec.validations[0].expression: Required value: expression is not specified",
        ),
        (
            "validations",
            json!([{"expression": "true", "message": "a\nb"}]),
            "spec.validations[0].message: Invalid value",
        ),
        (
            "validations",
            json!([{"expression": "true", "reason": "Gone"}]),
            "spec.validations[0].reason: Unsupported value",
        ),
        (
            "validations",
            json!([{"expression": "true", "messageExpression": "authorizer.path('/x').check('get').reason()"}]),
            "spec.validations[0].messageExpression: Invalid value",
        ),
        (
            "validations",
            json!([{"expression": "authorizer.group('').resource('pods').fieldSelector('a=b').check('get').allowed()"}]),
            "spec.validations[0].expression: Invalid value",
        ),
        (
            "auditAnnotations",
            json!([{"key": "", "valueExpression": "''"}]),
            "spec.auditAnnotations[0].key: Invalid value",
        ),
        (
            "auditAnnotations",
            json!([{"key": "a", "valueExpression": "x".repeat(6000)}]),
            "spec.auditAnnotations[0].valueExpression: Required value: must not exceed 5120",
        ),
        ("failurePolicy", json!("Maybe"), "spec.failurePolicy: Unsupported value"),
    ];
    for (key, value, wanted) in table {
        let mut o = good();
        o["spec"][key] = value.clone();
        policy_defaults(&mut o);
        let words = words(policy, &o);
        assert!(words.iter().any(|w| w.starts_with(wanted)), "{key} {value}: {words:?}");
    }
    let mut empty = good();
    empty["spec"]["validations"] = json!([]);
    empty["spec"]["auditAnnotations"] = json!([]);
    policy_defaults(&mut empty);
    assert_eq!(words(policy, &empty).len(), 2);
    let mut many = good();
    many["spec"]["validations"] = json!(vec![json!({"expression": "true"}); 1001]);
    policy_defaults(&mut many);
    assert!(words(policy, &many)[0].starts_with("spec: Too many: must have at most 1000 expressions"));
}

#[test]
fn bindings() {
    let good = json!({"spec": {"policyName": "p", "validationActions": ["Deny", "Audit"], "matchResources": {},
        "paramRef": {"name": "x", "namespace": "y", "parameterNotFoundAction": "Deny"}}});
    let mut o = good.clone();
    binding_defaults(&mut o);
    assert_eq!(words(binding, &o), Vec::<String>::new());
    assert_eq!(binding_cells(&o, 0)[2], "y/x");
    let table = [
        ("policyName", json!(""), "spec.policyName: Required value"),
        ("validationActions", json!([]), "spec.validationActions: Required value: at least one"),
        ("validationActions", json!(["Deny", "Warn"]), "spec.validationActions: Invalid value"),
        ("validationActions", json!(["Audit", "Audit"]), "spec.validationActions[1]: Duplicate value"),
        ("validationActions", json!(["Log"]), "spec.validationActions[0]: Unsupported value"),
        (
            "paramRef",
            json!({"parameterNotFoundAction": "Deny"}),
            "spec.paramRef: Required value: one of name or selector",
        ),
        (
            "paramRef",
            json!({"name": "a", "selector": {}, "parameterNotFoundAction": "Deny"}),
            "spec.paramRef.selector: Forbidden",
        ),
        ("paramRef", json!({"name": "a"}), "spec.paramRef.parameterNotFoundAction: Required value"),
        (
            "paramRef",
            json!({"name": "a", "parameterNotFoundAction": "Ask"}),
            "spec.paramRef.parameterNotFoundAction: Unsupported value",
        ),
    ];
    for (key, value, wanted) in table {
        let mut o = good.clone();
        o["spec"][key] = value.clone();
        binding_defaults(&mut o);
        let words = words(binding, &o);
        assert!(words.iter().any(|w| w.starts_with(wanted)), "{key} {value}: {words:?}");
    }
}

#[test]
fn a_policy_has_a_status() {
    let all = resources();
    assert!(all[0].status && !all[1].status);
    let schema = causeway_schema::builtin(GROUP, "v1", "ValidatingAdmissionPolicy").unwrap();
    assert!(schema.child("status").is_some() && schema.child("spec").is_some());
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration", "ValidatingAdmissionPolicyBinding"] {
        assert!(causeway_schema::builtin(GROUP, "v1", kind).is_some(), "{kind}");
    }
}
