//! Volumes that outlive their pods.

use crate::Test;
use crate::images::BUSYBOX;
use anyhow::{Result, ensure};
use causeway_tests::{Cluster, eventually};

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![("storage::claims_keep_their_data", claims_keep_their_data)]
}

fn claims_keep_their_data(c: &Cluster, ns: &str) -> Result<()> {
    c.apply(&format!(
        r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: keep, namespace: {ns}}}
spec:
  serviceName: keep
  replicas: 1
  selector: {{matchLabels: {{app: keep}}}}
  template:
    metadata: {{labels: {{app: keep}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: {BUSYBOX}
        imagePullPolicy: Never
        command: [sh, -c, 'echo run >> /data/runs; exec sleep 600']
        volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 8Mi}}}}}}
"#
    ))?;
    let k = |args: &str| c.kubectl(&format!("-n {ns} {args}"));
    k("rollout status statefulset/keep --timeout=60s").ok()?;
    let claim = k("get pvc data-keep-0").ok()?;
    ensure!(claim.contains("Bound") && claim.contains("local-path"), "{claim}");
    let volume = k("get pvc data-keep-0 -o jsonpath={.spec.volumeName}").ok()?;
    k("delete pod keep-0").ok()?;
    eventually("the new pod finds the old data", || {
        let runs = k("exec keep-0 -- cat /data/runs").ok()?;
        ensure!(runs == "run\nrun\n", "{runs:?}");
        Ok(())
    })?;
    // A claim in use is protected; the volume goes with the claim.
    k("delete pvc data-keep-0 --wait=false").ok()?;
    ensure!(k("get pvc data-keep-0 --no-headers").ok()?.contains("Terminating"));
    k("delete statefulset keep").ok()?;
    eventually("claim and volume are gone", || {
        k("get pvc data-keep-0").fails()?;
        c.kubectl(&format!("get pv {volume}")).fails()
    })?;
    Ok(())
}
