//! Upstreams that others wrote: `unbound`, over UDP, TCP and TLS with a certificate.

use super::support::{dig, start_with};
use causeway_api::dns::{DnsSettings, UpstreamPolicy};
use rcgen::{CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::fmt::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A running unbound with a zone of its own.
struct Unbound {
    child: Child,
    folder: TempDir,
    plain: u16,
    tls: u16,
    /// The certificate authority, PEM.
    ca: String,
}

impl Drop for Unbound {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn run(folder: &Path) -> Child {
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let mut command = Command::new("unbound");
    command.args(["-d", "-p", "-c"]).arg(folder.join("conf")).stdout(Stdio::null()).stderr(log);
    command.spawn().expect("unbound is in Debian's unbound")
}

fn wait_for(folder: &Path, port: u16) {
    let begin = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        assert!(begin.elapsed() < PATIENCE, "unbound does not listen: {}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Unbound {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "upstreams");
        let ca = params.self_signed(&authority).unwrap().pem();
        let (issuer, key) = (Issuer::new(params, authority), KeyPair::generate().unwrap());
        let params = CertificateParams::new(["dns.corp.example".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.path().join("cert"), certificate.pem()).unwrap();
        std::fs::write(folder.path().join("key"), key.serialize_pem()).unwrap();
        let (plain, tls, at) = (free_port(), free_port(), folder.path().display());
        let mut conf = format!(
            "server:\n  interface: 127.0.0.1@{plain}\n  interface: 127.0.0.1@{tls}\n  tls-port: {tls}\n  \
             tls-service-pem: {at}/cert\n  tls-service-key: {at}/key\n  chroot: \"\"\n  username: \"\"\n  directory: {at}\n  \
             pidfile: \"\"\n  use-syslog: no\n  module-config: \"iterator\"\n  do-daemonize: no\n  num-threads: 1\n  \
             local-zone: \"corp.example.\" static\n  local-data: \"corp.example. 60 SOA ns.corp.example. root.corp.example. 1 2 3 4 60\"\n  \
             local-data: \"a.corp.example. 60 A 192.0.2.10\"\n  local-data: \"alias.corp.example. 60 CNAME a.corp.example.\"\n  \
             local-data: \"text.corp.example. 60 TXT some-text\"\nremote-control:\n  control-enable: no\n"
        );
        for i in 0..100 {
            writeln!(conf, "server:\n  local-data: \"many.corp.example. 60 A 192.0.2.{i}\"").unwrap();
        }
        std::fs::write(folder.path().join("conf"), conf).unwrap();
        let child = run(folder.path());
        wait_for(folder.path(), tls);
        Self { child, folder, plain, tls, ca }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn again(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        self.child = run(self.folder.path());
        wait_for(self.folder.path(), self.tls);
    }
}

fn with(upstream: &str, ca: Option<&str>) -> DnsSettings {
    let policy = UpstreamPolicy::Sequential;
    DnsSettings { upstreams: vec![upstream.into()], tls_ca: ca.map(str::to_owned), policy, ..DnsSettings::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_unbound_come_through_and_long_ones_by_tcp() {
    let unbound = Unbound::start();
    let dns = start_with("cluster.local", &with(&format!("127.0.0.1:{}", unbound.plain), None), None).await;
    let found = dig(&dns, "a.corp.example A").await;
    assert!(found.contains("192.0.2.10") && found.contains("flags: qr rd ra"), "{found}");
    let text = dig(&dns, "text.corp.example TXT").await;
    assert!(text.contains("\"some-text\""), "{text}");
    let none = dig(&dns, "none.corp.example A").await;
    assert!(none.contains("status: NXDOMAIN") && none.contains("corp.example.\t"), "{none}");
    let nodata = dig(&dns, "a.corp.example AAAA").await;
    assert!(nodata.contains("status: NOERROR") && nodata.contains("ANSWER: 0") && nodata.contains("SOA"), "{nodata}");
    // Cut by UDP, so asked again by TCP on both sides.
    let many = dig(&dns, "many.corp.example A").await;
    assert!(many.contains("ANSWER: 100") && many.contains("(TCP)"), "{many}");
    let cut = dig(&dns, "many.corp.example A +ignore").await;
    assert!(cut.contains("flags: qr tc rd ra"), "{cut}");
    // An alias of the cluster, chased there.
    let far = causeway_dns::model::Records::External { target: "a.corp.example".into() };
    dns.zone.set(&super::support::key("shop", "far"), Some(far));
    let chased = dig(&dns, "far.shop.svc.cluster.local A").await;
    assert!(chased.contains("CNAME\ta.corp.example.") && chased.contains("192.0.2.10"), "{chased}");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_with_the_right_name_and_authority_only() {
    let mut unbound = Unbound::start();
    let (port, ca) = (unbound.tls, unbound.ca.clone());
    let named = format!("tls://127.0.0.1:{port}#dns.corp.example");
    let dns = start_with("cluster.local", &with(&named, Some(&ca)), None).await;
    let found = dig(&dns, "a.corp.example A").await;
    assert!(found.contains("192.0.2.10"), "{found}{}", unbound.log());
    // Many at once, on one connection.
    let all = futures::future::join_all((0..20).map(|i| {
        let dns = &dns;
        async move { dig(dns, &format!("n{i}.corp.example A")).await }
    }));
    assert!(all.await.iter().all(|a| a.contains("status: NXDOMAIN")));
    assert!(dig(&dns, "many.corp.example A").await.contains("ANSWER: 100"));
    // The connection ends; the next question opens another.
    unbound.again();
    assert!(dig(&dns, "after.corp.example A").await.contains("status: NXDOMAIN"));
    assert!(dns.counted("coredns_forward_requests_total", &format!("tls://127.0.0.1:{port}")) >= 23.0);
    // By address too, which the certificate names.
    let by_address = start_with("cluster.local", &with(&format!("tls://127.0.0.1:{port}"), Some(&ca)), None).await;
    assert!(dig(&by_address, "a.corp.example A").await.contains("192.0.2.10"));
    // Another name, and an authority that has not signed it: no answer is better than a stranger's.
    let stranger = Unbound::start();
    for (upstream, ca) in [
        (format!("tls://127.0.0.1:{port}#dns.other.example"), Some(ca.as_str())),
        (named.clone(), Some(stranger.ca.as_str())),
        (named, None),
    ] {
        let dns = start_with("cluster.local", &with(&upstream, ca), None).await;
        let failed = dig(&dns, "a.corp.example A").await;
        assert!(failed.contains("status: SERVFAIL"), "{upstream}: {failed}");
    }
}
