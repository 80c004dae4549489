//! (being written)
use crate::field::{FieldErrors, Path};
use serde_json::Value;
pub(crate) fn endpoints(_n: &Value, _e: &mut FieldErrors) {}
pub(crate) fn slice(_n: &Value, _e: &mut FieldErrors) {}
pub(crate) fn slice_update(_n: &Value, _o: &Value, _e: &mut FieldErrors) {}
