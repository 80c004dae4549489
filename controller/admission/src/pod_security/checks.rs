//! The table of checks: to which level each belongs, since which release, and which one it replaces. In: a pod, a level
//! and a version. Out: violations.

use super::pod::Pod;
use super::{Level, LevelVersion, baseline, restricted};
use serde_json::Value;

/// Judges a pod as of a minor release.
type Judge = fn(&Pod, u64) -> Option<Violation>;

/// Why a pod is beyond its level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Short: `host namespaces`.
    pub reason: &'static str,
    /// With names and values: `hostNetwork=true, hostPID=true`; bounded.
    pub detail: String,
}

/// A check, which exists since a release and may change in later ones.
struct Check {
    id: &'static str,
    level: Level,
    /// First minor release, and how it judges from then on; ascending.
    revisions: &'static [(u64, Judge)],
    /// A check of `baseline` that is not run beside this one.
    replaces: Option<&'static str>,
}

const fn base(id: &'static str, revisions: &'static [(u64, Judge)]) -> Check {
    Check { id, level: Level::Baseline, revisions, replaces: None }
}

const fn strict(id: &'static str, revisions: &'static [(u64, Judge)], replaces: Option<&'static str>) -> Check {
    Check { id, level: Level::Restricted, revisions, replaces }
}

/// In the order of upstream's messages: `baseline` first, then by id.
static CHECKS: [Check; 19] = [
    base("appArmorProfile", &[(0, baseline::app_armor)]),
    base("capabilities_baseline", &[(0, baseline::capabilities)]),
    base("hostNamespaces", &[(0, baseline::host_namespaces)]),
    base("hostPathVolumes", &[(0, baseline::host_paths)]),
    base("hostPorts", &[(0, baseline::host_ports)]),
    base("hostProbesAndHostLifecycle", &[(34, baseline::handler_host)]),
    base("privileged", &[(0, baseline::privileged)]),
    base("procMount", &[(0, baseline::proc_mount), (35, baseline::proc_mount_relaxed)]),
    base("seLinuxOptions", &[(0, baseline::se_linux)]),
    base("seccompProfile_baseline", &[(0, baseline::seccomp_annotations), (19, baseline::seccomp)]),
    base("sysctls", &[(0, baseline::sysctls)]),
    base("windowsHostProcess", &[(0, baseline::windows_host_process)]),
    strict("allowPrivilegeEscalation", &[(8, restricted::privilege_escalation)], None),
    strict("capabilities_restricted", &[(22, restricted::capabilities)], Some("capabilities_baseline")),
    strict("procMount_restricted", &[(35, baseline::proc_mount)], Some("procMount")),
    strict("restrictedVolumes", &[(0, restricted::volumes)], Some("hostPathVolumes")),
    strict("runAsNonRoot", &[(0, restricted::run_as_non_root)], None),
    strict("runAsUser", &[(23, restricted::run_as_user)], None),
    strict("seccompProfile_restricted", &[(19, restricted::seccomp)], Some("seccompProfile_baseline")),
];

impl Check {
    fn judge(&self, minor: u64) -> Option<Judge> {
        self.revisions.iter().rev().find(|(since, _)| *since <= minor).map(|(_, judge)| *judge)
    }
}

/// Everything about a pod that is beyond a level. `metadata` and `spec` are those of the pod or of the template.
pub fn evaluate(level: LevelVersion, metadata: &Value, spec: &Value) -> Vec<Violation> {
    if level.level == Level::Privileged {
        return Vec::new();
    }
    let (pod, minor) = (Pod { metadata, spec }, level.version.minor());
    let runs = |check: &&Check| check.level <= level.level && check.judge(minor).is_some();
    let replaced = |id: &str| CHECKS.iter().filter(runs).any(|c| c.replaces == Some(id));
    let judges = CHECKS.iter().filter(runs).filter(|c| !replaced(c.id)).filter_map(|c| c.judge(minor));
    judges.filter_map(|judge| judge(&pod, minor)).collect()
}

/// `host namespaces (hostPID=true), privileged (container "a" must not …)`
pub fn summary(violations: &[Violation]) -> String {
    let one = |v: &Violation| match v.detail.as_str() {
        "" => v.reason.to_owned(),
        detail => format!("{} ({detail})", v.reason),
    };
    violations.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The reasons alone.
pub(super) fn reasons(violations: &[Violation]) -> String {
    violations.iter().map(|v| v.reason).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
