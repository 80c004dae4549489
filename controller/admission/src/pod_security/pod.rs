//! A pod as the checks see it, and the words they put lists into. In: `metadata` and `spec`. Out: containers, names,
//! phrases of bounded length.

use super::Violation;
use crate::read::{at, has, list, text};
use serde_json::Value;
use std::collections::BTreeSet;

/// More items than this are not listed one by one.
const LISTED: usize = 100;
/// A detail is cut after so many bytes.
const DETAIL_BYTES: usize = 8192;

/// The pod, or pod template.
pub(super) struct Pod<'a> {
    pub metadata: &'a Value,
    pub spec: &'a Value,
}

impl<'a> Pod<'a> {
    /// Init containers, containers, ephemeral containers.
    pub fn containers(&self) -> impl Iterator<Item = &'a Value> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|kind| list(spec, kind))
    }

    /// `spec.securityContext.<path>`
    pub fn security(&self, path: &str) -> &'a Value {
        at(at(self.spec, "securityContext"), path)
    }

    /// Made for Windows, where the kernel's rules mean nothing.
    pub fn windows(&self) -> bool {
        text(self.spec, "os.name") == "windows"
    }

    /// Root in the pod is nobody on the node.
    pub fn in_user_namespace(&self) -> bool {
        at(self.spec, "hostUsers") == &Value::Bool(false)
    }

    /// Names of the containers a test finds bad.
    pub fn bad(&self, mut bad: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|c| bad(c)).map(|c| text(c, "name")).collect()
    }
}

/// `securityContext.<path>` of a container.
pub(super) fn security<'a>(container: &'a Value, path: &str) -> &'a Value {
    at(at(container, "securityContext"), path)
}

/// Set, and not to `false`.
pub(super) fn switched_on(value: &Value) -> bool {
    !value.is_null() && value != &Value::Bool(false)
}

/// What a value of a string field says; of any other type, its JSON.
pub(super) fn words(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// One word for one, another for more.
pub(super) fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `a, b`
pub(super) fn joined<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    let mut items = items.into_iter();
    let mut shown: Vec<String> = items.by_ref().take(LISTED).map(|i| i.as_ref().to_owned()).collect();
    let left = items.count();
    if left > 0 {
        shown.push(format!("and {left} more"));
    }
    shown.join(", ")
}

/// `"a", "b"`
pub(super) fn quoted<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    joined(items.into_iter().map(|i| format!("\"{}\"", i.as_ref())))
}

/// `container "a"`, `containers "a", "b"`
pub(super) fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and container "a"`: who set a forbidden value; `None` when nobody did.
pub(super) fn setters(pod: bool, names: &[&str]) -> Option<String> {
    match (pod, names) {
        (false, []) => None,
        (true, []) => Some("pod".to_owned()),
        (false, names) => Some(containers(names)),
        (true, names) => Some(format!("pod and {}", containers(names))),
    }
}

/// A violation.
pub(super) fn violation(reason: &'static str, mut detail: String) -> Option<Violation> {
    if detail.len() > DETAIL_BYTES {
        let end = (0..=DETAIL_BYTES).rev().find(|i| detail.is_char_boundary(*i)).unwrap_or(0);
        detail.truncate(end);
        detail.push_str("...");
    }
    Some(Violation { reason, detail })
}

/// A profile (seccomp, AppArmor) of a type that is not allowed anywhere: whether the pod's is bad, which containers'
/// are, and the bad types.
pub(super) fn profiles<'a>(
    pod: &Pod<'a>,
    field: &str,
    allowed: fn(&str) -> bool,
) -> (bool, Vec<&'a str>, BTreeSet<String>) {
    let mut bad_types = BTreeSet::new();
    let mut bad = |profile: &Value| {
        let type_ = words_or_empty(at(profile, "type"));
        let is_bad = !profile.is_null() && !allowed(&type_);
        if is_bad {
            bad_types.insert(type_);
        }
        is_bad
    };
    let pod_bad = bad(pod.security(field));
    let names = pod.bad(|c| bad(security(c, field)));
    (pod_bad, names, bad_types)
}

fn words_or_empty(value: &Value) -> String {
    if value.is_null() { String::new() } else { words(value) }
}

/// Hosts that the probes and hooks of a container name.
pub(super) fn handler_hosts(container: &Value) -> Vec<String> {
    let handlers =
        ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"].into_iter();
    let hosts = handlers.flat_map(|h| ["httpGet", "tcpSocket"].map(|action| format!("{h}.{action}.host")));
    hosts
        .filter(|path| has(container, path))
        .map(|path| words(at(container, &path)))
        .filter(|h| !h.is_empty())
        .collect()
}
