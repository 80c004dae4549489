//! batch/v1 Job: pods that run to completion.

use crate::json::{fill, fill_zero, has, int, object_mut, put, text, truth};
use crate::rules::{Kind, Rules, Status};
use crate::validate::job;
use crate::{Resource, age, cell, defaults};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("batch", "v1", "Job", "jobs")
        .in_all()
        .columns(&[
            ("Name", "string", 0),
            ("Status", "string", 0),
            ("Completions", "string", 0),
            ("Duration", "string", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ])
        .rules(Rules {
            default,
            prepare,
            status: Status::Cleared(|_| json!({})),
            generation: true,
            validate: job::job,
            validate_update: job::job_update,
            warnings: |_| vec!["Jobs are stored, but not run yet".to_owned()],
            cells,
            fields: &[],
            field: |o, f| (f == "status.successful").then(|| int(o, "status.succeeded").unwrap_or(0).to_string()),
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    let Some(spec) = object_mut(o, "spec") else { return };
    if !has(spec, "completions") && !has(spec, "parallelism") {
        fill(spec, "completions", 1);
    }
    fill(spec, "parallelism", 1);
    fill(spec, "backoffLimit", if has(spec, "backoffLimitPerIndex") { i32::MAX } else { 6 });
    fill_zero(spec, "completionMode", "NonIndexed");
    fill(spec, "suspend", false);
    fill(spec, "manualSelector", false);
    let replacement = if has(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    fill_zero(spec, "podReplacementPolicy", replacement);
    if let Some(template) = object_mut(spec, "template") {
        defaults::pod::template(template);
    }
}

/// Unless told otherwise, a job's pods are found by the job's own uid.
fn prepare(new: &mut Value, old: Option<&Value>) {
    let uid = text(new, "metadata.uid").to_owned();
    let name = text(new, "metadata.name").to_owned();
    if old.is_some() || uid.is_empty() || truth(new, "spec.manualSelector") {
        return;
    }
    let Some(spec) = object_mut(new, "spec") else { return };
    let own = [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ];
    if let Some(labels) =
        object_mut(spec, "template").and_then(|t| object_mut(t, "metadata")).and_then(|m| object_mut(m, "labels"))
    {
        own.iter().for_each(|(key, value)| put(labels, key, json!(value)));
    }
    if !has(spec, "selector") {
        put(spec, "selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
    }
}

fn completions(o: &Value) -> String {
    let done = int(o, "status.succeeded").unwrap_or(0);
    match (int(o, "spec.completions"), int(o, "spec.parallelism").unwrap_or(0)) {
        (Some(wanted), _) => format!("{done}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{done}/1 of {parallelism}"),
        (None, _) => format!("{done}/1"),
    }
}

fn duration(o: &Value, now: i64) -> String {
    let Some(start) = age::seconds(&o["status"]["startTime"]) else { return String::new() };
    age::human_duration(age::seconds(&o["status"]["completionTime"]).unwrap_or(now) - start)
}

fn status(o: &Value) -> &'static str {
    if cell::condition_true(o, "Complete") {
        return "Complete";
    }
    if cell::condition_true(o, "Failed") {
        return "Failed";
    }
    if has(o, "metadata.deletionTimestamp") {
        return "Terminating";
    }
    let later = ["Suspended", "FailureTarget", "SuccessCriteriaMet"];
    later.into_iter().find(|c| cell::condition_true(o, c)).unwrap_or("Running")
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    vec![
        cell::name(o),
        json!(status(o)),
        json!(completions(o)),
        json!(duration(o, now)),
        age::age(o, now),
        cell::container_names(&o["spec"]["template"]["spec"]),
        cell::container_images(&o["spec"]["template"]["spec"]),
        json!(cell::selector(&o["spec"]["selector"])),
    ]
}
