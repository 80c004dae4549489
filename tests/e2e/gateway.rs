//! Gateway API: from kubectl to a Gateway's own address, with real clients on the nodes' segment. What the API demands in
//! detail is the conformance suite's to show (`tests/conformance`).

use crate::Test;
use crate::ingress::answering;
use anyhow::{Result, ensure};
use causeway_tests::{Cluster, eventually, run};
use std::process::Command;

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("gateway::routes_by_rule_and_weight", routes_by_rule_and_weight),
        ("gateway::two_gateways_have_the_same_port", two_gateways_have_the_same_port),
        ("gateway::tls_and_tcp", tls_and_tcp),
        ("gateway::changes_drop_nothing", changes_drop_nothing),
    ]
}

fn gateway(ns: &str, name: &str, listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {ns}}}\n\
         spec: {{gatewayClassName: causeway, listeners: [{listeners}]}}\n"
    )
}

fn route(ns: &str, kind: &str, name: &str, gateway: &str, rest: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {ns}}}\n\
         spec: {{parentRefs: [{{name: {gateway}}}], {rest}}}\n"
    )
}

const HTTP: &str = "{name: http, port: 80, protocol: HTTP}";

/// The Gateway's address, once it is programmed.
fn address(c: &Cluster, ns: &str, name: &str) -> Result<String> {
    c.kubectl(&format!("-n {ns} wait gateway/{name} --for=condition=Programmed --timeout=60s")).ok()?;
    c.kubectl(&format!("-n {ns} get gateway {name} -o jsonpath={{.status.addresses[0].value}}")).ok()
}

/// A Gateway `door` whose port 80 leads to a Service, and its route.
pub fn leading_to(ns: &str, service: &str, port: u16) -> String {
    let rules = format!("rules: [{{backendRefs: [{{name: {service}, port: {port}}}]}}]");
    format!("{}---\n{}", gateway(ns, "door", HTTP), route(ns, "HTTPRoute", "door", "door", &rules))
}

/// Makes such a Gateway; returns its address.
pub fn in_front_of(c: &Cluster, ns: &str, service: &str, port: u16) -> Result<String> {
    c.apply(&leading_to(ns, service, port))?;
    let ip = address(c, ns, "door")?;
    says(c, &format!("http://{ip}/"), service)?;
    Ok(ip)
}

fn says(c: &Cluster, curl: &str, word: &str) -> Result<()> {
    eventually(&format!("curl {curl} says {word}"), || {
        let said = c.on_node("lan", &format!("curl -sS --max-time 2 {curl}")).ok()?;
        ensure!(said.contains(word), "{said}");
        Ok(())
    })
}

fn routes_by_rule_and_weight(c: &Cluster, ns: &str) -> Result<()> {
    answering(c, ns, "one")?;
    answering(c, ns, "two")?;
    c.apply(&gateway(ns, "web", HTTP))?;
    c.apply(&route(
        ns,
        "HTTPRoute",
        "rules",
        "web",
        "hostnames: [shop.example], rules: [\
          {matches: [{headers: [{name: x-who, value: two}]}], backendRefs: [{name: two, port: 8080}]},\
          {matches: [{path: {type: PathPrefix, value: /old}}], filters: [{type: RequestRedirect, requestRedirect: \
            {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 301}}]},\
          {backendRefs: [{name: one, port: 8080, weight: 1}, {name: two, port: 8080, weight: 0}]}]",
    ))?;
    let ip = address(c, ns, "web")?;
    says(c, &format!("-H 'Host: shop.example' http://{ip}/"), "one")?;
    says(c, &format!("-H 'Host: shop.example' -H 'X-Who: two' http://{ip}/"), "two")?;
    says(c, &format!("-i -H 'Host: shop.example' http://{ip}/old/x?y=1"), "ocation: http://shop.example/new/x?y=1")?;
    says(c, &format!("-i -H 'Host: other.example' http://{ip}/"), "404")?;
    // The ingress' own address knows nothing of it.
    let node = c.on_node("lan", "curl -s -o /dev/null -w %{http_code} -H 'Host: shop.example' http://10.90.0.11/").out;
    ensure!(node == "404", "{node}");
    let conditions = format!(
        "-n {ns} get httproute rules -o jsonpath={{.status.parents[0].conditions[?(@.status==\"True\")].type}}"
    );
    let said = c.kubectl(&conditions).ok()?;
    ensure!(said == "Accepted ResolvedRefs", "{said}");
    // A reference that leads nowhere is said to, by an event too, and fails its share only.
    c.apply(&route(ns, "HTTPRoute", "broken", "web", "rules: [{backendRefs: [{name: gone, port: 80}]}]"))?;
    says(c, &format!("-i -H 'Host: any.example' http://{ip}/"), "500")?;
    eventually("an event tells", || {
        let events = c.kubectl(&format!("-n {ns} get events --field-selector involvedObject.name=broken")).ok()?;
        ensure!(events.contains("BackendNotFound"), "{events}");
        Ok(())
    })
}

fn two_gateways_have_the_same_port(c: &Cluster, ns: &str) -> Result<()> {
    for word in ["red", "blue"] {
        answering(c, ns, word)?;
        c.apply(&gateway(ns, word, HTTP))?;
        c.apply(&route(
            ns,
            "HTTPRoute",
            word,
            word,
            &format!("rules: [{{backendRefs: [{{name: {word}, port: 8080}}]}}]"),
        ))?;
    }
    let (red, blue) = (address(c, ns, "red")?, address(c, ns, "blue")?);
    ensure!(red != blue, "both have {red}");
    says(c, &format!("http://{red}/"), "red")?;
    says(c, &format!("http://{blue}/"), "blue")?;
    c.kubectl(&format!("-n {ns} delete gateway red")).ok()?;
    eventually("its Service goes with it", || {
        let services = c.kubectl(&format!("-n {ns} get service -o name")).ok()?;
        ensure!(!services.contains("red-causeway"), "{services}");
        Ok(())
    })?;
    says(c, &format!("http://{blue}/"), "blue")
}

fn tls_and_tcp(c: &Cluster, ns: &str) -> Result<()> {
    answering(c, ns, "plain")?;
    let folder = tempfile::tempdir()?;
    let (key, crt) = (folder.path().join("k"), folder.path().join("c"));
    let made = run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=tls.example", "-addext", "subjectAltName=DNS:tls.example", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&crt))?;
    made.ok()?;
    c.kubectl(&format!("-n {ns} create secret tls cert --key {} --cert {}", key.display(), crt.display())).ok()?;
    let listeners = "{name: tls, port: 443, protocol: HTTPS, hostname: tls.example, tls: {certificateRefs: [{name: cert}]}}, \
                     {name: tcp, port: 9000, protocol: TCP}";
    c.apply(&gateway(ns, "mixed", listeners))?;
    let backend = "rules: [{backendRefs: [{name: plain, port: 8080}]}]";
    c.apply(&route(ns, "HTTPRoute", "https", "mixed", backend))?;
    c.apply(&route(ns, "TCPRoute", "tcp", "mixed", backend))?;
    let ip = address(c, ns, "mixed")?;
    let trusted = format!("--cacert {} --resolve tls.example:443:{ip}", crt.display());
    says(c, &format!("{trusted} https://tls.example/"), "plain")?;
    says(c, &format!("{trusted} --http2 https://tls.example/"), "plain")?;
    says(c, &format!("http://{ip}:9000/"), "plain")?;
    let unknown =
        c.on_node("lan", &format!("curl -sSk --max-time 2 --resolve other.example:443:{ip} https://other.example/"));
    ensure!(unknown.code != 0, "a name that no listener has was served");
    Ok(())
}

/// Routes come and go beside one that is in use, and not one of its requests is lost.
fn changes_drop_nothing(c: &Cluster, ns: &str) -> Result<()> {
    crate::services::web(c, ns, 2)?;
    c.apply(&gateway(ns, "busy", HTTP))?;
    c.apply(&route(
        ns,
        "HTTPRoute",
        "kept",
        "busy",
        "hostnames: [kept.example], rules: [{backendRefs: [{name: web, port: 80}]}]",
    ))?;
    let ip = address(c, ns, "busy")?;
    says(c, &format!("-H 'Host: kept.example' http://{ip}/"), "web-")?;
    let load = format!(
        "for i in $(seq 1 600); do curl -s -o /dev/null -w '%{{http_code}}\\n' --max-time 3 -H 'Host: kept.example' http://{ip}/; done"
    );
    let answers = std::thread::scope(|scope| -> Result<String> {
        let running = scope.spawn(|| c.on_node("lan", &load).out);
        for round in 0..20 {
            let rest = format!("hostnames: [h{round}.example], rules: [{{backendRefs: [{{name: web, port: 80}}]}}]");
            c.apply(&route(ns, "HTTPRoute", &format!("r{}", round % 5), "busy", &rest))?;
        }
        Ok(running.join().unwrap_or_default())
    })?;
    let (good, all) = (answers.lines().filter(|l| *l == "200").count(), answers.lines().count());
    ensure!(good == all && all == 600, "{good} of {all} requests were answered with 200");
    Ok(())
}
