//! Who is measured as kube-proxy: ours, and the real one out of Kubernetes' Go modules, in both modes.

use crate::cluster::Cluster;
use crate::lab::{Lab, NODE};
use crate::{Options, roles};
use anyhow::{Context, Result};
use causeway_bench_net::machine::said;
use causeway_bench_net::process::inside;
use serde_json::json;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the real one serves its metrics.
const METRICS: u16 = 10249;

/// `minSyncPeriod` of the real one. With its default a second change within a second waits for the second to be over; it
/// must not wait, for it is the cost of a change that is looked for. (Zero would mean the default.)
const MIN_SYNC: &str = "1ms";

/// One program in one mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// In tables and files.
    pub name: &'static str,
    /// Ours, or the real one.
    pub ours: bool,
    /// `nftables` or `iptables`.
    pub mode: &'static str,
    /// Which of the two programs of that name is in the way of `iptables`.
    flavour: &'static str,
    /// More Services than this are not tried: it would take minutes, and says nothing new.
    pub most: u32,
}

const OURS: Case = Case { name: "causeway nftables", ours: true, mode: "nftables", flavour: "nft", most: u32::MAX };
const THEIRS: Case = Case { name: "kube-proxy nftables", ours: false, ..OURS };

/// All of them, best known first.
pub const CASES: [Case; 6] = [
    OURS,
    Case { name: "causeway iptables (legacy)", mode: "iptables", flavour: "legacy", ..OURS },
    Case { name: "causeway iptables (nft)", mode: "iptables", most: 1000, ..OURS },
    THEIRS,
    Case { name: "kube-proxy iptables (legacy)", mode: "iptables", flavour: "legacy", ..THEIRS },
    Case { name: "kube-proxy iptables (nft)", mode: "iptables", most: 1000, ..THEIRS },
];

impl Case {
    /// Where it serves its metrics, inside the node.
    pub fn metrics_port(&self) -> u16 {
        if self.ours { roles::PROXY_METRICS } else { METRICS }
    }

    /// How it is started in the node of a lab; its files go into the cluster's folder.
    pub fn command(&self, options: &Options, cluster: &Cluster, lab: &Lab) -> Result<Command> {
        let dir = cluster.dir().join(lab.node.name());
        std::fs::create_dir_all(&dir)?;
        let mut command = if self.ours {
            let mut command = Command::new(std::env::current_exe()?);
            let mode =
                if self.mode == "iptables" { format!("iptables-{}", self.flavour) } else { self.mode.to_owned() };
            command.args(["role", "proxy", &mode]).arg(&cluster.kubeconfig).arg(dir.join("state"));
            command
        } else {
            let file = dir.join("kube-proxy.json");
            std::fs::write(&file, serde_json::to_vec_pretty(&self.config(&cluster.kubeconfig))?)?;
            let mut command = Command::new(program(&options.out).context("kube-proxy is not built")?);
            command.arg("--config").arg(file);
            command
        };
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", iptables(&dir, self.flavour)?.display()));
        Ok(inside(lab.node.name(), &command))
    }

    fn config(&self, kubeconfig: &Path) -> serde_json::Value {
        let never = json!({"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
            "udpTimeout": "0s", "udpStreamTimeout": "0s"});
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": self.mode,
            "clientConnection": {"kubeconfig": kubeconfig}, "hostnameOverride": NODE,
            "detectLocalMode": "ClusterCIDR", "clusterCIDR": "10.244.0.0/15",
            "metricsBindAddress": format!("127.0.0.1:{METRICS}"), "healthzBindAddress": "127.0.0.1:10256",
            // The machine's own limits are left alone.
            "conntrack": never,
            "nftables": {"minSyncPeriod": MIN_SYNC, "syncPeriod": "1h"},
            "iptables": {"minSyncPeriod": MIN_SYNC, "syncPeriod": "1h"},
        })
    }
}

/// The built kube-proxy, if it could be built.
pub fn program(out: &Path) -> Option<PathBuf> {
    built(out, "kube-proxy")
}

/// A program that `go_peers.sh` has built; its name ends with its version.
pub fn built(out: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(out.join("peers.go")).ok()?.flatten().map(|e| e.path());
    let is = |p: &PathBuf| {
        let file = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let version = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')).unwrap_or_default();
        version.starts_with(|c: char| c.is_ascii_digit()) && !version.ends_with(".new")
    };
    entries.filter(is).max()
}

/// What they call themselves.
pub fn version(out: &Path) -> String {
    program(out).map(|p| said(Command::new(p).arg("--version"))).unwrap_or_default()
}

/// A folder in which `iptables` and its family are those of one flavour.
fn iptables(dir: &Path, flavour: &str) -> Result<PathBuf> {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin)?;
    for family in ["iptables", "ip6tables"] {
        for tool in ["", "-save", "-restore"] {
            symlink(format!("/usr/sbin/xtables-{flavour}-multi"), bin.join(format!("{family}{tool}")))?;
        }
    }
    Ok(bin)
}
