//! Services of type LoadBalancer: an address of the pool, announced on the nodes' segment, reached from there.

use crate::images;
use crate::kubectl::deployment;
use crate::{Alone, Test};
use anyhow::{Context, Result, ensure};
use causeway_tests::{Cluster, eventually};
use std::collections::BTreeSet;
use std::fs;

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("loadbalancer::an_address_reaches_its_pods_and_is_freed", an_address_reaches_its_pods_and_is_freed),
        ("loadbalancer::a_new_range_is_served", a_new_range_is_served),
        ("loadbalancer::a_wish_waits_and_other_classes_are_left_alone", a_wish_waits_and_other_classes_are_left_alone),
    ]
}

fn a_new_range_is_served(c: &Cluster, ns: &str) -> Result<()> {
    web(c, ns, 1)?;
    let range = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: e2e-more}\nspec: {cidrs: [10.60.0.0/24]}\n";
    c.apply(range)?;
    c.kubectl("wait servicecidr/e2e-more --for=condition=Ready --timeout=30s").ok()?;
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: far, namespace: {ns}}}\nspec: {{clusterIP: 10.60.0.9, selector: {{app: web}}, ports: [{{port: 80, targetPort: http}}]}}\n"
    );
    c.apply(&service)?;
    eventually("an address of the new range answers", || {
        let said = c.on_node("node-1", "curl -sS --max-time 2 http://10.60.0.9/").ok()?;
        ensure!(said.starts_with("web-"), "{said}");
        Ok(())
    })?;
    // Nobody has this one: it ends on the node.
    let route = c.on_node("node-1", "ip route get 10.60.0.77").ok()?;
    ensure!(route.contains("dev lo"), "{route}");
    c.kubectl("delete servicecidr e2e-more --wait=false").ok()?;
    eventually("the range says what holds it", || {
        let said = c.kubectl("get servicecidr e2e-more -o yaml").ok()?;
        ensure!(said.contains("There are still IPAddresses referencing the ServiceCIDR"), "{said}");
        Ok(())
    })?;
    c.kubectl(&format!("-n {ns} delete service far")).ok()?;
    c.kubectl("wait servicecidr/e2e-more --for=delete --timeout=60s").ok()?;
    eventually("its route goes too", || {
        let routes = c.on_node("node-1", "ip route").ok()?;
        ensure!(!routes.contains("10.60.0.0"), "{routes}");
        Ok(())
    })
}

/// With clusters of their own.
pub fn alone() -> Vec<(&'static str, Alone)> {
    vec![("loadbalancer::a_full_pool_and_a_node_that_is_cut_off", a_full_pool_and_a_node_that_is_cut_off)]
}

fn address(c: &Cluster, ns: &str, name: &str) -> Result<String> {
    eventually(&format!("{name} has an address"), || {
        let ip = c
            .kubectl(&format!("-n {ns} get service {name} -o jsonpath={{.status.loadBalancer.ingress[*].ip}}"))
            .ok()?;
        ensure!(!ip.is_empty(), "none yet");
        Ok(ip)
    })
}

fn answers(c: &Cluster, ip: &str) -> Result<String> {
    eventually(&format!("{ip} answers on the segment"), || {
        let said = c.on_node("lan", &format!("curl -sS --max-time 2 http://{ip}/")).ok()?;
        ensure!(said.starts_with("web-"), "{said}");
        Ok(said)
    })
}

/// Hardware addresses that answer for an address on the nodes' segment.
fn announcers(c: &Cluster, ip: &str) -> BTreeSet<String> {
    let said = c.on_node("lan", &format!("arping -b -c 2 -w 2 -I lan0 {ip}")).out;
    let words = said.split(|c: char| c.is_whitespace() || c == '[' || c == ']');
    words.filter(|w| w.len() == 17 && w.matches(':').count() == 5).map(str::to_lowercase).collect()
}

fn web(c: &Cluster, ns: &str, replicas: u32) -> Result<()> {
    c.kubectl_in(&format!("-n {ns} apply -f -"), &deployment("web", replicas)).ok()?;
    c.kubectl(&format!("-n {ns} rollout status deployment/web --timeout=60s")).ok().map(drop)
}

fn expose(c: &Cluster, ns: &str, name: &str) -> Result<()> {
    let line = format!("-n {ns} expose deployment web --name={name} --type=LoadBalancer --port=80 --target-port=http");
    c.kubectl(&line).ok().map(drop)
}

fn an_address_reaches_its_pods_and_is_freed(c: &Cluster, ns: &str) -> Result<()> {
    web(c, ns, 2)?;
    expose(c, ns, "front")?;
    let ip = address(c, ns, "front")?;
    ensure!(ip.starts_with("10.90.0.2"), "{ip} is not of the default pool");
    let row = c.kubectl(&format!("-n {ns} get service front")).ok()?;
    ensure!(row.contains(&ip) && !row.contains("<pending>"), "{row}");
    answers(c, &ip)?;
    let macs = announcers(c, &ip);
    ensure!(macs.len() == 1, "{ip} is answered for by {macs:?}");
    // From the node and from a pod by the same address.
    c.on_node("node-1", &format!("curl -sS --max-time 5 http://{ip}/")).ok()?;
    let said =
        c.kubectl_args(&["-n", ns, "exec", "deployment/web", "--", "wget", "-qO-", &format!("http://{ip}/")], "");
    ensure!(said.ok()?.starts_with("web-"));
    let holder = c.kubectl(&format!("get ipaddress {ip} -o jsonpath={{.spec.parentRef.name}}")).ok()?;
    ensure!(holder == "front", "{holder}");
    eventually("its life is told by events", || {
        let events = c.kubectl(&format!("-n {ns} describe service front")).ok()?;
        for reason in ["EnsuringLoadBalancer", "EnsuredLoadBalancer", "AnnouncingAddress"] {
            ensure!(events.contains(reason), "{events}");
        }
        Ok(())
    })?;
    c.kubectl(&format!("-n {ns} delete service front --timeout=30s")).ok()?;
    eventually("nobody holds or announces it", || {
        c.kubectl(&format!("get ipaddress {ip}")).fails()?;
        c.kubectl(&format!("-n kube-system get lease load-balancer-{ip}")).fails()?;
        c.on_node("lan", &format!("curl -sS --max-time 2 http://{ip}/")).fails().map(drop)
    })
}

fn a_wish_waits_and_other_classes_are_left_alone(c: &Cluster, ns: &str) -> Result<()> {
    let service = |name: &str, more: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {ns}, annotations: {{causeway.dev/load-balancer-ips: 10.90.0.249}}}}\nspec: {{type: LoadBalancer, ports: [{{port: 80}}]{more}}}\n"
        )
    };
    c.apply(&service("first", ""))?;
    ensure!(address(c, ns, "first")? == "10.90.0.249");
    c.apply(&service("foreign", ", loadBalancerClass: example.com/other"))?;
    c.apply(&service("second", ""))?;
    eventually("the second is told why it has none", || {
        let said = c.kubectl(&format!("-n {ns} describe service second")).ok()?;
        ensure!(
            said.contains("SyncLoadBalancerFailed") && said.contains("10.90.0.249 belongs to another Service"),
            "{said}"
        );
        Ok(())
    })?;
    let pending = c.kubectl(&format!("-n {ns} get service second foreign")).ok()?;
    ensure!(pending.matches("<pending>").count() == 2, "{pending}");
    c.kubectl(&format!("-n {ns} patch service first -p {{\"spec\":{{\"type\":\"ClusterIP\"}}}}")).ok()?;
    ensure!(address(c, ns, "second")? == "10.90.0.249");
    let foreign = c.kubectl(&format!("-n {ns} get service foreign -o yaml")).ok()?;
    ensure!(!foreign.contains("finalizers") && !foreign.contains("ingress:"), "{foreign}");
    Ok(())
}

fn a_full_pool_and_a_node_that_is_cut_off() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("cluster.yaml");
    fs::write(&file, "loadBalancerPools: [{name: small, addresses: [10.90.0.230-10.90.0.231]}]\n")?;
    let mut c = Cluster::new("lb")?;
    let file = file.to_str().context("a path that is no text")?.to_owned();
    c.args = ["--nodes", "2", "--config", &file].map(str::to_owned).into();
    c.up()?;
    images::load(&c)?;
    let ns = "default";
    web(&c, ns, 2)?;
    for name in ["a", "b", "c"] {
        expose(&c, ns, name)?;
        if name != "c" {
            address(&c, ns, name)?;
        }
    }
    eventually("the third is told that the pool is empty", || {
        let said = c.kubectl("describe service c").ok()?;
        ensure!(said.contains("no free IPv4 address in the pools"), "{said}");
        Ok(())
    })?;
    let freed = address(&c, ns, "a")?;
    c.kubectl("delete service a --timeout=30s").ok()?;
    ensure!(address(&c, ns, "c")? == freed);
    answers(&c, &freed)?;

    let has = |node: &str| -> Result<bool> {
        Ok(c.on_node(node, "ip -4 address show dev eth0").ok()?.contains(&format!("{freed}/32")))
    };
    let (owner, other) = if has("node-1")? { ("node-1", "node-2") } else { ("node-2", "node-1") };
    let before = announcers(&c, &freed);
    c.on_node(owner, "ip link set eth0 down").ok()?;
    eventually("the other node announces it", || {
        ensure!(has(other)?, "not yet");
        Ok(())
    })?;
    answers(&c, &freed)?;
    let after = announcers(&c, &freed);
    ensure!(after.len() == 1 && after != before, "{before:?} {after:?}");
    c.on_node(owner, "ip link set eth0 up").ok()?;
    // It says again that it is alive, and takes nothing away by that.
    let path = "jsonpath={.spec.renewTime}";
    let said = || c.kubectl(&format!("-n kube-system get lease announce-{owner} -o {path}")).ok();
    let last = said()?;
    eventually("the node takes part again", || {
        ensure!(said()? != last, "nothing new since {last}");
        Ok(())
    })?;
    ensure!(!has(owner)?, "what it had is another's now");
    ensure!(announcers(&c, &freed) == after, "it stays where it is, and with one node");
    Ok(())
}
