//! From a domain to a pod: real HTTP clients through the ingress on 127.0.0.1.

use crate::Test;
use crate::images::BUSYBOX;
use crate::services::web;
use anyhow::{Result, ensure};
use causeway_tests::{Cluster, eventually, run};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

pub fn tests() -> Vec<(&'static str, Test)> {
    vec![
        ("ingress::hosts_and_paths", hosts_and_paths),
        ("ingress::tls_by_name", tls_by_name),
        ("ingress::the_oldest_wins", the_oldest_wins),
        ("ingress::changes_drop_nothing", changes_drop_nothing),
        ("ingress::nothing_behind_it_is_said", nothing_behind_it_is_said),
        ("ingress::annotations_and_load", annotations_and_load),
    ]
}

/// A pod and a Service that answer every path with a word.
pub fn answering(c: &Cluster, ns: &str, word: &str) -> Result<()> {
    let script = format!(
        "while true; do printf \"HTTP/1.1 200 OK\\r\\nContent-Length: {}\\r\\nConnection: close\\r\\n\\r\\n{word}\" | nc -l -p 8080 > /dev/null; done",
        word.len()
    );
    c.kubectl_args(
        &[
            "-n",
            ns,
            "run",
            word,
            &format!("--image={BUSYBOX}"),
            "--image-pull-policy=Never",
            "--port=8080",
            "--expose",
            "--command",
            "--",
            "sh",
            "-c",
            &script,
        ],
        "",
    )
    .ok()?;
    c.kubectl(&format!("-n {ns} wait pod/{word} --for=condition=Ready --timeout=60s")).ok()?;
    Ok(())
}

/// Annotations with a Secret of the cluster, and the load generator through the ingress.
fn annotations_and_load(c: &Cluster, ns: &str) -> Result<()> {
    web(c, ns, 2)?;
    // The password is "hello".
    let users = "--from-literal=auth=ann:{SHA}qvTGHdzF6KLavt4PO0gs2a6pQ00=";
    c.kubectl(&format!("-n {ns} create secret generic users {users}")).ok()?;
    let at = |kind: &str, path: &str| {
        format!(
            "{{rules: [{{host: load.localhost, http: {{paths: [{{path: {path}, pathType: {kind}, backend: {{service: {{name: web, port: {{number: 80}}}}}}}}]}}}}]}}"
        )
    };
    let annotated = |name: &str, annotations: &str, spec: &str| {
        ingress(ns, name, spec).replace("metadata: {", &format!("metadata: {{annotations: {{{annotations}}}, "))
    };
    let prefix = "nginx.ingress.kubernetes.io";
    c.apply(&annotated("open", &format!("{prefix}/rewrite-target: /$1"), &at("ImplementationSpecific", "/open/(.*)")))?;
    let auth = format!("{prefix}/auth-type: basic, {prefix}/auth-secret: users");
    c.apply(&annotated("closed", &auth, &at("Prefix", "/closed")))?;
    eventually("the rewritten path answers", || {
        let said = c.curl("http://load.localhost/open/index.html", &[]).ok()?;
        ensure!(said.starts_with("web-"), "{said}");
        Ok(())
    })?;
    eventually("a password is asked for", || {
        let code = ["-o", "/dev/null", "-w", "%{http_code}"];
        let said = c.curl("http://load.localhost/closed", &code).ok()?;
        ensure!(said == "401", "{said}");
        // The pod has no such page: only who is let in hears of that.
        let said = c.curl("http://load.localhost/closed", &[&code[..], &["-u", "ann:hello"]].concat()).ok()?;
        ensure!(said == "404", "{said}");
        Ok(())
    })?;
    let dir = tempfile::tempdir()?;
    let (json, svg) = (dir.path().join("load.json"), dir.path().join("load.svg"));
    let mut bench = Command::new(causeway_tests::cluster::program()?);
    bench.args(["bench", &format!("http://load.localhost:{}/open/", c.http), "--rate", "100", "--duration", "2s"]);
    bench.args(["--connections", "8"]).arg("--json").arg(&json).arg("--svg").arg(&svg);
    let said = run(&mut bench)?.ok()?;
    ensure!(said.contains("answered   200 ") && said.contains("p99"), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json)?)?;
    ensure!(report["answered"] == 200 && report["statuses"]["200"] == 200, "{report}");
    ensure!(std::fs::read_to_string(svg)?.starts_with("<svg"));
    // Nobody answers there: that is a failure with a reason.
    let mut nobody = Command::new(causeway_tests::cluster::program()?);
    nobody.args(["bench", "http://127.0.0.1:9/", "--duration", "1s"]);
    let said = run(&mut nobody)?.fails()?;
    ensure!(said.contains("connecting to http://127.0.0.1:9/"), "{said}");
    Ok(())
}

fn ingress(ns: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {spec}\n"
    )
}

fn path(path: &str, kind: &str, service: &str, port: u16) -> String {
    format!("{{path: {path}, pathType: {kind}, backend: {{service: {{name: {service}, port: {{number: {port}}}}}}}}}")
}

fn hosts_and_paths(c: &Cluster, ns: &str) -> Result<()> {
    for word in ["exact", "prefix", "root", "wild"] {
        answering(c, ns, word)?;
    }
    let paths = [
        path("/a", "Exact", "exact", 8080),
        path("/a", "Prefix", "prefix", 8080),
        path("/", "ImplementationSpecific", "root", 8080),
    ];
    let spec = format!(
        "{{rules: [{{host: paths.localhost, http: {{paths: [{}]}}}}, {{host: '*.wild.localhost', http: {{paths: [{}]}}}}]}}",
        paths.join(", "),
        path("/", "Prefix", "wild", 8080)
    );
    c.apply(&ingress(ns, "paths", &spec))?;
    for (url, want) in [
        ("http://paths.localhost/a", "exact"),
        ("http://paths.localhost/a/", "prefix"),
        ("http://paths.localhost/a/b?x=y", "prefix"),
        ("http://paths.localhost/ab", "root"),
        ("http://PATHS.localhost/", "root"),
        ("http://one.wild.localhost/x", "wild"),
    ] {
        eventually(url, || {
            let said = c.curl(url, &["-f"]).ok()?;
            ensure!(said == want, "{said:?} is not {want:?}");
            Ok(())
        })?;
    }
    for url in ["http://two.one.wild.localhost/", "http://nobody.localhost/"] {
        let code = c.curl(url, &["-o", "/dev/null", "-w", "%{http_code}"]).ok()?;
        ensure!(code == "404", "{url}: {code}");
    }
    eventually("the address is published", || {
        let table = c.kubectl(&format!("-n {ns} get ingress paths")).ok()?;
        ensure!(table.contains("127.0.0.1") && table.contains("causeway"), "{table}");
        Ok(())
    })
}

fn secret(c: &Cluster, ns: &str, name: &str, host: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (key, cert) = (dir.path().join("key"), dir.path().join("cert"));
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", &format!("/CN={host}"), "-addext", &format!("subjectAltName=DNS:{host}")])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert))?
    .ok()?;
    let (key, cert) = (key.to_string_lossy().into_owned(), cert.to_string_lossy().into_owned());
    c.kubectl(&format!("-n {ns} create secret tls {name} --key {key} --cert {cert}")).ok()?;
    Ok(())
}

fn tls_by_name(c: &Cluster, ns: &str) -> Result<()> {
    web(c, ns, 1)?;
    for name in ["one", "two"] {
        secret(c, ns, name, &format!("{name}.tls.localhost"))?;
        let host = format!("{name}.tls.localhost");
        let spec = format!(
            "{{tls: [{{hosts: [{host}], secretName: {name}}}], rules: [{{host: {host}, http: {{paths: [{}]}}}}]}}",
            path("/", "Prefix", "web", 80)
        );
        c.apply(&ingress(ns, name, &spec))?;
    }
    let subject = |host: &str| -> Result<String> {
        let said = c.curl(&format!("https://{host}/"), &["-k", "-v"]);
        let err = said.err.clone();
        said.ok()?;
        Ok(err.lines().find(|l| l.contains("subject:")).unwrap_or_default().to_owned())
    };
    for name in ["one", "two"] {
        let host = format!("{name}.tls.localhost");
        eventually("each name has its certificate", || {
            let subject = subject(&host)?;
            ensure!(subject.contains(&host), "{subject}");
            Ok(())
        })?;
    }
    // A broken key: that host falls back, the other keeps serving, and the object says why.
    let broken = r#"{"data":{"tls.key":"bm8ga2V5"}}"#;
    c.kubectl_args(&["-n", ns, "patch", "secret", "two", "-p", broken], "").ok()?;
    eventually("the trouble is told on the Ingress", || {
        let said = c.kubectl(&format!("-n {ns} describe ingress two")).ok()?;
        ensure!(said.contains("Warning") && said.contains("two"), "{said}");
        Ok(())
    })?;
    ensure!(subject("one.tls.localhost")?.contains("one.tls.localhost"));
    Ok(())
}

fn the_oldest_wins(c: &Cluster, ns: &str) -> Result<()> {
    answering(c, ns, "first")?;
    answering(c, ns, "second")?;
    let spec = |service: &str| {
        format!("{{rules: [{{host: same.localhost, http: {{paths: [{}]}}}}]}}", path("/", "Prefix", service, 8080))
    };
    c.apply(&ingress(ns, "zz-older", &spec("first")))?;
    std::thread::sleep(std::time::Duration::from_millis(1100));
    c.apply(&ingress(ns, "aa-newer", &spec("second")))?;
    eventually("the newer one says so", || {
        let said = c.kubectl(&format!("-n {ns} describe ingress aa-newer")).ok()?;
        ensure!(said.contains("zz-older"), "{said}");
        Ok(())
    })?;
    ensure!(c.curl("http://same.localhost/", &[]).ok()? == "first");
    c.kubectl(&format!("-n {ns} delete ingress zz-older")).ok()?;
    eventually("the other takes over", || {
        let said = c.curl("http://same.localhost/", &[]).ok()?;
        ensure!(said == "second", "{said}");
        Ok(())
    })
}

fn changes_drop_nothing(c: &Cluster, ns: &str) -> Result<()> {
    web(c, ns, 2)?;
    let spec = |extra: u32| {
        format!(
            "{{rules: [{{host: steady.localhost, http: {{paths: [{}, {}]}}}}]}}",
            path("/", "Prefix", "web", 80),
            path(&format!("/extra{extra}"), "Prefix", "web", 80)
        )
    };
    c.apply(&ingress(ns, "steady", &spec(0)))?;
    eventually("the route works", || c.curl("http://steady.localhost/", &["-f"]).ok())?;
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(move || -> Result<usize> {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let port = c.http;
                let url = format!("http://steady.localhost:{port}/?[1-50]");
                let resolve = format!("steady.localhost:{port}:127.0.0.1");
                let said =
                    run(Command::new("curl").args(["-sS", "-f", "--max-time", "20", "--resolve", &resolve, &url]))?
                        .ok()?;
                ensure!(said.lines().count() == 50, "{said}");
                count += 50;
            }
            Ok(count)
        });
        let changed = (1..=10).try_for_each(|i| c.apply(&ingress(ns, "steady", &spec(i))).map(drop));
        let rolled = c.kubectl(&format!("-n {ns} scale deployment web --replicas=4")).ok();
        let rolled =
            rolled.and_then(|_| c.kubectl(&format!("-n {ns} rollout status deployment/web --timeout=60s")).ok());
        stop.store(true, Ordering::Relaxed);
        let count = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        changed?;
        rolled?;
        ensure!(count > 50, "only {count} requests: the test says nothing");
        Ok(())
    })
}

fn nothing_behind_it_is_said(c: &Cluster, ns: &str) -> Result<()> {
    c.kubectl(&format!("-n {ns} create service clusterip empty --tcp=80")).ok()?;
    c.apply(&ingress(
        ns,
        "empty",
        &format!("{{rules: [{{host: empty.localhost, http: {{paths: [{}]}}}}]}}", path("/", "Prefix", "empty", 80)),
    ))?;
    eventually("503 says that nobody is ready", || {
        let code = c.curl("http://empty.localhost/", &["-o", "/dev/null", "-w", "%{http_code}"]).ok()?;
        ensure!(code == "503", "{code}");
        Ok(())
    })
}
