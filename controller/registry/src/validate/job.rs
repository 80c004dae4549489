//! (being written)
use crate::field::{FieldErrors, Path};
use serde_json::Value;
pub(crate) fn job(_n: &Value, _e: &mut FieldErrors) {}
pub(crate) fn job_update(_n: &Value, _o: &Value, _e: &mut FieldErrors) {}
pub(crate) fn cron_job(_n: &Value, _e: &mut FieldErrors) {}
