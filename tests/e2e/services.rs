//! Stable addresses: real packets from pods and nodes through the kernel's rules.

use crate::Test;
use crate::kubectl::deployment;
use anyhow::{Context, Result, ensure};
use causeway_tests::{Cluster, eventually};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("services::cluster_ip_spreads_and_stays", cluster_ip_spreads_and_stays),
        ("services::udp_reaches_its_pods", udp_reaches_its_pods),
        ("services::without_endpoints_it_refuses_at_once", without_endpoints_it_refuses_at_once),
        ("services::a_rollout_refuses_nobody", a_rollout_refuses_nobody),
        ("services::node_ports", node_ports),
        ("services::addresses_are_never_given_twice", addresses_are_never_given_twice),
        ("services::a_pod_reaches_itself", a_pod_reaches_itself),
        ("services::balanced_and_external_addresses", balanced_and_external_addresses),
        ("services::health_check_node_port", health_check_node_port),
        ("services::affinity_and_policies", affinity_and_policies),
        ("services::the_last_terminating_pod_serves_on", the_last_terminating_pod_serves_on),
    ]
}

/// A deployment `web` with a Service of the same name; returns the Service's address.
pub fn web(c: &Cluster, ns: &str, replicas: u32) -> Result<String> {
    c.kubectl_in(&format!("-n {ns} apply -f -"), &deployment("web", replicas)).ok()?;
    c.kubectl(&format!("-n {ns} expose deployment web --port=80 --target-port=http")).ok()?;
    c.kubectl(&format!("-n {ns} rollout status deployment/web --timeout=60s")).ok()?;
    let ip = c.kubectl(&format!("-n {ns} get service web -o jsonpath={{.spec.clusterIP}}")).ok()?;
    eventually("the service answers", || c.on_node("node-1", &format!("curl -sS --max-time 2 http://{ip}/")).ok())?;
    Ok(ip)
}

fn cluster_ip_spreads_and_stays(c: &Cluster, ns: &str) -> Result<()> {
    let ip = web(c, ns, 3)?;
    let script = format!("for i in $(seq 60); do curl -sS --max-time 5 http://{ip}/ || exit 1; done");
    let answers = c.on_node("node-1", &script).ok()?;
    ensure!(answers.lines().collect::<BTreeSet<_>>().len() == 3, "{answers}");
    // From a pod, by name.
    let pod = c.kubectl(&format!("-n {ns} get pods -o name")).ok()?;
    let pod = pod.lines().next().context("no pod")?;
    let named = c.kubectl_args(&["-n", ns, "exec", pod, "--", "wget", "-qO-", "http://web/"], "").ok()?;
    ensure!(named.starts_with("web-"), "{named}");
    // The address is the Service's for life.
    c.kubectl(&format!("-n {ns} scale deployment web --replicas=1")).ok()?;
    c.kubectl(&format!("-n {ns} label service web again=1")).ok()?;
    ensure!(c.kubectl(&format!("-n {ns} get service web -o jsonpath={{.spec.clusterIP}}")).ok()? == ip);
    let change =
        c.kubectl_args(&["-n", ns, "patch", "service", "web", "-p", r#"{"spec":{"clusterIP":"10.96.77.77"}}"#], "");
    ensure!(change.fails()?.contains("may not change once set"));
    Ok(())
}

fn udp_reaches_its_pods(c: &Cluster, ns: &str) -> Result<()> {
    // A name server is the UDP server at hand: the Service in front of it answers what the real one answers.
    let node = c.kubectl("get node node-1 -o jsonpath={.status.addresses[0].address}").ok()?;
    c.apply(&format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: udp, namespace: {ns}}}
spec: {{ports: [{{name: q, port: 5353, protocol: UDP}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: udp, namespace: {ns}, labels: {{kubernetes.io/service-name: udp}}}}
addressType: IPv4
ports: [{{name: q, port: 53, protocol: UDP}}]
endpoints: [{{addresses: ['{node}']}}]
"
    ))?;
    let ip = c.kubectl(&format!("-n {ns} get service udp -o jsonpath={{.spec.clusterIP}}")).ok()?;
    let ask = format!("dig @{ip} -p 5353 +time=1 +tries=1 +short kubernetes.default.svc.cluster.local");
    eventually("a datagram comes back", || {
        let said = c.on_node("node-1", &ask).ok()?;
        ensure!(said.trim() == "10.96.0.1", "{said}");
        Ok(())
    })?;
    // Without its endpoint the address refuses: dig hears it at once instead of waiting.
    c.kubectl(&format!("-n {ns} delete endpointslice udp")).ok()?;
    eventually("the flow does not outlive its endpoint", || c.on_node("node-1", &ask).fails()).map(drop)
}

fn without_endpoints_it_refuses_at_once(c: &Cluster, ns: &str) -> Result<()> {
    c.kubectl(&format!("-n {ns} create service clusterip empty --tcp=80")).ok()?;
    let ip = c.kubectl(&format!("-n {ns} get service empty -o jsonpath={{.spec.clusterIP}}")).ok()?;
    eventually("the connection is refused, not dropped", || {
        let said = c.on_node("node-1", &format!("curl -sS --max-time 5 http://{ip}/")).fails()?;
        // 7: could not connect; a drop would be 28, a time-out.
        ensure!(said.contains("(7)") && !said.contains("timed out"), "{said}");
        Ok(())
    })
}

fn a_rollout_refuses_nobody(c: &Cluster, ns: &str) -> Result<()> {
    let ip = web(c, ns, 2)?;
    let patch = r#"{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":10,"containers":[{"name":"web","lifecycle":{"preStop":{"sleep":{"seconds":3}}}}]}}}}"#;
    c.kubectl_args(&["-n", ns, "patch", "deployment", "web", "-p", patch], "").ok()?;
    c.kubectl(&format!("-n {ns} rollout status deployment/web --timeout=60s")).ok()?;
    let stop = &std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(move || -> Result<usize> {
            let mut count = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let script =
                    format!("for i in $(seq 20); do curl -sS --max-time 5 -o /dev/null http://{ip}/ || exit 1; done");
                c.on_node("node-1", &script).ok()?;
                count += 20;
            }
            Ok(count)
        });
        let rolled = c
            .kubectl(&format!("-n {ns} rollout restart deployment/web"))
            .ok()
            .and_then(|_| c.kubectl(&format!("-n {ns} rollout status deployment/web --timeout=90s")).ok());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let count = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        rolled?;
        ensure!(count > 20, "only {count} requests: the test says nothing");
        Ok(())
    })
}

fn node_ports(c: &Cluster, ns: &str) -> Result<()> {
    web(c, ns, 1)?;
    c.kubectl(&format!("-n {ns} expose deployment web --name=outside --type=NodePort --port=80 --target-port=http"))
        .ok()?;
    let port: u16 =
        c.kubectl(&format!("-n {ns} get service outside -o jsonpath={{.spec.ports[0].nodePort}}")).ok()?.parse()?;
    ensure!((30000..=32767).contains(&port), "{port}");
    eventually("the node port answers from the nodes' segment", || {
        let said = c.on_node("lan", &format!("curl -sS --max-time 2 http://10.90.0.11:{port}/")).ok()?;
        ensure!(said.starts_with("web-"), "{said}");
        Ok(())
    })?;
    let twice = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: twice, namespace: {ns}}}\nspec: {{type: NodePort, ports: [{{port: 80, nodePort: {port}}}]}}"
    );
    let said = c.kubectl_in("apply -f -", &twice).fails()?;
    ensure!(said.contains("provided port is already allocated"), "{said}");
    Ok(())
}

fn addresses_are_never_given_twice(c: &Cluster, ns: &str) -> Result<()> {
    let services: String = (0..40)
        .map(|i| format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{i}, namespace: {ns}}}\nspec: {{type: NodePort, ports: [{{port: 80}}]}}\n"))
        .collect();
    std::thread::scope(|scope| {
        let halves = [services.replace("name: s", "name: a"), services.replace("name: s", "name: b")];
        let all: Vec<_> = halves.map(|half| scope.spawn(move || c.apply(&half))).into();
        all.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow::anyhow!("panicked"))?.map(drop))
    })?;
    for path in
        ["{range .items[*]}{.spec.clusterIP}{\"\\n\"}{end}", "{range .items[*]}{.spec.ports[*].nodePort}{\"\\n\"}{end}"]
    {
        let given = c.kubectl_args(&["get", "services", "-A", "-o", &format!("jsonpath={path}")], "").ok()?;
        let given: Vec<&str> = given.lines().filter(|l| !l.is_empty() && *l != "None").collect();
        ensure!(given.len() >= 80 && given.iter().collect::<BTreeSet<_>>().len() == given.len(), "{given:?}");
    }
    Ok(())
}

fn a_pod_reaches_itself(c: &Cluster, ns: &str) -> Result<()> {
    web(c, ns, 1)?;
    let begin = Instant::now();
    let said = c.kubectl_args(&["-n", ns, "exec", "deployment/web", "--", "wget", "-qO-", "http://web/"], "").ok()?;
    ensure!(said.starts_with("web-") && begin.elapsed() < Duration::from_secs(60), "{said}");
    Ok(())
}

/// A way from the nodes' segment to addresses that a load balancer would bring to the node.
struct Way<'a>(&'a Cluster, &'a str);

impl<'a> Way<'a> {
    fn to(c: &'a Cluster, range: &'a str) -> Result<Self> {
        c.on_node("lan", &format!("ip route replace {range} via 10.90.0.11")).ok()?;
        Ok(Self(c, range))
    }

    fn curl(&self, ip: &str, more: &str) -> causeway_tests::Output {
        self.0.on_node("lan", &format!("curl -sS --max-time 2 {more} http://{ip}/"))
    }
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        let _ = self.0.on_node("lan", &format!("ip route del {}", self.1));
    }
}

fn balanced_and_external_addresses(c: &Cluster, ns: &str) -> Result<()> {
    web(c, ns, 2)?;
    c.apply(&format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: balanced, namespace: {ns}}}
spec:
  type: LoadBalancer
  loadBalancerClass: example.com/by-hand
  selector: {{app: web}}
  externalIPs: [198.51.100.20]
  loadBalancerSourceRanges: [10.90.0.0/24]
  ports: [{{name: http, port: 80, targetPort: http}}]
"
    ))?;
    let status = r#"{"status":{"loadBalancer":{"ingress":[{"ip":"198.51.100.21"}]}}}"#;
    let patch = ["-n", ns, "patch", "service", "balanced", "--subresource=status", "--type=merge", "-p", status];
    c.kubectl_args(&patch, "").ok()?;
    let way = Way::to(c, "198.51.100.16/28")?;
    for ip in ["198.51.100.20", "198.51.100.21"] {
        eventually("the address answers", || {
            let said = way.curl(ip, "").ok()?;
            ensure!(said.starts_with("web-"), "{said}");
            Ok(())
        })?;
    }
    let ranges = r#"{"spec":{"loadBalancerSourceRanges":["203.0.113.0/24"]}}"#;
    c.kubectl_args(&["-n", ns, "patch", "service", "balanced", "--type=merge", "-p", ranges], "").ok()?;
    eventually("others are dropped", || {
        let said = way.curl("198.51.100.21", "").fails()?;
        ensure!(said.contains("timed out"), "{said}");
        Ok(())
    })?;
    ensure!(way.curl("198.51.100.20", "").ok()?.starts_with("web-"), "external addresses have no ranges");
    Ok(())
}

fn health_check_node_port(c: &Cluster, ns: &str) -> Result<()> {
    web(c, ns, 2)?;
    c.apply(&format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: checked, namespace: {ns}}}
spec:
  type: LoadBalancer
  loadBalancerClass: example.com/by-hand
  externalTrafficPolicy: Local
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: http}}]
"
    ))?;
    let port = c.kubectl(&format!("-n {ns} get service checked -o jsonpath={{.spec.healthCheckNodePort}}")).ok()?;
    let ask = format!("curl -sS --max-time 2 -w '%{{http_code}}' http://10.90.0.11:{port}/healthz");
    let says = |count: u32, code: u16| {
        eventually("the health check counts local endpoints", || {
            let said = c.on_node("lan", &ask).ok()?;
            let expected = format!("\"localEndpoints\":{count}");
            ensure!(said.contains(&expected) && said.ends_with(&code.to_string()), "{said}");
            ensure!(said.contains("\"name\":\"checked\""), "{said}");
            Ok(())
        })
    };
    says(2, 200)?;
    c.kubectl(&format!("-n {ns} scale deployment web --replicas=0")).ok()?;
    says(0, 503)?;
    c.kubectl(&format!("-n {ns} delete service checked")).ok()?;
    eventually("nobody listens any more", || c.on_node("lan", &ask).fails()).map(drop)
}

fn affinity_and_policies(c: &Cluster, ns: &str) -> Result<()> {
    let ip = web(c, ns, 3)?;
    let patch = |spec: &str| {
        let patch = format!("{{\"spec\":{spec}}}");
        c.kubectl_args(&["-n", ns, "patch", "service", "web", "--type=merge", "-p", &patch], "").ok()
    };
    patch(r#"{"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":60}}}"#)?;
    let script = format!("for i in $(seq 30); do curl -sS --max-time 5 http://{ip}/ || exit 1; done");
    let served = || Ok::<_, anyhow::Error>(c.on_node("node-1", &script).ok()?.lines().map(str::to_owned).collect());
    eventually("a client keeps its pod", || {
        let served: BTreeSet<String> = served()?;
        ensure!(served.len() == 1, "{served:?}");
        Ok(())
    })?;
    // All pods are here, so the policy changes nothing but where it is decided.
    patch(r#"{"sessionAffinity":"None","sessionAffinityConfig":null,"internalTrafficPolicy":"Local"}"#)?;
    eventually("and is let go", || {
        let served: BTreeSet<String> = served()?;
        ensure!(served.len() == 3, "{served:?}");
        Ok(())
    })
}

fn the_last_terminating_pod_serves_on(c: &Cluster, ns: &str) -> Result<()> {
    let ip = web(c, ns, 1)?;
    let patch = r#"{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":30,"containers":[{"name":"web","lifecycle":{"preStop":{"sleep":{"seconds":15}}}}]}}}}"#;
    c.kubectl_args(&["-n", ns, "patch", "deployment", "web", "-p", patch], "").ok()?;
    c.kubectl(&format!("-n {ns} rollout status deployment/web --timeout=60s")).ok()?;
    c.kubectl(&format!("-n {ns} scale deployment web --replicas=0")).ok()?;
    let slice = format!(
        "-n {ns} get endpointslices -l kubernetes.io/service-name=web -o jsonpath={{.items[*].endpoints[*].conditions.terminating}},{{.items[*].endpoints[*].conditions.ready}}"
    );
    eventually("the only endpoint terminates", || {
        let said = c.kubectl(&slice).ok()?;
        ensure!(said == "true,false", "{said}");
        Ok(())
    })?;
    let said = c.on_node("node-1", &format!("curl -sS --max-time 5 http://{ip}/")).ok()?;
    ensure!(said.starts_with("web-"), "{said}");
    c.kubectl(&format!("-n {ns} delete pods --all --grace-period=1 --wait=false")).ok()?;
    eventually("then it is refused", || {
        let said = c.on_node("node-1", &format!("curl -sS --max-time 5 http://{ip}/")).fails()?;
        ensure!(said.contains("(7)"), "{said}");
        Ok(())
    })
}
