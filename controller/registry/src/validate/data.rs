//! (being written)
use crate::field::{FieldErrors, Path};
use serde_json::Value;
pub(crate) fn config_map(_n: &Value, _e: &mut FieldErrors) {}
pub(crate) fn immutable(_n: &Value, _o: &Value, _e: &mut FieldErrors) {}
pub(crate) fn secret(_n: &Value, _e: &mut FieldErrors) {}
pub(crate) fn secret_update(_n: &Value, _o: &Value, _e: &mut FieldErrors) {}
