//! (being written)
use crate::field::{FieldErrors, Path};
use serde_json::Value;
pub(crate) fn volume(_n: &Value, _e: &mut FieldErrors) {}
pub(crate) fn volume_update(_n: &Value, _o: &Value, _e: &mut FieldErrors) {}
pub(crate) fn claim(_n: &Value, _e: &mut FieldErrors) {}
pub(crate) fn claim_update(_n: &Value, _o: &Value, _e: &mut FieldErrors) {}
