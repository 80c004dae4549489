//! Counters under the upstream kubelet's names, rendered as text.

use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// What this kubelet counts.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Pods with a worker.
    pub running_pods: AtomicI64,
    /// Containers that run.
    pub running_containers: AtomicI64,
    /// Containers started.
    pub started_containers: AtomicU64,
    /// Starts that failed.
    pub started_containers_errors: AtomicU64,
    /// Pod workers' decisions.
    pub syncs: AtomicU64,
    /// Status patches written.
    pub status_updates: AtomicU64,
    /// Liveness and startup probes that ended a container.
    pub probe_kills: AtomicU64,
    /// Pods started, and the sum of milliseconds from first sight to running.
    pub pod_starts: AtomicU64,
    /// See [`Self::pod_starts`].
    pub pod_start_millis: AtomicU64,
}

impl Metrics {
    /// The text exposition format.
    pub fn render(&self, node: &str) -> String {
        let mut t = String::new();
        let mut line = |name: &str, kind: &str, value: i128| {
            let _ = writeln!(t, "# TYPE {name} {kind}\n{name} {value}");
        };
        let count = |a: &AtomicU64| i128::from(a.load(Ordering::Relaxed));
        let gauge = |a: &AtomicI64| i128::from(a.load(Ordering::Relaxed));
        line("kubelet_running_pods", "gauge", gauge(&self.running_pods));
        line("kubelet_running_containers", "gauge", gauge(&self.running_containers));
        line("kubelet_started_containers_total", "counter", count(&self.started_containers));
        line("kubelet_started_containers_errors_total", "counter", count(&self.started_containers_errors));
        line("causeway_kubelet_pod_syncs_total", "counter", count(&self.syncs));
        line("causeway_kubelet_status_updates_total", "counter", count(&self.status_updates));
        line("causeway_kubelet_probe_kills_total", "counter", count(&self.probe_kills));
        let starts = self.pod_starts.load(Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "a sum of seconds, for dashboards")]
        let seconds = self.pod_start_millis.load(Ordering::Relaxed) as f64 / 1000.0;
        let name = "kubelet_pod_start_duration_seconds";
        let _ = writeln!(t, "# TYPE {name} summary\n{name}_sum {seconds}\n{name}_count {starts}");
        let _ = writeln!(t, "# TYPE kubelet_node_name gauge\nkubelet_node_name{{node=\"{node}\"}} 1");
        t
    }
}
