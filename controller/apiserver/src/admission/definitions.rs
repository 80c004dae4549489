//! CustomResourceDefinitions keep a finalizer until their objects are gone.

use serde_json::Value;

/// The finalizer of a definition whose objects are not deleted yet.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// A definition stays until its objects are gone.
pub fn protect(definition: &mut Value) {
    let finalizers = definition.pointer("/metadata/finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        let mut finalizers = finalizers;
        finalizers.push(FINALIZER.into());
        definition["metadata"]["finalizers"] = finalizers.into();
    }
}
