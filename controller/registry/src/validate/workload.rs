//! (being written)
use crate::field::{FieldErrors, Path};
use serde_json::Value;
pub(crate) fn deployment(_n: &Value, _e: &mut FieldErrors) {}
pub(crate) fn selector_is_immutable(_n: &Value, _o: &Value, _e: &mut FieldErrors) {}
pub(crate) fn replica_set(_n: &Value, _e: &mut FieldErrors) {}
pub(crate) fn stateful_set(_n: &Value, _e: &mut FieldErrors) {}
pub(crate) fn stateful_set_update(_n: &Value, _o: &Value, _e: &mut FieldErrors) {}
pub(crate) fn daemon_set(_n: &Value, _e: &mut FieldErrors) {}
pub(crate) fn int_or_percent(_n: &Value, _p: &Path, _e: &mut FieldErrors) {}
