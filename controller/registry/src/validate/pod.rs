//! (being written)
use crate::field::{FieldErrors, Path};
use serde_json::Value;
pub(crate) fn pod(_n: &Value, _e: &mut FieldErrors) {}
