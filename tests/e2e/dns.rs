//! Names, asked from pods by their resolver and from the node by `dig`.

use crate::Test;
use crate::images::BUSYBOX;
use crate::services::web;
use anyhow::{Result, ensure};
use causeway_tests::{Cluster, eventually};

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("dns::services_and_pods_have_names", services_and_pods_have_names),
        ("dns::stateful_pods_have_names", stateful_pods_have_names),
    ]
}

fn dig(c: &Cluster, args: &str) -> Result<String> {
    c.on_node("node-1", &format!("dig @10.96.0.10 +time=3 +tries=1 {args}")).ok()
}

fn services_and_pods_have_names(c: &Cluster, ns: &str) -> Result<()> {
    let ip = web(c, ns, 1)?;
    let name = format!("web.{ns}.svc.cluster.local");
    ensure!(dig(c, &format!("+short {name}"))?.trim() == ip);
    ensure!(dig(c, &format!("+short -x {ip}"))?.trim() == format!("{name}."));
    ensure!(dig(c, &format!("+tcp +short {name}"))?.trim() == ip);
    let conf = c.kubectl_args(&["-n", ns, "exec", "deployment/web", "--", "cat", "/etc/resolv.conf"], "").ok()?;
    for part in
        ["nameserver 10.96.0.10", &format!("search {ns}.svc.cluster.local svc.cluster.local cluster.local"), "ndots:5"]
    {
        ensure!(conf.contains(part), "{conf}");
    }
    let looked = c.kubectl_args(&["-n", ns, "exec", "deployment/web", "--", "nslookup", &name], "").ok()?;
    ensure!(looked.contains(&ip), "{looked}");
    // Nothing outside is configured: refused at once, not lost.
    let outside = dig(c, "example.com")?;
    ensure!(outside.contains("status: REFUSED"), "{outside}");
    ensure!(dig(c, &format!("none.{ns}.svc.cluster.local"))?.contains("status: NXDOMAIN"));
    c.kubectl(&format!("-n {ns} delete service web")).ok()?;
    eventually("the name is gone with the service", || {
        ensure!(dig(c, &name)?.contains("status: NXDOMAIN"));
        Ok(())
    })
}

fn stateful_pods_have_names(c: &Cluster, ns: &str) -> Result<()> {
    c.apply(&format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: db, namespace: {ns}}}
spec: {{clusterIP: None, selector: {{app: db}}, ports: [{{name: sql, port: 5432}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db, namespace: {ns}}}
spec:
  serviceName: db
  replicas: 2
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{{name: main, image: '{BUSYBOX}', imagePullPolicy: Never, command: [sleep, '600']}}]
"#
    ))?;
    c.kubectl(&format!("-n {ns} rollout status statefulset/db --timeout=60s")).ok()?;
    let base = format!("db.{ns}.svc.cluster.local");
    eventually("both pods are in the zone", || {
        ensure!(dig(c, &format!("+short {base}"))?.lines().count() == 2);
        let one = c.kubectl(&format!("-n {ns} get pod db-1 -o jsonpath={{.status.podIP}}")).ok()?;
        ensure!(dig(c, &format!("+short db-1.{base}"))?.trim() == one);
        let srv = dig(c, &format!("+short SRV _sql._tcp.{base}"))?;
        ensure!(srv.lines().count() == 2 && srv.contains(&format!("5432 db-0.{base}.")), "{srv}");
        Ok(())
    })
}
