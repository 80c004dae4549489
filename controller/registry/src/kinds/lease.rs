//! coordination.k8s.io/v1 Lease: who leads, and which node is alive.

use crate::field::{FieldErrors, Path};
use crate::json::{int, text};
use crate::rules::{Kind, Rules};
use crate::{Resource, age, cell};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("coordination.k8s.io", "v1", "Lease", "leases")
        .columns(&[("Name", "string", 0), ("Holder", "string", 0), ("Age", "string", 0)])
        .rules(Rules { validate, cells, ..Rules::default() })
}

fn validate(o: &Value, errors: &mut FieldErrors) {
    let spec = Path::new("spec");
    if let Some(n) = int(o, "spec.leaseDurationSeconds").filter(|n| *n <= 0) {
        errors.invalid(&spec.child("leaseDurationSeconds"), n, "must be greater than 0");
    }
    if let Some(n) = int(o, "spec.leaseTransitions").filter(|n| *n < 0) {
        errors.invalid(&spec.child("leaseTransitions"), n, "must be greater than or equal to 0");
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![cell::name(o), json!(text(o, "spec.holderIdentity")), age::age(o, now)]
}
