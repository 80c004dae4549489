//! kube-proxy's other mode: the services' tests over iptables on a cluster of its own, and a change of the mode while
//! connections are made.

use crate::services::{self, web};
use crate::{images, in_namespace};
use anyhow::{Result, ensure};
use causeway_tests::{Cluster, eventually};
use std::sync::atomic::{AtomicBool, Ordering};

/// What depends on the mode.
const CORE: [&str; 6] = [
    "services::cluster_ip_spreads_and_stays",
    "services::udp_reaches_its_pods",
    "services::without_endpoints_it_refuses_at_once",
    "services::a_rollout_refuses_nobody",
    "services::node_ports",
    "services::a_pod_reaches_itself",
];

/// Which mode's rules are in the node's kernel: (nftables, iptables).
fn rules(c: &Cluster) -> Result<(bool, bool)> {
    let tables = c.on_node("node-1", "nft list tables").ok()?;
    let saved = c.on_node("node-1", "iptables-nft-save; iptables-legacy-save").ok()?;
    Ok((tables.lines().any(|l| l == "table ip causeway"), saved.contains("KUBE-")))
}

pub fn iptables_serves_all_and_a_switch_goes_on() -> Result<()> {
    let mut c = Cluster::new("ipt")?;
    c.args = vec!["--proxy-mode".to_owned(), "iptables".to_owned()];
    c.up()?;
    images::load(&c)?;
    ensure!(rules(&c)? == (false, true));
    let node = c.kubectl("get node node-1 -o jsonpath={.status.addresses[0].address}").ok()?;
    let core: Vec<_> = services::tests().into_iter().filter(|(name, _)| CORE.contains(name)).collect();
    ensure!(core.len() == CORE.len(), "a test has another name now");
    for (name, test) in core {
        in_namespace(&c, name, test).map_err(|e| e.context(name))?;
    }
    let metrics = c.on_node("node-1", &format!("curl -sS http://{node}:10256/metrics")).ok()?;
    ensure!(metrics.contains("kubeproxy_sync_proxy_rules_iptables_total{table=\"nat\"}"), "{metrics}");
    ensure!(metrics.contains("kubeproxy_sync_proxy_rules_iptables_restore_failures_total 0"), "{metrics}");

    let ip = web(&c, "default", 2)?;
    let (c, stop) = (&mut c, &AtomicBool::new(false));
    for (mode, expected) in [("nftables", (true, false)), ("iptables", (false, true))] {
        stop.store(false, Ordering::Relaxed);
        // The rules stay when the process ends, as the pods do.
        c.kill()?;
        c.args = vec!["--proxy-mode".to_owned(), mode.to_owned()];
        let c = &*c;
        std::thread::scope(|scope| {
            let ip = &ip;
            let load = scope.spawn(move || -> Result<(usize, Vec<String>)> {
                let (mut count, mut refused) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let get = format!("curl -sS --max-time 5 -o /dev/null http://{ip}/");
                    // What the kernel had, should one be refused.
                    let why = format!("iptables-nft-save | grep {ip}; nft list map ip causeway services | grep {ip}");
                    let script = format!("for i in $(seq 10); do {get} 2>&1 || {{ {why}; }} 2>&1; done");
                    let said = c.on_node("node-1", &script).out;
                    count += 10;
                    refused.extend(said.contains("curl:").then_some(said));
                }
                Ok((count, refused))
            });
            let up = c.up().and_then(|_| {
                eventually("only the new mode's rules are there", || {
                    let found = rules(c)?;
                    ensure!(found == expected, "{mode}: {found:?}");
                    Ok(())
                })
            });
            stop.store(true, Ordering::Relaxed);
            let (count, refused) = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
            up?;
            ensure!(count > 20, "only {count} requests: the test says nothing");
            ensure!(refused.is_empty(), "change to {mode}, of {count} requests: {refused:?}");
            Ok(())
        })?;
    }
    Ok(())
}
