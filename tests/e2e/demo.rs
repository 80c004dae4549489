//! The demo shop as `make demo` brings it up, on real nginx and redis from Debian's packages.

use anyhow::{Context, Result, ensure};
use causeway_tests::{Cluster, cluster, eventually, run};
use std::path::Path;
use std::process::Command;

/// Orders survive the pod that keeps them; the page and the API answer by domain, with and without TLS.
pub fn the_shop_opens() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the tests have no parent folder")?;
    let images = root.join("target/demo-test");
    let program = cluster::program()?;
    let api = program.with_file_name("shop-api");
    let mut build = Command::new(root.join("configs/demo/images.sh"));
    run(build.arg(&program).arg(&images).arg(&api))?.ok()?;
    let c = Cluster::start("shop")?;
    let archives: Vec<String> =
        ["nginx", "redis", "shop-api"].iter().map(|n| images.join(format!("{n}.tar")).display().to_string()).collect();
    let mut load = vec!["image", "load"];
    load.extend(archives.iter().map(String::as_str));
    c.command(&load).ok()?;
    let manifests = root.join("configs/demo").display().to_string();
    c.kubectl(&format!("apply -f {manifests}/00-namespace.yaml")).ok()?;
    c.kubectl(&format!("apply -f {manifests}")).ok()?;
    for what in ["statefulset/redis", "deployment/api", "deployment/web"] {
        c.kubectl(&format!("-n shop rollout status {what} --timeout=100s")).ok()?;
    }
    let page = eventually("the page shows", || c.curl("http://shop.localhost/", &["-f"]).ok())?;
    ensure!(page.contains("<title>Causeway shop</title>"), "{page}");
    ensure!(c.curl("https://shop.localhost/", &["-f", "-k"]).ok()?.contains("Causeway shop"));
    let order = |method: &str| c.curl("http://shop.localhost/api/orders", &["-f", "-X", method]).ok();
    ensure!(order("POST")?.contains("\"orders\":1"));
    // By the front's own way: nginx finds the API by its name.
    let front = c.on_node("lan", "curl -sS -f http://10.90.0.11:30080/api/orders").ok()?;
    ensure!(front.contains("\"orders\":1"), "{front}");
    c.kubectl("-n shop delete pod redis-0").ok()?;
    eventually("the orders are still there", || {
        let said = order("GET")?;
        ensure!(said.contains("\"orders\":1"), "{said}");
        Ok(())
    })?;
    // Applying it again changes nothing. (kubectl says "configured" where the API fills defaults into lists that it does
    // not merge, such as claim templates; the generation tells.)
    let generation = || c.kubectl("-n shop get statefulset redis -o jsonpath={.metadata.generation}").ok();
    let before = generation()?;
    c.kubectl(&format!("apply -f {manifests}")).ok()?;
    ensure!(generation()? == before, "the StatefulSet was changed");
    ensure!(order("GET")?.contains("\"orders\":1"));
    Ok(())
}
