//! Names, asked from pods by their resolver and from the node by `dig`.

use crate::Test;
use crate::images::BUSYBOX;
use crate::services::web;
use anyhow::{Context, Result, ensure};
use causeway_tests::{Cluster, eventually};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("dns::services_and_pods_have_names", services_and_pods_have_names),
        ("dns::stateful_pods_have_names", stateful_pods_have_names),
        ("dns::pods_resolve_by_their_search_path", pods_resolve_by_their_search_path),
        ("dns::policies_of_pods", policies_of_pods),
        ("dns::settings_change_while_it_runs", settings_change_while_it_runs),
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
    // Nothing is configured for that: refused at once, not lost.
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

/// What a pod's own resolver, busybox', says.
fn in_pod(c: &Cluster, ns: &str, pod: &str, line: &str) -> Result<String> {
    c.kubectl_args(&["-n", ns, "exec", pod, "--", "sh", "-c", line], "").ok()
}

/// A pod that waits, with more in its spec.
fn sleeper(ns: &str, name: &str, spec: &str) -> String {
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {ns}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: main, image: '{BUSYBOX}', imagePullPolicy: Never, command: [sleep, '600']}}]
{spec}"
    )
}

fn pods_resolve_by_their_search_path(c: &Cluster, ns: &str) -> Result<()> {
    let ip = web(c, ns, 1)?;
    let manifest = sleeper(ns, "client", "")
        + &sleeper(ns, "named", "  hostname: first\n  subdomain: group\n")
        + &format!(
            "
---
apiVersion: v1
kind: Service
metadata: {{name: group, namespace: {ns}}}
spec: {{clusterIP: None, selector: {{app: named}}, ports: [{{name: any, port: 9, protocol: UDP}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: early, namespace: {ns}}}
spec: {{clusterIP: None, publishNotReadyAddresses: true, selector: {{app: unready}}, ports: [{{name: any, port: 9}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: late, namespace: {ns}}}
spec: {{clusterIP: None, selector: {{app: unready}}, ports: [{{name: any, port: 9}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: alias, namespace: {ns}}}
spec: {{type: ExternalName, externalName: web.{ns}.svc.cluster.local}}
---
apiVersion: v1
kind: Service
metadata: {{name: outside, namespace: {ns}}}
spec: {{type: ExternalName, externalName: www.example.com}}
---
apiVersion: v1
kind: Pod
metadata: {{name: unready, namespace: {ns}, labels: {{app: unready}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: main, image: '{BUSYBOX}', imagePullPolicy: Never, command: [sleep, '600'], readinessProbe: {{exec: {{command: ['false']}}}}}}
"
        );
    c.apply(&manifest)?;
    c.kubectl(&format!("-n {ns} wait pod/client pod/named --for=condition=Ready --timeout=60s")).ok()?;
    // Short, with the namespace, as far as the domain; and through an alias.
    for host in [
        "web".to_owned(),
        format!("web.{ns}"),
        format!("web.{ns}.svc"),
        format!("web.{ns}.svc.cluster.local."),
        "alias".to_owned(),
    ] {
        let page =
            in_pod(c, ns, "client", &format!("wget -qO- http://{host}/")).with_context(|| format!("by {host}"))?;
        ensure!(page.starts_with("web-"), "{host}: {page}");
    }
    let named = c.kubectl(&format!("-n {ns} get pod named -o jsonpath={{.status.podIP}}")).ok()?;
    eventually("the pod has its name", || {
        let looked = in_pod(c, ns, "client", &format!("nslookup first.group.{ns}.svc.cluster.local"))?;
        ensure!(looked.contains(&named), "{looked}");
        Ok(())
    })?;
    let reverse = dig(c, &format!("+short -x {named}"))?;
    ensure!(reverse.trim() == format!("first.group.{ns}.svc.cluster.local."), "{reverse}");
    ensure!(in_pod(c, ns, "client", &format!("nslookup {ip}"))?.contains(&format!("web.{ns}.svc.cluster.local")));
    let srv = dig(c, &format!("_any._udp.group.{ns}.svc.cluster.local SRV +short"))?;
    ensure!(srv.trim() == format!("0 100 9 first.group.{ns}.svc.cluster.local."), "{srv}");
    // Unready endpoints are names only where the service wants it.
    eventually("the unready pod has a name of the early service", || {
        ensure!(dig(c, &format!("+short early.{ns}.svc.cluster.local"))?.lines().count() == 1);
        Ok(())
    })?;
    ensure!(dig(c, &format!("late.{ns}.svc.cluster.local"))?.contains("status: NXDOMAIN"));
    let outside = dig(c, &format!("outside.{ns}.svc.cluster.local"))?;
    ensure!(outside.contains("CNAME") && outside.contains("www.example.com."), "{outside}");
    ensure!(dig(c, "+short TXT dns-version.cluster.local")?.trim() == "\"1.1.0\"");
    let of_pod = format!("{}.{ns}.pod.cluster.local", named.replace('.', "-"));
    ensure!(dig(c, &format!("+short {of_pod}"))?.trim() == named);
    Ok(())
}

fn policies_of_pods(c: &Cluster, ns: &str) -> Result<()> {
    let own = "  dnsPolicy: None\n  dnsConfig: {nameservers: [10.96.0.10], searches: [svc.cluster.local], options: [{name: ndots, value: '1'}, {name: edns0}]}\n";
    let more =
        "  dnsConfig: {nameservers: [192.0.2.53], searches: [corp.example], options: [{name: ndots, value: '2'}]}\n";
    let host = "  hostNetwork: true\n  dnsPolicy: ClusterFirstWithHostNet\n";
    let manifest = [("own", own), ("more", more), ("host", host), ("default", "  dnsPolicy: Default\n")];
    c.apply(&manifest.map(|(name, spec)| sleeper(ns, name, spec)).concat())?;
    c.kubectl(&format!("-n {ns} wait pod --all --for=condition=Ready --timeout=60s")).ok()?;
    let cluster = format!("search {ns}.svc.cluster.local svc.cluster.local cluster.local");
    for (pod, want) in [
        ("own", "search svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:1 edns0".to_owned()),
        ("more", format!("{cluster} corp.example\nnameserver 10.96.0.10\nnameserver 192.0.2.53\noptions ndots:2")),
        ("host", format!("{cluster}\nnameserver 10.96.0.10\noptions ndots:5")),
        ("default", "search .\nnameserver 127.0.0.1".to_owned()),
    ] {
        let conf = in_pod(c, ns, pod, "cat /etc/resolv.conf")?;
        ensure!(conf.trim() == want, "{pod}: {conf}");
    }
    // The first search path is tried, and pods on the node's network ask the cluster too.
    for pod in ["own", "host"] {
        let looked = in_pod(c, ns, pod, "nslookup kubernetes.default.svc.cluster.local")?;
        ensure!(looked.split_whitespace().any(|word| word == "10.96.0.1"), "{pod}: {looked}");
    }
    let bad = sleeper(ns, "bad", "  dnsPolicy: None\n  dnsConfig: {searches: ['a b']}\n");
    let refused = c.kubectl_in("apply -f -", &bad).fails()?;
    for words in ["spec.dnsConfig.nameservers: Required value", "spec.dnsConfig.searches[0]: Invalid value: \"a b\""] {
        ensure!(refused.contains(words), "{refused}");
    }
    Ok(())
}

/// A name server on the machine's loopback that answers every question with one address.
struct Upstream {
    addr: std::net::SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Upstream {
    fn start() -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (addr, stop) = (socket.local_addr()?, Arc::new(AtomicBool::new(false)));
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut packet = [0u8; 1500];
            while !until.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
                // The question as it is, made an answer: one record, which points to the name at 12, and no OPT.
                let name = packet[12..length].iter().position(|b| *b == 0).unwrap_or(0);
                let mut answer = packet[..12 + name + 5].to_vec();
                answer[2..4].copy_from_slice(&[0x81, 0x80]);
                answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 80]);
                drop(socket.send_to(&answer, from));
            }
        });
        Ok(Self { addr, stop, thread: Some(thread) })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// The ConfigMap of the whole cluster: its settings touch names of a domain of this test's own only.
fn settings_change_while_it_runs(c: &Cluster, ns: &str) -> Result<()> {
    let upstream = Upstream::start()?;
    c.apply(&sleeper(ns, "client", ""))?;
    c.kubectl(&format!("-n {ns} wait pod/client --for=condition=Ready --timeout=60s")).ok()?;
    let settings = |text: &str| {
        let text = text.lines().map(|l| format!("    {l}\n")).collect::<String>();
        c.apply(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: causeway-dns, namespace: kube-system}}\ndata:\n  settings.yaml: |\n{text}"
        ))
    };
    let domain = format!("{ns}.test");
    settings(&format!("autopath: true\nstubDomains:\n  {domain}: ['{}']\n", upstream.addr))?;
    let outcome = (|| {
        eventually("the new domain is asked for", || {
            let found = in_pod(c, ns, "client", &format!("nslookup www.{domain}."))?;
            ensure!(found.contains("192.0.2.80"), "{found}");
            Ok(())
        })?;
        // One question for the first of the search path is answered by the last of it.
        eventually("the search path is completed on the server", || {
            let found = in_pod(c, ns, "client", &format!("nslookup -type=a www.{domain}.{ns}.svc.cluster.local."))?;
            ensure!(found.contains("192.0.2.80"), "{found}");
            Ok(())
        })?;
        // From the node, which is no pod, it is not.
        ensure!(dig(c, &format!("www.{domain}.{ns}.svc.cluster.local"))?.contains("status: NXDOMAIN"));
        settings("stubDomains: {corp.example: [no.address]}")?;
        eventually("the bad settings are told", || {
            let events = c
                .kubectl(
                    "-n kube-system get events --field-selector reason=InvalidSettings -o jsonpath={.items[*].message}",
                )
                .ok()?;
            ensure!(events.contains("no.address"), "{events}");
            Ok(())
        })?;
        ensure!(
            in_pod(c, ns, "client", &format!("nslookup other.{domain}."))?.contains("192.0.2.80"),
            "the last good settings went"
        );
        Ok(())
    })();
    c.kubectl("-n kube-system delete configmap causeway-dns").ok()?;
    outcome?;
    eventually("the domain is nobody's again", || {
        ensure!(dig(c, &format!("gone.{domain}"))?.contains("status: REFUSED"));
        Ok(())
    })
}

/// Its own node's DNS answers each question: the others' counters stand still. A cluster of two nodes of its own.
pub fn a_query_stays_on_its_node() -> Result<()> {
    let mut cluster = Cluster::new("dnsnodes")?;
    cluster.args = ["--nodes", "2"].map(str::to_owned).to_vec();
    cluster.up()?;
    let c = &cluster;
    ensure!(
        c.kubectl("-n kube-system get service kube-dns -o jsonpath={.spec.internalTrafficPolicy}").ok()? == "Local"
    );
    let nodes = c.kubectl("get nodes -o jsonpath={.items[*].metadata.name}").ok()?;
    let nodes: Vec<&str> = nodes.split_whitespace().collect();
    ensure!(nodes.len() == 2, "{nodes:?}");
    let counted = |node: &&str| -> Result<f64> {
        let ip = c.kubectl(&format!("get node {node} -o jsonpath={{.status.addresses[0].address}}")).ok()?;
        let text = c.on_node(node, &format!("curl -sS --max-time 5 http://{ip}:9153/metrics")).ok()?;
        // TXT questions are asked by nobody else.
        let of_txt = |l: &&str| l.starts_with("coredns_dns_requests_total{") && l.contains("type=\"TXT\"");
        Ok(text.lines().filter(of_txt).filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    };
    for node in &nodes {
        eventually("the node's DNS answers", || {
            let version =
                c.on_node(node, "dig @10.96.0.10 +time=3 +tries=1 +short dns-version.cluster.local TXT").ok()?;
            ensure!(version.trim() == "\"1.1.0\"", "{version}");
            Ok(())
        })?;
    }
    for node in &nodes {
        let before = nodes.iter().map(counted).collect::<Result<Vec<_>>>()?;
        let ask = "for i in $(seq 20); do dig @10.96.0.10 +time=3 +tries=1 asker.default.svc.cluster.local TXT || exit 1; done";
        c.on_node(node, ask).ok()?;
        let after = nodes.iter().map(counted).collect::<Result<Vec<_>>>()?;
        for ((other, before), after) in nodes.iter().zip(before).zip(after) {
            let want = if other == node { 20.0 } else { 0.0 };
            ensure!(after - before == want, "{node} asked, {other} counted {}", after - before);
        }
    }
    Ok(())
}
