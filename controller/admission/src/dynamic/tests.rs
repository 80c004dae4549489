//! Configuration that is put into force and swapped.

use super::*;
use crate::admission_request::tests::{deployment, facts};
use crate::admission_request::{Gvr, User};
use crate::expressions::{Attributes, Decision};
use crate::webhooks::{CallError, Target};
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use std::time::Duration;

struct Nobody;

impl Authorizer for Nobody {
    fn authorize(&self, _: &User, _: &Attributes) -> Result<Decision, String> {
        Ok(Decision::default())
    }
}

#[async_trait]
impl Parameters for Nobody {
    async fn namespaced(&self, _: &str, _: &str) -> Option<bool> {
        None
    }

    async fn get(&self, _: &str, _: &str, _: &str, _: &str) -> Result<Option<Value>, String> {
        Ok(None)
    }

    async fn list(&self, _: &str, _: &str, _: &str) -> Result<Vec<Value>, String> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl Caller for Nobody {
    async fn call(&self, target: &Target, _: Bytes, _: Duration) -> Result<Bytes, CallError> {
        Err(CallError::Connection(format!("{target:?}")))
    }
}

fn dynamic() -> Dynamic {
    Dynamic::new(Arc::new(Nobody), Arc::new(Nobody), Arc::new(Nobody))
}

fn rules(resource: &str) -> Value {
    json!([{"apiGroups": ["*"], "apiVersions": ["*"], "resources": [resource], "operations": ["*"], "scope": "*"}])
}

fn webhook(kind: &str, name: &str, resource: &str) -> Value {
    json!({"kind": kind, "metadata": {"name": name, "uid": name, "resourceVersion": "1"}, "webhooks": [{
        "name": format!("{name}.example.com"), "sideEffects": "None", "rules": rules(resource),
        "clientConfig": {"service": {"namespace": "hooks", "name": name}}}]})
}

fn policy(name: &str, resource: &str) -> [Value; 2] {
    [
        json!({"kind": "ValidatingAdmissionPolicy", "metadata": {"name": name, "uid": name, "resourceVersion": "1"},
               "spec": {"matchConstraints": {"resourceRules": rules(resource)}, "validations": [{"expression": "false"}]}}),
        json!({"kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "b"},
               "spec": {"policyName": name, "validationActions": ["Deny"]}}),
    ]
}

async fn both(dynamic: &Dynamic, facts: Facts) -> [Option<String>; 2] {
    let mut object = deployment();
    let mutated = dynamic.mutate(&facts, &mut object, &Value::Null, &mut |_| Ok(())).await;
    let validated = dynamic.validate(&Arc::new(facts), &object, &Value::Null).await;
    [mutated.err().map(|r| r.message), validated.err().map(|r| r.message)]
}

#[tokio::test]
async fn what_is_configured_is_in_force() {
    let dynamic = dynamic();
    assert!(!dynamic.concerns(&facts()));
    assert_eq!(both(&dynamic, facts()).await, [None, None]);

    let mut all = vec![
        webhook("MutatingWebhookConfiguration", "m", "deployments"),
        webhook("ValidatingWebhookConfiguration", "v", "deployments"),
        json!({"kind": "ConfigMap", "metadata": {"name": "other"}}),
    ];
    dynamic.configure(&all).unwrap();
    assert!(dynamic.concerns(&facts()));
    let [mutated, validated] = both(&dynamic, facts()).await;
    assert!(mutated.unwrap().contains("failed calling webhook \"m.example.com\""));
    assert!(validated.unwrap().contains("failed calling webhook \"v.example.com\""));

    all.extend(policy("p", "deployments"));
    dynamic.configure(&all).unwrap();
    let [_, validated] = both(&dynamic, facts()).await;
    assert!(validated.unwrap().contains("ValidatingAdmissionPolicy 'p' with binding 'b' denied request"));

    let other = Facts { resource: Gvr::new("", "v1", "pods"), ..facts() };
    assert!(!dynamic.concerns(&other));
    assert_eq!(both(&dynamic, other).await, [None, None]);

    dynamic.configure(&[]).unwrap();
    assert_eq!(both(&dynamic, facts()).await, [None, None]);
}

#[tokio::test]
async fn configuration_can_always_be_repaired() {
    let dynamic = dynamic();
    let mut all =
        vec![webhook("MutatingWebhookConfiguration", "m", "*"), webhook("ValidatingWebhookConfiguration", "v", "*")];
    all.extend(policy("p", "*"));
    dynamic.configure(&all).unwrap();
    let resource = Gvr::new("admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations");
    assert_eq!(both(&dynamic, Facts { resource, ..facts() }).await, [None, None]);
}

#[tokio::test]
async fn what_is_unchanged_is_not_compiled_again() {
    let dynamic = dynamic();
    let [mut rules, binding] = policy("p", "deployments");
    dynamic.configure(&[rules.clone(), binding.clone()]).unwrap();
    let first = Arc::clone(&dynamic.relevant(&facts()).policies[0].0);
    dynamic.configure(&[binding.clone(), rules.clone()]).unwrap();
    assert!(Arc::ptr_eq(&first, &dynamic.relevant(&facts()).policies[0].0));
    rules["metadata"]["resourceVersion"] = json!("2");
    rules["spec"]["validations"][0]["expression"] = json!("true");
    dynamic.configure(&[rules, binding]).unwrap();
    assert!(!Arc::ptr_eq(&first, &dynamic.relevant(&facts()).policies[0].0));
    assert_eq!(both(&dynamic, facts()).await, [None, None]);
}

#[tokio::test]
async fn webhooks_are_in_the_order_of_their_configurations() {
    let dynamic = dynamic();
    let all: Vec<Value> = ["b", "c", "a"].iter().map(|n| webhook("MutatingWebhookConfiguration", n, "*")).collect();
    dynamic.configure(&all).unwrap();
    let names: Vec<String> = dynamic.relevant(&facts()).mutating.iter().map(|h| h.configuration.clone()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}
