//! Events: what happened to an object. core/v1 and events.k8s.io/v1 are two views of the same objects; they are
//! stored in the core form, and [`core_to_events`] and [`events_to_core`] turn one into the other.

use crate::json::{at, int, put, remove, text};
use crate::rules::{Kind, Rules};
use crate::validate::event;
use crate::{Resource, age, cell};
use serde_json::{Value, json};

const COLUMNS: [(&str, &str, i32); 10] = [
    ("Last Seen", "string", 0),
    ("Type", "string", 0),
    ("Reason", "string", 0),
    ("Object", "string", 0),
    ("Subobject", "string", 1),
    ("Source", "string", 1),
    ("Message", "string", 0),
    ("First Seen", "string", 1),
    ("Count", "string", 1),
    ("Name", "string", 1),
];

/// Old name of a field in core/v1, new name in events.k8s.io/v1.
const RENAMED: [(&str, &str); 6] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

const CONTROLLER: (&str, &str) = ("reportingComponent", "reportingController");

pub(super) fn core() -> Resource {
    Kind::new("", "v1", "Event", "events").short(&["ev"]).columns(&COLUMNS).rules(Rules {
        validate: event::core,
        cells,
        fields: &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "type",
        ],
        field: |o, f| (f == "source").then(|| reporter(o).to_owned()),
        ..Rules::default()
    })
}

pub(super) fn events() -> Resource {
    Kind::new("events.k8s.io", "v1", "Event", "events").short(&["ev"]).columns(&COLUMNS).rules(Rules {
        validate: event::events,
        cells: |o, now| cells(&events_to_core(o), now),
        fields: &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        ..Rules::default()
    })
}

/// The events.k8s.io/v1 view of a core/v1 Event.
pub fn core_to_events(event: &Value) -> Value {
    convert(event, "events.k8s.io/v1", |(core, new)| (core, new))
}

/// The core/v1 view of an events.k8s.io/v1 Event.
pub fn events_to_core(event: &Value) -> Value {
    convert(event, "v1", |(core, new)| (new, core))
}

fn convert<'a>(event: &Value, version: &str, way: impl Fn((&'a str, &'a str)) -> (&'a str, &'a str)) -> Value {
    let mut result = event.clone();
    put(&mut result, "apiVersion", json!(version));
    for names in RENAMED.into_iter().chain([CONTROLLER]) {
        let (from, to) = way(names);
        if let Some(value) = remove(&mut result, from) {
            put(&mut result, to, value);
        }
    }
    result
}

fn reporter(o: &Value) -> &str {
    match text(o, "source.component") {
        "" => text(o, "reportingComponent"),
        component => component,
    }
}

fn source(o: &Value) -> String {
    let (component, host) = match text(o, "source.component") {
        "" => (text(o, "reportingComponent"), text(o, "reportingInstance")),
        component => (component, text(o, "source.host")),
    };
    let parts: Vec<&str> = [component, host].into_iter().filter(|p| !p.is_empty()).collect();
    parts.join(", ")
}

/// Takes the core form.
fn cells(o: &Value, now: i64) -> Vec<Value> {
    let seen = |stamp: &str| match (at(o, stamp), at(o, "eventTime")) {
        (Value::Null, event_time) => age::since(event_time, now),
        (stamp, _) => age::since(stamp, now),
    };
    let (mut last, first) = (seen("lastTimestamp"), seen("firstTimestamp"));
    let mut count = int(o, "count").unwrap_or(0).max(1);
    if !at(o, "series").is_null() {
        last = age::since(at(o, "series.lastObservedTime"), now);
        count = int(o, "series.count").unwrap_or(count);
    }
    let kind = text(o, "involvedObject.kind").to_lowercase();
    let object = match text(o, "involvedObject.name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    vec![
        json!(last),
        json!(text(o, "type")),
        json!(text(o, "reason")),
        json!(object),
        json!(text(o, "involvedObject.fieldPath")),
        json!(source(o)),
        json!(text(o, "message").trim()),
        json!(first),
        json!(count.to_string()),
        cell::name(o),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_views_of_an_event() {
        let core = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"},
            "type": "Warning", "reason": "BackOff", "message": "Back-off ", "count": 3,
            "source": {"component": "kubelet", "host": "n1"}, "reportingComponent": "kubelet",
            "firstTimestamp": "1970-01-01T00:00:00Z", "lastTimestamp": "1970-01-01T00:01:00Z"
        });
        let new = core_to_events(&core);
        assert_eq!(new["regarding"]["kind"], "Pod");
        assert_eq!(new["reportingController"], "kubelet");
        assert_eq!(new["deprecatedCount"], 3);
        assert_eq!(events_to_core(&new), core);
        let row = json!([
            "30s",
            "Warning",
            "BackOff",
            "pod/p",
            "spec.containers{c}",
            "kubelet, n1",
            "Back-off",
            "90s",
            "3",
            "e"
        ]);
        assert_eq!(json!(cells(&core, 90)), row);
        assert_eq!(events().strategy.cells(&new, 90), cells(&core, 90));
    }
}
