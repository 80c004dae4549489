//! Jobs and CronJobs.

use super::workload::{not_negative, one_of, template};
use crate::field::{FieldErrorType, FieldErrors, Path};
use crate::json::{at, has, int, same, text, truth};
use serde_json::Value;

/// A CronJob's Jobs get eleven characters more.
const CRON_NAME_LIMIT: usize = 52;
const COUNTS: [&str; 4] = ["parallelism", "completions", "backoffLimit", "ttlSecondsAfterFinished"];

pub(crate) fn job(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    job_spec(spec, &path, errors);
    if truth(spec, "manualSelector") && !has(spec, "selector") {
        errors.required(&path.child("selector"), "");
    }
}

fn job_spec(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    not_negative(spec, &COUNTS, path, errors);
    not_negative(spec, &["activeDeadlineSeconds"], path, errors);
    match text(spec, "completionMode") {
        "" | "NonIndexed" => {}
        "Indexed" if !has(spec, "completions") => {
            errors.required(&path.child("completions"), "when completion mode is Indexed");
        }
        "Indexed" => {}
        other => errors.not_supported(&path.child("completionMode"), other, &["Indexed", "NonIndexed"]),
    }
    let pods = at(spec, "template");
    template(pods, &path.child("template"), errors);
    let path = path.child("template").child("spec").child("restartPolicy");
    match text(pods, "spec.restartPolicy") {
        "OnFailure" | "Never" => {}
        "" => errors.required(&path, "valid values: \"OnFailure\", \"Never\""),
        other => {
            let detail = "valid values: \"OnFailure\", \"Never\"";
            if other == "Always" {
                errors.required(&path, detail);
            }
        }
    }
}

pub(crate) fn job_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    let suspended = truth(old, "spec.suspend") && !has(old, "status.startTime");
    let indexed =
        text(old, "spec.completionMode") == "Indexed" && int(new, "spec.completions") == int(new, "spec.parallelism");
    for key in ["completions", "selector", "template", "completionMode", "podFailurePolicy"] {
        if key == "template" && suspended || key == "completions" && indexed {
            continue;
        }
        if !same(&new["spec"][key], &old["spec"][key]) {
            errors.invalid(&path.child(key), new["spec"][key].clone(), "field is immutable");
        }
    }
}

pub(crate) fn cron_job(o: &Value, errors: &mut FieldErrors) {
    let (spec, path) = (at(o, "spec"), Path::new("spec"));
    let schedule = text(spec, "schedule");
    if schedule.is_empty() {
        errors.required(&path.child("schedule"), "");
    } else if let Err(why) = cron(schedule) {
        errors.invalid(&path.child("schedule"), schedule, why);
    }
    one_of(spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], &path, errors);
    let counts = ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"];
    not_negative(spec, &counts, &path, errors);
    job_spec(at(spec, "jobTemplate.spec"), &path.child("jobTemplate").child("spec"), errors);
    if text(o, "metadata.name").len() > CRON_NAME_LIMIT {
        let path = Path::new("metadata").child("name");
        let detail = format!("must be no more than {CRON_NAME_LIMIT} characters");
        errors.push(FieldErrorType::Invalid, &path, Some(at(o, "metadata.name").clone()), detail);
    }
}

/// Five fields, or a word such as `@hourly`, or `@every 5m`.
fn cron(schedule: &str) -> Result<(), String> {
    if let Some(word) = schedule.strip_prefix('@') {
        let known = matches!(word, "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly");
        let every = word.strip_prefix("every ").is_some_and(|d| d.ends_with(['s', 'm', 'h']));
        return if known || every { Ok(()) } else { Err(format!("unrecognized descriptor: {schedule}")) };
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: {fields:?}", fields.len()));
    }
    const MONTHS: &str = "jan feb mar apr may jun jul aug sep oct nov dec";
    const DAYS: &str = "sun mon tue wed thu fri sat";
    let ranges = [(0, 59, ""), (0, 23, ""), (1, 31, ""), (1, 12, MONTHS), (0, 6, DAYS)];
    fields.iter().zip(ranges).try_for_each(|(field, range)| cron_field(field, range))
}

fn cron_field(field: &str, (low, high, words): (u32, u32, &str)) -> Result<(), String> {
    let number = |text: &str| {
        let word = words.split(' ').position(|w| !w.is_empty() && w == text.to_lowercase());
        let n = match word {
            Some(i) => low + u32::try_from(i).unwrap_or(0),
            None => text.parse().map_err(|_| format!("failed to parse int from {text}"))?,
        };
        if n < low {
            return Err(format!("beginning of range ({n}) below minimum ({low}): {field}"));
        }
        if n > high {
            return Err(format!("end of range ({n}) above maximum ({high}): {field}"));
        }
        Ok(n)
    };
    for part in field.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
        if step.is_some_and(|s| s.parse::<u32>().ok().is_none_or(|n| n == 0)) {
            return Err(format!("step of range should be a positive number: {field}"));
        }
        if matches!(range, "*" | "?") {
            continue;
        }
        match range.split_once('-') {
            None => {
                number(range)?;
            }
            Some((from, to)) => {
                let (from, to) = (number(from)?, number(to)?);
                if from > to {
                    return Err(format!("beginning of range ({from}) beyond end of range ({to}): {field}"));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0-6 1,15 jan-mar MON", "@hourly", "@every 5m", "0 22 * * 1-5"] {
            assert_eq!(cron(good), Ok(()), "{good}");
        }
        for bad in ["* * * *", "60 * * * *", "* * 0 * *", "*/0 * * * *", "5-1 * * * *", "@sometimes", "a * * * *"] {
            assert!(cron(bad).is_err(), "{bad}");
        }
    }
}
