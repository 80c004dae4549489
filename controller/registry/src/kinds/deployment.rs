//! apps/v1 Deployment: replicas of a pod template, rolled out in revisions.

use crate::json::{fill, fill_zero, int, object_mut, text};
use crate::rules::{Kind, Rules, Status};
use crate::validate::workload;
use crate::{Resource, age, cell, defaults};
use serde_json::{Value, json};

pub(super) fn resource() -> Resource {
    Kind::new("apps", "v1", "Deployment", "deployments")
        .short(&["deploy"])
        .in_all()
        .scale()
        .columns(&[
            ("Name", "string", 0),
            ("Ready", "string", 0),
            ("Up-to-date", "string", 0),
            ("Available", "string", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ])
        .rules(Rules {
            default,
            status: Status::Cleared(|_| json!({})),
            generation: true,
            validate: workload::deployment,
            validate_update: workload::selector_is_immutable,
            cells,
            ..Rules::default()
        })
}

fn default(o: &mut Value) {
    let Some(spec) = object_mut(o, "spec") else { return };
    fill(spec, "replicas", 1);
    if let Some(strategy) = object_mut(spec, "strategy") {
        fill_zero(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = object_mut(strategy, "rollingUpdate")
        {
            fill(rolling, "maxUnavailable", "25%");
            fill(rolling, "maxSurge", "25%");
        }
    }
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "progressDeadlineSeconds", 600);
    if let Some(template) = object_mut(spec, "template") {
        defaults::pod::template(template);
    }
}

fn cells(o: &Value, now: i64) -> Vec<Value> {
    let ready = int(o, "status.readyReplicas").unwrap_or(0);
    let wanted = int(o, "spec.replicas").unwrap_or(0);
    vec![
        cell::name(o),
        json!(format!("{ready}/{wanted}")),
        cell::number(o, "status.updatedReplicas"),
        cell::number(o, "status.availableReplicas"),
        age::age(o, now),
        cell::container_names(&o["spec"]["template"]["spec"]),
        cell::container_images(&o["spec"]["template"]["spec"]),
        json!(cell::selector(&o["spec"]["selector"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_row() {
        let mut o = json!({
            "metadata": {"name": "web", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"selector": {"matchLabels": {"app": "web"}},
                     "template": {"spec": {"containers": [{"name": "c", "image": "nginx:1"}]}}}
        });
        default(&mut o);
        assert_eq!(o["spec"]["replicas"], 1);
        assert_eq!(o["spec"]["strategy"]["rollingUpdate"], json!({"maxUnavailable": "25%", "maxSurge": "25%"}));
        assert_eq!(o["spec"]["template"]["spec"]["restartPolicy"], "Always");
        assert!(o["spec"]["template"]["spec"].get("enableServiceLinks").is_none(), "only pods get it");
        assert_eq!(json!(cells(&o, 5)), json!(["web", "0/1", 0, 0, "5s", "c", "nginx:1", "app=web"]));
        let mut recreate = json!({"spec": {"strategy": {"type": "Recreate"}}});
        default(&mut recreate);
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
    }
}
