//! Certificates that come by themselves, from a real authority for tests (Pebble) on loopback, in both ways of showing that
//! a name is ours.

use crate::images;
use crate::services::web;
use anyhow::{Context, Result, bail, ensure};
use causeway_tests::cluster::free_port;
use causeway_tests::{Cluster, eventually, run};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Pebble and its name server, for which every name is 127.0.0.1; ended when dropped.
struct Authority {
    dir: tempfile::TempDir,
    /// Of the directory and of the management, on 127.0.0.1.
    ports: (u16, u16),
    /// The authority that has signed Pebble's own certificate.
    ca: PathBuf,
    running: Vec<Child>,
}

impl Drop for Authority {
    fn drop(&mut self) {
        for child in &mut self.running {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn go(args: &[&str]) -> Result<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("acme");
    let mut command = Command::new("env");
    command.arg(format!("PATH={path}:/usr/local/go/bin")).arg("go").args(args).current_dir(folder);
    run(&mut command)?.ok().context("building Pebble, which needs Go (https://go.dev/dl)")
}

impl Authority {
    fn start(c: &Cluster) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let module = "github.com/letsencrypt/pebble/v2";
        let programs = ["pebble", "pebble-challtestsrv"].map(|p| format!("{module}/cmd/{p}"));
        let out = format!("{}/", dir.path().display());
        go(&["build", "-o", &out, &programs[0], &programs[1]])?;
        let certs = PathBuf::from(go(&["list", "-m", "-f", "{{.Dir}}", module])?.trim()).join("test/certs");
        let (ports, names, management) = ((free_port()?, free_port()?), free_port()?, free_port()?);
        let config = serde_json::json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{}", ports.0), "managementListenAddress": format!("127.0.0.1:{}", ports.1),
            "certificate": certs.join("localhost/cert.pem"), "privateKey": certs.join("localhost/key.pem"),
            "httpPort": c.http, "tlsPort": c.https, "keyAlgorithm": "ecdsa",
            "profiles": {"default": {"description": "for tests", "validityPeriod": 7_776_000}}}});
        let file = dir.path().join("pebble.json");
        std::fs::write(&file, config.to_string())?;
        let names = format!("127.0.0.1:{names}");
        let mut server = Command::new(dir.path().join("pebble-challtestsrv"));
        server.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-defaultIPv6", ""]);
        server.args(["-dnsserver", &names, "-management", &format!("127.0.0.1:{management}")]);
        let mut pebble = Command::new(dir.path().join("pebble"));
        pebble.arg("-config").arg(&file).args(["-dnsserver", &names]).env("PEBBLE_VA_NOSLEEP", "1");
        let log = std::fs::File::create(dir.path().join("log"))?;
        let mut this = Self { dir, ports, ca: certs.join("pebble.minica.pem"), running: Vec::new() };
        for mut command in [server, pebble] {
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
            this.running.push(command.spawn()?);
        }
        let answers = eventually("the authority answers", || this.ask(this.ports.0, "dir"));
        answers.with_context(|| this.said())?;
        Ok(this)
    }

    /// What its programs wrote.
    fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn ask(&self, port: u16, path: &str) -> Result<String> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "--max-time", "5", "--cacert"]).arg(&self.ca);
        run(curl.arg(format!("https://127.0.0.1:{port}/{path}")))?.ok()
    }

    /// Settings of a cluster whose certificates come from here.
    fn configure(&self, file: &Path, challenge: &str) -> Result<()> {
        let acme = serde_json::json!({"directory": format!("https://127.0.0.1:{}/dir", self.ports.0), "caFile": self.ca,
            "email": "who@example.org", "termsOfServiceAgreed": true, "challenge": challenge});
        Ok(std::fs::write(file, serde_json::json!({"ingress": {"acme": acme}}).to_string())?)
    }
}

fn ingress(name: &str, host: &str, secret: &str) -> String {
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: {name}, annotations: {{kubernetes.io/tls-acme: 'true'}}}}
spec:
  tls: [{{hosts: [{host}], secretName: {secret}}}]
  rules: [{{host: {host}, http: {{paths: [{{path: /, pathType: Prefix, backend: {{service: {{name: web, port: {{number: 80}}}}}}}}]}}}}]
"
    )
}

pub fn certificates_come_by_themselves() -> Result<()> {
    let mut c = Cluster::new("acme")?;
    let authority = Authority::start(&c)?;
    let file = authority.dir.path().join("cluster.yaml");
    authority.configure(&file, "http-01")?;
    c.args = vec!["--config".to_owned(), file.to_string_lossy().into_owned()];
    c.up()?;
    let outcome = story(&c, &authority, &file);
    if outcome.is_err() {
        eprintln!("{}", authority.said());
        eprintln!("{}", c.kubectl("get events,ingress,secrets -A").out);
    }
    outcome
}

fn story(c: &Cluster, authority: &Authority, file: &Path) -> Result<()> {
    images::load(c)?;
    web(c, "default", 1)?;
    let roots = authority.dir.path().join("roots.pem");
    std::fs::write(&roots, authority.ask(authority.ports.1, "roots/0")?)?;
    let trusted = |host: &str| {
        eventually(&format!("{host} has a certificate"), || {
            let mut curl = Command::new("curl");
            curl.args(["-sS", "--fail", "--max-time", "5", "--connect-to", &format!("::127.0.0.1:{}", c.https)]);
            let said = run(curl.arg("--cacert").arg(&roots).arg(format!("https://{host}/")))?.ok()?;
            ensure!(said.starts_with("web-"), "{said}");
            Ok(())
        })
    };
    c.apply(&ingress("one", "one.example.test", "one-tls"))?;
    trusted("one.example.test")?;
    let told = |name: &str, reason: &str| {
        eventually(&format!("an event says {reason}"), || {
            let said = c.kubectl(&format!("get events --field-selector involvedObject.name={name}")).ok()?;
            if said.contains(reason) { Ok(()) } else { bail!("{said}") }
        })
    };
    told("one", "CertificateIssued")?;

    // A Gateway's name goes the same way.
    c.apply(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: two, annotations: {causeway.dev/acme: 'true'}}
spec:
  gatewayClassName: causeway
  listeners:
  - {name: tls, port: 443, protocol: HTTPS, hostname: two.example.test, tls: {certificateRefs: [{name: two-tls}]}}
",
    )?;
    c.kubectl("wait gateway/two --for=condition=Programmed --timeout=60s").ok()?;
    eventually("the Gateway's listener is programmed", || {
        let path = "jsonpath={.status.listeners[0].conditions[?(@.type=='ResolvedRefs')].status}";
        let said = c.kubectl_args(&["get", "gateway", "two", "-o", path], "").ok()?;
        if said == "True" { Ok(()) } else { bail!("{said}") }
    })?;

    // A Secret that somebody has brought is left alone.
    c.kubectl("create secret generic mine --type=kubernetes.io/tls --from-literal=tls.crt= --from-literal=tls.key=")
        .ok()?;
    c.apply(&ingress("mine", "mine.example.test", "mine"))?;
    told("mine", "CertificateNotOurs")?;

    // The other way; a program that takes over reads the settings anew, and goes on with the same account.
    let account = || c.kubectl("-n kube-system get secret causeway-acme-account -o jsonpath={.data}").ok();
    let before = account()?;
    authority.configure(file, "tls-alpn-01")?;
    c.command(&["upgrade"]).ok()?;
    c.apply(&ingress("three", "three.example.test", "three-tls"))?;
    trusted("three.example.test")?;
    trusted("one.example.test")?;
    ensure!(account()? == before, "another account");
    ensure!(c.kubectl("get secret mine -o jsonpath={.data}").ok()?.contains("\"tls.crt\":\"\""));
    Ok(())
}
