//! batch/v1 CronJob: Jobs on a schedule.

use crate::json::{count, fill, fill_zero, has, object_mut, text, truth};
use crate::rules::{Kind, Rules, Status};
use crate::validate::job;
use crate::{Resource, age, cell, defaults};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("batch", "v1", "CronJob", "cronjobs")
        .short(&["cj"])
        .in_all()
        .columns(&[
            ("Name", "string", 0),
            ("Schedule", "string", 0),
            ("Timezone", "string", 0),
            ("Suspend", "boolean", 0),
            ("Active", "integer", 0),
            ("Last Schedule", "string", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ])
        .rules(Rules {
            default,
            status: Status::Cleared(|_| json!({})),
            generation: true,
            validate: job::cron_job,
            warnings: |_| vec!["CronJobs are stored, but not run yet".to_owned()],
            cells,
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    let Some(spec) = object_mut(o, "spec") else { return };
    fill_zero(spec, "concurrencyPolicy", "Allow");
    fill(spec, "suspend", false);
    fill(spec, "successfulJobsHistoryLimit", 3);
    fill(spec, "failedJobsHistoryLimit", 1);
    let template = object_mut(spec, "jobTemplate").and_then(|t| object_mut(t, "spec"));
    if let Some(template) = template.and_then(|s| object_mut(s, "template")) {
        defaults::pod::template(template);
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let job = &o["spec"]["jobTemplate"]["spec"];
    let last = match has(o, "status.lastScheduleTime") {
        true => age::since(&o["status"]["lastScheduleTime"], now),
        false => "<none>".to_owned(),
    };
    vec![
        cell::name(o),
        json!(text(o, "spec.schedule")),
        cell::or_none(o, "spec.timeZone"),
        json!(if truth(o, "spec.suspend") { "True" } else { "False" }),
        json!(count(o, "status.active")),
        json!(last),
        age::age(o, now),
        cell::container_names(&job["template"]["spec"]),
        cell::container_images(&job["template"]["spec"]),
        json!(cell::selector(&job["selector"])),
    ]
}
