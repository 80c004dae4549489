//! (being written)
use crate::field::{FieldErrors, Path};
use serde_json::Value;
pub(crate) fn pod_update(_n: &Value, _o: &Value, _e: &mut FieldErrors) {}
