//! Webhooks: answers, failures, order, and calls over TLS.

use super::review::{answer, question, refusal};
use super::*;
use crate::admission_request::tests::{deployment, facts};
use crate::admission_request::{Equivalent, Facts, Gvk, Gvr, Operation, Outcome, Rejection, User};
use crate::expressions::{Attributes, Decision};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::json;
use std::sync::Mutex;

mod tls;

struct AllowAll;

impl Authorizer for AllowAll {
    fn authorize(&self, user: &User, attributes: &Attributes) -> Result<Decision, String> {
        Ok(Decision { allowed: user.username == "alice" && attributes.verb != "delete", reason: String::new() })
    }
}

type Reply = dyn Fn(&str, &Value) -> Result<Value, CallError> + Send + Sync;

/// Answers by the webhook's service name, and remembers what was asked.
struct Fake {
    reply: Box<Reply>,
    asked: Mutex<Vec<(String, Value)>>,
}

#[async_trait]
impl Caller for Fake {
    async fn call(&self, target: &Target, body: Bytes, _: Duration) -> Result<Bytes, CallError> {
        let Place::Service { name, .. } = &target.place else { panic!("services only") };
        let review: Value = serde_json::from_slice(&body).unwrap();
        self.asked.lock().unwrap().push((name.clone(), review.clone()));
        let mut response = (self.reply)(name, &review["request"])?;
        if response["uid"].is_null() {
            response["uid"] = review["request"]["uid"].clone();
        }
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        Ok(review.to_string().into())
    }
}

fn environment(
    reply: impl Fn(&str, &Value) -> Result<Value, CallError> + Send + Sync + 'static,
) -> (Arc<Fake>, Environment) {
    let fake = Arc::new(Fake { reply: Box::new(reply), asked: Mutex::default() });
    (Arc::clone(&fake), Environment { caller: fake, authorizer: Arc::new(AllowAll) })
}

fn hook(name: &str, more: Value) -> Value {
    let mut hook = json!({
        "name": format!("{name}.example.com"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": {"namespace": "hooks", "name": name, "path": "/admit"}},
        "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "operations": ["*"], "scope": "*"}],
    });
    for (key, value) in more.as_object().unwrap() {
        hook[key] = value.clone();
    }
    hook
}

fn hooks(list: &[Value]) -> Vec<Arc<Webhook>> {
    let configuration = json!({"metadata": {"name": "all"}, "webhooks": list});
    causeway_schema::cel::on_a_big_stack(|| Webhook::read_all(&configuration)).unwrap()
}

fn patch(operations: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())})
}

async fn run_mutate(
    list: &[Value],
    env: &Environment,
    facts: &Facts,
    object: &mut Value,
) -> Result<Outcome, Rejection> {
    mutate(&hooks(list), env, facts, object, &Value::Null, &mut |_| Ok(())).await
}

#[test]
fn questions_are_complete() {
    let mut facts = facts();
    facts.operation = Operation::Update;
    facts.dry_run = true;
    facts.options = json!({"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1"});
    let matched = Equivalent {
        resource: Gvr::new("apps", "v1beta1", "deployments"),
        kind: Gvk::new("apps", "v1beta1", "Deployment"),
    };
    let body = question("u1", &facts, &matched, &json!({"a": 1}), &json!({"a": 0}));
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        body,
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
                "uid": "u1",
                "kind": {"group": "apps", "version": "v1beta1", "kind": "Deployment"},
                "resource": {"group": "apps", "version": "v1beta1", "resource": "deployments"},
                "requestKind": {"group": "apps", "version": "v1", "kind": "Deployment"},
                "requestResource": {"group": "apps", "version": "v1", "resource": "deployments"},
                "name": "web", "namespace": "shop", "operation": "UPDATE", "dryRun": true,
                "userInfo": {"username": "alice", "groups": ["dev"]},
                "object": {"a": 1}, "oldObject": {"a": 0},
                "options": {"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1"},
            }
        })
    );
}

#[test]
fn answers_are_read_strictly() {
    let review =
        |response: Value| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    let good = answer(
        review(json!({"uid": "u", "allowed": true, "warnings": ["w"], "auditAnnotations": {"a": "b"}}))
            .to_string()
            .as_bytes(),
        "u",
        true,
    )
    .unwrap();
    assert!(good.allowed && good.patch.is_null() && good.warnings == ["w"] && good.audit["a"] == "b");
    let encoded = STANDARD.encode(r#"[{"op":"remove","path":"/x"}]"#);
    let table = [
        (json!({}), true, "webhook response was absent"),
        (review(json!({"uid": "v", "allowed": true})), true, "expected response.uid=\"u\", got \"v\""),
        (review(json!({"allowed": true})), true, "expected response.uid=\"u\", got \"\""),
        (
            json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "response": {"uid": "u"}}),
            true,
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got admission.k8s.io/v1beta1, Kind=AdmissionReview",
        ),
        (
            review(json!({"uid": "u", "allowed": true, "patch": encoded})),
            true,
            "webhook returned response.patch but not response.patchType",
        ),
        (
            review(json!({"uid": "u", "allowed": true, "patchType": "JSONPatch"})),
            true,
            "webhook returned response.patchType but not response.patch",
        ),
        (
            review(json!({"uid": "u", "allowed": true, "patch": encoded, "patchType": "Merge"})),
            true,
            "unsupported patch type \"Merge\"",
        ),
        (
            review(json!({"uid": "u", "allowed": true, "patch": "%%%", "patchType": "JSONPatch"})),
            true,
            "received undecodable patch",
        ),
        (
            review(json!({"uid": "u", "allowed": true, "patch": STANDARD.encode("{}"), "patchType": "JSONPatch"})),
            true,
            "received undecodable patch",
        ),
        (
            review(json!({"uid": "u", "allowed": true, "patch": encoded, "patchType": "JSONPatch"})),
            false,
            "validating webhook may not return response.patch",
        ),
        (review(json!({"uid": "u", "allowed": "yes"})), true, "json parse error"),
        (json!([]), true, "json parse error"),
    ];
    for (body, mutating, wanted) in table {
        let error = answer(body.to_string().as_bytes(), "u", mutating).unwrap_err();
        assert!(error.contains(wanted), "{body}: {error}");
    }
    assert!(answer(&vec![b' '; MAX_RESPONSE + 1], "u", true).unwrap_err().contains("more than"));
    let refused = review(json!({"uid": "u", "allowed": false, "patch": "%%%", "patchType": "x"}));
    assert!(
        !answer(refused.to_string().as_bytes(), "u", true).unwrap().allowed,
        "a refusal is not lost over its patch"
    );
}

#[test]
fn refusals_read_as_those_of_kubernetes() {
    let table = [
        (Value::Null, 400, "", "admission webhook \"x.io\" denied the request without explanation"),
        (json!({"message": "no"}), 400, "", "admission webhook \"x.io\" denied the request: no"),
        (
            json!({"reason": "Forbidden", "code": 403}),
            403,
            "Forbidden",
            "admission webhook \"x.io\" denied the request: Forbidden",
        ),
        (json!({"message": "m", "code": 200}), 400, "", "admission webhook \"x.io\" denied the request: m"),
        (json!({"message": "m", "code": 99999}), 400, "", "admission webhook \"x.io\" denied the request: m"),
    ];
    for (status, code, reason, message) in table {
        let rejection = refusal("x.io", &status);
        assert_eq!((rejection.code, rejection.reason.as_str(), rejection.message.as_str()), (code, reason, message));
    }
}

#[tokio::test]
async fn patches_go_from_one_webhook_to_the_next() {
    let (fake, env) = environment(|name, request| {
        Ok(match name {
            "a" => patch(json!([{"op": "add", "path": "/metadata/labels/a", "value": "1"}])),
            "b" if request["object"]["metadata"]["labels"]["a"] == "1" => {
                patch(json!([{"op": "add", "path": "/metadata/labels/b", "value": "1"}]))
            }
            _ => json!({"allowed": true, "warnings": ["careful"], "auditAnnotations": {"k": "v"}}),
        })
    });
    let mut object = deployment();
    let list = [hook("a", json!({})), hook("b", json!({})), hook("c", json!({}))];
    let outcome = run_mutate(&list, &env, &facts(), &mut object).await.unwrap();
    assert_eq!(object["metadata"]["labels"], json!({"app": "web", "a": "1", "b": "1"}));
    assert!(outcome.changed);
    assert_eq!(outcome.warnings, ["careful"]);
    assert!(outcome.audit.contains(&("c.example.com/k".to_owned(), "v".to_owned())));
    let mutated = |name: &str| {
        outcome.audit.iter().any(|(_, v)| v.contains(&format!("{name}.example.com")) && v.contains("\"mutated\":true"))
    };
    assert!(mutated("a") && mutated("b") && !mutated("c"));
    assert_eq!(fake.asked.lock().unwrap().len(), 3);
}

/// Those that want it are called again, once, when something changed after their call, be it by a webhook or by what
/// runs between the rounds.
#[tokio::test]
async fn reinvocation() {
    let table = [
        // (hook that changes, what changes in between, calls)
        ("b", false, vec!["a", "b", "c", "a"]),
        ("a", false, vec!["a", "b", "c"]),
        ("a", true, vec!["a", "b", "c", "a"]),
        ("none", true, vec!["a", "b", "c"]),
    ];
    for (changer, between, calls) in table {
        let (fake, env) = environment(move |name, request| {
            Ok(if name == changer && request["object"]["metadata"]["labels"]["x"].is_null() {
                patch(json!([{"op": "add", "path": "/metadata/labels/x", "value": "1"}]))
            } else {
                json!({"allowed": true})
            })
        });
        let list = [hook("a", json!({"reinvocationPolicy": "IfNeeded"})), hook("b", json!({})), hook("c", json!({}))];
        let mut object = deployment();
        let mut other = |object: &mut Value| {
            if between {
                object["metadata"]["labels"]["y"] = json!("1");
            }
            Ok(())
        };
        mutate(&hooks(&list), &env, &facts(), &mut object, &Value::Null, &mut other).await.unwrap();
        let asked: Vec<String> = fake.asked.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(asked, calls, "{changer} {between}");
    }
}

#[tokio::test]
async fn failures() {
    let timeout = "Post \"https://x.hooks.svc:443/admit?timeout=10s\": context deadline exceeded";
    let table: [(&str, CallError, String); 2] = [
        (
            "Fail",
            CallError::Timeout,
            format!(
                "Internal error occurred: failed calling webhook \"x.example.com\": failed to call webhook: {timeout}"
            ),
        ),
        ("Ignore", CallError::Connection("no route".to_owned()), String::new()),
    ];
    for (policy, error, message) in table {
        let (_, env) = environment(move |_, _| Err(error.clone()));
        let list = [hook("x", json!({"failurePolicy": policy}))];
        for mutating in [true, false] {
            let mut object = deployment();
            let result = if mutating {
                run_mutate(&list, &env, &facts(), &mut object).await
            } else {
                validate(&hooks(&list), &env, &Arc::new(facts()), &object, &Value::Null).await
            };
            match result {
                Ok(outcome) => {
                    assert!(message.is_empty());
                    let open =
                        |(key, value): &(String, String)| key.starts_with("failed-open.") && value == "x.example.com";
                    assert!(outcome.audit.iter().any(open), "{:?}", outcome.audit);
                }
                Err(rejection) => assert_eq!((rejection.code, rejection.message), (500, message.clone())),
            }
        }
    }
}

/// A refusal, a patch that does not apply, and a patch that makes of the object something else are errors whatever the
/// failure policy.
#[tokio::test]
async fn what_no_failure_policy_excuses() {
    let big = "x".repeat(600_000);
    let table = [
        (
            json!({"allowed": false, "status": {"message": "no", "code": 403, "reason": "Forbidden"}}),
            403,
            "denied the request: no",
        ),
        (patch(json!([{"op": "remove", "path": "/nothing"}])), 500, "Internal error occurred"),
        (
            patch(json!([{"op": "replace", "path": "/kind", "value": "Secret"}])),
            500,
            "must not change apiVersion and kind",
        ),
        (patch(json!([{"op": "replace", "path": "", "value": []}])), 500, "must not change apiVersion and kind"),
        (
            patch(json!([{"op": "add", "path": "/a", "value": big}, {"op": "copy", "from": "/a", "path": "/b"},
                {"op": "copy", "from": "/a", "path": "/c"}, {"op": "copy", "from": "/a", "path": "/d"},
                {"op": "copy", "from": "/a", "path": "/e"}, {"op": "copy", "from": "/a", "path": "/f"}])),
            500,
            "bigger than",
        ),
    ];
    for (response, code, message) in table {
        let shown = response.to_string()[..60].to_owned();
        let (_, env) = environment(move |_, _| Ok(response.clone()));
        let mut object = deployment();
        let result = run_mutate(&[hook("x", json!({"failurePolicy": "Ignore"}))], &env, &facts(), &mut object).await;
        let rejection = result.unwrap_err();
        assert!(rejection.code == code && rejection.message.contains(message), "{shown}: {rejection:?}");
        assert_eq!(object, deployment());
    }
    let (_, env) = environment(|_, _| Ok(patch(json!([{"op": "add", "path": "/x", "value": 1}]))));
    let mut nothing = Value::Null;
    let rejection = run_mutate(&[hook("x", json!({}))], &env, &facts(), &mut nothing).await.unwrap_err();
    assert!(rejection.message.contains("attempted to modify the object"), "{rejection}");
}

#[tokio::test]
async fn dry_runs_have_no_side_effects() {
    for (side_effects, called) in [("None", true), ("NoneOnDryRun", true), ("Some", false), ("Unknown", false)] {
        let (fake, env) = environment(|_, request| {
            assert_eq!(request["dryRun"], true);
            Ok(json!({"allowed": true}))
        });
        let list = [hook("x", json!({"sideEffects": side_effects, "failurePolicy": "Ignore"}))];
        let facts = Facts { dry_run: true, ..facts() };
        let result = run_mutate(&list, &env, &facts, &mut deployment()).await;
        assert_eq!(fake.asked.lock().unwrap().len(), usize::from(called));
        match result {
            Ok(_) => assert!(called),
            Err(rejection) => {
                assert_eq!(rejection.code, 400);
                assert_eq!(rejection.message, "admission webhook \"x.example.com\" does not support dry run");
            }
        }
    }
}

#[tokio::test]
async fn match_conditions() {
    let condition = |expression: &str| json!([{"name": "c", "expression": expression}]);
    let table = [
        ("object.spec.replicas > 2", "Fail", Ok(1)),
        ("object.spec.replicas > 3", "Fail", Ok(0)),
        ("request.userInfo.username == 'alice' && request.operation == 'CREATE' && oldObject == null", "Fail", Ok(1)),
        ("authorizer.group('apps').resource('deployments').namespace('shop').check('create').allowed()", "Fail", Ok(1)),
        ("authorizer.requestResource.check('delete').allowed()", "Fail", Ok(0)),
        ("authorizer.serviceAccount('shop', 'web').group('').resource('pods').check('get').allowed()", "Fail", Ok(0)),
        ("object.spec.nothing > 3", "Ignore", Ok(0)),
        (
            "object.spec.nothing > 3",
            "Fail",
            Err(
                "deployments.apps \"web\" is forbidden: expression 'object.spec.nothing > 3' resulted in error: no such key: nothing",
            ),
        ),
        ("object.spec.(", "Ignore", Ok(0)),
        ("object.spec.(", "Fail", Err("Internal error occurred: failed calling webhook")),
    ];
    for (expression, policy, wanted) in table {
        let (fake, env) = environment(|_, _| Ok(json!({"allowed": true})));
        let list = [hook("x", json!({"matchConditions": condition(expression), "failurePolicy": policy}))];
        let result = validate(&hooks(&list), &env, &Arc::new(facts()), &deployment(), &Value::Null).await;
        match wanted {
            Ok(calls) => {
                assert!(result.is_ok(), "{expression}: {result:?}");
                assert_eq!(fake.asked.lock().unwrap().len(), calls, "{expression}");
            }
            Err(message) => {
                let rejection = result.unwrap_err();
                assert!(rejection.message.starts_with(message), "{expression}: {rejection}");
            }
        }
    }
}

#[tokio::test]
async fn validating_webhooks_run_together_and_the_first_refusal_counts() {
    let (fake, env) = environment(|name, _| {
        Ok(json!({"allowed": name == "a", "status": {"message": format!("{name} says no")}, "warnings": [name]}))
    });
    let list: Vec<Value> = ["a", "b", "c"].iter().map(|n| hook(n, json!({}))).collect();
    let result = validate(&hooks(&list), &env, &Arc::new(facts()), &deployment(), &Value::Null).await;
    assert_eq!(result.unwrap_err().message, "admission webhook \"b.example.com\" denied the request: b says no");
    assert_eq!(fake.asked.lock().unwrap().len(), 3);
}
