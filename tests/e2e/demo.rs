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
    let c = Cluster::start("shop")?;
    let demo = || {
        let mut script = Command::new(root.join("configs/demo/run.sh"));
        script.arg(&program).arg(&images).env("CAUSEWAY_NAME", &c.name).env("CAUSEWAY_DATA_DIR", &c.dir);
        run(script.env("HTTP_PORT", c.http.to_string()).env("HTTPS_PORT", c.https.to_string()))?.ok()
    };
    let said = demo()?;
    ensure!(said.contains("The shop is open") && said.contains("\"orders\":"), "{said}");
    let manifests = root.join("configs/demo").display().to_string();
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
    // What the demo proposes to try is no obstacle to showing it again.
    c.kubectl("-n shop scale deployment/web --replicas=4").ok()?;
    demo()?;
    let replicas = c.kubectl("-n shop get deployment web -o jsonpath={.spec.replicas}").ok()?;
    ensure!(replicas == "2" && generation()? == before, "{replicas} replicas");
    Ok(())
}
