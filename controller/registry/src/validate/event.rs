//! (being written)
use crate::field::{FieldErrors, Path};
use serde_json::Value;
pub(crate) fn core(_n: &Value, _e: &mut FieldErrors) {}
pub(crate) fn events(_n: &Value, _e: &mut FieldErrors) {}
