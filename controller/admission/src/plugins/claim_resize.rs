//! PersistentVolumeClaimResize: claims grow only when they are bound and their class allows it.
//!
//! In: a changed claim, its storage class. Out: a refusal.

use crate::quantity::Quantity;
use crate::quota::storage_class;
use crate::read::{at, text};
use crate::request::{Facts, Operation};
use serde_json::Value;

const REFUSED: &str = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc \
                       must support resize";

/// Whether a request is to be decided on: updates of claims themselves.
pub fn concerns(facts: &Facts<'_>) -> bool {
    let what = (facts.group, facts.resource, facts.subresource, facts.operation);
    what == ("", "persistentvolumeclaims", "", Operation::Update)
}

/// What is to be asked of whom: `Ok(None)` when the claim does not grow, `Ok(Some(class))` when the class of that name
/// is to be looked up and given to [`allowed`].
pub fn class_to_ask<'a>(new: &'a Value, old: &Value) -> Result<Option<&'a str>, String> {
    let size = |claim| match at(claim, "spec.resources.requests.storage") {
        Value::Null => Ok(Quantity::ZERO),
        value => Quantity::of(value).ok_or("malformed quantity of storage"),
    };
    if size(new)? <= size(old)? {
        return Ok(None);
    }
    if text(old, "status.phase") != "Bound" {
        return Err("Only bound persistent volume claims can be expanded".to_owned());
    }
    let class = storage_class(new);
    if class.is_empty() || class != storage_class(old) { Err(REFUSED.to_owned()) } else { Ok(Some(class)) }
}

/// Whether a class, if there is one, lets claims grow.
pub fn allowed(class: Option<&Value>) -> Result<(), String> {
    let allows = class.is_some_and(|class| at(class, "allowVolumeExpansion") == &Value::Bool(true));
    if allows { Ok(()) } else { Err(REFUSED.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(size: &str, class: &str, phase: &str) -> Value {
        let spec = json!({"storageClassName": class, "resources": {"requests": {"storage": size}}});
        json!({"spec": spec, "status": {"phase": phase}})
    }

    #[test]
    fn who_may_grow() {
        let old = claim("1Gi", "fast", "Bound");
        let ask = |new: &Value, old: &Value| class_to_ask(new, old).map(|c| c.map(str::to_owned));
        assert_eq!(ask(&claim("1024Mi", "fast", ""), &old), Ok(None));
        assert_eq!(ask(&claim("1Mi", "fast", ""), &old), Ok(None));
        assert_eq!(ask(&claim("2Gi", "fast", ""), &old), Ok(Some("fast".into())));
        assert_eq!(ask(&claim("2Gi", "slow", ""), &old), Err(REFUSED.into()));
        assert_eq!(ask(&claim("2Gi", "", "Bound"), &claim("1Gi", "", "Bound")), Err(REFUSED.into()));
        let pending = claim("1Gi", "fast", "Pending");
        let why = "Only bound persistent volume claims can be expanded";
        assert_eq!(ask(&claim("2Gi", "fast", "Bound"), &pending), Err(why.into()), "the old phase counts");
        assert!(ask(&claim("lots", "fast", ""), &old).is_err());
        assert!(allowed(Some(&json!({"allowVolumeExpansion": true}))).is_ok());
        for class in [None, Some(json!({})), Some(json!({"allowVolumeExpansion": false}))] {
            assert_eq!(allowed(class.as_ref()), Err(REFUSED.into()));
        }
    }
}
