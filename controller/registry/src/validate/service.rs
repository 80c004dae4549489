//! (being written)
use crate::field::{FieldErrors, Path};
use serde_json::Value;
pub(crate) fn service(_n: &Value, _e: &mut FieldErrors) {}
pub(crate) fn service_update(_n: &Value, _o: &Value, _e: &mut FieldErrors) {}
