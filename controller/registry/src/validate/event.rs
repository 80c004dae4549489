//! Events: an event lives in the namespace of what it is about.

use crate::field::{FieldErrorType, FieldErrors, Path};
use crate::json::{has, text};
use serde_json::Value;

/// Bytes of `note` and, for us, of `message`.
const NOTE_LIMIT: usize = 1024;

pub(crate) fn core(o: &Value, errors: &mut FieldErrors) {
    namespace(o, "involvedObject", errors);
    if has(o, "eventTime") {
        reported(o, "reportingComponent", errors);
    }
}

pub(crate) fn events(o: &Value, errors: &mut FieldErrors) {
    namespace(o, "regarding", errors);
    if has(o, "eventTime") {
        reported(o, "reportingController", errors);
    } else if !has(o, "deprecatedFirstTimestamp") {
        // An event that was written through core/v1 has no eventTime and may still be updated here.
        errors.required(&Path::new("eventTime"), "");
    }
    if text(o, "note").len() > NOTE_LIMIT {
        let detail = format!("may not be more than {NOTE_LIMIT} bytes");
        errors.push(FieldErrorType::TooLong, &Path::new("note"), None, detail);
    }
}

fn namespace(o: &Value, about: &str, errors: &mut FieldErrors) {
    let own = text(o, "metadata.namespace");
    let other = text(&o[about], "namespace");
    let fits = if other.is_empty() { matches!(own, "" | "default" | "kube-system") } else { own == other };
    if !fits {
        errors.invalid(&Path::new(about).child("namespace"), other, "does not match event.namespace");
    }
}

fn reported(o: &Value, controller: &str, errors: &mut FieldErrors) {
    for key in [controller, "reportingInstance", "action", "reason"] {
        if text(o, key).is_empty() {
            errors.required(&Path::new(key), "");
        }
    }
    if !matches!(text(o, "type"), "Normal" | "Warning") {
        errors.invalid(&Path::new("type"), text(o, "type"), "has invalid value: ");
    }
}
