//! `causeway upgrade`: another program takes over while requests, lookups and connections of every kind go on.

use crate::services::web;
use crate::{gateway, images};
use anyhow::{Context, Result, bail, ensure};
use causeway_tests::cluster::program;
use causeway_tests::{Cluster, eventually, run};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// What went wrong under load; nothing, and enough of it, is what is wanted.
fn load(c: &Cluster, dir: &Path, name: &str, more: &[&str]) -> Result<()> {
    let json = dir.join(name);
    let mut bench = Command::new(program()?);
    bench.args(["bench", &format!("http://web.localhost:{}/", c.http), "--rate", "60", "--duration", "14s"]);
    bench.args(["--connections", "6", "--timeout", "15s", "--json"]).arg(&json).args(more);
    let said = run(&mut bench)?;
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).context(said.out)?)?;
    ensure!(report["answered"] == 840 && report["statuses"]["200"] == 840, "{name}: {report}");
    Ok(())
}

/// Runs a line on a node (or `lan`) again and again; every run must succeed.
fn again(c: &Cluster, stop: &AtomicBool, node: &str, line: &str) -> Result<()> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        c.on_node(node, line).ok().with_context(|| format!("run {count} of {line}"))?;
        count += 1;
    }
    ensure!(count > 10, "only {count} runs of {line}: the test says nothing");
    Ok(())
}

pub fn nothing_is_refused_while_another_program_takes_over() -> Result<()> {
    let c = Cluster::start("upg")?;
    images::load(&c)?;
    let ip = web(&c, "default", 2)?;
    c.kubectl("create ingress web --rule=web.localhost/*=web:80").ok()?;
    let door = gateway::in_front_of(&c, "default", "web", 80)?;
    eventually("the ingress answers", || {
        let said = c.curl("http://web.localhost/", &["--fail"]).ok()?;
        ensure!(said.starts_with("web-"), "{said}");
        Ok(())
    })?;
    let containers =
        || c.kubectl("get pods -o jsonpath={.items[*].status.containerStatuses[*]['containerID','restartCount']}").ok();
    let (pid, before) = (c.pid()?, containers()?);
    let node = c.kubectl("get node node-1 -o jsonpath={.status.addresses[0].address}").ok()?;
    let curl = |url: &str| format!("curl -sS --fail --max-time 15 -o /dev/null {url}");
    let (through_gateway, through_service) = (curl(&format!("http://{door}/")), curl(&format!("http://{ip}/")));
    let name = format!("dig +tries=1 +time=10 +short @{node} web.default.svc.cluster.local | grep -qx {ip}");

    let (dir, stop) = (tempfile::tempdir()?, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (c, stop, dir) = (&c, &stop, dir.path());
        let all = [
            scope.spawn(move || load(c, dir, "kept", &[])),
            scope.spawn(move || load(c, dir, "new", &["--new-connection"])),
            scope.spawn(|| again(c, stop, "lan", &through_gateway)),
            scope.spawn(|| again(c, stop, "node-1", &through_service)),
            scope.spawn(|| again(c, stop, "node-1", &name)),
        ];
        let upgrades = (0..2).try_for_each(|_| {
            std::thread::sleep(std::time::Duration::from_secs(2));
            let said = c.command(&["upgrade"]).ok()?;
            ensure!(said.contains(&format!("(process {pid})")), "{said}");
            Ok(())
        });
        std::thread::sleep(std::time::Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        let ends = all.map(|one| one.join().map_err(|_| anyhow::anyhow!("a load panicked"))?);
        upgrades?;
        let wrong: Vec<String> = ends.into_iter().filter_map(Result::err).map(|e| format!("{e:#}")).collect();
        if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
    })?;
    ensure!(containers()? == before, "{before} before");
    // It can still be stopped, and what it kept was no more than it needs.
    c.command(&["status"]).ok()?;
    c.down()?;
    ensure!(c.command(&["upgrade"]).fails()?.contains("is not running"));
    Ok(())
}
