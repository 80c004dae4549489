//! How many events a second the log takes: `cargo run --release -p causeway-audit --example events`.

use causeway_audit::{Auditor, Config, LogConfig, Mode, Policy, QueueLimits, RequestFacts, Resource, User};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const REQUESTS: u32 = 200_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let folder = std::env::temp_dir().join(format!("causeway-audit-{}", std::process::id()));
    for (name, mode, level) in [
        ("None", Mode::Batch, "None"),
        ("Metadata, batch", Mode::Batch, "Metadata"),
        ("Metadata, blocking", Mode::Blocking, "Metadata"),
        ("RequestResponse, batch", Mode::Batch, "RequestResponse"),
    ] {
        let policy = format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{{level: None, users: \
             [bob]}}, {{level: {level}}}]"
        );
        // Room for all, so that the handing over is measured and nothing is lost.
        let queue = QueueLimits { events: REQUESTS as usize, bytes: 4 << 30 };
        let log = LogConfig { mode, queue, ..LogConfig::new(folder.join("audit.log")) };
        let auditor = Auditor::start(Config { log: Some(log), ..Config::new(Policy::parse(policy.as_bytes())?) })?;
        let begin = Instant::now();
        ask(&auditor)?;
        let handed = begin.elapsed();
        runtime.block_on(auditor.shutdown(Duration::from_secs(60)));
        let (written, figures) = (begin.elapsed(), auditor.figures());
        let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(REQUESTS);
        println!(
            "{name}: {:.2} µs a request, {:.2} µs until written; {} written",
            each(handed),
            each(written),
            figures.logged
        );
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}

fn ask(auditor: &Auditor) -> Result<(), Box<dyn std::error::Error>> {
    let groups = ["system:nodes".to_owned(), "system:authenticated".to_owned()];
    let extra = BTreeMap::new();
    let facts = RequestFacts {
        audit_id: "1c1d1bd2-5a0e-4e9b-a8f0-7c4c2f1e8b55",
        uri: "/api/v1/namespaces/shop/pods/web-5d78c9869d-x7k2p/status?fieldManager=kubelet",
        path: "/api/v1/namespaces/shop/pods/web-5d78c9869d-x7k2p/status",
        verb: "patch",
        user: Some(User { name: "system:node:node-1", uid: "", groups: &groups, extra: &extra }),
        source_ips: &["10.0.0.7".parse()?],
        user_agent: "kubelet/v1.35.0 (linux/amd64) kubernetes/0000000",
        resource: Some(Resource {
            version: "v1",
            resource: "pods",
            subresource: "status",
            namespace: "shop",
            name: "web-5d78c9869d-x7k2p",
            ..Resource::default()
        }),
        received: jiff::Timestamp::now(),
        long_running: false,
    };
    let containers: Vec<_> =
        (0..10).map(|i| serde_json::json!({"name": i, "image": "registry/shop/web:1.0"})).collect();
    let object = serde_json::json!({"kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": containers}});
    for _ in 0..REQUESTS {
        if let Some(record) = auditor.begin(&facts)? {
            record.annotate("authorization.k8s.io/decision", "allow");
            record.annotate("authorization.k8s.io/reason", "RBAC: allowed by ClusterRoleBinding");
            record.request_object(&object);
            record.complete(200, Some(&object));
        }
    }
    Ok(())
}
