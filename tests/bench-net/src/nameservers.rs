//! Who answers as cluster DNS: ours and CoreDNS out of the API, and CoreDNS, unbound and Knot out of a zone file.

use crate::cluster::Cluster;
use crate::kubeproxy::built;
use anyhow::{Result, bail};
use causeway_bench_net::machine::said;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One server: its name, how it is started, where it answers, and what it calls itself.
pub struct NameServer {
    /// In tables.
    pub name: &'static str,
    /// On which port of 127.0.0.1.
    pub port: u16,
    /// Whether it follows the API, and not a file.
    pub follows: bool,
    /// Its process.
    pub command: Command,
    /// Its version.
    pub version: String,
}

/// Unpacks Debian's servers; says which are not to be had.
fn unpacked(out: &Path) -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("debian_peers.sh");
    let status = Command::new(script).arg(out).args(["peers.dns", "unbound", "knot"]).status();
    match status {
        Ok(status) if status.success() => Some(out.join("peers.dns.root")),
        _ => {
            println!("    unbound and Knot are left out: their packages could not be downloaded");
            None
        }
    }
}

fn debian(root: &Path, program: &str) -> Command {
    let mut command = Command::new(root.join(program));
    let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|d| root.join(d));
    command.env("LD_LIBRARY_PATH", libraries.map(|d| d.to_string_lossy().into_owned()).join(":"));
    command
}

/// All servers that are there, with one thread each where that is a setting; `dir` has the zone files.
pub fn all(out: &Path, cluster: &Cluster, dir: &Path) -> Result<Vec<NameServer>> {
    let kubeconfig = cluster.kubeconfig.display();
    let mut ours = Command::new(std::env::current_exe()?);
    ours.args(["role", "dns"]).arg(&cluster.kubeconfig).args(["5301", "8181"]);
    let ours = NameServer { name: "causeway", port: 5301, follows: true, command: ours, version: String::new() };
    let mut servers = vec![ours];
    let zones = ["cluster.local", "10.in-addr.arpa"].map(|z| (z, dir.join(format!("{z}.zone"))));
    if let Some(program) = built(out, "coredns") {
        let version = said(Command::new(&program).arg("--version"));
        // What kubeadm installs, without upstreams: nobody asks for names outside.
        let kubernetes = format!(
            "    health 127.0.0.1:8080\n    ready 127.0.0.1:8182\n    kubernetes cluster.local in-addr.arpa ip6.arpa {{\n      kubeconfig {kubeconfig}\n      \
             pods insecure\n      fallthrough in-addr.arpa ip6.arpa\n      ttl 30\n    }}\n    prometheus 127.0.0.1:9154\n    \
             cache 30 {{\n      disable success cluster.local\n      disable denial cluster.local\n    }}\n    loadbalance\n"
        );
        let file = zones.iter().map(|(z, path)| format!("    file {} {z}\n", path.display())).collect::<String>();
        let both = [("CoreDNS", 5302, true, kubernetes), ("CoreDNS, zone file", 5303, false, file)];
        for (name, port, follows, plugins) in both {
            let corefile = dir.join(format!("Corefile.{port}"));
            std::fs::write(&corefile, format!(".:{port} {{\n    bind 127.0.0.1\n    errors\n{plugins}}}\n"))?;
            let mut command = Command::new(&program);
            command.arg("-conf").arg(corefile);
            servers.push(NameServer { name, port, follows, command, version: version.clone() });
        }
    } else {
        println!("    CoreDNS is left out: it is not built (see go_peers.sh)");
    }
    if let Some(root) = unpacked(out) {
        servers.push(unbound(&root, dir, &zones)?);
        servers.push(knot(&root, dir, &zones)?);
    }
    if servers.is_empty() {
        bail!("there is no server");
    }
    Ok(servers)
}

fn unbound(root: &Path, dir: &Path, zones: &[(&str, PathBuf)]) -> Result<NameServer> {
    let port = 5304;
    let own = dir.display();
    let mut config = format!(
        "server:\n  interface: 127.0.0.1\n  port: {port}\n  num-threads: 1\n  do-daemonize: no\n  chroot: \"\"\n  \
         username: \"\"\n  directory: \"{own}\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  \
         access-control: 127.0.0.0/8 allow\n  module-config: \"iterator\"\n  local-zone: \"10.in-addr.arpa.\" nodefault\n\
         remote-control:\n  control-enable: no\n"
    );
    for (zone, path) in zones {
        config += &format!(
            "auth-zone:\n  name: \"{zone}\"\n  zonefile: \"{}\"\n  for-downstream: yes\n  for-upstream: no\n  \
             fallback-enabled: no\n",
            path.display()
        );
    }
    let file = dir.join("unbound.conf");
    std::fs::write(&file, config)?;
    let mut command = debian(root, "usr/sbin/unbound");
    command.args(["-d", "-c"]).arg(file);
    let version = said(debian(root, "usr/sbin/unbound").arg("-V"));
    Ok(NameServer { name: "unbound", port, follows: false, command, version })
}

fn knot(root: &Path, dir: &Path, zones: &[(&str, PathBuf)]) -> Result<NameServer> {
    let port = 5305;
    let own = dir.join("knot");
    std::fs::create_dir_all(&own)?;
    let mut config = format!(
        "server:\n  rundir: \"{own}\"\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  \
         background-workers: 1\ndatabase:\n  storage: \"{own}\"\nlog:\n  - target: stderr\n    any: warning\nzone:\n",
        own = own.display()
    );
    for (zone, path) in zones {
        config += &format!(
            "  - domain: {zone}\n    file: \"{}\"\n    zonefile-sync: -1\n    journal-content: none\n",
            path.display()
        );
    }
    let file = dir.join("knot.conf");
    std::fs::write(&file, config)?;
    let mut command = debian(root, "usr/sbin/knotd");
    command.arg("-c").arg(file);
    let version = said(debian(root, "usr/sbin/knotd").arg("--version"));
    Ok(NameServer { name: "Knot", port, follows: false, command, version })
}
